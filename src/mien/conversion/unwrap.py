"""A texture chart for a model that has none: the head seen from its middle, flattened with equal areas.

Each point of the largest connected surface goes to its direction from the middle of the head: the angle from "straight
ahead" becomes the radius by Lambert's azimuthal equal-area projection, so the face lies in the chart's centre, left and
right mirror each other (u → 1 - u), and a closed head is cut at a single point behind it. A cylinder would cut it along
a line from crown to neck, with a stripe of stretched triangles. Other surfaces (eyeballs, teeth) get cells of a strip
below, each seen from the front.
"""

from __future__ import annotations

import math

import torch

from mien.arrays import Float, Int, Tensor

STRIP = 0.12
"""Height of the strip of small surfaces."""
_MARGIN = 0.01
LEFT_EAR, RIGHT_EAR, NOSE_TIP = 16, 0, 30
"""Of the 68 points."""


def connected_parts(triangles: Int[Tensor, "T 3"], count: int) -> Int[Tensor, "V"]:
    """Number of the connected surface that each vertex belongs to, the largest 0; -1 without triangles."""
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
    """Texture coordinates in the unit square, v up."""
    part = connected_parts(triangles, len(mean))
    ears = mean[landmarks68[[LEFT_EAR, RIGHT_EAR]]].mean(0)
    middle = torch.stack([ears[0], mean[landmarks68[NOSE_TIP], 1], ears[2]])
    uv = torch.zeros(len(mean), 2)
    main = part == 0
    strip = STRIP if int(part.max()) > 0 else 0.0
    disc = _azimuthal(mean[main] - middle)
    reach = disc.norm(dim=-1).max()
    side = 1 - 2 * _MARGIN
    uv[main] = torch.stack([0.5 + 0.5 * side * disc[:, 0] / reach, 0.5 + 0.5 * side * disc[:, 1] / reach], dim=1)
    uv[:, 1] = strip + (1 - strip) * uv[:, 1]
    others = int(part.max())
    columns = max(math.ceil(math.sqrt(others / STRIP)), 1)
    cell = 1 / columns
    for k in range(1, others + 1):
        own = part == k
        points = mean[own, :2]
        low, high = points.amin(0), points.amax(0)
        inside = (points - low) / (high - low).max().clamp(min=1e-9)
        row, column = divmod(k - 1, columns)
        corner = torch.tensor([column * cell, (row % max(int(STRIP / cell), 1)) * cell])
        uv[own] = corner + cell * (0.1 + 0.8 * inside)
    return uv.clamp(0, 1)


def _azimuthal(offsets: Float[Tensor, "P 3"]) -> Float[Tensor, "P 2"]:
    """Lambert's projection of directions about +z: the distance from the middle is 2 sin(angle / 2)."""
    directions = torch.nn.functional.normalize(offsets, dim=-1)
    return directions[:, :2] * (2 / (1 + directions[:, 2:]).clamp(min=1e-6)).sqrt()
