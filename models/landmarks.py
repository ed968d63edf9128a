"""Named places on the face: MediaPipe's 468 sites, 68 iBUG vertices, contour strips, part masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from face_region import FaceRegion
from surface import REFLECT_X, boundary_loops, closest_points, vertex_normals

from mien.morphable.landmark_tables import (
    IBUG_MIRROR,
    MEDIAPIPE_BROWS,
    MEDIAPIPE_EYES,
    MEDIAPIPE_LIPS,
    MEDIAPIPE_SIDES,
)

SITES_FILE = Path(__file__).with_name("mediapipe468.json")
ANCHOR_SITES_FILE = Path(__file__).with_name("anchor_sites.json")
"""The same points as the network detected them on the uncalibrated mean. They determine which vertices correspond to
the scans' landmarks. The detected position depends on the appearance of a face; this correspondence must not."""

MIRROR_68 = np.array(IBUG_MIRROR)

# MediaPipe sites whose mean is each iBUG point of the subject's right side or midline (own choice).
SITES_OF_68: dict[int, tuple[int, ...]] = {
    0: (127,), 1: (234,), 2: (93,), 3: (132, 58), 4: (58, 172), 5: (136,), 6: (150,), 7: (176,), 8: (152,),
    17: (70,), 18: (63,), 19: (105,), 20: (66,), 21: (107,),
    27: (168, 6), 28: (197, 195), 29: (5,), 30: (4,), 31: (75,), 32: (97,), 33: (2,),
    48: (61,), 49: (39,), 50: (37,), 51: (0,), 57: (17,), 58: (84,), 59: (91,),
}  # fmt: skip
OUTER_LIPS = (MEDIAPIPE_LIPS[0], *MEDIAPIPE_LIPS[:0:-1])
"""The other way round: along the upper lip first."""

STRIP_STEP_MM = 3.0
STRIP_INWARD_MM, STRIP_OUTWARD_MM = 42.0, 30.0
STRIP_LENGTH = 24


@dataclass(frozen=True)
class Sites:
    """MediaPipe's mesh points as places on the triangles."""

    triangles: np.ndarray
    """(468,) triangle index."""
    barycentrics: np.ndarray
    """(468, 3)"""
    mirror: np.ndarray
    """(468,) the site on the other side of the face."""

    def on(self, shape: np.ndarray, triangles: np.ndarray) -> np.ndarray:
        """Positions (468, 3) on a shape."""
        return (shape[triangles[self.triangles]] * self.barycentrics[..., None]).sum(1)


def read_sites(path: Path = SITES_FILE) -> Sites:
    content = json.loads(path.read_text())
    return Sites(np.array(content["triangles"]), np.array(content["barycentrics"]), np.array(content["mirror"]))


def write_sites(sites: Sites, path: Path = SITES_FILE) -> None:
    rows = {
        "triangles": sites.triangles.tolist(),
        "barycentrics": np.round(sites.barycentrics, 5).tolist(),
        "mirror": sites.mirror.tolist(),
    }
    path.write_text(json.dumps(rows, separators=(",", ":")) + "\n")


def place_sites(points: np.ndarray, mirror_sites: np.ndarray, shape: np.ndarray, region: FaceRegion) -> Sites:
    """Sites at the closest skin to points (468, 3) on a symmetric shape, made symmetric."""
    symmetric = (points + points[mirror_sites] * REFLECT_X) / 2
    skin = np.flatnonzero(~(region.eye_cap | region.mouth_bag)[region.triangles].any(1))
    hits = closest_points(symmetric, shape, region.triangles[skin])
    weights = np.clip(hits.barycentrics, 0, 1)
    return Sites(skin[hits.triangles], weights / weights.sum(1, keepdims=True), mirror_sites)


def eye_margins(shape: np.ndarray, region: FaceRegion) -> list[np.ndarray]:
    """Vertex loops of the lid margins, subject's right eye first."""
    loops = boundary_loops(region.triangles[region.eye_cap[region.triangles].any(1)])
    return sorted((np.array(loop) for loop in loops[:2]), key=lambda loop: shape[loop, 0].mean())


def place_68(shape: np.ndarray, region: FaceRegion, sites: Sites) -> np.ndarray:
    """Vertex indices (68,), symmetric: mirror[table[k]] == table[MIRROR_68[k]]."""
    points = sites.on(shape, region.triangles)
    table = np.full(68, -1)
    middle = region.mirror == np.arange(len(shape))
    outside = ~(region.eye_cap | region.mouth_bag | region.lip_contact)
    for landmark, parts in SITES_OF_68.items():
        target = points[list(parts)].mean(0)
        allowed = outside & (middle if MIRROR_68[landmark] == landmark else ~middle)
        table[landmark] = _nearest(shape, target, allowed)
    for landmark, vertex in _lids(shape, region) | _inner_lips(shape, region):
        table[landmark] = vertex
    missing = table < 0
    table[missing] = region.mirror[table[MIRROR_68[missing]]]
    if not np.array_equal(region.mirror[table], table[MIRROR_68]):
        raise ValueError("the table of 68 landmarks is not symmetric")
    return table


