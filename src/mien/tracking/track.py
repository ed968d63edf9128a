"""The result for one person of a video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.files import write_whole, writing
from mien.io.npz import NpzReader, write_npz
from mien.result import Reconstruction
from mien.typing import Bool, Float, Int

TRACK_FILE = "tracking.npz"
FORMAT = "mien-track-1"


@dataclass(frozen=True, eq=False, repr=False)
class TrackRows:
    """The motion of one person in N frames."""

    frames: Int[np.ndarray, "N"]
    """Numbers of the frames, rising; frames without the person are missing."""
    times_s: Float[np.ndarray, "N"]
    """When the frames are shown, seconds from the first frame of the video."""
    segments: Int[np.ndarray, "N"]
    """Number of the stretch that a frame belongs to. Cuts and long gaps divide stretches; motion is continuous within
    one."""
    detected: Bool[np.ndarray, "N"]
    """Whether the face was found; elsewhere, in gaps of at most half a second, pose and expression are interpolated."""
    confidence: Float[np.ndarray, "N"]
    """Probability that the mesh network saw a face, 0 to 1; 0 where it was not found."""
    rotation: Float[np.ndarray, "N 3 3"]
    """Rotation of the head, in model axes."""
    translation: Float[np.ndarray, "N 3"]
    """Position of the model's origin in camera space, metres."""
    expression: Float[np.ndarray, "N E"]
    """Expression coefficients: strengths of the blendshapes, 0 to 1, for the packaged model."""
    gaze: Float[np.ndarray, "N 2 2"]
    """Yaw to the subject's left and pitch upwards of the left eye, then of the right one, relative to the head,
    radians."""
    landmarks68: Float[np.ndarray, "N 68 2"]
    """The model's landmarks, pixels, in iBUG order."""
    detected68: Float[np.ndarray, "N 68 2"]
    """The detected landmarks, pixels; those of the nearest frame where the face was not found."""

    @classmethod
    def join(cls, parts: Sequence[TrackRows]) -> TrackRows:
        """The frames of all parts, which are in the order of time."""
        names = [field.name for field in fields(TrackRows)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, eq=False, repr=False)
class Track(TrackRows):
    """One person in N frames of a video, as NumPy arrays; 1.5 kB per frame.

    The conventions are those of `Reconstruction`: metres, pixels of the upright frame, and with the model's axes x to
    the subject's left, y up and z out of the face:

        x_camera = diag(1, -1, -1) @ (rotation @ x_model) + translation
        x_pixel = focal_px · x_camera / z_camera + centre_px

    Example:
        >>> track = mien.track("video.mp4")[0]
        >>> track.times_s[0], track.expression[0, track.expression_names.index("jawOpen")]
    """

    number: int
    """0 for the person who is seen in most frames."""
    model_name: str
    """Name of the face model."""
    image_size: tuple[int, int]
    """Width and height of the upright frames, pixels."""
    rate: float
    """Mean number of frames per second of the video."""
    focal_px: float
    """Focal length of all frames, pixels."""
    centre_px: Float[np.ndarray, "2"]
    """Principal point of all frames, pixels."""
    identity: Float[np.ndarray, "I"]
    """Identity coefficients of the person, standard deviations of the population."""
    expression_names: tuple[str, ...]
    """Names of the expression coefficients."""
    portrait: Reconstruction | None
    """The person in the most frontal of the frames that the identity comes from, with texture; None after `load`."""
    portrait_identities: Float[np.ndarray, "K I"]
    """Identity from each single one of these frames: how much they differ shows how sure `identity` is."""
    portrait_frames: Int[np.ndarray, "K"]
    """Their numbers."""
    portrait_weights: Float[np.ndarray, "K"]
    """Their weights in `identity`, sum 1."""

    def __repr__(self) -> str:
        count = len(self.frames)
        return f"Track(number={self.number}, {count} frames, {self.times_s[0]:.2f} to {self.times_s[-1]:.2f} s)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tracking.npz`: all but the portrait, in single precision.

        Args:
            path: The folder, or the file.

        Raises:
            OutputError: The place cannot be written.
        """
        file = _file_of(path)
        arrays = {name: getattr(self, name) for name in _per_frame()}
        arrays |= {name: getattr(self, name) for name in ("identity", "centre_px")}
        arrays |= {name: getattr(self, f"portrait_{name}") for name in ("identities", "weights")}
        arrays["portrait_frames"] = self.portrait_frames
        arrays = {name: _stored(array) for name, array in arrays.items()}
        arrays["times_s"] = self.times_s.astype(np.float64)
        arrays |= {
            "format": np.array(FORMAT),
            "model_name": np.array(self.model_name),
            "expression_names": np.array(self.expression_names, "U"),
            "image_size": np.array(self.image_size, np.int32),
            "number": np.array(self.number, np.int32),
            "camera": np.array([self.focal_px, self.rate], np.float64),
        }
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda partial: write_npz(arrays, partial))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Track:
        """Read what `save` wrote.

        Args:
            path: The folder, or the file.

        Returns:
            The track, without its portrait.

        Raises:
            FormatError: The file is missing, damaged or of another version.
        """
        file = _file_of(path)
        stored = NpzReader(file)
        if stored.text("format", "") != FORMAT:
            raise FormatError(f"{file}: its format is {stored.text('format', '')!r}; expected {FORMAT}.")
        focal_px, rate = stored.array("camera").tolist()
        width, height = stored.array("image_size").tolist()
        return cls(
            number=int(stored.array("number")),
            model_name=stored.text("model_name", ""),
            image_size=(width, height),
            rate=rate,
            focal_px=focal_px,
            centre_px=stored.array("centre_px"),
            identity=stored.array("identity"),
            **{name: stored.array(name) for name in _per_frame()},
            expression_names=tuple(stored.array("expression_names").tolist()),
            portrait=None,
            portrait_identities=stored.array("identities"),
            portrait_frames=stored.array("portrait_frames"),
            portrait_weights=stored.array("weights"),
        )


def _per_frame() -> list[str]:
    return [field.name for field in fields(TrackRows)]


def _file_of(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path / TRACK_FILE


def _stored(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
