"""Photos without colours of their own: grey, sepia or toned. Every colour in them is a function of its brightness."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.lighting import LUMA
from mien.typing import Float, Tensor

_LARGEST_RESIDUAL = 0.005
"""Between those of photos: of 40 grey official portraits the largest is 0.0031, of 60 coloured ones the smallest 0.0087
(portraits_pd, JPEG); of 29 coloured studio portraits 0.0115 (photos_ccby)."""
_SAMPLES = 128
"""Rows and columns of texels that are looked at."""
_FEWEST = 30
_LEAST_CONTRAST = 0.03
"""Standard deviation of brightness below which the colours of other brightness are not known."""


@dataclass(frozen=True)
class PhotoTint:
    """The colour of each brightness in a toned photo."""

    curve: Float[Tensor, "3 3"]
    """Red, green and blue minus brightness, as polynomials of brightness: the rows are the powers 0, 1 and 2."""

    @classmethod
    def of(cls, colours: Float[Tensor, "B 3 S S"], weights: Float[Tensor, "B 1 S S"]) -> PhotoTint | None:
        """Look whether one brightness has one colour.

        Args:
            colours: Colours of one photo.
            weights: Texels above 0.5 show it.

        Returns:
            The tint; None for a colour photo, or where too little is seen to tell.
        """
        stride = max(colours.shape[-1] // _SAMPLES, 1)
        seen = weights[:, 0, ::stride, ::stride] > 0.5
        values = colours[:, :, ::stride, ::stride].movedim(1, -1)[seen].double()
        if len(values) < _FEWEST:
            return None
        if _brightness(values).std() < _LEAST_CONTRAST:
            return None
        powers, differences = _powers(values), values - _brightness(values)
        # A little towards zero: a photo of few grey levels does not determine three powers.
        ridge = 1e-6 * len(values) * torch.eye(3).to(powers)
        curve = torch.linalg.solve(powers.mT @ powers + ridge, powers.mT @ differences)
        residual = (differences - powers @ curve).square().mean().sqrt()
        return cls(curve.to(colours)) if residual < _LARGEST_RESIDUAL else None

    def __call__(self, colours: Float[Tensor, "*b 3 H W"]) -> Float[Tensor, "*b 3 H W"]:
        """The colours that the photo gives to the brightness of these."""
        values = colours.movedim(-3, -1)
        return (_brightness(values) + _powers(values) @ self.curve).movedim(-1, -3)


def _brightness(values: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 1"]:
    return (values * values.new_tensor(LUMA)).sum(-1, keepdim=True)


def _powers(values: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
    level = _brightness(values)
    return torch.cat([torch.ones_like(level), level, level.square()], dim=-1)
