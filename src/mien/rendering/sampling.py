"""Differentiable samples of images and UV maps."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.rasterizer import texture
from mien.typing import Float, Shaped, Tensor


def sample_image(image: Float[Tensor, "B C H W"], points_px: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P C"]:
    """Bilinear samples of images at pixel positions (corner convention); differentiable, edges are continued."""
    height, width = image.shape[-2:]
    grid = 2 * points_px / points_px.new_tensor([width, height]) - 1
    sampled = F.grid_sample(image, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].mT


def sample_nearest(values: Shaped[Tensor, "B H W"], points_px: Float[Tensor, "B P 2"]) -> Shaped[Tensor, "B P"]:
    """The value of the pixel that each position lies in, or of the nearest one of the image."""
    height, width = values.shape[-2:]
    column, row = points_px.floor().long().unbind(-1)
    return values.flatten(1).gather(1, row.clamp(0, height - 1) * width + column.clamp(0, width - 1))


def sample_map(maps: Float[Tensor, "B C S S"], uv: Float[Tensor, "V 2"]) -> Float[Tensor, "B V C"]:
    """Bilinear samples of UV maps at each vertex's UV, v upwards; the paper's sampling of its offset maps."""
    return texture(maps, uv.T[None, :, None])[:, :, 0].mT


def sample_map_hyperbolic(
    maps: Float[Tensor, "B C S S"],
    uv: Float[Tensor, "V 2"],
    *,
    depth: Float[Tensor, "B 1 S S"],
) -> Float[Tensor, "B V C"]:
    """Perspective-correct samples of UV maps: each texel's weight is divided by its depth before the camera.

    The variant that the paper gave up. The derivative by a depth z is the weight's times (sample − texel)/z, so that
    small depths blow the gradients up; `depth` must be positive everywhere. Differentiable in maps and depth.
    """
    weighed = sample_map(torch.cat([maps / depth, 1 / depth], dim=1), uv)
    return weighed[..., :-1] / weighed[..., -1:]
