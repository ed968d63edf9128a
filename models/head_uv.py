"""One atlas for the head's skin: the face's own UV map beside a rectangle with the outer skin.

The outer skin lies between two loops, the seam and the collar. Each half of it is flattened to a rectangle, along the
seam by distance from it; there every inner vertex is a convex combination of its neighbours, which cannot fold (Tutte
1963; Floater 1997). The halves meet at the back of the head and are cut apart at the throat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import spsolve
from surface import boundary_loops, triangle_areas
from uv_map import REWEIGHTING_POWER, REWEIGHTINGS, density_spread, mean_value_weights, signed_areas

FACE_WIDTH = 0.78
"""Width of the face's map in the atlas; its height is that of the atlas."""
GUTTER = 0.012
"""Space around the rectangle, so that small mip levels do not mix it with the face."""


@dataclass(frozen=True)
class SkinAtlas:
    """The head's skin as it is rendered: vertices on the seam and on the cut stand twice."""

    vertices: np.ndarray
    """(N,) which of the head's vertices each one is."""
    uv: np.ndarray
    """(N, 2) texture coordinates, u to the subject's left in the face, v up."""
    triangles: np.ndarray
    """(T, 3) over these vertices: the face's, then the outer skin's."""


def build_skin_atlas(
    shape: np.ndarray, face_triangles: np.ndarray, outer_triangles: np.ndarray, mirror: np.ndarray, *,
    face_uv: np.ndarray, seam: np.ndarray,
) -> SkinAtlas:  # fmt: skip
    """Place face and outer skin.

    Args:
        shape: (V + O, 3) the symmetric mean head's skin.
        face_triangles: Triangles of the face, over its V vertices.
        outer_triangles: Those of the outer skin.
        mirror: (V + O,) mirror vertices.
        face_uv: (V, 2) of the face in its own map.
        seam: Vertices of the face where the outer skin begins.

    Raises:
        ValueError: A triangle is folded over.
    """
    collar = np.setdiff1d(np.concatenate(boundary_loops(outer_triangles)), seam)
    is_left = (shape[outer_triangles, 0] > -1e-6).all(1)
    left = np.unique(outer_triangles[is_left])
    flat = np.full((len(shape), 2), np.nan)
    flat[left] = _flatten(shape, outer_triangles[is_left], mirror, left, seam=seam, collar=collar, face_uv=face_uv)
    low, high = FACE_WIDTH + GUTTER, 1 - GUTTER
    across = low + (high - low) * flat[left, 1]
    along = 0.5 + (0.5 - GUTTER) * (1 - flat[left, 0])
    left_uv = np.stack([across, along], 1)
    right = mirror[left]
    vertices = np.concatenate([np.arange(len(face_uv)), left, right])
    uv = np.concatenate([face_uv * [FACE_WIDTH, 1], left_uv, left_uv * [1, -1] + [0, 1]])
    places = np.full((2, len(shape)), -1)
    places[0, left] = len(face_uv) + np.arange(len(left))
    places[1, right] = len(face_uv) + len(left) + np.arange(len(right))
    at_back = (mirror[left] == left) & (flat[left, 0] == 1)
    places[1, left[at_back]] = places[0, left[at_back]]
    outer = np.concatenate([places[0][outer_triangles[is_left]], places[1][outer_triangles[~is_left]]])
    triangles = np.concatenate([face_triangles, outer])
    if (triangles < 0).any() or (signed_areas(uv, outer) >= 0).any():
        raise ValueError("the outer skin's UV map folds over")
    used = np.unique(triangles)
    compact = np.cumsum(np.isin(np.arange(len(vertices)), used)) - 1
    return SkinAtlas(vertices[used], uv[used], compact[triangles])


def _flatten(
    shape: np.ndarray, triangles: np.ndarray, mirror: np.ndarray, left: np.ndarray, *, seam: np.ndarray,
    collar: np.ndarray, face_uv: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Places (L, 2) of the left half in the unit square: from throat to back along the seam, from seam to collar."""
    compact = np.full(len(shape), -1)
    compact[left] = np.arange(len(left))
    faces, points = compact[triangles], shape[left]
    at_seam, middle = np.isin(left, seam), mirror[left] == left
    at_collar = np.isin(left, collar)
    front = points[:, 2] > points[at_seam, 2].min()
    along = np.where(front & (points[:, 1] < points[at_seam, 1].mean()), 0.0, 1.0)
    from_middle = face_uv[left[at_seam]] - 0.5
    along[at_seam] = _share_along(points, np.flatnonzero(at_seam), by=np.arctan2(from_middle[:, 1], from_middle[:, 0]))
    from_axis = points[at_collar] - points[at_collar].mean(0)
    from_throat = np.arctan2(points[at_collar, 0], from_axis[:, 2])
    along[at_collar] = _share_along(points, np.flatnonzero(at_collar), by=from_throat)
    weights = mean_value_weights(points, faces)
    area = triangle_areas(points, faces)
    best, spread = None, np.inf
    for _ in range(REWEIGHTINGS + 1):
        place = np.stack(
            [
                _convex(weights, along, middle | at_seam | at_collar),
                _convex(weights, at_collar.astype(float), at_seam | at_collar),
            ],
            1,
        )
        turned = place * [-1, 1]  # so that outward triangles have positive areas
        size = signed_areas(turned, faces)
        if density_spread(turned, faces, area) < spread:
            best, spread = place, density_spread(turned, faces, area)
        ratio = _mean_at_vertices(np.sqrt(area / np.maximum(size, 1e-9)), faces, area)
        weights = weights @ diags((ratio / np.median(ratio)) ** -REWEIGHTING_POWER)
    if best is None:
        raise ValueError("the outer skin cannot be flattened")
    return best


def _mean_at_vertices(values: np.ndarray, faces: np.ndarray, area: np.ndarray) -> np.ndarray:
    total = np.bincount(faces.ravel(), np.repeat(values * area, 3))
    return total / np.bincount(faces.ravel(), np.repeat(area, 3))


def _share_along(points: np.ndarray, curve: np.ndarray, *, by: np.ndarray) -> np.ndarray:
    """Length along a curve up to each of its points, as a share of the whole; `by` grows along it."""
    order = np.argsort(by)
    length = np.linalg.norm(np.diff(points[curve[order]], axis=0), axis=1)
    share = np.empty(len(curve))
    share[order] = np.concatenate([[0], length.cumsum()]) / length.sum()
    return share


def _convex(weights: csr_matrix, values: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Values that are convex combinations of their neighbours', but for fixed ones."""
    normalised = diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights
    free = np.flatnonzero(~fixed)
    system = (diags(np.ones(len(fixed))) - normalised).tocsr()[free]
    result = values.copy()
    result[free] = spsolve(system[:, free].tocsc(), -system[:, np.flatnonzero(fixed)] @ values[fixed])
    return result
