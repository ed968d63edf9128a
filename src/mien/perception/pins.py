"""Landmarks that a user has placed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mien.errors import ConfigError
from mien.perception.face_detection import FaceDetection
from mien.typing import Float

_REACH_SHARE = 0.08
"""Distance at which a point follows a placed landmark by 60 %, as a share of the size of the face: about half an eye,
so that a lid takes its eye along and not the brow."""
_NARROW = 0.5
"""Reach of a landmark's own movement over its distance from the next pinned one: this one follows by an eighth."""
_SMALLEST_REACH_PX = 0.01
_RIDGE = 0.05
"""Weight of small shares: two landmarks at one place that move apart by 1 pixel have shares of 10 at most."""
_INNER = (17, 68)
"""The iBUG landmarks that can be placed: those of the jaw are computed from the contour, not from single points."""


@dataclass(frozen=True)
class Pin:
    """An iBUG landmark with its place in the photo."""

    landmark: int
    """Number in iBUG order, 17 to 67."""
    x_px: float
    """Pixels from the left of the upright photo."""
    y_px: float
    """Pixels from its top."""


def pinned(detection: FaceDetection, pins: Sequence[Pin]) -> FaceDetection:
    """Move the points of a face so that its landmarks lie where they were placed.

    The displacements of the pins are interpolated by Gaussian functions: each pinned landmark moves to its pin, exactly
    if it is one point of the mesh and nearly if it lies between two, and points far from all pins stay. Landmarks that
    are close together, as the lips of a closed mouth, may move apart; what their movements do not have in common moves
    only what lies between them.

    Args:
        detection: The face.
        pins: The placed landmarks.

    Returns:
        The face with moved points; without pins the same one.

    Raises:
        ConfigError: A landmark is not one of 17 to 67, is placed twice, or a place is not finite.
    """
    if not pins:
        return detection
    numbers = [pin.landmark for pin in pins]
    places = np.array([[pin.x_px, pin.y_px] for pin in pins], float)
    if not all(_INNER[0] <= number < _INNER[1] for number in numbers) or len(set(numbers)) < len(numbers):
        raise ConfigError(f"landmarks {numbers} cannot be pinned; use different numbers from 17 to 67.")
    if not np.isfinite(places).all():
        raise ConfigError("the place of a pin is not finite; use pixels of the photo.")
    from_px = detection.landmarks68_px[numbers]
    points = detection.landmarks468_px.astype(float)
    reach = _REACH_SHARE * float(np.linalg.norm(np.ptp(points[:, :2], axis=0)))
    move = _Displacement.of(from_px, places - from_px, reach)
    points[:, :2] += move(points[:, :2])
    irises = detection.irises_px + move(detection.irises_px.reshape(-1, 2)).reshape(2, 5, 2)
    return replace(
        detection,
        landmarks468_px=points.astype(detection.landmarks468_px.dtype),
        irises_px=irises.astype(detection.irises_px.dtype),
    )


@dataclass(frozen=True)
class _Displacement:
    """How far points move: a wide Gaussian function around each pinned landmark, and a narrow one for what remains.

    Wide functions alone would need huge, opposite shares for two close landmarks that move apart.
    """

    centres: Float[np.ndarray, "K 2"]
    reaches: tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]
    """Standard deviations of the wide and of the narrow functions, pixels."""
    shares: tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, "K 2"]]

    @classmethod
    def of(cls, centres: Float[np.ndarray, "K 2"], moves: Float[np.ndarray, "K 2"], reach: float) -> _Displacement:
        """The displacement that moves each centre as given."""
        count = len(centres)
        distances = np.linalg.norm(centres[:, None] - centres, axis=-1)
        nearest = np.where(np.eye(count, dtype=bool), np.inf, distances).min(1)
        wide = np.full(count, reach)
        narrow = np.clip(_NARROW * nearest, _SMALLEST_REACH_PX, reach)
        bumps = _bumps(centres, centres, wide)
        common = np.linalg.solve(bumps + _RIDGE * np.eye(count), moves)
        rest = np.linalg.solve(_bumps(centres, centres, narrow), moves - bumps @ common)
        return cls(centres, (wide, narrow), (common, rest))

    def __call__(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        (wide, narrow), (common, rest) = self.reaches, self.shares
        return _bumps(points, self.centres, wide) @ common + _bumps(points, self.centres, narrow) @ rest


def _bumps(
    points: Float[np.ndarray, "N 2"], centres: Float[np.ndarray, "K 2"], reaches: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "N K"]:
    squared = ((points[:, None] - centres) ** 2).sum(-1)
    return np.exp(-squared / (2 * reaches**2))
