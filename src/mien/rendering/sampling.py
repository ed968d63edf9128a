"""Sampling of images and UV maps."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.rasterizer import texture
from mien.typing import Float, Shaped, Tensor


def sample_image(image: Float[Tensor, "B C H W"], points_px: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P C"]:
    """Sample images bilinearly at pixel positions.

    Args:
        image: Images.
        points_px: Positions (x, y) in pixels; the centre of the first pixel is (0.5, 0.5). Positions beyond the image
            take the value at its edge.

    Returns:
        Values per point; differentiable in both arguments.
    """
    height, width = image.shape[-2:]
    grid = 2 * points_px / points_px.new_tensor([width, height]) - 1
    sampled = F.grid_sample(image, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].mT


def sample_nearest(values: Shaped[Tensor, "B H W"], points_px: Float[Tensor, "B P 2"]) -> Shaped[Tensor, "B P"]:
    """Value of the pixel in which each position lies; positions beyond the image take the nearest pixel."""
    height, width = values.shape[-2:]
    column, row = points_px.floor().long().unbind(-1)
    return values.flatten(1).gather(1, row.clamp(0, height - 1) * width + column.clamp(0, width - 1))


def sample_map(maps: Float[Tensor, "B C S S"], uv: Float[Tensor, "V 2"]) -> Float[Tensor, "B V C"]:
    """Sample UV maps bilinearly at the UV coordinates of the vertices, as the paper samples its offset maps.

    Args:
        maps: UV maps; row 0 is v = 1.
        uv: Coordinates (u, v) per vertex, v upwards.

    Returns:
        Values per vertex; differentiable in the maps.
    """
    return texture(maps, uv.T[None, :, None])[:, :, 0].mT


def sample_map_hyperbolic(
    maps: Float[Tensor, "B C S S"],
    uv: Float[Tensor, "V 2"],
    *,
    depth: Float[Tensor, "B 1 S S"],
) -> Float[Tensor, "B V C"]:
    """Sample UV maps with perspective correction: the weight of each texel is divided by its depth.

    The paper tried this variant and did not keep it. The derivative by a depth z is the weight times
    (sample − texel)/z, which is large for small depths.

    Args:
        maps: UV maps; row 0 is v = 1.
        uv: Coordinates (u, v) per vertex, v upwards.
        depth: Distance of each texel from the camera along its axis; positive everywhere.

    Returns:
        Values per vertex; differentiable in maps and depth.
    """
    weighted = sample_map(torch.cat([maps / depth, 1 / depth], dim=1), uv)
    return weighted[..., :-1] / weighted[..., -1:]
