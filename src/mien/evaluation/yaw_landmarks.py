"""Landmark errors by head turn, on photos with .mat files: AFLW2000-3D and 300W-LP (Zhu et al., CVPR 2016).

NME is, per face, the mean distance of the 68 points divided by √(width · height) of the box around the annotated ones.
Faces are grouped by the size of the annotated yaw, and the mean of the three groups is the benchmark's figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.errors import ConfigError, FormatError, MienError
from mien.evaluation.landmarks import matching_face
from mien.evaluation.report import markdown_table
from mien.io.photo import read_photo
from mien.io.photo_files import SUFFIXES
from mien.morphable.formats.mat5 import read_mat
from mien.pipeline import Reconstructor
from mien.typing import Float

YAW_BINS = ((0, 30), (30, 60), (60, 90))
"""Limits of the groups in degrees; a face at 30° belongs to the first."""
_VARIABLES = frozenset({"pt3d_68", "pt2d", "Pose_Para"})


@dataclass(frozen=True)
class TurnedFace:
    """A photo with 68 points of one face and its yaw."""

    path: Path
    """The photo."""
    landmarks_px: Float[np.ndarray, "68 2"]
    """Points in iBUG order; the centre of the first pixel is at (0.5, 0.5). Hidden points are included."""
    yaw_deg: float
    """Turn to the side, degrees; its sign depends on the data set."""


@dataclass(frozen=True)
class YawRow:
    """The result of one photo."""

    name: str
    """File name of the photo."""
    yaw_deg: float
    """Annotated yaw."""
    nme: float | None
    """NME; None if the face was not found."""
    reason: str = ""
    """Why there is no result."""


@dataclass(frozen=True)
class YawReport:
    """Results of one run."""

    rows: tuple[YawRow, ...]
    """One per photo."""

    def nme(self, low: int, high: int) -> float:
        """Mean NME of the faces found in one group; NaN if there is no such face."""
        found = [row.nme for row in self._group(low, high) if row.nme is not None]
        return float(np.mean(found)) if found else float("nan")

    @property
    def mean(self) -> float:
        """Mean of the groups' NME, so that few turned faces weigh as much as many frontal ones."""
        means = np.array([self.nme(*limits) for limits in YAW_BINS])
        return float(means[np.isfinite(means)].mean()) if np.isfinite(means).any() else float("nan")

    def table(self) -> str:
        """The figures as a Markdown table, and the photos without a result."""
        rows = []
        for low, high in YAW_BINS:
            group = self._group(low, high)
            found = sum(row.nme is not None for row in group)
            rows.append([f"{low}° to {high}°", len(group), found, _percent(self.nme(low, high))])
        found = sum(row.nme is not None for row in self.rows)
        rows.append(["mean of the groups", len(self.rows), found, _percent(self.mean)])
        lines = [markdown_table(["yaw", "photos", "found", "NME68 %"], rows)]
        return "\n".join([*lines, *(f"{row.name} failed: {row.reason}" for row in self.rows if row.nme is None)])

    def _group(self, low: int, high: int) -> list[YawRow]:
        return [row for row in self.rows if low < abs(row.yaw_deg) <= high or (low == 0 == row.yaw_deg)]


def holds_mat_landmarks(folder: Path) -> bool:
    """Whether a folder holds photos with .mat files of the same name."""
    return any(_photo_beside(path) is not None for path in sorted(folder.glob("*.mat")))


def read_turned_faces(folder: Path) -> list[TurnedFace]:
    """Read `NAME.jpg` with `NAME.mat`: `Pose_Para` (pitch, yaw, roll, …) and `pt3d_68` or `pt2d`, both for MATLAB.

    MATLAB counts pixels from 1, so the centre of the first pixel is at (1, 1) in the files.

    Raises:
        FormatError: A file is damaged or lacks a variable, or the folder has no such photos.
    """
    faces = []
    for path in sorted(folder.glob("*.mat")):
        photo = _photo_beside(path)
        if photo is not None:
            faces.append(_read_face(path, photo))
    if not faces:
        raise FormatError(f"{folder} holds no photos with .mat files of the same name.")
    return faces


def _photo_beside(path: Path) -> Path | None:
    return next((path.with_suffix(end) for end in sorted(SUFFIXES) if path.with_suffix(end).is_file()), None)


def _read_face(path: Path, photo: Path) -> TurnedFace:
    found = read_mat(path, _VARIABLES)
    points = found.get("pt3d_68", found.get("pt2d"))
    if points is None or points.shape[0] not in {2, 3} or points.shape[1:] != (68,):
        raise FormatError(f"{path}: lacks 68 points in pt3d_68 (3 × 68) or pt2d (2 × 68).")
    pose = found.get("Pose_Para")
    if pose is None or pose.size < 3:
        raise FormatError(f"{path}: lacks Pose_Para with pitch, yaw and roll.")
    return TurnedFace(photo, points[:2].T.astype(np.float64) - 0.5, float(np.degrees(pose.reshape(-1)[1])))


def box_nme(predicted: Float[np.ndarray, "68 2"], gt: Float[np.ndarray, "68 2"]) -> float:
    """Mean distance of the points, divided by the square root of the area of the box around the annotated ones."""
    width, height = gt.max(0) - gt.min(0)
    return float(np.linalg.norm(predicted - gt, axis=1).mean() / np.sqrt(width * height))


def evaluate_yaw(
    folder: Path,
    reconstructor: Reconstructor,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> YawReport:
    """Measure the 68 points of the fitted model on photos with .mat files.

    The points are vertices of the model, also those of the jaw: in these data sets they do not move to the visible
    outline when the head turns.

    Args:
        folder: Folder of `read_turned_faces`.
        reconstructor: Reconstructs each photo.
        limit: Maximum number of photos, evenly spaced.
        progress: Called after each photo with the number of photos done and in total.

    Raises:
        FormatError: The folder has no such photos, or a file is damaged.
        ConfigError: `limit` is below 1.
    """
    faces = read_turned_faces(folder)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} is too small; use at least 1.")
    if limit is not None:
        faces = [
            faces[k] for k in np.unique(np.linspace(0, len(faces) - 1, min(limit, len(faces))).round().astype(int))
        ]
    rows = []
    for done, face in enumerate(faces, 1):
        rows.append(_measure(face, reconstructor))
        if progress is not None:
            progress(done, len(faces))
    return YawReport(tuple(rows))


def _measure(face: TurnedFace, reconstructor: Reconstructor) -> YawRow:
    name = face.path.name
    try:
        found = reconstructor(read_photo(face.path))
    except MienError as error:
        return YawRow(name, face.yaw_deg, None, f"{type(error).__name__}: {error}")
    vertices = reconstructor.model.landmarks68.cpu().numpy()
    points = [result.xy[vertices].astype(np.float64) for result in found]
    best = matching_face(points, face.landmarks_px)
    if best is None:
        return YawRow(name, face.yaw_deg, None, f"{len(points)} faces found, but not the annotated one")
    return YawRow(name, face.yaw_deg, box_nme(points[best], face.landmarks_px))


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if np.isfinite(value) else ""
