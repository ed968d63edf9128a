"""The skin of the head around the face: scalp, ears and neck down to the collar, joined to the face without a gap."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from face_region import FaceRegion, clip_half, cut_height, from_eyes, mirror_half, subdivide_head, triangulate_half
from makehuman import BaseMesh
from scipy.sparse import csr_matrix, vstack
from scipy.spatial import cKDTree
from surface import boundary_loops

NECK_RINGS = 5
"""Rings of MakeHuman's body below its head; the collar is cut through them."""
COLLAR_MM = -172.0
"""Height of the collar, measured from the middle between the eyes."""
SEAM_TOLERANCE_MM = 1e-6


@dataclass(frozen=True)
class HeadRegion:
    """The head's skin. Vertices: those of the face, in their order, then those of the outer skin."""

    operator: csr_matrix
    """(O, 19158): outer vertices = operator @ base vertices."""
    triangles: np.ndarray
    """(T, 3) of the outer skin, over all vertices."""
    mirror: np.ndarray
    """(V + O,) index of the mirror vertex."""
    seam: np.ndarray
    """(S,) vertices of the face on its boundary, where the outer skin begins."""


def build_head_region(base: BaseMesh, reference: np.ndarray, face: FaceRegion) -> HeadRegion:
    """Keep what `build_region` cuts away, down to the collar.

    Args:
        base: MakeHuman's mesh.
        reference: (19158, 3) average adult, symmetric, that the cut is measured on.
        face: The face that was cut from them.
    """
    points = from_eyes(base, reference)
    fine = subdivide_head(_with_neck(base, points), points)
    places = fine.operator @ points
    height = np.minimum(-cut_height(places), places[:, 1] - COLLAR_MM)
    _, half_triangles, half_operator = clip_half(places, triangulate_half(places, fine.quads), fine.operator, height)
    order, triangles, mirror = mirror_half(half_operator @ points, half_triangles)
    operator = vstack([half_operator, half_operator[:, base.mirror]]).tocsr()[order]

    seam = np.array(boundary_loops(face.triangles)[0])
    distance, shared = cKDTree(operator @ points).query((face.operator @ points)[seam])
    if distance.max() > SEAM_TOLERANCE_MM or len(np.unique(shared)) != len(seam):
        raise ValueError(f"face and outer skin do not share their boundary: {distance.max():g} mm apart")
    face_count = face.operator.shape[0]
    is_new = np.ones(operator.shape[0], bool)
    is_new[shared] = False
    joint = np.empty(len(is_new), int)
    joint[is_new] = face_count + np.arange(is_new.sum())
    joint[shared] = seam
    outer_mirror = joint[mirror[is_new]]
    return HeadRegion(operator[is_new], joint[triangles], np.concatenate([face.mirror, outer_mirror]), seam)


def _with_neck(base: BaseMesh, points: np.ndarray) -> BaseMesh:
    """Count the first rings of the body below the head as head."""
    head_loops = boundary_loops(base.quads[base.is_head])
    neckline = min(head_loops, key=lambda loop: points[loop, 1].mean())
    body = (base.groups == "body") & ~base.is_head & ~base.is_mouth_cavity
    taken, reached = np.zeros(len(base.quads), bool), np.zeros(len(points), bool)
    reached[neckline] = True
    for _ in range(NECK_RINGS):
        taken |= body & reached[base.quads].any(1)
        reached[np.unique(base.quads[taken])] = True
    return replace(base, is_head=base.is_head | taken)
