"""Computes the 68 iBUG landmarks from the 468-point mesh, without learned parameters.

Eye corners, nose and lips are mesh points. Jaw, brows, nose bridge and lids are curves of the mesh on which the iBUG
points are spaced equally, as annotators place them. The jaw follows the oval of the mesh, which is correct for frontal
faces and approximate for turned ones.
"""

from __future__ import annotations

import numpy as np

from mien.morphable.landmark_tables import IBUG_CURVES, IBUG_FROM_MEDIAPIPE


def spaced_along(curve: np.ndarray, count: int) -> np.ndarray:
    """Return `count` points (count, 2) at equal distances along an open polyline (P, 2), including its ends."""
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    targets = np.linspace(0.0, length[-1], count)
    return np.stack([np.interp(targets, length, curve[:, axis]) for axis in (0, 1)], 1)


def landmarks68_from_mesh(landmarks468_px: np.ndarray) -> np.ndarray:
    """Return the iBUG landmarks (68, 2) of a mesh (468, 2 or 3), in the same pixels."""
    points = np.asarray(landmarks468_px)[:, :2]
    landmarks = np.zeros((68, 2), points.dtype)
    for number, mesh_point in IBUG_FROM_MEDIAPIPE:
        landmarks[number] = points[mesh_point]
    for curve, numbers in IBUG_CURVES:
        for number, point in zip(numbers, spaced_along(points[list(curve)], len(numbers)), strict=True):
            if number is not None:
                landmarks[number] = point
    return landmarks
