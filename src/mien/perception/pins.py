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

    The displacements of the pins are interpolated by Gaussian functions, so each pinned landmark moves exactly to its
    pin, and points far from all of them stay.

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
    shares = np.linalg.solve(_bumps(from_px, from_px, reach), places - from_px)
    points[:, :2] += _bumps(points[:, :2], from_px, reach) @ shares
    irises = detection.irises_px + (_bumps(detection.irises_px.reshape(-1, 2), from_px, reach) @ shares).reshape(
        2, 5, 2
    )
    return replace(
        detection,
        landmarks468_px=points.astype(detection.landmarks468_px.dtype),
        irises_px=irises.astype(detection.irises_px.dtype),
    )


def _bumps(
    points: Float[np.ndarray, "N 2"], centres: Float[np.ndarray, "K 2"], reach: float
) -> Float[np.ndarray, "N K"]:
    squared = ((points[:, None] - centres) ** 2).sum(-1)
    return np.exp(-squared / (2 * reach**2))
