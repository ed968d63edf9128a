"""Distances between surfaces: how far a reconstruction lies from the true head.

    truth points ── landmarks ──► first similarity ── Gauss-Newton on point-to-surface distances ──► alignment
    truth points ── closest point on the aligned reconstruction ──► error per point ──► area-weighted figures

The direction is truth → reconstruction throughout. The truth decides which points count, so every contender is
judged on the same points with the same weights, and one that covers less cannot gain by it. Lengths keep the
truth's unit: the contender is what is scaled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mien.arrays import Bool, Float, Int, Tensor
from mien.errors import ConfigError
from mien.geometry import Similarity, align_points, rotvec_to_rotmat, triangle_normals

_CELL = 48
"""Neighbouring queries that share one list of triangles; the fastest between 24 and 96 on a face."""
_FIRST_CANDIDATES = 12
_ALIGNMENT_STEPS = 20
_DAMPING = (1e-5, 1e3)
"""Least and largest Levenberg damping, relative to the points' moments; below the least, steps are Gauss-Newton's."""
_ALIGNMENT_DONE = 3e-6
"""Smallest change worth another step, in radians and in parts of the size."""


@dataclass(frozen=True)
class SurfacePoints:
    """The closest points of a surface to some query points."""

    points: Float[Tensor, "P 3"]
    distances: Float[Tensor, "P"]
    triangle_ids: Int[Tensor, "P"]
    barycentrics: Float[Tensor, "P 3"]


@dataclass(frozen=True)
class Surface:
    """A triangle mesh as a measured object."""

    vertices: Float[Tensor, "V 3"]
    triangles: Int[Tensor, "T 3"]

    def transformed(self, similarity: Similarity) -> Surface:
        """The surface moved by a similarity of batch size 1."""
        return Surface(similarity(self.vertices[None])[0], self.triangles)

    def near(self, points: Float[Tensor, "P 3"], *, margin: float) -> Surface:
        """The triangles that reach into the points' bounding box, grown by a margin; the vertices stay."""
        low, high = points.amin(0) - margin, points.amax(0) + margin
        corners = self.vertices[self.triangles]
        kept = ((corners.amax(1) >= low) & (corners.amin(1) <= high)).all(-1)
        return Surface(self.vertices, self.triangles[kept])

    def closest(self, queries: Float[Tensor, "P 3"]) -> SurfacePoints:
        """The exact closest points.

        Queries are taken in small cells of neighbours, so that each cell sees only the triangles in its reach. No
        triangle is nearer than its centroid's distance less its radius: the triangles with the smallest such
        bounds are measured exactly, and a query is done when its best distance is below the next bound; the
        others look at four times as many.
        """
        corners = self.vertices[self.triangles]
        centroids = corners.mean(1)
        radii = (corners - centroids[:, None]).norm(dim=-1).amax(1)
        order, parts = [], []
        for cell in _cells(queries, torch.arange(len(queries), device=queries.device)):
            middle = queries[cell].mean(0)
            reach = (queries[cell] - middle).norm(dim=-1).amax()
            from_middle = (centroids - middle).norm(dim=-1)
            kept = (from_middle - radii <= from_middle.amin() + 2 * reach).nonzero()[:, 0]
            best, point, ids, weights = _closest(queries[cell], corners[kept], centroids[kept], radii[kept])
            order.append(cell)
            parts.append((point, best, kept[ids], weights))
        back = torch.cat(order).argsort()
        return SurfacePoints(*(torch.cat(p)[back] for p in zip(*parts, strict=True)))


def _cells(points: Tensor, indices: Tensor) -> Iterator[Tensor]:
    """Split points at the median of their longest extent until few are left."""
    if len(indices) <= _CELL:
        yield indices
        return
    chosen = points[indices]
    axis = int((chosen.amax(0) - chosen.amin(0)).argmax())
    order = chosen[:, axis].argsort()
    half = len(indices) // 2
    yield from _cells(points, indices[order[:half]])
    yield from _cells(points, indices[order[half:]])


