"""A UV map for models without one: cylindrical, and spherical above the eyes.

The largest connected surface is projected from a vertical axis between the ears. u = (1 + sin(a / 2)) / 2 for the
azimuth a, which is 0 straight ahead: the face takes half of the width, left and right are symmetric (u → 1 - u), and a
closed head is cut at the back. v is the height below the eyes and the arc of a sphere above them, so that the crown
keeps its texels. Overlapping layers (nostrils, the inside of lips) share texels; `TexelAtlas` gives them to the front
layer. Other surfaces (eyeballs, teeth) get cells of a strip at the bottom, each projected from the front.
"""

from __future__ import annotations

import torch

from mien.morphable.landmark_tables import IBUG_CONTOUR_ENDS
from mien.typing import Float, Int, Tensor

STRIP = 0.12
"""Height of the strip of small surfaces, as a share of the map."""
_MARGIN = 0.01
HEAD_RADIUS_M = 0.1


def connected_parts(triangles: Int[Tensor, "T 3"], count: int) -> Int[Tensor, "V"]:
    """Number of the connected surface of each vertex: 0 for the largest, -1 for vertices without triangles."""
    label = torch.arange(count)
    while True:
        lowest = label[triangles].amin(1)
        spread = label.scatter_reduce(0, triangles.reshape(-1), lowest.repeat_interleave(3), "amin")
        spread = spread[spread]
        if torch.equal(spread, label):
            break
        label = spread
    used = torch.zeros(count, dtype=torch.bool)
    used[triangles.reshape(-1)] = True
    names, sizes = torch.unique(label[used], return_counts=True)
    rank = torch.full((count,), -1)
    rank[names[sizes.argsort(descending=True, stable=True)]] = torch.arange(len(names))
    return torch.where(used, rank[label], -1)


def unwrapped(
    mean: Float[Tensor, "V 3"], triangles: Int[Tensor, "T 3"], landmarks68: Int[Tensor, "68"]
) -> Float[Tensor, "V 2"]:
    """Compute UV coordinates in the unit square, v up.

    Args:
        mean: Vertices of the mean face, metres.
        triangles: Its triangles.
        landmarks68: Vertices of the iBUG landmarks; the ends of the contour define the axis.
    """
    part = connected_parts(triangles, len(mean))
    main = part == 0
    strip = STRIP if int(part.max()) > 0 else 0.0
    uv = torch.zeros(len(mean), 2)
    uv[main] = _cylindrical(mean[main], mean[landmarks68[list(IBUG_CONTOUR_ENDS)]].mean(0))
    uv[:, 1] = strip + (1 - strip) * uv[:, 1]
    others = int(part.max())
    columns = 1
    while columns * max(int(STRIP * columns), 1) < others:
        columns += 1
    cell = min(1 / columns, STRIP)
    for k in range(1, others + 1):
        own = part == k
        points = mean[own, :2]
        low, high = points.amin(0), points.amax(0)
        inside = (points - low) / (high - low).max().clamp(min=1e-9)
        row, column = divmod(k - 1, columns)
        uv[own] = cell * (torch.tensor([column, row]) + 0.1 + 0.8 * inside)
    return uv.clamp(0, 1)


def _cylindrical(points: Float[Tensor, "P 3"], middle: Float[Tensor, "3"]) -> Float[Tensor, "P 2"]:
    x, y, z = (points - middle).unbind(-1)
    u = 0.5 + 0.5 * (torch.atan2(x, z) / 2).sin()
    radius = torch.hypot(x, z)
    v = torch.where(y > 0, HEAD_RADIUS_M * torch.atan2(y, radius), y)
    v = (v - v.amin()) / (v.amax() - v.amin()).clamp(min=1e-9)
    return _MARGIN + (1 - 2 * _MARGIN) * torch.stack([u, v], dim=-1)
