"""Closest points whose normals agree, so that the upper lip is matched to the upper lip even where the lips touch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.geometry.closest import closest_barycentrics
from mien.geometry.meshes import boundary_vertices, vertex_normals
from mien.typing import Bool, Float, Int, Tensor

NORMAL_REACH_M = 0.012
"""A normal that differs by 60° counts as much as this distance. Upper and lower lip, which must not match each other,
are closer than this; so are the lids."""
_CHUNK = 1024
"""Queries per distance matrix."""
_SLAB_MARGIN = 0.03
"""Height by which a slab of points extends beyond its queries; see `nearest`."""


@dataclass(frozen=True)
class Matches:
    """The point of a surface that matches each query."""

    corners: Int[Tensor, "P 3"]
    """Vertices of the triangle in which the match lies."""
    weights: Float[Tensor, "P 3"]
    """Barycentric coordinates of the match in that triangle."""
    triangle_ids: Int[Tensor, "P"]
    """Number of that triangle."""
    distances: Float[Tensor, "P"]
    """Distance from the query to its match."""
    at_border: Bool[Tensor, "P"]
    """Whether the triangle touches the boundary of the mesh; the true match may lie beyond it."""

    def of(self, values: Float[Tensor, "V C"]) -> Float[Tensor, "P C"]:
        """Values per vertex of the surface, interpolated at the matches."""
        return (values[self.corners] * self.weights[..., None]).sum(1)

    @property
    def nearest_corners(self) -> Int[Tensor, "P"]:
        """Vertex of the triangle with the largest weight."""
        return self.corners.gather(1, self.weights.argmax(1, keepdim=True))[:, 0]


class Matcher:
    """Matches points to one surface; what depends on the surface alone is computed once."""

    def __init__(self, vertices: Float[Tensor, "V 3"], triangles: Int[Tensor, "T 3"]) -> None:
        self.vertices, self.triangles = vertices, triangles
        self.normals = vertex_normals(vertices[None], triangles)[0]
        self._around = triangles_around(triangles, len(vertices))
        self._at_border = torch.zeros(len(vertices), dtype=torch.bool)
        self._at_border[boundary_vertices(triangles)] = True
        used = torch.zeros(len(vertices), dtype=torch.bool)
        used[triangles.reshape(-1)] = True
        self._used = used.nonzero()[:, 0]

    def __call__(self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"]) -> Matches:
        """Find the nearest vertex in position and normal, then the closest point of the triangles around it.

        Args:
            points: Query points in the frame of the surface, metres.
            normals: Unit normals of the queries.
        """
        seeds = self._used[nearest(_features(points, normals), _features(self.vertices, self.normals)[self._used])]
        around = self._around[seeds]
        candidates = around.clamp(min=0)
        corners = self.triangles[candidates]
        weights = closest_barycentrics(points[:, None], self.vertices[corners])
        found = (weights[..., None] * self.vertices[corners]).sum(-2)
        distances = (found - points[:, None]).norm(dim=-1).masked_fill(around < 0, torch.inf)
        best, winner = distances.min(1)
        rows = torch.arange(len(points))
        ids = candidates[rows, winner]
        border = self._at_border[self.triangles[ids]].any(1)
        return Matches(self.triangles[ids], weights[rows, winner], ids, best, border)


def _features(points: Tensor, normals: Tensor) -> Float[Tensor, "P 6"]:
    return torch.cat([points, NORMAL_REACH_M * normals], dim=1)


def nearest(queries: Float[Tensor, "Q D"], points: Float[Tensor, "P D"]) -> Int[Tensor, "Q"]:
    """Number of the point nearest to each query; exact.

    Queries are sorted along y and processed in chunks. Each chunk is compared with the points within 3 cm of its slab;
    a query whose best point is farther away than that is compared with all points.

    Args:
        queries: Query points, metres in the first three coordinates.
        points: Candidates.
    """
    order = queries[:, 1].argsort()
    found = torch.empty(len(queries), dtype=torch.long)
    sorted_y, by_y = points[:, 1].sort()
    for chunk in order.split(_CHUNK):
        low, high = queries[chunk, 1].amin() - _SLAB_MARGIN, queries[chunk, 1].amax() + _SLAB_MARGIN
        first, end = torch.searchsorted(sorted_y, torch.stack([low, high])).tolist()
        slab = by_y[first:end]
        if len(slab) == 0:
            slab = by_y
        distances, index = torch.cdist(queries[chunk], points[slab]).min(1)
        found[chunk] = slab[index]
        far = distances > _SLAB_MARGIN
        if far.any() and len(slab) < len(points):
            found[chunk[far]] = torch.cdist(queries[chunk[far]], points).argmin(1)
    return found


def triangles_around(triangles: Int[Tensor, "T 3"], count: int) -> Int[Tensor, "V D"]:
    """Triangles around each vertex, padded with -1."""
    vertices = triangles.reshape(-1)
    order = vertices.argsort(stable=True)
    owners = torch.arange(len(triangles)).repeat_interleave(3)[order]
    degrees = torch.bincount(vertices, minlength=count)
    first = degrees.cumsum(0) - degrees
    rank = torch.arange(len(vertices)) - first[vertices[order]]
    table = torch.full((count, int(degrees.max())), -1)
    table[vertices[order], rank] = owners
    return table
