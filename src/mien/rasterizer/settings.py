"""The settings of the rasterizer and their ranges, for all backends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mien.errors import ConfigError

__all__ = ["BarycentricClip", "RasterSettings"]

BarycentricClip = Literal["softras", "pytorch3d"]

LONGEST_SIDE = 16384
"""Pixels; the kernels count pixels in 16 bits."""


@dataclass(frozen=True)
class RasterSettings:
    """The arguments of `rasterize` that are not tensors.

    Raises:
        ConfigError: A value is outside its range.
    """

    image_size: tuple[int, int]
    """Height and width in pixels."""
    sigma: float = 1e-5
    """Softness of edges in NDC²: coverage is sigmoid(± distance² / sigma), + inside and - outside."""
    gamma: float = 1e-4
    """Softness of the choice between surfaces, in units of the normalised depth (far - z) / (far - near)."""
    dist_eps: float = 1e-4
    """A triangle has no effect where its coverage is below this; at most 0.5, the coverage on its boundary."""
    cull_backfaces: bool = False
    """Drop triangles whose corners do not run counter-clockwise for the viewer."""
    near_clipping: bool = True
    """Cut triangles where they cross the near plane. False drops them whole and saves a GPU the memory for twice the
    number of triangles; a CPU first checks whether any triangle crosses."""
    barycentric_clip: BarycentricClip = "softras"
    """Outside a triangle, barycentrics are clamped to [0, 1] ("softras") or at 0 only ("pytorch3d"), and divided by
    their sum; depth is interpolated with them perspectively ("softras") or linearly ("pytorch3d")."""

    def __post_init__(self) -> None:
        height, width = self.image_size
        if not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE):
            raise ConfigError(
                f"image_size={self.image_size} is out of range; use (height, width), each in 1 … {LONGEST_SIDE} pixels"
            )
        for name, value in (("sigma", self.sigma), ("gamma", self.gamma)):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value} is out of range; use a finite number greater than 0")
        if not 0 < self.dist_eps <= 0.5:  # coverage is 0.5 on the boundary: a larger value would remove pixels inside
            raise ConfigError(f"dist_eps={self.dist_eps} is out of range; use a number in (0, 0.5]")
        if self.barycentric_clip not in get_args(BarycentricClip):
            raise ConfigError(f'barycentric_clip={self.barycentric_clip!r} is unknown; use "softras" or "pytorch3d"')

    @property
    def options(self) -> tuple[float, float, float, bool, bool, str]:
        """All but the size, in the order of the operators' arguments."""
        softness = float(self.sigma), float(self.gamma), float(self.dist_eps)
        return *softness, self.cull_backfaces, self.near_clipping, self.barycentric_clip

    @property
    def reach_sq(self) -> float:
        """Squared distance in NDC² beyond which a triangle covers less than `dist_eps`."""
        return max(math.log(1 / self.dist_eps - 1) * self.sigma, 0.0)

    @property
    def linear_depth(self) -> bool:
        """Whether depth is linear on the screen, and barycentrics are clamped at 0 only."""
        return self.barycentric_clip == "pytorch3d"
