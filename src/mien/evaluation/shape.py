"""Distances between surfaces: how far a reconstruction lies from the true head.

    truth points ── landmarks ──► first similarity ── Gauss-Newton on point-to-surface distances ──► alignment
    truth points ── closest point on the aligned reconstruction ──► error per point ──► area-weighted figures

The direction is truth → reconstruction throughout. The truth decides which points count, so every contender is
judged on the same points with the same weights, and one that covers less cannot gain by it. Lengths keep the
truth's unit: the contender is what is scaled.
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
"""Least and largest Levenberg damping, relative to the points' moments; below the least, steps are Gauss-Newton's."""
_ALIGNMENT_DONE = 3e-6
"""Smallest change worth another step, in radians and in parts of the size."""


@dataclass(frozen=True)
class Alignment:
    """A surface laid over the truth."""

    similarity: Similarity
    surface: Surface
    """The moved surface, in the truth's unit."""
    distances: Float[Tensor, "P"]
    """Of each truth point to it."""


def align_surface(
    surface: Surface,
    gt: Float[Tensor, "P 3"],
    *,
    weights: Float[Tensor, "P"],
    landmarks: Float[Tensor, "L 3"],
    gt_landmarks: Float[Tensor, "L 3"],
    every: int = 1,
) -> Alignment:
    """Move, turn and scale a surface so that the weighted squared distances of the truth's points to it are least.

    Starts from the landmarks (of the surface, and of the truth), then damped Gauss-Newton on the distances themselves.
    `every` takes only each n-th point while aligning; the distances returned are those of all points.
    Raises ConfigError if there are fewer than three landmarks or the arrays do not match.
    """
    if len(landmarks) < 3 or landmarks.shape != gt_landmarks.shape:
        raise ConfigError(
            f"An alignment starts from three or more landmarks on both sides, got {len(landmarks)} and "
            f"{len(gt_landmarks)}."
        )
    total = align_points(landmarks[None], gt_landmarks[None])
    size = float((gt - gt.mean(0)).norm(dim=-1).max())
    used, used_weights = gt[::every], weights[::every]

    def matched(similarity: Similarity) -> SurfacePoints:
        # Far triangles cannot be closest; the margin is generous beside the millimetres that are measured.
        return surface.transformed(similarity).near(used, margin=0.3 * size).closest(used)

    found = matched(total)
    damping = _DAMPING[0]
    for _ in range(_ALIGNMENT_STEPS):
        step = _alignment_step(found, used, used_weights, damping=damping)
        tried = _compose(step, total)
        tried_found = matched(tried)
        if _cost(tried_found, used_weights) > _cost(found, used_weights):
            damping *= 100
            if damping > _DAMPING[1]:
                break
            continue
        total, found, damping = tried, tried_found, max(damping / 10, _DAMPING[0])
        turn = float((step.rotation[0] - torch.eye(3)).abs().max())
        if max(turn, abs(float(step.scale) - 1)) < _ALIGNMENT_DONE:
            break
    moved = surface.transformed(total)
    return Alignment(total, moved, moved.near(gt, margin=0.3 * size).closest(gt).distances)


def _cost(found: SurfacePoints, weights: Tensor) -> float:
    return float((weights * found.distances.square()).double().sum())


def _alignment_step(found: SurfacePoints, points: Tensor, weights: Tensor, *, damping: float) -> Similarity:
    """One damped Gauss-Newton step in (rotation, translation, log scale), about the matched points' centre."""
    offset = points - found.points
    direction = offset / found.distances.clamp(min=1e-12)[:, None]
    centre = found.points.mean(0)
    arm = found.points - centre
    jacobian = torch.cat([torch.cross(arm, direction, dim=-1), direction, _dot(arm, direction)[:, None]], dim=-1)
    jacobian = jacobian.double()
    w = weights.double()[:, None]
    normal = jacobian.mT @ (w * jacobian)
    # Relative to the arms' own sizes: turning a sphere about itself costs nothing, and must move nothing.
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
    """Area-weighted figures of a set of distances, in their unit."""

    mean: float
    median: float
    p90: float

    @classmethod
    def of(cls, distances: Float[Tensor, "P"], weights: Float[Tensor, "P"]) -> DistanceSummary:
        """Summarise; ConfigError for no points or no weight."""
        if len(distances) == 0 or float(weights.sum()) <= 0:
            raise ConfigError("A summary of distances needs at least one point with a positive weight.")
        mean = float((distances * weights).sum() / weights.sum())
        return cls(mean, weighted_quantile(distances, weights, q=0.5), weighted_quantile(distances, weights, q=0.9))


def weighted_quantile(values: Float[Tensor, "P"], weights: Float[Tensor, "P"], *, q: float) -> float:
    """The smallest value below or at which the share `q` of the weight lies."""
    order = values.argsort()
    cumulative = weights[order].double().cumsum(0)
    index = int(torch.searchsorted(cumulative, q * cumulative[-1]))
    return float(values[order[min(index, len(values) - 1)]])
