"""The process that reconstructs the photos of the studio, one at a time.

The server stays quick while it works, a photo that makes it crash costs only itself, and its memory has a limit.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from importlib.resources import as_file, files
from importlib.util import find_spec
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image

from mien.errors import MienError
from mien.export import head_glb_bytes, write_files
from mien.export.head_looks import head_looks
from mien.export.rig import make_rig
from mien.export.shape_targets import reshaped, with_shape_targets
from mien.io.files import writing_folder
from mien.io.photo import Photo, read_photo
from mien.io.result_files import HEAD, MeshOptions
from mien.memory import typed_out_of_memory
from mien.morphable import MorphableModel, load_head
from mien.perception import Pin
from mien.pipeline import Reconstructor
from mien.pipeline.reconstructor import ReconstructionStep
from mien.result import Reconstruction
from mien.studio.protocol import (
    PREVIEW_NAME,
    SOURCE_NAME,
    STEP_FILES,
    Cancelled,
    Detected,
    FaceOutline,
    Failed,
    Finished,
    HeadReady,
    Message,
    Ready,
    ShapeTask,
    Stage,
    Task,
)

_PREVIEW_PX = 1600
_QUICK_ATLAS = 512
"""Side of the skin's atlas of a head that a better one replaces within a second."""
_USD = ("usd",) if find_spec("pxr") else ()  # usd-core is an extra of its own
_SHAPE_FORMATS = ("glb", "obj", "ply", *_USD, "vrm", "maps", "npz", "json")
"""Files of a face whose shape was changed: no photo shows it."""
_FINAL_FORMATS = (*_SHAPE_FORMATS, "sheet", "overlay")


class _Stopped(Exception):
    """The server has asked to stop the work on this photo."""


def run(connection: Connection, *, device: str, threads: int, memory_bytes: int) -> None:
    """The main function of the process: reconstruct photos until the connection ends.

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
    worker = _Worker(connection, device)
    with suppress(EOFError, ConnectionError):  # the server has ended
        connection.send(Ready())
        while True:
            task = connection.recv()
            if isinstance(task, Task | ShapeTask):  # a stop that came after the end of its task is not one
                worker(task)


class _Worker:
    def __init__(self, connection: Connection, device: str) -> None:
        self._connection, self._device = connection, device
        self._reconstructors: dict[tuple[str, bool], Reconstructor] = {}
        self._reconstructor("auto", detail=True)
        self._warm_up()

    def __call__(self, task: Task | ShapeTask) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                if isinstance(task, Task):
                    self._work(task)
                else:
                    self._reshape(task)
            except _Stopped:
                self._send(Cancelled())
                return
            except MienError as error:
                # The names of files here are the server's; users know their own.
                self._send(Failed(type(error).__name__, str(error).replace(f"{task.folder}/photo: ", "")))
                return
        self._send(Finished(tuple(str(found.message) for found in caught if _is_ours(found))))

    @typed_out_of_memory
    def _work(self, task: Task) -> None:
        reconstructor = self._reconstructor(task.mode, detail=task.detail)
        self._stage("reading", 0.0)
        photo = read_photo(task.photo, max_pixels=task.max_pixels)
        pins = [[Pin(*place) for place in places] for places in task.pins]
        steps = reconstructor.steps(photo, focal_px=task.focal_px, pins=pins, progress=self._stage)
        formats, written = task.formats or _FINAL_FORMATS, dict[int, Reconstruction]()
        for step in steps:
            if step.name == "detected":
                _write_preview(photo, task.folder / PREVIEW_NAME)
                self._send(_detected(step, photo))
            for index, face in enumerate(step.faces):
                if face is not None and written.get(index) is not face:
                    written[index] = face
                    self._write(index, face, step.name, photo, parent=task.folder, formats=formats)

    @typed_out_of_memory
    def _reshape(self, task: ShapeTask) -> None:
        self._stage("reading", 0.0)
        face = reshaped(Reconstruction.load(task.folder / SOURCE_NAME), self._model, dict(task.strengths))
        self._write(task.face, face, "detail", None, parent=task.folder, formats=_SHAPE_FORMATS)

    def _write(
        self,
        index: int,
        face: Reconstruction,
        step: str,
        photo: Photo | None,
        *,
        parent: Path,
        formats: tuple[str, ...],
    ) -> None:
        self._stage("writing", 0.0)
        folder = parent / f"face{index}"
        with writing_folder(folder) as partial:
            (partial / STEP_FILES[step]).write_bytes(self._shown(face, final=step == "detail"))
        if step == "detail":
            write_files(face, self._model, photo, folder, formats=formats, options=MeshOptions((HEAD,)))
        self._send(
            HeadReady(
                face=index,
                step=step,
                files=tuple(sorted(path.name for path in folder.iterdir())),
                view=_rows(face.view_matrix_opengl.tolist()),
                projection=_rows(face.projection_matrix_opengl().tolist()),
                landmark_error=face.landmark_error,
                notes=(face.quality.advice(),) if face.quality is not None and face.quality.flags else (),
            )
        )

    def _shown(self, face: Reconstruction, *, final: bool) -> bytes:
        """The GLB file for the page."""
        rig = make_rig(face, self._model, HEAD)
        if final:
            return head_glb_bytes(face, self._model, rig=with_shape_targets(rig, self._model))
        looks = head_looks(face, self._model, load_head(self._model), smallest_atlas=_QUICK_ATLAS)
        return head_glb_bytes(face, self._model, rig=rig, looks=looks)

    @property
    def _model(self) -> MorphableModel:
        return self._reconstructors["auto", True].model

    def _reconstructor(self, mode: str, *, detail: bool) -> Reconstructor:
        key = mode, detail
        if key not in self._reconstructors:
            model = next((known.model for known in self._reconstructors.values()), "mien-face")
            self._reconstructors[key] = Reconstructor(model, mode=mode, detail=detail, device=self._device)
        return self._reconstructors[key]

    def _warm_up(self) -> None:
        """Do once what is slow at first use, so that the first photo is as quick as the others."""
        reconstructor = self._reconstructors["auto", True]
        _ = reconstructor.identity_network
        with as_file(files("mien.studio").joinpath("static/examples/astronaut.jpg")) as path:
            for step in reconstructor.steps(path):
                if step.name == "network" and step.faces[0] is not None:
                    self._shown(step.faces[0], final=False)
                    return

    def _stage(self, stage: str, share: float) -> None:
        if self._connection.poll():
            self._connection.recv()
            raise _Stopped
        self._send(Stage(stage, share))

    def _send(self, message: Message) -> None:
        self._connection.send(message)


def _write_preview(photo: Photo, path: Path) -> None:
    image = Image.fromarray(photo.pixels)
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    image.save(path, format="JPEG", quality=88)


def _detected(step: ReconstructionStep, photo: Photo) -> Detected:
    height, width = photo.pixels.shape[:2]
    outlines = [
        FaceOutline(
            box=tuple(map(float, face.box_px)),  # pyright: ignore[reportArgumentType]  (four numbers)
            landmarks=tuple((float(x), float(y)) for x, y in face.landmarks68_px),
        )
        for face in step.detections
    ]
    return Detected(width, height, tuple(outlines))


def _rows(matrix: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix))


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
