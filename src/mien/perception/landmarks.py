"""The 68 iBUG landmarks, read off the 468-point mesh.

Nothing here is learned. Eye corners, nose and lips are mesh points; jaw, brows, bridge and lids are curves of
the mesh on which the iBUG points are spaced equally, as annotators do. The jaw follows the mesh's oval, which is
right in frontal faces and only near in turned ones.
"""

from __future__ import annotations

import numpy as np

# Mesh points of the points that are one mesh point (iBUG number, mesh number).
SINGLE_POINTS = (
    (30, 4), (31, 75), (32, 97), (33, 2), (34, 326), (35, 305),
    (36, 33), (39, 133), (42, 362), (45, 263),
    (48, 61), (49, 39), (50, 37), (51, 0), (52, 267), (53, 269), (54, 291),
    (55, 321), (56, 314), (57, 17), (58, 84), (59, 91),
    (60, 78), (61, 82), (62, 13), (63, 312), (64, 308), (65, 317), (66, 14), (67, 87),
)  # fmt: skip
# Curves along the mesh, and the iBUG points spaced equally on each; None is an end that is not a new landmark.
CURVES: tuple[tuple[tuple[int, ...], tuple[int | None, ...]], ...] = (
    ((127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152), (0, 1, 2, 3, 4, 5, 6, 7, 8)),
    ((356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152), (16, 15, 14, 13, 12, 11, 10, 9, None)),
    ((70, 63, 105, 66, 107), (17, 18, 19, 20, 21)),
    ((300, 293, 334, 296, 336), (26, 25, 24, 23, 22)),
    ((168, 6, 197, 195, 5, 4), (27, 28, 29, None)),
    ((33, 246, 161, 160, 159, 158, 157, 173, 133), (None, 37, 38, None)),
    ((33, 7, 163, 144, 145, 153, 154, 155, 133), (None, 41, 40, None)),
    ((263, 466, 388, 387, 386, 385, 384, 398, 362), (None, 44, 43, None)),
    ((263, 249, 390, 373, 374, 380, 381, 382, 362), (None, 46, 47, None)),
)  # fmt: skip


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
    for number, mesh_point in SINGLE_POINTS:
        landmarks[number] = points[mesh_point]
    for curve, numbers in CURVES:
        for number, point in zip(numbers, spaced_along(points[list(curve)], len(numbers)), strict=True):
            if number is not None:
                landmarks[number] = point
    return landmarks
