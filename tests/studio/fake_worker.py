"""A worker process without networks, whose photo says what it does."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

from mien.studio.protocol import (
    SOURCE_NAME,
    Cancelled,
    Detected,
    FaceOutline,
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

EYE = tuple(tuple(float(i == k) for k in range(4)) for i in range(4))
OUTLINE = FaceOutline((10.0, 20.0, 60.0, 70.0), tuple((float(k), 30.0) for k in range(68)))


def run(connection: Connection) -> None:
    """Work until the server closes the connection."""
    connection.send(Ready())
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        if isinstance(task, Task):
            _work(connection, task)
        elif isinstance(task, PersonTask):
            _work_on_person(connection, task)
        elif isinstance(task, VideoTask):
            _work_on_video(connection, task)
        elif isinstance(task, ShapeTask):
            source = sorted(path.name for path in (task.folder / SOURCE_NAME).iterdir())
            notes = (f"{source}, {task.strengths}",)
            connection.send(HeadReady(task.face, "detail", ("head.glb",), EYE, EYE, 0.02, notes))
            connection.send(Finished(()))


def run_with_options(connection: Connection, **_options: object) -> None:
    """In the place of `run_worker`."""
    run(connection)


def _work(connection: Connection, task: Task) -> None:
    match task.photo.read_bytes():
        case b"die":
            os._exit(3)
        case b"bad":
            connection.send(Failed("ImageError", "this is no photo; send another."))
            return
        case b"slow":
            for _ in range(200):
                if connection.poll():
                    connection.recv()
                    connection.send(Cancelled())
                    return
                time.sleep(0.05)
        case b"stuck":
            time.sleep(60)
    connection.send(Stage("perception", 0.0))
    (task.folder / preview_name(0)).write_bytes(b"jpeg")
    connection.send(Detected(100, 80, (OUTLINE,)))
    folder = task.folder / "face0"
    folder.mkdir()
    (folder / "head.glb").write_bytes(b"glTF")
    (folder / "secret.txt").write_text("not a result")
    (folder / "network.glb").write_bytes(b"light")
    (folder / "reconstruction.npz").write_bytes(b"arrays")
    (folder / "coefficients.json").write_text("{}")
    quick = ("network.glb", "secret.txt")
    for step, files in (
        ("network", quick),
        ("detail", (*quick, "head.glb", "reconstruction.npz", "coefficients.json")),
    ):
        notes = (f"{task.mode}, pins: {len(task.pins)}, formats: {task.formats}",)
        connection.send(HeadReady(0, step, files, EYE, EYE, 0.02, notes))
        if task.photo.read_bytes() == b"half":
            connection.send(Failed("FitDiverged", "the face could not be fitted."))
            return
    connection.send(Finished(("a warning",)))


def _work_on_person(connection: Connection, task: PersonTask) -> None:
    """The first photo is the best, and a photo that says "other" is of somebody else."""
    contents = {number: task.photo_path(number).read_bytes() for number in task.photos}
    if b"slow" in contents.values():
        _wait_for_stop(connection)
        return
    for number in task.photos:
        (task.folder / preview_name(number)).write_bytes(b"jpeg of " + contents[number])
        connection.send(Detected(100, 80 + number, (OUTLINE,), number))
    for number, content in contents.items():
        left_out = content == b"other"
        reason = "no face in it is the person" if left_out else ""
        connection.send(
            Matched(number, None if left_out else 0, 0.0 if left_out else 0.9, reason, number == task.photos[0])
        )
    for number, content in contents.items():
        if content != b"other":
            folder = task.folder / f"face{number}"
            folder.mkdir()
            (folder / "head.glb").write_bytes(b"glTF of " + content)
            connection.send(HeadReady(number, "detail", ("head.glb",), EYE, EYE, 0.02, ()))
    connection.send(Finished(()))


def _work_on_video(connection: Connection, task: VideoTask) -> None:
    """One person with a head, seen in two stretches."""
    if task.video.read_bytes() == b"slow":
        _wait_for_stop(connection)
        return
    connection.send(VideoOpened(100, 80, 25.0, 50))
    connection.send(Frames("following faces", 25, 50, 30.0, 1.5))
    folder = task.folder / "person0"
    folder.mkdir()
    for name in ("head.glb", "tracking.npz", "secret.txt"):
        (folder / name).write_bytes(name.encode())
    files = ("head.glb", "secret.txt", "tracking.npz")
    connection.send(PersonTracked(0, files, 40, ((0.0, 0.8), (1.0, 2.0)), ((0.4, 0.6),)))
    if task.video.read_bytes() != b"undrawn":
        task.overlay.write_bytes(b"overlay")
        connection.send(OverlayReady())
    connection.send(Finished(()))


def _wait_for_stop(connection: Connection) -> None:
    """Ten seconds of work that can be stopped."""
    for _ in range(200):
        if connection.poll():
            connection.recv()
            connection.send(Cancelled())
            return
        time.sleep(0.05)
