"""The process that reconstructs, with the packaged networks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from mien.result import Reconstruction
from mien.studio.jobs import run_worker
from mien.studio.protocol import (
    PREVIEW_NAME,
    SOURCE_NAME,
    STEP_FILES,
    Cancelled,
    Detected,
    Failed,
    Finished,
    HeadReady,
    Ready,
    ShapeTask,
    Stage,
    Task,
)

PHOTO = files("mien.studio").joinpath("static/examples/astronaut.jpg").read_bytes()


@pytest.fixture(scope="module")
def worker() -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    main = partial(run_worker, device="cpu", threads=1, memory_bytes=0)
    process = context.Process(target=main, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(300)
    assert ours.recv() == Ready()
    yield ours
    ours.close()
    process.join(10)
    assert process.exitcode == 0


def task(folder: Path, photo: bytes, **changes: Any) -> Task:
    (folder / "photo").write_bytes(photo)
    settings: dict[str, Any] = {"mode": "net", "detail": False, "focal_px": None, "pins": (), "max_pixels": 10**7}
    return Task(folder / "photo", folder, **{**settings, **changes})


def messages(worker: Connection) -> Iterator[object]:
    while True:
        assert worker.poll(300)
        message = worker.recv()
        yield message
        if isinstance(message, Finished | Failed | Cancelled):
            return


def test_a_photo_gets_better_step_by_step(worker: Connection, tmp_path: Path) -> None:
    worker.send(task(tmp_path, PHOTO, mode="auto", detail=True))
    found = [message for message in messages(worker) if not isinstance(message, Stage)]
    assert [type(message) for message in found] == [Detected, HeadReady, HeadReady, HeadReady, Finished]
    heads = [message for message in found if isinstance(message, HeadReady)]
    assert [head.step for head in heads] == ["network", "fit", "detail"]
    assert heads[0].files == ("network.glb",)
    assert {*STEP_FILES.values(), "head.glb", "head.obj", "head.vrm", "sheet.png", "coefficients.json"} <= set(
        heads[-1].files
    )
    assert {path.name for path in (tmp_path / "face0").iterdir()} == set(heads[-1].files)
    assert (tmp_path / PREVIEW_NAME).read_bytes()[:2] == b"\xff\xd8"


def test_a_finished_face_gets_another_shape(worker: Connection, tmp_path: Path) -> None:
    worker.send(task(tmp_path, PHOTO))
    list(messages(worker))
    before = Reconstruction.load(tmp_path / "face0")
    (tmp_path / "job").mkdir()
    (tmp_path / "face0").rename(tmp_path / "job" / SOURCE_NAME)
    worker.send(ShapeTask(tmp_path / "job", 0, (("identity:2", 0.5),)))
    head, end = [message for message in messages(worker) if not isinstance(message, Stage)]
    assert isinstance(head, HeadReady) and isinstance(end, Finished)
    after = Reconstruction.load(tmp_path / "job" / "face0")
    assert after.identity - before.identity == pytest.approx([0, 1.0, *[0] * (len(before.identity) - 2)], abs=1e-5)
    assert {"head.glb", "head.obj", "head.vrm", "detail.glb"} <= set(head.files)
    assert not {"sheet.png", "overlay.png"} & set(head.files)  # no photo shows this face
    worker.send(ShapeTask(tmp_path / "job", 0, (("identity:0", 0.5),)))
    assert isinstance(failed := list(messages(worker))[-1], Failed)
    assert "unknown slider" in failed.reason


def test_chosen_formats_are_written_alone(worker: Connection, tmp_path: Path) -> None:
    worker.send(task(tmp_path, PHOTO, formats=("glb", "json")))
    head = [message for message in messages(worker) if isinstance(message, HeadReady)][-1]
    assert head.files == ("coefficients.json", "detail.glb", "head.glb", "network.glb")


def test_pins_move_the_face(worker: Connection, tmp_path: Path) -> None:
    def detected(**changes: Any) -> Detected:
        worker.send(task(tmp_path, PHOTO, **changes))
        return next(message for message in list(messages(worker)) if isinstance(message, Detected))

    before = detected().faces[0].landmarks[48]
    place = before[0] - 6.0, before[1] + 4.0
    assert detected(pins=(((48, *place),),)).faces[0].landmarks[48] == pytest.approx(place, abs=0.01)


def test_a_broken_photo_fails_without_the_servers_paths(worker: Connection, tmp_path: Path) -> None:
    worker.send(task(tmp_path, b"no photo"))
    (failed,) = [message for message in messages(worker) if not isinstance(message, Stage)]
    assert isinstance(failed, Failed)
    assert failed.kind == "ImageError"
    assert str(tmp_path) not in failed.reason


def test_the_work_stops_when_asked(worker: Connection, tmp_path: Path) -> None:
    worker.send(task(tmp_path, PHOTO, mode="auto", detail=True))
    for message in messages(worker):
        if isinstance(message, Detected):
            worker.send(Cancelled())
        last = message
    assert last == Cancelled()
    worker.send(Cancelled())  # one that comes too late is no task and stops no other
    worker.send(task(tmp_path, PHOTO))
    assert isinstance(list(messages(worker))[-1], Finished)
