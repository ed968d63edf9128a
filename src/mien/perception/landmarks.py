"""The 68 iBUG landmarks, read off the 468-point mesh.

Nothing here is learned. Eye corners, nose and lips are mesh points; jaw, brows, bridge and lids are curves of
the mesh on which the iBUG points are spaced equally, as annotators do. The jaw follows the mesh's oval, which is
right in frontal faces and only near in turned ones.
"""

from __future__ import annotations

import numpy as np

from mien.morphable.landmark_tables import IBUG_CURVES, IBUG_FROM_MEDIAPIPE


def spaced_along(curve: np.ndarray, count: int) -> np.ndarray:
    """Return `count` points (count,2) at equal distances along an open polyline (P,2), its ends included."""
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0.0, travelled[-1], count)
    return np.stack([np.interp(wanted, travelled, curve[:, axis]) for axis in (0, 1)], 1)


def landmarks68_from_mesh(landmarks468_px: np.ndarray) -> np.ndarray:
    """Return the 68 points (68,2) of a mesh (468,2 or 3), in the mesh's pixels."""
    points = np.asarray(landmarks468_px)[:, :2]
    landmarks = np.zeros((68, 2), points.dtype)
    for number, mesh_point in IBUG_FROM_MEDIAPIPE:
        landmarks[number] = points[mesh_point]
    for curve, numbers in IBUG_CURVES:
        for number, point in zip(numbers, spaced_along(points[list(curve)], len(numbers)), strict=True):
            if number is not None:
                landmarks[number] = point
    return landmarks
