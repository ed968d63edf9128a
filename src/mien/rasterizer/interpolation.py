"""`interpolate` and `texture`: from hard fragments to pictures of vertex attributes and of texture maps."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.rasterizer.reference import Fragments, RasterOutput
from mien.typing import Float, Int, Tensor

__all__ = ["interpolate", "texture"]


def interpolate(
    attributes: Float[Tensor, "*b V C"], triangles: Int[Tensor, "*t T 3"], fragments: Fragments | RasterOutput
) -> Float[Tensor, "B C H W"]:
    """Interpolate vertex attributes at each pixel centre, perspective-correctly and with hard edges.

    Differentiable in `attributes` only: fragments do not say how a pixel moves with its triangle. Gradients with
    respect to vertices, silhouettes included, come from `rasterize`.

    Args:
        attributes: C channels at each vertex, (V, C) for all images or (B, V, C). Texture coordinates, normals,
            colours: whatever is linear on the surface.
        triangles: The mesh that was rasterized, (T, 3) for all images or (B, T, 3), int32 or int64.
        fragments: Result of `rasterize_hard` or `rasterize`, for B images.

    Returns:
        An image in the dtype of `attributes`, 0 in pixels without a triangle.

    Raises:
        ValueError: The batch sizes differ.

    Example:
        >>> from mien.rasterizer import rasterize_hard
        >>> vertices_ndc = torch.tensor([[[-0.6, 0.5, 2.0], [0.0, -0.7, 2.0], [0.6, 0.5, 3.0]]])
        >>> triangles = torch.tensor([[0, 1, 2]])
        >>> fragments = rasterize_hard(vertices_ndc, triangles, image_size=(64, 96), near=1.0, far=4.0)
        >>> interpolate(vertices_ndc, triangles, fragments).shape
        torch.Size([1, 3, 64, 96])
    """
    ids = fragments.triangle_ids
    batch = len(ids)
    _check_batch("attributes", attributes, "V, C", batch)
    _check_batch("triangles", triangles, "T, 3", batch)
    corners = _corners(triangles, ids)
    if attributes.ndim == 3:
        starts = torch.arange(batch, device=ids.device) * attributes.shape[1]
        corners = corners + starts.repeat_interleave(ids[0].numel())[:, None]
    # One pass over the pixels, where an indexed read of each corner takes three and memory for all of them. Pixels
    # without a triangle have barycentrics of 0.
    mixed = F.embedding_bag(
        corners,
        attributes.reshape(-1, attributes.shape[-1]),
        per_sample_weights=fragments.barycentrics.to(attributes).reshape(-1, 3),
        mode="sum",
    )
    return mixed.view(*ids.shape, -1).movedim(-1, 1)


def texture(
    maps: Float[Tensor, "M C S R"], uv: Float[Tensor, "N 2 H W"], fragments: Fragments | RasterOutput | None = None
) -> Float[Tensor, "B C H W"]:
    """Sample texture maps bilinearly at each pixel's texture coordinates.

    Differentiable in `maps` and `uv`. There are no mipmaps: a map that is much finer than the image aliases.

    Args:
        maps: Texture maps of S rows and R columns, one for all images or one per image.
        uv: Texture coordinates, usually from `interpolate`: u from 0 at the left to 1 at the right edge of the map, v
            from 0 at the bottom to 1 at the top (the first row), as in OBJ files and Blender. Beyond that range the
            border of the map continues.
        fragments: If given, pixels without a triangle are 0, where the maps would be sampled at uv = (0, 0) otherwise.

    Returns:
        An image for the larger of both batches.

    Raises:
        ValueError: The batch sizes differ, and neither is 1.

    Example:
        >>> checkerboard = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
        >>> texture(checkerboard, torch.tensor([0.25, 0.75]).view(1, 2, 1, 1))
        tensor([[[[0.]]]])
    """
    if len(maps) != len(uv) and 1 not in (len(maps), len(uv)):
        raise ValueError(f"maps hold {len(maps)} images and uv {len(uv)}; use equal numbers, or a single one")
    batch = len(uv) if len(maps) == 1 else len(maps)
    u, v = uv.to(maps.dtype).unbind(1)
    grid = torch.stack([2 * u - 1, 2 * (1 - v) - 1], dim=-1)
    maps, grid = maps.expand(batch, -1, -1, -1), grid.expand(batch, -1, -1, -1)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled if fragments is None else sampled * (fragments.triangle_ids >= 0)[:, None]


def _corners(triangles: Tensor, ids: Int[Tensor, "B H W"]) -> Int[Tensor, "P 3"]:
    """The vertices of each pixel's triangle; those of triangle 0 in pixels without one."""
    ids = ids.clamp(min=0)
    if triangles.ndim == 3:
        ids = ids + torch.arange(len(ids), device=ids.device).view(-1, 1, 1) * triangles.shape[1]
    return triangles.reshape(-1, 3).index_select(0, ids.flatten())  # at three times the speed of triangles[ids]


def _check_batch(name: str, tensor: Tensor, shape: str, batch: int) -> None:
    if tensor.ndim == 3 and len(tensor) != batch:
        raise ValueError(
            f"{name} have the shape {tuple(tensor.shape)}, but the fragments are those of {batch} images; use "
            f"({shape}) or ({batch}, {shape})"
        )
