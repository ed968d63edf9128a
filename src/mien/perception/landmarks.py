"""The 68 iBUG landmarks as fixed combinations of the 468 mesh points."""

from __future__ import annotations

import numpy as np

# Mesh points whose mean is each iBUG point; person's right side, then the mirror image.
MESH_POINTS_OF_68: tuple[tuple[int, ...], ...] = (
    (127,), (234,), (93,), (132, 58), (58, 172), (136,), (150,), (176,), (152,),
    (400,), (379,), (365,), (397, 288), (361,), (323,), (454,), (356,),
    (70,), (63,), (105,), (66,), (107,), (336,), (296,), (334,), (293,), (300,),
    (168, 6), (197, 195), (5,), (4,), (75,), (97,), (2,), (326,), (305,),
    (33,), (160,), (158,), (133,), (153,), (144,), (362,), (385,), (387,), (263,), (373,), (380,),
    (61,), (39,), (37,), (0,), (267,), (269,), (291,), (321,), (314,), (17,), (84,), (91,),
    (78,), (82,), (13,), (312,), (308,), (317,), (14,), (87,),
)  # fmt: skip


def landmarks68_from_mesh(mesh_px: np.ndarray) -> np.ndarray:
    """Return the 68 points (68,2) of a mesh (468,3) or (468,2)."""
    return np.stack([mesh_px[list(points), :2].mean(0) for points in MESH_POINTS_OF_68])
