"""Exact closest points on triangle meshes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mien.geometry.meshes import triangle_normals
from mien.geometry.similarity import Similarity
from mien.typing import Float, Int, Tensor

_CELL = 48
"""Number of neighbouring queries that share one list of triangles: the fastest between 24 and 96 on a face."""

_FIRST_CANDIDATES = 12
"""Triangles that are measured exactly per query at first; four times as many in each further round."""


@dataclass(frozen=True)
class SurfacePoints:
    """The point of a surface that is closest to each query point."""

    points: Float[Tensor, "P 3"]
    """The closest points."""
    distances: Float[Tensor, "P"]
    """Distance from each query to its closest point, not negative."""
    triangle_ids: Int[Tensor, "P"]
    """Triangle in which the closest point lies."""
    barycentrics: Float[Tensor, "P 3"]
    """Barycentric coordinates of the closest point in that triangle."""


@dataclass(frozen=True)
class Surface:
    """A triangle mesh, and the distances to it; in any unit of length."""

    vertices: Float[Tensor, "V 3"]
    """Positions."""
    triangles: Int[Tensor, "T 3"]
    """Vertex numbers."""

    def transformed(self, similarity: Similarity) -> Surface:
        """The surface after a similarity transform of batch size 1."""
        return Surface(similarity(self.vertices[None])[0], self.triangles)

    def near(self, points: Float[Tensor, "P 3"], *, margin: float) -> Surface:
        """The triangles that reach into the bounding box of some points; all vertices are kept.

        Args:
            points: Points that span the box.
            margin: Distance by which the box is enlarged on each side.
        """
        low, high = points.amin(0) - margin, points.amax(0) + margin
        corners = self.vertices[self.triangles]
        kept = ((corners.amax(1) >= low) & (corners.amin(1) <= high)).all(-1)
        return Surface(self.vertices, self.triangles[kept])

    def closest(self, queries: Float[Tensor, "P 3"]) -> SurfacePoints:
        """The exact closest points; not differentiable.

        Queries are processed in small cells of neighbours, so that each cell considers only the triangles within its
        reach. The distance to a triangle is at least the distance to its centroid minus its radius. The triangles with
        the smallest such bounds are measured exactly. A query is finished when its best distance is below the next
        bound; the others measure four times as many triangles.

        Args:
            queries: Points in the frame of the surface.
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
    """Split points at the median of their longest extent, until each part has at most _CELL of them."""
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
    # By differences: the matrix product loses half of the digits at small distances.
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

    It is the foot of the perpendicular if that lies in the triangle, otherwise the closest point of the three edges. A
    triangle without area counts as its edges.

    Args:
        points: Query points.
        corners: Corners of the triangles (triangle, corner, coordinate); broadcast against `points`.
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


def normal_distances(surface: Surface, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P"]:
    """Signed distances of points to a surface: positive on the side to which the normals point.

    Args:
        surface: Mesh with counter-clockwise triangles, seen from outside.
        points: Query points in the frame of the surface.
    """
    found = surface.closest(points)
    normals = triangle_normals(surface.vertices[None], surface.triangles[found.triangle_ids])[0]
    outside = _dot(points - found.points, normals) >= 0
    return torch.where(outside, found.distances, -found.distances)
