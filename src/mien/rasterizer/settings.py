"""How softly, and in which variant, triangles are drawn: one place for all backends."""

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
    """The numbers of `rasterize` that are not tensors. Raises ConfigError where one lies outside its range."""

    image_size: tuple[int, int]
    """Height and width in pixels."""
    sigma: float = 1e-5
    """Softness of edges, NDC²: coverage is sigmoid(± distance² / sigma)."""
    gamma: float = 1e-4
    """Softness of the choice of the nearest surface, in units of the depth normalised by near and far."""
    dist_eps: float = 1e-4
    """A triangle does not act where it would cover less than this; at most 0.5, the coverage on its boundary."""
    cull_backfaces: bool = False
    """Drop triangles whose corners do not run counter-clockwise for the viewer."""
    near_clipping: bool = True
    """Cut triangles where they cross the near plane; False drops them whole, which spares a GPU the room for twice the
    triangles (a CPU looks whether there are any)."""
    barycentric_clip: BarycentricClip = "softras"
    """Outside a triangle, barycentrics are clamped to [0, 1] ("softras") or at 0 only ("pytorch3d"), and divided by
    their sum; depth is interpolated with them perspectively ("softras") or linearly ("pytorch3d")."""

    def __post_init__(self) -> None:
        height, width = self.image_size
        if not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE):
            raise ConfigError(
                f"image_size is (height, width), each in 1 … {LONGEST_SIDE} pixels, not {self.image_size}"
            )
        for name, value in (("sigma", self.sigma), ("gamma", self.gamma)):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be a positive number, not {value}")
        if not 0 < self.dist_eps <= 0.5:  # coverage is 0.5 on the boundary, so that more would cut into the inside
            raise ConfigError(f"dist_eps must lie in (0, 0.5], not {self.dist_eps}")
        if self.barycentric_clip not in get_args(BarycentricClip):
            raise ConfigError(f'barycentric_clip is "softras" or "pytorch3d", not {self.barycentric_clip!r}')

    @property
    def reach_sq(self) -> float:
        """Squared distance in NDC² beyond which a triangle covers less than `dist_eps`."""
        return max(math.log(1 / self.dist_eps - 1) * self.sigma, 0.0)

    @property
    def linear_depth(self) -> bool:
        """Whether depth is linear on the screen, and barycentrics are clamped at 0 only."""
        return self.barycentric_clip == "pytorch3d"