def _nearest(shape: np.ndarray, target: np.ndarray, allowed: np.ndarray) -> int:
    candidates = np.flatnonzero(allowed)
    return int(candidates[np.linalg.norm(shape[candidates] - target, axis=1).argmin()])


def _lids(shape: np.ndarray, region: FaceRegion) -> set[tuple[int, int]]:
    """Corners at the ends of the right lid margin, the other four at its thirds."""
    loop = eye_margins(shape, region)[0]
    outer, inner = loop[shape[loop, 0].argmin()], loop[shape[loop, 0].argmax()]
    found = {(36, int(outer)), (39, int(inner))}
    along = (shape[loop, 0] - shape[outer, 0]) / (shape[inner, 0] - shape[outer, 0])
    above = shape[loop, 1] > shape[outer, 1] + along * (shape[inner, 1] - shape[outer, 1])
    for landmark, share, upper in ((37, 1 / 3, True), (38, 2 / 3, True), (41, 1 / 3, False), (40, 2 / 3, False)):
        side = np.flatnonzero(above == upper)
        found.add((landmark, int(loop[side[np.abs(along[side] - share).argmin()]])))
    return found


def revise_eyes(
    table: np.ndarray, sites: Sites, shape: np.ndarray, region: FaceRegion, *, blink: np.ndarray
) -> tuple[np.ndarray, Sites]:
    """Move the points of the upper lids to the rims, so that they close with the eyes; the tables stay symmetric.

    The subdivision makes the vertices of the seam between lid and eye means of both, so a blink moves them half as far
    as the rim 0.6 mm beside them: points there would show a closed eye as half open. The points of the lower lid go
    where a blink (V, 3) carries those of the upper lid, and the inner corners to MediaPipe's, as those of the mouth.
    """
    seam = np.isin(np.arange(len(shape)), np.concatenate(eye_margins(shape, region)))
    inside = region.eye_cap | region.mouth_bag | seam
    points = sites.on(shape, region.triangles)
    table = table.copy()
    table[39] = _nearest(shape, points[133], ~inside)
    for upper, lower in ((37, 41), (38, 40)):
        table[upper] = _nearest(shape, shape[table[upper]], ~inside)
        met = np.array([(shape + blink)[table[upper], 0], *shape[table[lower], 1:]])
        table[lower] = _nearest(shape, met, seam)
    for landmark in range(37, 42):
        table[MIRROR_68[landmark]] = region.mirror[table[landmark]]
    lids = [site for eye in MEDIAPIPE_EYES for site in eye[len(eye) // 2 + 1 :]]
    symmetric = ((points + points[sites.mirror] * REFLECT_X) / 2)[lids]
    skin = np.flatnonzero(~inside[region.triangles].any(1))
    hits = closest_points(symmetric, shape, region.triangles[skin])
    triangles, barycentrics = sites.triangles.copy(), sites.barycentrics.copy()
    triangles[lids], barycentrics[lids] = skin[hits.triangles], np.clip(hits.barycentrics, 0, 1)
    barycentrics[lids] /= barycentrics[lids].sum(1, keepdims=True)
    return table, Sites(triangles, barycentrics, sites.mirror)


def _inner_lips(shape: np.ndarray, region: FaceRegion) -> set[tuple[int, int]]:
    """Front edge of the band where the lips touch."""
    right = region.lip_contact & (shape[:, 0] <= 1e-9)
    corner = np.flatnonzero(right)[shape[right, 0].argmin()]
    found = {(60, int(corner))}
    for landmark, share, sign in ((61, 0.5, 1), (62, 0.0, 1), (67, 0.5, -1), (66, 0.0, -1)):
        side = np.flatnonzero(right & (region.lip_side * sign > 0.5))
        off = np.abs(shape[side, 0] - share * shape[corner, 0])
        near = side[off < off.min() + 1.0] if share else side[off < 1e-6]
        found.add((landmark, int(near[shape[near, 2].argmax()])))
    return found


def contour_strips(shape: np.ndarray, region: FaceRegion, table: np.ndarray) -> np.ndarray:
    """Vertices (17, K), -1 padded, along which each contour point slides, from the ear side to the cheek side.

    A strip is the cut of the skin with the plane through the landmark across the contour. When the head turns, the
    visible outline crosses the strip somewhere else, and the point moves there.
    """
    normals = vertex_normals(shape, region.triangles)
    skin = ~(region.eye_cap | region.mouth_bag | region.lip_contact)
    contour = shape[table[:17]]
    strips = np.full((17, STRIP_LENGTH), -1)
    for k in range(9):
        tangent = contour[min(k + 1, 16)] - contour[max(k - 1, 0)]
        tangent[2] = 0.0
        tangent /= np.linalg.norm(tangent)
        inwards = normals[table[k]] - tangent * (normals[table[k]] @ tangent)
        inwards /= -np.linalg.norm(inwards)
        pivot = contour[k] + 45.0 * inwards
        offset = shape - pivot
        across = offset @ tangent
        aside = np.cross(tangent, inwards)
        angle = np.arctan2(offset @ aside, -(offset @ inwards))
        arc = angle * 45.0
        # Positive arc must lead to the middle of the face, on the side where the nose is.
        if (shape[table[30]] - pivot) @ aside < 0:
            arc = -arc
        arc -= arc[table[k]]
        radius = np.linalg.norm(offset, axis=1)
        near = skin & (np.abs(across) < 4.0) & (arc > -STRIP_OUTWARD_MM) & (arc < STRIP_INWARD_MM)
        near &= (radius > 20) & (radius < 80)
        near &= (shape[:, 0] <= 1e-9) if k < 8 else (region.mirror == np.arange(len(shape)))
        chosen: list[int] = []
        for low in np.arange(-STRIP_OUTWARD_MM - STRIP_STEP_MM / 2, STRIP_INWARD_MM, STRIP_STEP_MM):
            bin_ = np.flatnonzero(near & (arc >= low) & (arc < low + STRIP_STEP_MM))
            if low <= 0 < low + STRIP_STEP_MM:
                chosen.append(int(table[k]))
            elif len(bin_):
                chosen.append(int(bin_[np.abs(across[bin_]).argmin()]))
        chosen = chosen[:STRIP_LENGTH]
        strips[k, : len(chosen)] = chosen
        if k < 8:
            strips[16 - k, : len(chosen)] = region.mirror[chosen]
    return strips


def part_masks(shape: np.ndarray, region: FaceRegion, sites: Sites, table: np.ndarray) -> dict[str, np.ndarray]:
    """Soft masks (V,) of skin, lips, brows, eyes, neck and mouth, symmetric, from 0 to 1."""
    points = sites.on(shape, region.triangles)
    front = shape[:, 2] > points[list(MEDIAPIPE_SIDES), 2].mean()
    closed = region.eye_cap | region.mouth_bag
    lips = _soft(_inside(shape[:, :2], points[list(OUTER_LIPS), :2]), 0.8) * front * ~closed
    lips[region.lip_contact] = 1.0
    right = _inside(shape[:, :2], points[list(MEDIAPIPE_BROWS[0]), :2])
    brows = _soft(right, 1.5) * front * ~closed
    brows = np.maximum(brows, brows[region.mirror])
    eyes = region.eye_cap.astype(float)
    mouth = region.mouth_bag.astype(float)
    contour = shape[table[:17]]
    jaw_height = np.interp(np.abs(shape[:, 0]), contour[16:7:-1, 0][::-1], contour[16:7:-1, 1][::-1])
    behind = contour[4, 2] + 12.0
    below = _soft(np.minimum(jaw_height - 3.0 - shape[:, 1], contour[8, 1] + 40.0 - shape[:, 1]), 5.0)
    under = _soft(contour[8, 2] - 22.0 - shape[:, 2], 8.0)
    neck = below * np.maximum(under, _soft(behind - shape[:, 2], 8.0)) * ~closed
    skin = (1 - np.maximum(lips, np.maximum(eyes, mouth))) * 1.0
    masks = {"skin": skin, "lips": lips, "brows": brows, "eyes": eyes, "neck": neck, "mouth": mouth}
    return {name: (mask + mask[region.mirror]) / 2 for name, mask in masks.items()}


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    t = np.clip(distance / (2 * width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon in the plane, positive inside."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    direction = end - start
    share = ((points[:, None] - start) * direction).sum(-1) / (direction**2).sum(-1)
    nearest = start + np.clip(share, 0, 1)[..., None] * direction
    distance = np.linalg.norm(points[:, None] - nearest, axis=-1).min(1)
    y = points[:, 1, None]
    crosses = (start[:, 1] > y) != (end[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = start[:, 0] + (y - start[:, 1]) / direction[:, 1] * direction[:, 0]
    odd = (crosses & (points[:, 0, None] < at)).sum(1) % 2 == 1
    return np.where(odd, distance, -distance)
