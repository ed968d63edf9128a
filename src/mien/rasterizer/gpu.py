"""Launches the Triton kernels: the twin of csrc/soft_raster.cpp for CUDA tensors.

Nothing here waits for the device or reads from it, and all sizes follow from shapes, so that calls can be captured in a
CUDA graph. Forward passes are deterministic; backward passes add the gradients of triangles to their vertices atomically, in
any order, so that repeated runs differ by rounding: at most (n - 1) · 2⁻²⁴ times the sum of the absolute contributions
of the n triangles around a vertex. Corners outside the mesh and triangles that are not finite are not drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mien.arrays import Tensor
from mien.rasterizer import triton_kernels as kernels
from mien.rasterizer.settings import RasterSettings

__all__ = ["Launch", "hard_forward", "soft_backward", "soft_forward"]

_BINS_ACROSS = 8


@dataclass(frozen=True)
class Launch:
    """How the kernels are cut into programs; any powers of two (CHUNK divides nothing here) give the same picture."""

    tile_width: int = 8
    tile_height: int = 8
    draw_warps: int = 2
    lanes: int = 32
    """Triangles of a program of the backward pass."""
    back_warps: int = 1
    small_box: int = 256
    """Pixels of a box that one lane walks through alone."""
