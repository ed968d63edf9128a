"""Launches the Triton kernels for CUDA tensors; csrc/soft_raster.cpp does the same for tensors on the CPU.

Nothing here waits for the device or reads from it, and all sizes follow from shapes, so that calls can be captured in a
CUDA graph. Forward passes are deterministic. Backward passes add the gradients of triangles to their vertices
atomically, in any order, so that repeated runs differ by rounding: at most (n - 1) · 2⁻²³ times the sum of the absolute
contributions of the n triangles around a vertex. Triangles with an index out of range or a corner that is not finite
are left out.
"""
# Kernels are launched with positional arguments, in the order of the launchers.
# ruff: noqa: PLR0917
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mien.rasterizer import triton as kernels
from mien.rasterizer.settings import RasterSettings
from mien.typing import Tensor

__all__ = [
    "Launch",
    "channel_blocks",
    "hard_forward",
    "padded_channels",
    "record_size",
    "soft_backward",
    "soft_forward",
]

_BINS_ACROSS = 8
_MOST_CHANNELS = 4  # per backward pass: with more, push_back runs out of registers
_MOST_IMAGES = 65_535  # CUDA's limit for the second axis of a grid


@dataclass(frozen=True)
class Launch:
    """How the work is divided into programs; all numbers are powers of two. The image does not depend on them."""

    tile_width: int = 8
    tile_height: int = 8
    draw_warps: int = 2
    lanes: int = 32
    """Triangles per program of the backward pass."""
    back_warps: int = 1
    small_box: int = 256
    """Maximum number of pixels of a box that one lane walks through alone."""

    def bins(self, height: int, width: int) -> tuple[int, int, int]:
        """Size of a bin in pixels, and numbers of columns and rows. A tile lies in one bin: sizes are multiples."""
        size = max(self.tile_width, self.tile_height)
        while size * _BINS_ACROSS < max(height, width):
            size *= 2
        return size, math.ceil(width / size), math.ceil(height / size)


def soft_forward(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    near: Tensor,
    far: Tensor,
    background: Tensor,
    settings: RasterSettings,
    outputs: tuple[Tensor, ...],
    launch: Launch = Launch(),
) -> None:
    """Fill `outputs`: image, alpha, triangle ids, barycentrics, depth and state, shaped as in `ops`."""
    image, alpha, *fragments, state = outputs
    _draw(vertices, triangles, attributes, near, far, background, settings, (image, alpha, *fragments, state), launch)


def hard_forward(
    vertices: Tensor,
    triangles: Tensor,
    near: Tensor,
    far: Tensor,
    settings: RasterSettings,
    outputs: tuple[Tensor, ...],
    launch: Launch = Launch(),
) -> None:
    """Fill `outputs`: triangle ids, barycentrics and depth."""
    _draw(vertices, triangles, None, near, far, None, settings, (None, None, *outputs, None), launch)


def soft_backward(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    near: Tensor,
    far: Tensor,
    image: Tensor,
    state: Tensor,
    image_grad: Tensor,
    alpha_grad: Tensor,
    settings: RasterSettings,
    gradients: tuple[Tensor, Tensor],
    launch: Launch = Launch(),
) -> None:
    """Fill `gradients`: those of the vertices and of the attributes.

    Raises:
        RuntimeError: torch.use_deterministic_algorithms is on, as for torch's own atomic operations.
    """
    if torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            "the GPU rasterizer's backward pass adds atomically and is not deterministic: call "
            "torch.use_deterministic_algorithms(False), or move the tensors to the CPU"
        )
    for gradient in gradients:
        gradient.zero_()
    batch, count, _ = vertices.shape
    faces = triangles.shape[-2]
    channels, (height, width) = attributes.shape[2], settings.image_size
    if batch == 0 or faces == 0:
        return
    passes = channel_blocks(channels)
    most = passes[0][1]
    padded, record = padded_channels(most), record_size(most)
    packed = vertices.new_empty((batch * height * width, record))
    block = 128
    reach_sq, inverse_sigma = _in_pixels(settings)
    for first, end in passes:
        kernels.pack[(math.ceil(len(packed) / block),)](
            image,
            state,
            image_grad,
            alpha_grad,
            packed,
            height * width,
            channels,
            first,
            end,
            len(packed),
            CHANNELS=padded,
            RECORD_SIZE=record,
            BLOCK=block,
            enable_fp_fusion=True,
        )
        kernels.push_back[(math.ceil(faces / launch.lanes), batch)](
            vertices,
            triangles,
            attributes,
            near,
            far,
            packed,
            *gradients,
            faces,
            count,
            3 * faces if triangles.ndim == 3 else 0,
            channels,
            first,
            end,
            settings.gamma,
            height,
            width,
            math.sqrt(reach_sq),
            reach_sq,
            inverse_sigma,
            CULL=settings.cull_backfaces,
            LINEAR=settings.linear_depth,
            CHANNELS=padded,
            RECORD_SIZE=record,
            LANES=launch.lanes,
            SMALL_BOX=launch.small_box,
            num_warps=launch.back_warps,
            enable_fp_fusion=True,
        )


