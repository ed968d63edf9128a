"""Aligns a predicted surface with points of a scan: a robust start from pairs of points, then trimmed ICP.

    pairs ── RANSAC ──► start ── closest points, point-to-plane steps without the worst points ──► alignment

Lengths are millimetres, the scan's unit. Similarities move the prediction to the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mien.geometry import Similarity, Surface, align_points, rotvec_to_rotmat, triangle_normals
from mien.typing import Bool, Float, Tensor

_SAMPLES, _SAMPLE_SIZE = 200, 6
"""RANSAC: number of random samples, and pairs in each."""
_INLIER_MM = 6.0
"""RANSAC: a pair within this distance counts as a match."""
_REFITS = 10
_LARGEST_LOG_SCALE = 0.2
"""Largest change of the logarithm of the scale in one step."""
_STEEP = 0.5
"""Below this cosine to the triangle's normal, a residual is measured along the normal instead of its own direction."""
_DAMPING = 1e-3
_DAMPING_OF_ARMS = 0.1
"""Damping of rotation and scale relative to that of the translation."""
_MARGIN_MM = 60.0
"""Triangles farther than this from the box around the scan's points cannot be closest, unless nothing is nearer."""


@dataclass(frozen=True)
class IcpSettings:
    """Schedule of the trimmed ICP."""

    trim: float = 0.1
    """Share of the points with the largest distances that each step leaves out."""
    points: int | None = 1500
    """Number of points that the steps use, the first ones; None for all."""
    steps: int = 40
    """Maximum number of surfaces that are measured, the start included; 0 keeps the start."""
    tolerance_mm: float = 5e-4
    """Steps end when the root mean squared distance changes by less than this."""


@dataclass(frozen=True)
class ScanAlignment:
    """A similarity from the prediction to the scan, and how well it fits."""

    similarity: Similarity
    """Of batch size 1, float64."""
    rms_mm: float
    """Root mean squared distance of the kept points."""


def robust_similarity(source: Float[Tensor, "P 3"], target: Float[Tensor, "P 3"], *, rigid: bool) -> Similarity:
    """Find the similarity that most pairs of points agree on (RANSAC), refined by least squares on these pairs.

    Args:
        source: Points of the prediction; at least `_SAMPLE_SIZE`.
        target: The point of the scan that belongs to each, millimetres.
        rigid: Keep the size.
    """
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(len(source), _SAMPLE_SIZE, replace=False) for _ in range(_SAMPLES)])
    tried = align_points(source[rows], target[rows], rigid=rigid)
    distances = (tried(source.expand(_SAMPLES, -1, -1)) - target).norm(dim=-1)
    votes = (1 - distances / (2 * _INLIER_MM)).where(distances < _INLIER_MM, 0.0).sum(-1)
    best = int(votes.where(tried.scale > 0, -1.0).argmax())
    found = Similarity(*(part[best : best + 1] for part in (tried.scale, tried.rotation, tried.translation)))
    for _ in range(_REFITS):
        distances = pair_distances(found, source, target)
        agree = distances < max(_INLIER_MM, float(torch.quantile(distances, 0.5)))
        if int(agree.sum()) < 4:
            break
        found = align_points(source[agree][None], target[agree][None], rigid=rigid)
    return found


def pair_distances(
    similarity: Similarity, source: Float[Tensor, "P 3"], target: Float[Tensor, "P 3"]
) -> Float[Tensor, "P"]:
    """Distance of each moved source point to its target."""
    return (similarity(source[None])[0] - target).norm(dim=-1)


def trimmed_icp(
    surface: Surface, points: Float[Tensor, "P 3"], start: Similarity, *, rigid: bool, settings: IcpSettings
) -> ScanAlignment:
    """Move a surface onto points of the scan, by Gauss-Newton steps on point-to-plane distances.

    Args:
        surface: The prediction, in its own frame, float64.
        points: Points of the scan, in random order.
        start: The first similarity.
        rigid: Keep the size of `start`.
        settings: The schedule.

    Returns:
        The best of the similarities that were reached.
    """
    used = points[: settings.points]
    local = nearby(surface, points, start)
    normals = torch.nn.functional.normalize(triangle_normals(local.vertices[None], local.triangles)[0], dim=-1)
    now, best, previous = start, ScanAlignment(start, float("inf")), float("inf")
    for _ in range(max(settings.steps, 1)):
        found = local.closest(to_prediction(now, used))
        distances = found.distances * now.scale
        kept = distances <= torch.quantile(distances, 1 - settings.trim)
        rms = float(distances[kept].square().mean().sqrt())
        if rms < best.rms_mm:
            best = ScanAlignment(now, rms)
        if abs(previous - rms) < settings.tolerance_mm or settings.steps == 0:
            break
        previous = rms
        matched = now(found.points[None])[0]
        turned = normals[found.triangle_ids] @ now.rotation[0].mT
        now = _compose(_step(used[kept], matched[kept], turned[kept], rigid=rigid), now)
    return best


