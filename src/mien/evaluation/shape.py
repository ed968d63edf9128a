"""Distances between surfaces: the error of a reconstruction against a ground-truth head.

    gt points ── landmarks ──► initial similarity ── Gauss-Newton on point-to-surface distances ──► alignment
    gt points ── closest point on the aligned reconstruction ──► error per point ──► area-weighted summary

Distances run from the ground truth to the reconstruction. So all reconstructions are measured at the same points with
the same weights, and one that covers less of the face gains nothing. Lengths are in the unit of the ground truth: the
reconstruction is scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.errors import ConfigError
from mien.geometry import Similarity, Surface, SurfacePoints, align_points, rotvec_to_rotmat
from mien.geometry.closest import _dot
from mien.typing import Float, Tensor

_ALIGNMENT_STEPS = 20
_DAMPING = (1e-5, 1e3)
"""Smallest and largest Levenberg damping, relative to the points' moments; at the smallest, steps are Gauss-Newton."""
_ALIGNMENT_DONE = 3e-6
"""Steps end when rotation (radians) and relative scale change by less than this."""


@dataclass(frozen=True)
class Alignment:
    """A surface aligned to the ground truth."""

    similarity: Similarity
    """From the surface to the ground truth."""
    surface: Surface
    """The aligned surface, in the unit of the ground truth."""
    distances: Float[Tensor, "P"]
    """Distance of each ground-truth point to the surface."""


def align_surface(
    surface: Surface,
    gt: Float[Tensor, "P 3"],
    *,
    weights: Float[Tensor, "P"],
    landmarks: Float[Tensor, "L 3"],
    gt_landmarks: Float[Tensor, "L 3"],
    every: int = 1,
) -> Alignment:
    """Find the similarity of a surface that minimises the weighted squared distances of ground-truth points to it.

    Starts from the landmarks and continues with damped Gauss-Newton steps on the distances.

    Args:
        surface: The surface to align.
        gt: Ground-truth points.
        weights: Weight of each point, such as its area.
        landmarks: Landmarks of the surface; at least three.
        gt_landmarks: The same landmarks of the ground truth.
        every: Use only every n-th point for the alignment.

    Returns:
        The alignment, with the distances of all points.

    Raises:
        ConfigError: There are fewer than three landmarks, or their numbers differ.
    """
    if len(landmarks) < 3 or landmarks.shape != gt_landmarks.shape:
        raise ConfigError(
            f"landmarks and gt_landmarks have {len(landmarks)} and {len(gt_landmarks)} points; an alignment needs "
            "three or more landmarks, the same number in both."
        )
    total = align_points(landmarks[None], gt_landmarks[None])
    size = float((gt - gt.mean(0)).norm(dim=-1).max())
    used, used_weights = gt[::every], weights[::every]

    def matched(similarity: Similarity) -> SurfacePoints:
        # Distant triangles cannot be closest; the margin is large compared with distances of millimetres.
        return surface.transformed(similarity).near(used, margin=0.3 * size).closest(used)

    found = matched(total)
    damping = _DAMPING[0]
    for _ in range(_ALIGNMENT_STEPS):
        step = _alignment_step(found, used, used_weights, damping=damping)
        candidate = _compose(step, total)
        candidate_found = matched(candidate)
        if _cost(candidate_found, used_weights) > _cost(found, used_weights):
            damping *= 100
            if damping > _DAMPING[1]:
                break
            continue
        total, found, damping = candidate, candidate_found, max(damping / 10, _DAMPING[0])
        rotation = float((step.rotation[0] - torch.eye(3)).abs().max())
        if max(rotation, abs(float(step.scale) - 1)) < _ALIGNMENT_DONE:
            break
    moved = surface.transformed(total)
    return Alignment(total, moved, moved.near(gt, margin=0.3 * size).closest(gt).distances)


def _cost(found: SurfacePoints, weights: Tensor) -> float:
    return float((weights * found.distances.square()).double().sum())


def _alignment_step(found: SurfacePoints, points: Tensor, weights: Tensor, *, damping: float) -> Similarity:
    """One damped Gauss-Newton step in (rotation, translation, log scale) about the centre of the matched points."""
    offset = points - found.points
    direction = offset / found.distances.clamp(min=1e-12)[:, None]
    centre = found.points.mean(0)
    arm = found.points - centre
    jacobian = torch.cat([torch.cross(arm, direction, dim=-1), direction, _dot(arm, direction)[:, None]], dim=-1)
    jacobian = jacobian.double()
    w = weights.double()[:, None]
    normal = jacobian.mT @ (w * jacobian)
    # Damping relative to the size of the arms: a sphere may rotate freely, and damping keeps it still.
    sizes = torch.cat([_dot(arm, arm).double()[:, None].expand(-1, 3), torch.ones_like(jacobian[:, :3])], dim=-1)
    sizes = (w * torch.cat([sizes, _dot(arm, arm).double()[:, None]], dim=-1)).sum(0)
    right = jacobian.mT @ (w * found.distances.double()[:, None])
    solution = torch.linalg.solve(normal + damping * torch.diag(sizes), right)[:, 0].to(points)
    rotation, scale = rotvec_to_rotmat(solution[None, :3]), solution[6:].exp()
    translation = centre + solution[3:6] - scale * (rotation[0] @ centre)
    return Similarity(scale, rotation, translation[None])


def _compose(second: Similarity, first: Similarity) -> Similarity:
    return Similarity(
        second.scale * first.scale, second.rotation @ first.rotation, second(first.translation[:, None])[:, 0]
    )


@dataclass(frozen=True)
class DistanceSummary:
    """Weighted statistics of distances, in their unit."""

    mean: float
    """Weighted mean."""
    median: float
    """Weighted median."""
    p90: float
    """Weighted 90th percentile."""

    @classmethod
    def of(cls, distances: Float[Tensor, "P"], weights: Float[Tensor, "P"]) -> DistanceSummary:
        """Summarise distances; ConfigError if there is no point with a positive weight."""
        if len(distances) == 0 or float(weights.sum()) <= 0:
            raise ConfigError("distances have no point with a positive weight; give at least one.")
        mean = float((distances * weights).sum() / weights.sum())
        return cls(mean, weighted_quantile(distances, weights, q=0.5), weighted_quantile(distances, weights, q=0.9))


def weighted_quantile(values: Float[Tensor, "P"], weights: Float[Tensor, "P"], *, q: float) -> float:
    """The smallest value such that at least the share `q` of the weight lies at or below it."""
    order = values.argsort()
    cumulative = weights[order].double().cumsum(0)
    index = int(torch.searchsorted(cumulative, q * cumulative[-1]))
    return float(values[order[min(index, len(values) - 1)]])