def _draw(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor | None,
    near: Tensor,
    far: Tensor,
    background: Tensor | None,
    settings: RasterSettings,
    outputs: tuple[Tensor | None, ...],
    launch: Launch,
) -> None:
    """Rasterize softly if there are attributes, else hard.

    Raises:
        ValueError: The batch is too large for a grid.
    """
    soft = attributes is not None
    batch, count, _ = vertices.shape
    if batch > _MOST_IMAGES:
        raise ValueError(
            f"a batch of {batch} images is too large for a GPU; use several batches of at most {_MOST_IMAGES}"
        )
    faces = triangles.shape[-2]
    channels = attributes.shape[2] if soft else 1
    height, width = settings.image_size
    if batch == 0:
        return
    reach_sq, inverse_sigma = _in_pixels(settings) if soft else (0.0, 0.0)
    chunks = max(math.ceil(faces / kernels.CHUNK.value), 1)
    bin_size, columns, rows = launch.bins(height, width)
    records = vertices.new_empty((batch, faces, kernels.RECORD.value))
    boxes = vertices.new_empty((batch, faces), dtype=torch.int64)
    chunk_boxes = vertices.new_empty((batch, chunks), dtype=torch.int64)
    counts = vertices.new_empty((batch, rows * columns), dtype=torch.int32)
    lists = vertices.new_empty((batch, rows * columns, chunks), dtype=torch.int32)
    kernels.set_up[(chunks, batch)](
        vertices,
        triangles,
        near,
        far,
        records,
        boxes,
        chunk_boxes,
        faces,
        count,
        3 * faces if triangles.ndim == 3 else 0,
        settings.gamma,
        height,
        width,
        math.sqrt(reach_sq),
        CULL=settings.cull_backfaces,
        LINEAR=settings.linear_depth,
        num_warps=1,
        enable_fp_fusion=True,
    )
    kernels.bin_chunks[(rows * columns, batch)](
        chunk_boxes, counts, lists, chunks, columns, bin_size, BLOCK=256, num_warps=2, enable_fp_fusion=True
    )
    tiles = math.ceil(width / launch.tile_width) * math.ceil(height / launch.tile_height)
    kernels.draw[(tiles, batch)](
        records,
        boxes,
        chunk_boxes,
        counts,
        lists,
        attributes,
        far,
        background,
        *outputs,
        faces,
        count,
        chunks,
        rows * columns,
        columns,
        bin_size,
        channels,
        height,
        width,
        reach_sq,
        inverse_sigma,
        settings.gamma,
        SOFT=soft,
        LINEAR=settings.linear_depth,
        CHANNELS=padded_channels(channels),
        TILE_WIDTH=launch.tile_width,
        TILE_HEIGHT=launch.tile_height,
        num_warps=launch.draw_warps,
        enable_fp_fusion=True,
    )


def _in_pixels(settings: RasterSettings) -> tuple[float, float]:
    """Squared reach in square pixels, and 1 / sigma per square pixel."""
    per_ndc_sq = (0.5 * min(settings.image_size)) ** 2
    return settings.reach_sq * per_ndc_sq, 1 / (settings.sigma * per_ndc_sq)


def channel_blocks(channels: int) -> list[tuple[int, int]]:
    """First and end of the channels of each backward pass: as few blocks as possible, of equal length except for the
    last."""
    length = math.ceil(channels / math.ceil(channels / _MOST_CHANNELS))
    return [(first, min(first + length, channels)) for first in range(0, channels, length)]


def padded_channels(channels: int) -> int:
    """The next power of two, which Triton wants as the length of a vector."""
    return 1 << (channels - 1).bit_length()


def record_size(channels: int) -> int:
    """Numbers that the backward pass stores per pixel, in whole memory sectors of 32 bytes."""
    return 8 * math.ceil((kernels.PIXEL_HEAD.value + channels) / 8)