def nearby(surface: Surface, points: Float[Tensor, "P 3"], similarity: Similarity) -> Surface:
    """The part of the prediction that can be closest to the points of the scan."""
    local = surface.near(to_prediction(similarity, points), margin=_MARGIN_MM / float(similarity.scale))
    return local if len(local.triangles) else surface


def to_prediction(similarity: Similarity, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
    """Points of the scan in the prediction's frame: the inverse similarity."""
    return (points - similarity.translation) @ similarity.rotation[0] / similarity.scale


def _step(points: Tensor, matched: Tensor, normals: Tensor, *, rigid: bool) -> Similarity:
    """One damped step in (rotation, translation, log scale) about the centre of the matched points."""
    direction = _directions(points - matched, normals)
    residuals = ((points - matched) * direction).sum(-1)
    centre = matched.mean(0)
    arm = matched - centre
    jacobian = torch.cat([torch.cross(arm, direction, dim=-1), direction], dim=-1)
    if not rigid:
        jacobian = torch.cat([jacobian, (arm * direction).sum(-1, keepdim=True)], dim=-1)
    normal = jacobian.mT @ jacobian
    damping = torch.full_like(normal[0], _DAMPING * float(normal.diagonal()[3:6].mean()))
    damping[[0, 1, 2, *range(6, len(damping))]] *= _DAMPING_OF_ARMS * float(arm.square().sum(-1).mean())
    change = torch.linalg.solve(normal + torch.diag(damping), jacobian.mT @ residuals)
    scale = torch.ones_like(change[:1]) if rigid else change[6:].clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE).exp()
    rotation = rotvec_to_rotmat(change[None, :3])
    return Similarity(scale, rotation, (centre + change[3:6] - scale * (rotation[0] @ centre))[None])


def _directions(offsets: Tensor, normals: Tensor) -> Tensor:
    """The residual's own direction, which is right at borders too; the normal where the two differ too much."""
    own = offsets / offsets.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    along = (own * normals).sum(-1, keepdim=True).abs() >= _STEEP
    return torch.where(along & (offsets.norm(dim=-1, keepdim=True) > 1e-6), own, normals)


def _compose(second: Similarity, first: Similarity) -> Similarity:
    moved = second(first.translation[:, None])[:, 0]
    return Similarity(second.scale * first.scale, second.rotation @ first.rotation, moved)


def align_with_keypoints(
    surface: Surface,
    points: Float[Tensor, "P 3"],
    start: Similarity,
    *,
    keypoints: Float[Tensor, "K 3"],
    gt_keypoints: Float[Tensor, "K 3"],
    weight: float,
    tolerance_mm2: float,
) -> Similarity:
    """Re-align one region rigidly with closest points and keypoints together: REALY's regional alignment.

    Args:
        surface: The prediction, in its own frame.
        points: Points of the scan's region.
        start: The first similarity.
        keypoints: Keypoints of the prediction.
        gt_keypoints: The same keypoints of the scan.
        weight: Weight of all keypoints together, relative to all points together.
        tolerance_mm2: Steps end when the mean squared distance changes by less than this.
    """
    each = torch.cat([points.new_ones(len(points)), points.new_full((len(keypoints),), 0.0)])
    if len(keypoints):
        each[len(points) :] = weight * len(points) / len(keypoints)
    target = torch.cat([points, gt_keypoints])
    local, now, previous = nearby(surface, points, start), start, float("inf")
    for _ in range(100):
        matched = now(torch.cat([local.closest(to_prediction(now, points)).points, keypoints])[None])
        step = align_points(matched, target[None], weights=each, rigid=True)
        error = float((each * (step(matched)[0] - target).square().sum(-1)).sum() / each.sum())
        if abs(previous - error) < tolerance_mm2:
            break
        now, previous = _compose(step, now), error
    return now


def known(points: Float[Tensor, "P 3"]) -> Bool[Tensor, "P"]:
    """Whether each point has finite coordinates."""
    return points.isfinite().all(-1)
