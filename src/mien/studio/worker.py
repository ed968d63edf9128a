"""The process that reconstructs for the studio, one task at a time.

The server stays quick while it works, a photo that makes it crash costs only itself, and its memory has a limit.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection

import torch

from mien.errors import MienError
from mien.export.shape_targets import reshaped
from mien.io.photo import read_photo
from mien.memory import typed_out_of_memory
from mien.perception import Pin
from mien.result import Reconstruction
from mien.studio.person_work import work_on_person
from mien.studio.protocol import (
    SOURCE_NAME,
    AnyTask,
    Cancelled,
    Detected,
    Failed,
    Finished,
    PersonTask,
    Ready,
    ShapeTask,
    Task,
    VideoTask,
)
from mien.studio.video_work import work_on_video
from mien.studio.work import (
    FINAL_FORMATS,
    SHAPE_FORMATS,
    Networks,
    Outbox,
    Stopped,
    outline,
    write_head,
    write_preview,
)


def run(connection: Connection, *, device: str, threads: int, memory_bytes: int) -> None:
    """The main function of the process: work on tasks until the connection ends.

    Args:
        connection: Tasks come in, messages go out. Anything that comes in during the work on a task stops it.
        device: As in `Reconstructor`.
        threads: Number of threads of torch.
        memory_bytes: Limit of the process's data; 0 for no limit. It exists on Linux only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the server ends this one
    threading.Thread(target=_end_with_server, daemon=True).start()
    torch.set_num_threads(threads)
    _limit_memory(memory_bytes)
    networks, outbox = Networks(device), Outbox(connection)
    networks.warm_up()
    with suppress(EOFError, ConnectionError):  # the server has ended
        outbox.send(Ready())
        while True:
            task = connection.recv()
            if isinstance(task, AnyTask):  # a stop that came after the end of its task is not one
                _work(task, networks, outbox)


def _work(task: AnyTask, networks: Networks, outbox: Outbox) -> None:
    """One task, from its first message to its last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            match task:
                case Task():
                    _work_on_photo(task, networks, outbox)
                case ShapeTask():
                    _reshape(task, networks, outbox)
                case PersonTask():
                    work_on_person(task, networks, outbox)
                case VideoTask():
                    work_on_video(task, networks, outbox)
        except Stopped:
            outbox.send(Cancelled())
            return
        except MienError as error:
            outbox.send(Failed(type(error).__name__, _without_paths(str(error), task)))
            return
    outbox.send(Finished(tuple(_without_paths(str(found.message), task) for found in caught if _is_ours(found))))


def _without_paths(text: str, task: AnyTask) -> str:
    """A message without the names of the server's files; users know their own."""
    return re.sub(rf"{re.escape(str(task.folder))}/\w+: ", "", text)


@typed_out_of_memory
def _work_on_photo(task: Task, networks: Networks, outbox: Outbox) -> None:
    reconstructor = networks.reconstructor(task.mode, detail=task.detail)
    outbox.stage("reading", 0.0)
    photo = read_photo(task.photo, max_pixels=task.max_pixels)
    pins = [[Pin(*place) for place in places] for places in task.pins]
    steps = reconstructor.steps(photo, focal_px=task.focal_px, pins=pins, progress=outbox.stage)
    formats, written = task.formats or FINAL_FORMATS, dict[int, Reconstruction]()
    for step in steps:
        if step.name == "detected":
            write_preview(photo.pixels, task.folder)
            height, width = photo.pixels.shape[:2]
            outbox.send(Detected(width, height, tuple(map(outline, step.detections))))
        for number, face in enumerate(step.faces):
            if face is not None and written.get(number) is not face:
                written[number] = face
                outbox.stage("writing", 0.0)
                outbox.send(
                    write_head(
                        face,
                        networks.model,
                        task.folder,
                        number=number,
                        step=step.name,
                        photo=photo,
                        formats=formats,
                    )
                )


@typed_out_of_memory
def _reshape(task: ShapeTask, networks: Networks, outbox: Outbox) -> None:
    outbox.stage("reading", 0.0)
    model = networks.model
    face = reshaped(Reconstruction.load(task.folder / SOURCE_NAME), model, dict(task.strengths))
    outbox.stage("writing", 0.0)
    outbox.send(
        write_head(face, model, task.folder, number=task.face, step="detail", photo=None, formats=SHAPE_FORMATS)
    )


def _is_ours(found: warnings.WarningMessage) -> bool:
    return found.category.__module__ == "mien.errors"


def _limit_memory(memory_bytes: int) -> None:
    if memory_bytes and sys.platform == "linux":
        import resource  # noqa: PLC0415 (Unix only)

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _end_with_server() -> None:
    server = parent_process()
    if server is not None:
        server.join()
        os._exit(1)
