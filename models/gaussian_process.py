"""Smooth random deformations of the face: symmetric Gaussian-process modes and smooth warps.

Lüthi et al., Gaussian Process Morphable Models, PAMI 2018.
"""

from __future__ import annotations

import numpy as np
from ict_landmarks import rigid_motions
from scipy.spatial.distance import cdist
from surface import REFLECT_X

RESIDUAL_SCALES = ((50.0, 2.0), (22.0, 1.2), (10.0, 0.7))
"""(length, standard deviation) in millimetres of the residual modes."""
ASYMMETRY = 0.35
"""Standard deviation of asymmetric deformations relative to symmetric ones."""
INDUCING_POINTS = 700
SYMMETRIC_MODES, ASYMMETRIC_MODES = 200, 100

WARP_SCALES = ((110.0, 10.0), (50.0, 4.0), (22.0, 1.5))
"""The prior of the warp that takes MakeHuman's mean to the landmarks: mostly broad and smooth."""


def gaussian_kernel(a: np.ndarray, b: np.ndarray, scales: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Sum of squared-exponential kernels between points (A, 3) and (B, 3)."""
    squared = cdist(a, b, "sqeuclidean")
    return sum(sd**2 * np.exp(-squared / (2 * length**2)) for length, sd in scales)


def residual_modes(shape: np.ndarray) -> np.ndarray:
    """Deformation modes (V, 3, M) scaled by their standard deviation, without rigid motions.

    Low-rank (Nystroem) factors of the even and the odd part of the kernel under reflection: a symmetric field has
    an odd x and even y and z, an asymmetric one the reverse.
    """
    anchors = _farthest_points(shape[shape[:, 0] >= -1e-9], INDUCING_POINTS)
    parts = {}
    for parity, sign in (("even", 1), ("odd", -1)):
        inner = (
            gaussian_kernel(anchors, anchors, RESIDUAL_SCALES)
            + sign * gaussian_kernel(anchors, anchors * REFLECT_X, RESIDUAL_SCALES)
        ) / 2
        outer = (
            gaussian_kernel(shape, anchors, RESIDUAL_SCALES)
            + sign * gaussian_kernel(shape, anchors * REFLECT_X, RESIDUAL_SCALES)
        ) / 2
        values, vectors = np.linalg.eigh(inner + 1e-6 * np.eye(len(anchors)))
        order = np.argsort(-values)[:SYMMETRIC_MODES]
        order = order[values[order] > 1e-5]
        parts[parity] = outer @ vectors[:, order] / np.sqrt(values[order])
    symmetric = _fields(parts["odd"], parts["even"], parts["even"])
    asymmetric = ASYMMETRY * _fields(*(parts[p][:, :ASYMMETRIC_MODES] for p in ("even", "odd", "odd")))
    modes = np.concatenate([symmetric, asymmetric], 2).reshape(shape.size, -1)
    motions = rigid_motions(shape)
    return (modes - motions @ (motions.T @ modes)).reshape(*shape.shape, -1)


def smooth_warp(
    shape: np.ndarray, sources: np.ndarray, offsets: np.ndarray, *, directions: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Offsets (V, 3) of the smoothest field that meets scalar constraints.

    Constraint c asks the field at point sources[c] along the unit vector directions[c] to be offsets[c] within
    standard deviation noise[c]. An affine motion comes free, the rest follows the prior WARP_SCALES.
    """
    alignment = directions @ directions.T
    centre, radius = shape.mean(0), 60.0

    def affine(points: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(points), 1)), (points - centre) / radius], 1)

    between = gaussian_kernel(sources, sources, WARP_SCALES) + 30.0**2 * affine(sources) @ affine(sources).T
    system = between * alignment + np.diag(noise**2)
    weights = np.linalg.solve(system, offsets)
    towards = gaussian_kernel(shape, sources, WARP_SCALES) + 30.0**2 * affine(shape) @ affine(sources).T
    return towards @ (weights[:, None] * directions)


def _fields(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Vector fields (V, 3, Mx + My + Mz), each along one axis."""
    blocks = []
    for axis, part in enumerate((x, y, z)):
        block = np.zeros((len(part), 3, part.shape[1]))
        block[:, axis] = part
        blocks.append(block)
    return np.concatenate(blocks, 2)


def _farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    for _ in range(min(count, len(points)) - 1):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return points[chosen]
