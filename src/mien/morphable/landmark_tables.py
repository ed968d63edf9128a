"""Landmark indices and part names: the only place that lists them. Plain numbers; imports nothing.

Two numberings are used. `IBUG_*` are the 68 points of iBUG's 300-W annotation, counted from 0: contour 0–16, brows
17–26, nose 27–35, eyes 36–47, lips 48–67. `MEDIAPIPE_*` are the 468 points of MediaPipe's face mesh. Right and left are
the subject's; pairs are (right, left).
"""

from __future__ import annotations

PARTS = ("skin", "lips", "brows", "eyes", "neck", "mouth")
"""Names of a model's part masks, in the order of `PartMasks`; a model file stores each as `mask_NAME`."""

# The 68 iBUG points.

IBUG_CONTOUR_COUNT = 17
"""Points 0 to 16 run along the face outline from the right ear over the chin to the left ear."""
IBUG_INNER = slice(IBUG_CONTOUR_COUNT, 68)
"""The 51 points inside the outline, whose place on the face does not depend on the view."""
IBUG_CONTOUR_ENDS = (0, 16)
"""In front of the ears, at the height of the eyes."""
IBUG_CHIN = 8
"""The contour point on the midline: 0 to 7 are the subject's right, 9 to 16 the left."""
IBUG_BROWS = slice(17, 27)
IBUG_NOSE_ROOT, IBUG_NOSE_TIP, IBUG_NOSE_BASE = 27, 30, 33
"""The root lies between the eyes; the base where the nose meets the upper lip."""
IBUG_LEFT_NOSTRIL = 35
IBUG_RIGHT_EYE, IBUG_LEFT_EYE = slice(36, 42), slice(42, 48)
IBUG_OUTER_EYE_CORNERS = (36, 45)
"""Their distance in the photo is the unit of landmark errors (NME)."""
IBUG_LOWER_LIDS = (40, 41, 46, 47)
IBUG_OUTER_LIPS, IBUG_INNER_LIPS = slice(48, 60), slice(60, 68)
IBUG_MOUTH_CORNERS = (48, 54)
IBUG_LOWER_LIP = 57
"""The middle of the lower lip's lower border."""
IBUG_MIRROR = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55,
    64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip
"""For each of the 68 points the one that takes its place in the mirror image."""
IBUG_CHIP_POINTS = (*range(27, 36), *range(36, 48), *range(48, 55), *range(60, 65))
"""Nose, eyes and upper lip: the points that align a face chip for the identity network."""

# The 468 points of MediaPipe's face mesh.

MEDIAPIPE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""The outline of the mesh, in order, from the top of the forehead."""
MEDIAPIPE_FOREHEAD = (54, 103, 67, 109, 10, 338, 297, 332, 284)
"""The part of the outline on the forehead, from right to left."""
MEDIAPIPE_TOP, MEDIAPIPE_CHIN = 10, 152
MEDIAPIPE_SIDES = (234, 454)
"""The outline's points in front of the ears."""
MEDIAPIPE_NOSE_BRIDGE, MEDIAPIPE_NOSE_TIP = 168, 1
MEDIAPIPE_EYES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
"""The lid rims, in order around each eye, from the outer corner along the lower lid."""
MEDIAPIPE_LIDS = (*MEDIAPIPE_EYES[0], *MEDIAPIPE_EYES[1])
MEDIAPIPE_OUTER_EYE_CORNERS = (33, 263)
MEDIAPIPE_EYE_CORNERS = ((33, 133), (362, 263))
"""Both corners of each eye, from left to right in the picture."""
MEDIAPIPE_MOUTH = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
"""The inner border of the lips, in order around the opening of the mouth."""
MEDIAPIPE_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
"""The outer border of the lips, in order, from the right corner along the lower lip."""
MEDIAPIPE_MOUTH_CORNERS = (61, 291)
MEDIAPIPE_BROWS = ((70, 63, 105, 66, 107, 55, 65, 52, 53, 46), (300, 293, 334, 296, 336, 285, 295, 282, 283, 276))
"""In order around each brow; the first five are its upper edge."""
MEDIAPIPE_CHEEKS = ((117, 118, 101, 36, 205, 187, 123), (346, 347, 330, 266, 425, 411, 352))
MEDIAPIPE_NOSE = (6, 122, 198, 209, 49, 48, 64, 98, 97, 2, 326, 327, 294, 278, 279, 429, 420, 351)
MEDIAPIPE_BEARD = (
    (2, 98, 203, 206, 216, 214, 135, 136, 150, 149, 176, 148, 152),
    (2, 327, 423, 426, 436, 434, 364, 365, 379, 378, 400, 377, 152),
)
"""The area where beards grow, each half in order; it contains the lips."""
MEDIAPIPE_INNER = (
    293, 446, 346, 411, 434, 364, 379, 378, 400, 377, 152, 148, 176, 149, 150, 135, 214, 187, 117, 226,
    63, 105, 66, 107, 9, 336, 296, 334,
)  # fmt: skip
"""Around brows, eyes, nose, mouth and chin, in order: the area that no fringe or temple hair covers."""
MEDIAPIPE_UPPER_FACE = (
    6, 122, 245, 244, 233, 232, 231, 230, 229, 228, 31, 35, 143, 156, 70, 63, 105, 69, 108, 151, 337, 299,
    334, 293, 300, 383, 372, 265, 261, 448, 449, 450, 451, 452, 453, 464, 465, 351,
)  # fmt: skip
"""Around both eyes and up to the middle of the forehead, in order: the skin that is seen above a mask."""
MEDIAPIPE_MIDLINE = (10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 2, 0, 17, 152)
"""From the top of the forehead to the chin."""

# The 68 points on the 468-point mesh.

IBUG_FROM_MEDIAPIPE = (
    (30, 4), (31, 75), (32, 97), (33, 2), (34, 326), (35, 305),
    (36, 33), (39, 133), (42, 362), (45, 263),
    (48, 61), (49, 39), (50, 37), (51, 0), (52, 267), (53, 269), (54, 291),
    (55, 321), (56, 314), (57, 17), (58, 84), (59, 91),
    (60, 78), (61, 82), (62, 13), (63, 312), (64, 308), (65, 317), (66, 14), (67, 87),
)  # fmt: skip
"""iBUG points that coincide with a mesh point: (iBUG index, mesh index)."""
IBUG_CURVES: tuple[tuple[tuple[int, ...], tuple[int | None, ...]], ...] = (
    ((127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152), (0, 1, 2, 3, 4, 5, 6, 7, 8)),
    ((356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152), (16, 15, 14, 13, 12, 11, 10, 9, None)),
    ((70, 63, 105, 66, 107), (17, 18, 19, 20, 21)),
    ((300, 293, 334, 296, 336), (26, 25, 24, 23, 22)),
    ((168, 6, 197, 195, 5, 4), (27, 28, 29, None)),
    ((33, 246, 161, 160, 159, 158, 157, 173, 133), (None, 37, 38, None)),
    ((33, 7, 163, 144, 145, 153, 154, 155, 133), (None, 41, 40, None)),
    ((263, 466, 388, 387, 386, 385, 384, 398, 362), (None, 44, 43, None)),
    ((263, 249, 390, 373, 374, 380, 381, 382, 362), (None, 46, 47, None)),
)
"""Curves of mesh points, and the iBUG points that lie on each at equal distances.

None marks an end of the curve that is not a new iBUG point.
"""
