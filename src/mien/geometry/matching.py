"""Closest points that also face the same way: upper lip to upper lip, though the lower one touches it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.geometry.closest import closest_barycentrics
from mien.geometry.meshes import vertex_normals
from mien.typing import Bool, Float, Int, Tensor

NORMAL_REACH_M = 0.012
"""A normal turned by 60° counts like this distance; lips and lids are nearer than this to what they must not match."""
_CHUNK = 1024


@dataclass(frozen=True)
class Matches:
    """Points of a surface that belong to some queries."""

    corners: Int[Tensor, "P 3"]
    weights: Float[Tensor, "P 3"]
    triangle_ids: Int[Tensor, "P"]
    distances: Float[Tensor, "P"]
    at_border: Bool[Tensor, "P"]
    """Matches beside an open edge: the surface ends there, and so does what it can say."""

    def of(self, values: Float[Tensor, "V C"]) -> Float[Tensor, "P C"]:
        """Values given at the surface's vertices, at the matched points."""
        return (values[self.corners] * self.weights[..., None]).sum(1)

    @property
    def nearest_corners(self) -> Int[Tensor, "P"]:
        """The vertex with the largest weight."""
        return self.corners.gather(1, self.weights.argmax(1, keepdim=True))[:, 0]


class Matcher:
    """A surface to be matched many times."""

    def __init__(self, vertices: Float[Tensor, "V 3"], triangles: Int[Tensor, "T 3"]) -> None:
        self.vertices, self.triangles = vertices, triangles
        self.normals = vertex_normals(vertices[None], triangles)[0]
        self._around = _triangles_around(triangles, len(vertices))
        self._at_border = _border_vertices(triangles, len(vertices))
        used = torch.zeros(len(vertices), dtype=torch.bool)
        used[triangles.reshape(-1)] = True
        self._used = used.nonzero()[:, 0]

    def __call__(self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"]) -> Matches:
        """The nearest vertex in position and direction, then the closest point of the triangles around it."""
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
    """Index of the nearest point to each query; exact, in chunks that see a slab of the points first.

    Queries are sorted along y. A chunk looks at the points within 3 cm of its slab, and those whose best lies farther
    than that look at all.
    """
    margin = 0.03
    order = queries[:, 1].argsort()
    found = torch.empty(len(queries), dtype=torch.long)
    sorted_y, by_y = points[:, 1].sort()
    for chunk in order.split(_CHUNK):
        low, high = queries[chunk, 1].amin() - margin, queries[chunk, 1].amax() + margin
        first, end = torch.searchsorted(sorted_y, torch.stack([low, high])).tolist()
        slab = by_y[first:end]
        if len(slab) == 0:
            slab = by_y
        distances, index = torch.cdist(queries[chunk], points[slab]).min(1)
        found[chunk] = slab[index]
        far = distances > margin
        if far.any() and len(slab) < len(points):
            found[chunk[far]] = torch.cdist(queries[chunk[far]], points).argmin(1)
    return found


def _triangles_around(triangles: Int[Tensor, "T 3"], count: int) -> Int[Tensor, "V D"]:
    """Triangles at each vertex, padded by -1."""
    vertices = triangles.reshape(-1)
    order = vertices.argsort(stable=True)
    owners = torch.arange(len(triangles)).repeat_interleave(3)[order]
    degrees = torch.bincount(vertices, minlength=count)
    first = degrees.cumsum(0) - degrees
    rank = torch.arange(len(vertices)) - first[vertices[order]]
    table = torch.full((count, int(degrees.max())), -1)
    table[vertices[order], rank] = owners
    return table


def _border_vertices(triangles: Int[Tensor, "T 3"], count: int) -> Bool[Tensor, "V"]:
    edges = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).sort(dim=1).values
    unique, uses = torch.unique(edges, dim=0, return_counts=True)
    border = torch.zeros(count, dtype=torch.bool)
    border[unique[uses == 1].reshape(-1)] = True
    return border
