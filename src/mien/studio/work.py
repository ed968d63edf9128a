"""What the work on photos, people and videos shares: messages to the server, the networks, and the files of heads."""

from __future__ import annotations

from importlib.resources import as_file, files
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from mien.export import head_glb_bytes, write_files
from mien.export.head_looks import head_looks
from mien.export.rig import make_rig
from mien.export.shape_targets import with_shape_targets
from mien.io.files import writing_folder
from mien.io.photo import Photo
from mien.io.result_files import HEAD, MeshOptions
from mien.morphable import MorphableModel, load_head
from mien.perception import FaceDetection
from mien.pipeline import Reconstructor
from mien.result import Reconstruction
from mien.studio.protocol import STEP_FILES, FaceOutline, HeadReady, Message, Stage, preview_name
from mien.typing import UInt8

_PREVIEW_PX = 1600
_QUICK_ATLAS = 512
"""Side of the skin's atlas of a head that a better one replaces within a second."""
_USD = ("usd",) if find_spec("pxr") else ()  # usd-core is an extra of its own
SHAPE_FORMATS = ("glb", "obj", "ply", *_USD, "vrm", "maps", "npz", "json")
"""Files of a face whose shape was changed: no photo shows it."""
FINAL_FORMATS = (*SHAPE_FORMATS, "sheet", "overlay")
"""All files that the page offers of a face."""


class Stopped(Exception):
    """The server has asked to stop the present work."""


class Outbox:
    """Messages to the server.

    Args:
        connection: Messages go out. Anything that comes in stops the present work.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Message) -> None:
        """Send a message."""
        self._connection.send(message)

    def stage(self, stage: str, share: float) -> None:
        """Tell how far a stage is, see `mien.fitting.Progress`.

        Raises:
            Stopped: The server has asked to stop.
        """
        self.check()
        self.send(Stage(stage, share))

    def check(self) -> None:
        """Stop here if the server has asked for it.

        Raises:
            Stopped: It has.
        """
        if self._connection.poll():
            self._connection.recv()
            raise Stopped


class Networks:
    """The reconstructors that have been used so far; they share the face model.

    Args:
        device: As in `Reconstructor`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._reconstructors: dict[tuple[str, bool], Reconstructor] = {}

    def reconstructor(self, mode: str, *, detail: bool) -> Reconstructor:
        """The reconstructor with these settings."""
        key = mode, detail
        if key not in self._reconstructors:
            model = next((known.model for known in self._reconstructors.values()), "mien-face")
            self._reconstructors[key] = Reconstructor(model, mode=mode, detail=detail, device=self.device)
        return self._reconstructors[key]

    @property
    def model(self) -> MorphableModel:
        """The face model."""
        return self.reconstructor("auto", detail=True).model

    def warm_up(self) -> None:
        """Do once what is slow at first use, so that the first photo is as quick as the others."""
        reconstructor = self.reconstructor("auto", detail=True)
        _ = reconstructor.identity_network
        with as_file(files("mien.studio").joinpath("static/examples/astronaut.jpg")) as path:
            shown_head(quick_face(reconstructor, path), self.model, final=False)


def quick_face(
    reconstructor: Reconstructor,
    photo: Photo | UInt8[np.ndarray, "H W 3"] | Path,
    *,
    focal_px: float | None = None,
) -> Reconstruction:
    """The network's prediction for the most prominent face of a photo, without any fit.

    Args:
        reconstructor: In mode "auto" or "net".
        photo: As in a call of the reconstructor.
        focal_px: As in a call of the reconstructor.

    Raises:
        NoFaceFound: The photo shows no face.
    """
    for step in reconstructor.steps(photo, focal_px=focal_px):
        if step.name == "network" and step.faces[0] is not None:
            return step.faces[0]  # the generator does no work after this step
    raise AssertionError("a reconstructor with an encoder predicts all faces")


def write_head(
    face: Reconstruction,
    model: MorphableModel,
    folder: Path,
    *,
    number: int,
    step: str,
    photo: Photo | None,
    formats: tuple[str, ...],
) -> HeadReady:
    """Write the files of a face after a step.

    Args:
        face: The face.
        model: The face's model.
        folder: The folder of the job.
        number: Number of the face.
        step: Of `STEP_FILES`; after the last one, all files are written.
        photo: The photo that shows the face; None if no photo does.
        formats: What is written after the last step.

    Returns:
        The message that the files are there.
    """
    place = folder / f"face{number}"
    final = step == "detail"
    with writing_folder(place) as partial:
        (partial / STEP_FILES[step]).write_bytes(shown_head(face, model, final=final))
    if final:
        write_files(face, model, photo, place, formats=formats, options=MeshOptions((HEAD,)))
    return HeadReady(
        face=number,
        step=step,
        files=tuple(sorted(path.name for path in place.iterdir())),
        view=_rows(face.view_matrix_opengl.tolist()),
        projection=_rows(face.projection_matrix_opengl().tolist()),
        landmark_error=face.landmark_error,
        notes=(face.quality.advice(),) if face.quality is not None and face.quality.flags else (),
    )


def shown_head(face: Reconstruction, model: MorphableModel, *, final: bool) -> bytes:
    """The GLB file for the page: light, or with the sliders of the shape if it is the final one."""
    rig = make_rig(face, model, HEAD)
    if final:
        return head_glb_bytes(face, model, rig=with_shape_targets(rig, model))
    looks = head_looks(face, model, load_head(model), smallest_atlas=_QUICK_ATLAS)
    return head_glb_bytes(face, model, rig=rig, looks=looks)


def write_preview(pixels: UInt8[np.ndarray, "H W 3"], folder: Path, *, photo: int = 0) -> None:
    """Write an upright photo for the page into the folder of its job."""
    image = Image.fromarray(pixels)
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    image.save(folder / preview_name(photo), format="JPEG", quality=88)


def outline(face: FaceDetection) -> FaceOutline:
    """A detected face for the page."""
    return FaceOutline(
        box=tuple(map(float, face.box_px)),  # pyright: ignore[reportArgumentType]  (four numbers)
        landmarks=tuple((float(x), float(y)) for x, y in face.landmarks68_px),
    )


def _rows(matrix: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix))