def _closest(
    queries: Tensor, corners: Tensor, centroids: Tensor, radii: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The differences, not the matrix product: that loses half the digits at small distances.
    bounds = torch.cdist(queries, centroids, compute_mode="donot_use_mm_for_euclid_dist") - radii
    count = len(centroids)
    taken = min(_FIRST_CANDIDATES, count)
    open_rows = torch.arange(len(queries), device=queries.device)
    best = queries.new_full((len(queries),), torch.inf)
    point, bary = torch.zeros_like(queries), torch.zeros_like(queries)
    ids = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    while len(open_rows):
        lowest = bounds[open_rows].topk(min(taken + 1, count), largest=False, sorted=True)
        candidates = lowest.indices[:, :taken]
        weights = closest_barycentrics(queries[open_rows, None], corners[candidates])
        points = (weights[..., None] * corners[candidates]).sum(-2)
        distances, winner = (points - queries[open_rows, None]).norm(dim=-1).min(1)
        rows = torch.arange(len(open_rows), device=queries.device)
        best[open_rows], point[open_rows] = distances, points[rows, winner]
        bary[open_rows], ids[open_rows] = weights[rows, winner], candidates[rows, winner]
        if taken == count:
            break
        open_rows = open_rows[distances > lowest.values[:, -1]]
        taken = min(4 * taken, count)
    return best, point, ids, bary


def closest_barycentrics(
    points: Float[Tensor, "*#batch 3"], corners: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*out 3"]:
    """Barycentric coordinates of the point of each triangle that is closest to each point.

    The foot of the perpendicular where it falls into the triangle, else the best of the closest points of the
    three edges. Triangles without area are treated as their edges.
    """
    a, b, c = corners.unbind(-2)
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = _dot(ab, ab), _dot(ab, ac), _dot(ac, ac)
    d20, d21 = _dot(ap, ab), _dot(ap, ac)
    area_sq = d00 * d11 - d01 * d01
    flat = area_sq <= 1e-12 * d00 * d11
    safe = torch.where(flat, torch.ones_like(area_sq), area_sq)
    v, w = (d11 * d20 - d01 * d21) / safe, (d00 * d21 - d01 * d20) / safe
    foot = torch.stack([1 - v - w, v, w], dim=-1)
    inside = (foot >= 0).all(-1) & ~flat
    on_edges = [_edge_barycentrics(points, corners, k) for k in range(3)]
    distances = torch.stack([((e[..., None] * corners).sum(-2) - points).square().sum(-1) for e in on_edges], dim=-1)
    nearest = distances.argmin(-1)[..., None, None].expand(*distances.shape[:-1], 1, 3)
    edge = torch.stack(torch.broadcast_tensors(*on_edges), dim=-2).gather(-2, nearest)[..., 0, :]
    return torch.where(inside[..., None], foot, edge)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _edge_barycentrics(points: Tensor, corners: Tensor, k: int) -> Tensor:
    start, end = corners[..., k, :], corners[..., (k + 1) % 3, :]
    edge = end - start
    along = (_dot(points - start, edge) / _dot(edge, edge).clamp(min=1e-30)).clamp(0, 1)
    weights = [torch.zeros_like(along)] * 3
    weights[k], weights[(k + 1) % 3] = 1 - along, along
    return torch.stack(weights, dim=-1)


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
    truth: Float[Tensor, "P 3"],
    *,
    weights: Float[Tensor, "P"],
    landmarks: Float[Tensor, "L 3"],
    truth_landmarks: Float[Tensor, "L 3"],
    every: int = 1,
) -> Alignment:
    """Move, turn and scale a surface so that the weighted squared distances of the truth's points to it are least.

    Starts from the landmarks (of the surface, and of the truth), then damped Gauss-Newton on the distances themselves.
    `every` takes only each n-th point while aligning; the distances returned are those of all points.
    Raises ConfigError if there are fewer than three landmarks or the arrays do not match.
    """
    if len(landmarks) < 3 or landmarks.shape != truth_landmarks.shape:
        raise ConfigError(
            f"An alignment starts from three or more landmarks on both sides, got {len(landmarks)} and "
            f"{len(truth_landmarks)}."
        )
    total = align_points(landmarks[None], truth_landmarks[None])
    size = float((truth - truth.mean(0)).norm(dim=-1).max())
    used, used_weights = truth[::every], weights[::every]

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
    return Alignment(total, moved, moved.near(truth, margin=0.3 * size).closest(truth).distances)


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


def submesh(triangles: Int[Tensor, "T 3"], kept: Bool[Tensor, "V"]) -> Int[Tensor, "S 3"]:
    """The triangles all of whose corners are kept."""
    return triangles[kept[triangles].all(-1)]


def normal_distances(surface: Surface, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P"]:
    """Signed distances of points to a surface: positive on its outer side."""
    found = surface.closest(points)
    normals = triangle_normals(surface.vertices[None], surface.triangles[found.triangle_ids])[0]
    outside = _dot(points - found.points, normals) >= 0
    return torch.where(outside, found.distances, -found.distances)
