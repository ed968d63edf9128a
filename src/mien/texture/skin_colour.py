"""How far the colours of a photo deviate from those of the visible skin."""

from __future__ import annotations

import functools

import torch

from mien.typing import Float, Tensor

_DARKEST_COLOUR = 0.02
"""Smallest lit albedo that the colours of a photo are divided by; darker texels show noise."""
_RATIOS = (0.2, 3.0)
"""Range of the ratio of photo and lit albedo; beyond it the photo shows something else than skin."""
_LEAST_SPREADS = (0.12, 0.04, 0.04)
"""Lower bounds of the standard deviations of log brightness, log red/green and log blue/green, so that evenly lit,
smooth skin does not reject its own shading."""
_SAMPLES = 256
"""A median over about this many rows and columns of texels is exact enough."""


def colour_ratio(colours: Float[Tensor, "B 3 S S"], lit: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Ratio of the photo's colours and those of the lit model, in a range that skin can have."""
    return (colours.clamp(min=0) / lit.clamp(min=_DARKEST_COLOUR)).clamp(*_RATIOS)


def skin_deviations(ratio: Float[Tensor, "B 3 S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Deviation of each texel from the median of the visible skin, in robust standard deviations.

    Args:
        ratio: `colour_ratio` of the photo and the lit model, so that light and shadow of the model count as typical.
        weights: Texels above 0.5 are visible skin.

    Returns:
        Log brightness, log red/green and log blue/green; zero for a face without visible skin.
    """
    red, green, blue = ratio.log().unbind(1)
    features = torch.stack([(red + green + blue) / 3, red - green, blue - green], dim=1)
    stride = max(features.shape[-1] // _SAMPLES, 1)
    sampled, visible = (maps[..., ::stride, ::stride] for maps in (features, weights[:, 0] > 0.5))
    normal = [_centre_and_spread(sampled[face][:, visible[face]]) for face in range(len(features))]
    centre, spread = (torch.stack(statistic)[..., None, None] for statistic in zip(*normal, strict=True))
    return (features - centre) / spread


def _centre_and_spread(values: Float[Tensor, "3 N"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Median and robust standard deviation; without values the latter is infinite, so that nothing deviates."""
    if values.shape[1] == 0:
        return values.new_zeros(3), values.new_full((3,), torch.inf)
    centre = values.median(1).values
    # The median of absolute deviations is 1 / 1.4826 of the standard deviation of a normal distribution.
    spread = 1.4826 * (values - centre[:, None]).abs().median(1).values
    return centre, torch.maximum(spread, spread.new_tensor(_LEAST_SPREADS))


def length(vectors: Float[Tensor, "B C S S"]) -> Float[Tensor, "B 1 S S"]:
    """Euclidean norm over the channels, at thirty times the speed of `torch.linalg.vector_norm` over them."""
    return functools.reduce(torch.add, [channel.square() for channel in vectors.split(1, dim=1)]).sqrt()


def biweight(deviation: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Tukey's biweight: 1 at zero, 0 from one on."""
    return (1 - deviation.square()).clamp(min=0) ** 2
