"""Closing the lips: MakeHuman's neutral mouth stands open by about two millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import splu
from surface import cotangent_laplacian, vertex_areas

CLEARANCE_MM = 0.02
"""Half of the gap that remains between closed lips, so that the two sides never share a depth."""
KERNEL_MM = 1.5
"""Width over which the height of a lip is averaged along the mouth."""
REACH_MM = 11.0
"""Skin farther from the contact than this does not move when the lips close."""


@dataclass(frozen=True)
class LipCloser:
    """Linear operator that takes the opening out of a displacement field, smoothly around the mouth."""

    contact: np.ndarray
    """(C,) vertex indices of the contact band."""
    side: np.ndarray
    """(C,) +1 on the upper, -1 on the lower lip, 0 at the corners."""
    to_middle: csr_matrix
    """(C, C) height of the middle between the lips at each contact vertex from the heights of all."""
    to_upper: csr_matrix
    to_lower: csr_matrix
    spread: np.ndarray
    """(V, C) smooth extension of a motion of the contact vertices to the surface around."""

    def close(self, shapes: np.ndarray, *, clearance: float = 0.0) -> np.ndarray:
        """Shapes or displacement fields (..., V, 3) with both lips at their common middle height."""
        heights = shapes[..., self.contact, 1]
        wanted = heights @ self.to_middle.T + self.side * clearance
        closed = shapes.copy()
        closed[..., 1] += (wanted - heights) @ self.spread.T
        return closed

    def gap(self, shape: np.ndarray) -> np.ndarray:
        """Height of the upper over the lower lip at each contact vertex; negative where they interpenetrate."""
        heights = shape[self.contact, 1]
        return self.to_upper @ heights - self.to_lower @ heights

    def separate(self, shape: np.ndarray) -> np.ndarray:
        """The shape with interpenetrating lips moved apart until they touch."""
        excess = np.minimum(self.gap(shape), 0.0)
        separated = shape.copy()
        separated[:, 1] += self.spread @ (-0.5 * excess * np.sign(self.side))
        return separated


def build_lip_closer(shape: np.ndarray, triangles: np.ndarray, contact: np.ndarray, lip_side: np.ndarray) -> LipCloser:
    """Measure the lips of one shape (V, 3) with mask `contact` (V,) and signed `lip_side` (V,)."""
    index = np.flatnonzero(contact)
    side = np.where(np.abs(lip_side[index]) < 0.2, 0.0, np.sign(lip_side[index]))
    x = shape[index, 0]
    kernel = np.exp(-0.5 * ((x[:, None] - x[None]) / KERNEL_MM) ** 2) + 1e-12

    def average_over(member: np.ndarray) -> csr_matrix:
        weights = kernel * member
        return csr_matrix(weights / weights.sum(1, keepdims=True))

    upper, lower = average_over(side >= 0), average_over(side <= 0)
    return LipCloser(
        contact=index,
        side=side,
        to_middle=(upper + lower) * 0.5,
        to_upper=upper,
        to_lower=lower,
        spread=_extension(shape, triangles, index),
    )


def _extension(shape: np.ndarray, triangles: np.ndarray, handles: np.ndarray) -> np.ndarray:
    """Biharmonic extension (V, H) of values at the handles that vanishes beyond REACH_MM."""
    distance = np.full(len(shape), np.inf)
    for handle in handles:
        distance = np.minimum(distance, np.linalg.norm(shape - shape[handle], axis=1))
    is_handle = np.zeros(len(shape), bool)
    is_handle[handles] = True
    free = (distance < REACH_MM) & ~is_handle
    laplacian = cotangent_laplacian(shape, triangles)
    energy = (laplacian @ diags(1 / vertex_areas(shape, triangles)) @ laplacian).tocsc()
    inner = np.flatnonzero(free)
    solve = splu(energy[inner][:, inner].tocsc()).solve
    spread = np.zeros((len(shape), len(handles)))
    spread[handles, np.arange(len(handles))] = 1.0
    spread[inner] = solve(-energy[inner][:, handles].toarray())
    return spread
