"""The process that reconstructs, with the packaged networks."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mien.io.video import VideoWriter
from mien.result import Reconstruction
from mien.studio.jobs import run_worker
from mien.studio.protocol import (
    SOURCE_NAME,
    STEP_FILES,
    Cancelled,
    Detected,
    Failed,
    Finished,
    Frames,
    HeadReady,
    Matched,
    OverlayReady,
    PersonTask,
    PersonTracked,
    Ready,
    ShapeTask,
    Stage,
    Task,
    VideoOpened,
    VideoTask,
    preview_name,
)
from mien.tracking import Track

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
    assert (tmp_path / preview_name(0)).read_bytes()[:2] == b"\xff\xd8"


def test_photos_of_one_person_become_one_head(worker: Connection, tmp_path: Path) -> None:
    flipped = io.BytesIO()
    with Image.open(io.BytesIO(PHOTO)) as photo:
        photo.crop((0, 0, *photo.size)).resize((400, 400)).save(flipped, "PNG")
    for number, content in {0: b"no photo", 2: PHOTO, 5: flipped.getvalue()}.items():
        (tmp_path / f"photo{number}").write_bytes(content)
    worker.send(PersonTask(tmp_path, (0, 2, 5), "net", False, None, 10**7))
    found = [message for message in messages(worker) if not isinstance(message, Stage)]
    kinds = [HeadReady, *[Detected] * 2, *[Matched] * 3, *[HeadReady] * 3, Finished]
    assert [type(message) for message in found] == kinds
    assert isinstance(found[0], HeadReady) and (found[0].face, found[0].step) == (2, "network")
    assert [(one.photo, len(one.faces)) for one in found if isinstance(one, Detected)] == [(2, 1), (5, 1)]
    matched = {one.photo: one for one in found if isinstance(one, Matched)}
    assert matched[0].weight == 0 and "not a picture" in matched[0].reason and str(tmp_path) not in matched[0].reason
    assert [matched[number].face for number in (0, 2, 5)] == [None, 0, 0]
    assert min(matched[2].weight, matched[5].weight) > 0.25 and matched[2].reason == matched[5].reason == ""
    (best,) = [one.photo for one in matched.values() if one.best]
    heads = {one.face: one for one in found if isinstance(one, HeadReady) and one.step == "detail"}
    assert next(iter(heads)) == best
    assert [(one.face, one.step) for one in found if isinstance(one, HeadReady)][1] == (best, "fit")
    other = {2: 5, 5: 2}[best]
    assert {"detail.glb", "head.glb", "sheet.png", "overlay.png", "reconstruction.npz"} <= set(heads[other].files)
    assert "head.obj" in heads[best].files and "head.obj" not in heads[other].files
    faces = [Reconstruction.load(tmp_path / f"face{number}") for number in (2, 5)]
    assert (faces[0].identity == faces[1].identity).all() and faces[0].image_size != faces[1].image_size


def clip(folder: Path, frames: int) -> VideoTask:
    """A photo that moves to the right, without its face in the frames 4 to 6."""
    pytest.importorskip("av", reason="writes the video")
    with Image.open(io.BytesIO(PHOTO)) as photo:
        small = photo.convert("RGB").resize((240, 240))
    with VideoWriter(folder / "video", size=small.size, rate=25.0) as writer:
        for k in range(frames):
            picture = np.roll(np.asarray(small), k, axis=1).copy()
            if k in range(4, 7):
                picture[:] = 90
            writer.add(picture, k / 25)
    return VideoTask(folder / "video", folder, "net", None, None, 60.0)


def test_a_video_becomes_an_animated_head(worker: Connection, tmp_path: Path) -> None:
    worker.send(clip(tmp_path, 14))
    found = [message for message in messages(worker) if not isinstance(message, Stage)]
    kinds = [VideoOpened, HeadReady, PersonTracked, PersonTracked, OverlayReady, Finished]
    assert [type(message) for message in found if not isinstance(message, Frames)] == kinds
    assert found[0] == VideoOpened(240, 240, 25.0, 14)
    assert isinstance(found[1], HeadReady) and (found[1].step, found[1].files) == ("network", ("network.glb",))
    stages = [(one.stage, one.done, one.total) for one in found if isinstance(one, Frames)]
    assert ("following faces", 14, 14) in stages and ("drawing", 14, 14) in stages
    first, last = (message for message in found if isinstance(message, PersonTracked))
    assert first.files == ("blendshapes.csv", "head.glb", "tracking.npz")
    assert last.files == (*first.files[:2], "sheet.png", "tracking.npz")
    track = Track.load(tmp_path / "person0")
    assert last.frames == len(track.frames)
    covered = sum(end - begin for begin, end in last.spans_s)
    assert covered == pytest.approx(len(track.frames) / 25)
    missing = sum(end - begin for begin, end in last.interpolated_s)
    assert missing == pytest.approx((~track.detected).sum() / 25)
    assert (tmp_path / "overlay.mp4").stat().st_size > 1000


def test_a_video_that_is_too_long_or_none_is_told(worker: Connection, tmp_path: Path) -> None:
    task = clip(tmp_path, 14)
    worker.send(replace(task, max_seconds=0.5))
    failed = list(messages(worker))[-1]
    assert isinstance(failed, Failed) and "longer than 0.5 s" in failed.reason and failed.kind == "VideoError"
    task.video.write_bytes(b"no video")
    worker.send(task)
    failed = list(messages(worker))[-1]
    assert isinstance(failed, Failed) and failed.kind == "VideoError" and str(tmp_path) not in failed.reason


def test_tracking_stops_when_asked(worker: Connection, tmp_path: Path) -> None:
    worker.send(clip(tmp_path, 60))
    for message in messages(worker):
        if isinstance(message, Frames) and message.stage == "following faces":
            worker.send(Cancelled())
            break
    assert list(messages(worker))[-1] == Cancelled()


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
