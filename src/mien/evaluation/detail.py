"""Correlation between predicted and ground-truth relief."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.errors import ConfigError
from mien.typing import Float, Tensor

LEAST_WEIGHT = 1e-6
"""Smallest sum of weights that counts as more than zero."""


@dataclass(frozen=True)
class ReliefMoments:
    """Second moments of predicted and ground-truth relief about their means, per face; the square of their unit."""

    covariance: Float[Tensor, "B"]
    """Of predicted and ground-truth relief."""
    predicted_variance: Float[Tensor, "B"]
    """Of the predicted relief."""
    gt_variance: Float[Tensor, "B"]
    """Of the ground-truth relief."""

    @property
    def correlation(self) -> Float[Tensor, "B"]:
        """Pearson's correlation per face; NaN if either map is flat."""
        return self.covariance / (self.predicted_variance.sqrt() * self.gt_variance.sqrt())


@dataclass(frozen=True)
class ReliefCorrelation:
    """Agreement of predicted and ground-truth relief."""

    whole: ReliefMoments
    """Of the maps as they are."""
    fine: ReliefMoments
    """Of both maps without structure broader than the given scale, which the coefficients should explain."""


def relief_correlation(
    predicted: Float[Tensor, "B 1 S S"],
    gt: Float[Tensor, "B 1 S S"],
    *,
    weights: Float[Tensor, "B 1 S S"],
    broadest_texels: float,
) -> ReliefCorrelation:
    """Compare displacement maps on visible texels.

    Args:
        predicted: Predicted displacement.
        gt: Ground-truth displacement, in the same unit.
        weights: How far each texel is visible, 0 to 1.
        broadest_texels: Standard deviation of the Gaussian of `fine_relief`, texels.

    Returns:
        Moments per face.

    Raises:
        ConfigError: A face has no visible texel.
    """
    if not (weights.flatten(1).sum(1) > LEAST_WEIGHT).all():
        raise ConfigError("weights are 0 for all texels of a face; relief needs visible texels. Is its mask empty?")
    fine = [fine_relief(m, weights=weights, broadest_texels=broadest_texels) for m in (predicted, gt)]
    return ReliefCorrelation(_moments(predicted, gt, weights), _moments(fine[0], fine[1], weights))


def fine_relief(
    maps: Float[Tensor, "B C S S"], *, weights: Float[Tensor, "B 1 S S"], broadest_texels: float
) -> Float[Tensor, "B C S S"]:
    """Subtract a weighted Gaussian average from maps (normalised convolution, Knutsson and Westin 1993).

    Args:
        maps: The maps.
        weights: Weight of each texel in the average.
        broadest_texels: Standard deviation of the Gaussian, texels.
    """
    broad = _blur(maps * weights, broadest_texels) / _blur(weights, broadest_texels).clamp(min=LEAST_WEIGHT)
    return maps - broad


def _moments(
    predicted: Float[Tensor, "B 1 S S"], gt: Float[Tensor, "B 1 S S"], weights: Float[Tensor, "B 1 S S"]
) -> ReliefMoments:
    share = weights / weights.sum((1, 2, 3), keepdim=True)
    first, second = (m - (m * share).sum((1, 2, 3), keepdim=True) for m in (predicted, gt))
    pairs = ((first, second), (first, first), (second, second))
    return ReliefMoments(*((a * b * share).sum((1, 2, 3)) for a, b in pairs))


def _blur(maps: Float[Tensor, "B C S S"], sigma: float) -> Float[Tensor, "B C S S"]:
    radius = min(round(3 * sigma), maps.shape[-1] - 1)
    steps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-(steps**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)
    maps = F.conv2d(F.pad(maps, (radius, radius, 0, 0)), kernel, groups=maps.shape[1])
    return F.conv2d(F.pad(maps, (0, 0, radius, radius)), kernel.mT, groups=maps.shape[1])
