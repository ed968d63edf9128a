"""One UV map for the whole face: fold-free and exactly symmetric under u -> 1 - u.

The boundary goes to a superellipse and every inner vertex to a convex combination of its neighbours, which cannot
fold (Tutte 1963; Floater 1997), with mean-value weights (Floater 2003) reweighted for even texel density
(Yoshizawa, Belyaev and Seidel 2004).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import spsolve
from surface import boundary_loops, triangle_areas

SUPERELLIPSE = 5.0
MARGIN = 0.006
"""Distance of the face from the border of the UV map: more than half a texel at 224 x 224."""
REWEIGHTINGS = 10
REWEIGHTING_POWER = 0.6


def build_uv(vertices: np.ndarray, triangles: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Texture coordinates (V, 2), u to the subject's left, v up."""
    border, position = _boundary(vertices, triangles, mirror)
    weights = mean_value_weights(vertices, triangles)
    swap = csr_matrix((np.ones(len(mirror)), (np.arange(len(mirror)), mirror)))
    weights = (weights + swap @ weights @ swap.T) * 0.5
    area = triangle_areas(vertices, triangles)
    best = solve_uv(weights, border, position, mirror)
    spread = density_spread(best, triangles, area)
    uv = best
    for _ in range(REWEIGHTINGS):
        stretch = np.sqrt(area / np.maximum(signed_areas(uv, triangles), 1e-12))
        total = np.bincount(triangles.ravel(), np.repeat(stretch * area, 3), minlength=len(vertices))
        around = np.bincount(triangles.ravel(), np.repeat(area, 3), minlength=len(vertices))
        ratio = total / around
        ratio = (ratio + ratio[mirror]) / 2
        weights = weights @ diags((ratio / np.median(ratio)) ** -REWEIGHTING_POWER)
        uv = solve_uv(weights, border, position, mirror)
        candidate = density_spread(uv, triangles, area)
        if (signed_areas(uv, triangles) > 0).all() and candidate < spread:
            best, spread = uv, candidate
    return best


def signed_areas(uv: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Signed areas of triangles in the UV map; negative areas are folded over."""
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    return ((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])) / 2


def density_spread(uv: np.ndarray, triangles: np.ndarray, area: np.ndarray) -> float:
    """Area-weighted deviation of the logarithm of texels per surface."""
    density = np.log(np.maximum(signed_areas(uv, triangles), 1e-12) / area)
    mean = (density * area).sum() / area.sum()
    return float(np.sqrt(((density - mean) ** 2 * area).sum() / area.sum()))


def _boundary(vertices: np.ndarray, triangles: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    loops = boundary_loops(triangles)
    if len(loops) != 1:
        raise ValueError(f"the face has {len(loops)} boundary loops; a UV map needs exactly one")
    loop = np.array(loops[0])
    top = next(k for k in np.flatnonzero(mirror[loop] == loop) if vertices[loop[k], 1] > 0)
    loop = np.roll(loop, -top)
    length = np.linalg.norm(vertices[np.roll(loop, -1)] - vertices[loop], axis=1)
    length = (length + length[::-1]) / 2
    place = np.concatenate([[0], np.cumsum(length)[:-1]]) / length.sum()
    angle = 2 * np.pi * np.linspace(0, 1, 8001)
    curve = np.stack([np.sin(angle), np.cos(angle)], 1)
    curve /= ((np.abs(curve) ** SUPERELLIPSE).sum(1) ** (1 / SUPERELLIPSE))[:, None]
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    steps /= steps[-1]
    target = np.stack([np.interp(place, steps, curve[:, k]) for k in range(2)], 1)
    if vertices[loop[len(loop) // 4], 0] < 0:
        target[:, 0] *= -1
    position = np.zeros((len(vertices), 2))
    position[loop] = 0.5 + target * (0.5 - MARGIN)
    reflected = position[mirror] * [-1, 1] + [1, 0]
    position[loop] = (position[loop] + reflected[loop]) / 2
    border = np.zeros(len(vertices), bool)
    border[loop] = True
    return border, position


def mean_value_weights(vertices: np.ndarray, triangles: np.ndarray) -> csr_matrix:
    rows, columns, values = [], [], []
    for k in range(3):
        i, j, opposite = triangles[:, k], triangles[:, (k + 1) % 3], triangles[:, (k + 2) % 3]
        to_j, to_o = vertices[j] - vertices[i], vertices[opposite] - vertices[i]
        length_j, length_o = np.linalg.norm(to_j, axis=1), np.linalg.norm(to_o, axis=1)
        cosine = (to_j * to_o).sum(1) / (length_j * length_o)
        half_tangent = np.sqrt(np.maximum(1 - cosine, 1e-9) / (1 + cosine + 1e-9))
        rows += [i, i]
        columns += [j, opposite]
        values += [half_tangent / length_j, half_tangent / length_o]
    shape = (len(vertices),) * 2
    return coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape).tocsr()


def solve_uv(weights: csr_matrix, border: np.ndarray, position: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    normalised = diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights
    inner = np.flatnonzero(~border)
    system = (diags(np.ones(len(border))) - normalised).tocsr()[inner].tocsc()
    right = -system[:, np.flatnonzero(border)] @ position[border]
    uv = position.copy()
    solution = spsolve(system[:, inner].tocsc(), right)
    uv[inner] = solution
    return (uv + uv[mirror] * [-1, 1] + [1, 0]) / 2
