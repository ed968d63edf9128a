"""What the server and its worker processes say to each other.

The classes are plain data: they are pickled from process to process, and the worker's go on to the page as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SOURCE_NAME = "source"
"""The folder of an earlier result in that of a job that changes it."""
STEP_FILES = {"network": "network.glb", "fit": "fit.glb", "detail": "detail.glb"}
"""The head that the page shows after each step. Those before the last are light; the last one has the sliders of the
shape as morph targets."""


def preview_name(photo: int) -> str:
    """Name of an upright photo in the folder of its job, for the page."""
    return f"upright{photo}.jpg"


@dataclass(frozen=True)
class Task:
    """A photo to reconstruct."""

    photo: Path
    """The uploaded file, under a name that the server chose."""
    folder: Path
    """Where the results go."""
    mode: str
    """"auto", "fit" or "net"."""
    detail: bool
    focal_px: float | None
    pins: tuple[tuple[tuple[int, float, float], ...], ...]
    """Placed landmarks of each face: number, x and y in pixels of the upright photo. `mien.perception.Pin` would import
    torch here."""
    max_pixels: int
    formats: tuple[str, ...] | None = None
    """What is written of a finished face, some of `mien.io.result_files.FORMATS`; None for all that a page offers."""


@dataclass(frozen=True)
class ShapeTask:
    """A face of an earlier result to write again with another shape."""

    folder: Path
    """Where the results go. The earlier result lies there under `SOURCE_NAME`."""
    face: int
    """Number of the face."""
    strengths: tuple[tuple[str, float], ...]
    """Strength of each slider by its name in `mien.export.shape_targets`, −1 to 1."""


@dataclass(frozen=True)
class PersonTask:
    """Several photos of one person, to reconstruct together."""

    folder: Path
    """Where the results go. The photos lie there, see `photo_path`."""
    photos: tuple[int, ...]
    """Numbers of the photos, rising."""
    mode: str
    detail: bool
    focal_px: float | None
    max_pixels: int

    def photo_path(self, number: int) -> Path:
        """Place of an uploaded photo."""
        return self.folder / f"photo{number}"


@dataclass(frozen=True)
class VideoTask:
    """A video whose faces are tracked."""

    video: Path
    """The uploaded file, under a name that the server chose."""
    folder: Path
    """Where the results go."""
    mode: str
    """"net" or "fit"."""
    focal_px: float | None
    max_faces: int | None
    max_seconds: float
    """Longer videos are refused."""

    @property
    def overlay(self) -> Path:
        """Place of the video with the shape of each person over it."""
        return self.folder / "overlay.mp4"


AnyTask = Task | ShapeTask | PersonTask | VideoTask


@dataclass(frozen=True)
class Ready:
    """The worker has loaded its networks."""


@dataclass(frozen=True)
class Stage:
    """A stage of the work on a photo has begun or gone on."""

    stage: str
    share: float
    """Part of the stage that is done, 0 to 1."""


@dataclass(frozen=True)
class Frames:
    """How far a stage of the work on a video is."""

    stage: str
    done: int
    """Frames that are done."""
    total: int | None
    """All frames; None if unknown."""
    per_second: float | None
    """Frames per second; None as long as it is unknown."""
    seconds_left: float | None
    """Time until the stage ends; None if unknown."""


@dataclass(frozen=True)
class VideoOpened:
    """What is known of a video before its frames are read."""

    width: int
    height: int
    rate: float
    """Mean number of frames per second."""
    frames: int | None
    """Number of frames, as far as the file tells."""


@dataclass(frozen=True)
class PersonTracked:
    """The files of a person of a video were written, or more of them."""

    person: int
    """0 for the person who is seen in most frames."""
    files: tuple[str, ...]
    """Names of the files that can be downloaded."""
    frames: int
    """Number of frames with the person."""
    spans_s: tuple[tuple[float, float], ...]
    """Begin and end of each stretch in which the person is seen without a cut or a long gap, seconds."""
    interpolated_s: tuple[tuple[float, float], ...]
    """Stretches in which the face was not found, and its motion is interpolated."""


@dataclass(frozen=True)
class OverlayReady:
    """The video with the shape of each person over it was written."""


@dataclass(frozen=True)
class FaceOutline:
    """A detected face, in pixels of the upright photo."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""
    landmarks: tuple[tuple[float, float], ...]
    """68 landmarks in iBUG order."""


@dataclass(frozen=True)
class Detected:
    """The faces of a photo."""

    width: int
    height: int
    faces: tuple[FaceOutline, ...]
    photo: int = 0
    """Number of the photo; 0 for a photo that was sent alone."""


@dataclass(frozen=True)
class Matched:
    """What a photo counts for the person of several photos."""

    photo: int
    """Its number."""
    face: int | None
    """Which of its detected faces is the person; None for a photo that was left out."""
    weight: float
    """Its influence, 0 to 1; 0 for a photo that was left out."""
    reason: str
    """Why it was left out or counts for little; else empty."""
    best: bool
    """Whether it shows the person best: the person's own files are those of this photo."""


@dataclass(frozen=True)
class HeadReady:
    """The files of a face were written, or replaced by better ones."""

    face: int
    """Number of the face in its photo; of a person in several photos, the number of the photo."""
    step: str
    """"network", "fit" or "detail"."""
    files: tuple[str, ...]
    """Names of the files that can be downloaded."""
    view: tuple[tuple[float, ...], ...]
    """OpenGL's view matrix, row by row."""
    projection: tuple[tuple[float, ...], ...]
    """OpenGL's projection matrix."""
    landmark_error: float
    notes: tuple[str, ...]
    """What the user should know about this face, in plain words."""


@dataclass(frozen=True)
class Finished:
    """The results are as good as they get."""

    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """The photo could not be reconstructed."""

    kind: str
    """Name of the error class."""
    reason: str


@dataclass(frozen=True)
class Cancelled:
    """The work was stopped because nobody waits for it."""


Progress = Stage | Frames
"""Messages of which only the newest one matters."""
Message = (
    Ready
    | Stage
    | Frames
    | Detected
    | Matched
    | HeadReady
    | VideoOpened
    | PersonTracked
    | OverlayReady
    | Finished
    | Failed
    | Cancelled
)
