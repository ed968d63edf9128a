"""Measures of detail maps: is the relief that is found the relief that is there, and do the maps stay sound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.errors import ConfigError
from mien.typing import Float, Int, Tensor

LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class ReliefMoments:
    """Second moments of found and true relief about their means, for each face; in the square of their unit."""

    covariance: Float[Tensor, "B"]
    found_variance: Float[Tensor, "B"]
    true_variance: Float[Tensor, "B"]

    @property
    def correlation(self) -> Float[Tensor, "B"]:
        """Pearson's correlation within each face; NaN where either map is flat."""
        return self.covariance / (self.found_variance.sqrt() * self.true_variance.sqrt())


@dataclass(frozen=True)
class ReliefCorrelation:
    """How found relief goes with the true one."""

    whole: ReliefMoments
    """Of the maps as they are."""
    fine: ReliefMoments
    """Of what is left of both without structure broader than the scale: broad form is the coefficients' to explain."""


def relief_correlation(
    found: Float[Tensor, "B 1 S S"],
    true: Float[Tensor, "B 1 S S"],
    *,
    weights: Float[Tensor, "B 1 S S"],
    broadest_texels: float,
) -> ReliefCorrelation:
    """Compare displacement maps where the weights say that the face is seen.

    `broadest_texels` is the standard deviation of the Gaussian of `fine_relief`. ConfigError where no texel of a face
    has weight.
    """
    if not (weights.flatten(1).sum(1) > LEAST_WEIGHT).all():
        raise ConfigError("relief is compared over seen texels, and a face has none; is its mask empty?")
    fine = [fine_relief(m, weights=weights, broadest_texels=broadest_texels) for m in (found, true)]
    return ReliefCorrelation(_moments(found, true, weights), _moments(fine[0], fine[1], weights))


def fine_relief(
    maps: Float[Tensor, "B C S S"], *, weights: Float[Tensor, "B 1 S S"], broadest_texels: float
) -> Float[Tensor, "B C S S"]:
    """What a Gaussian average over the weighted texels leaves (normalised convolution, Knutsson and Westin 1993)."""
    broad = _blur(maps * weights, broadest_texels) / _blur(weights, broadest_texels).clamp(min=LEAST_WEIGHT)
    return maps - broad


def _moments(
    found: Float[Tensor, "B 1 S S"], true: Float[Tensor, "B 1 S S"], weights: Float[Tensor, "B 1 S S"]
) -> ReliefMoments:
    share = weights / weights.sum((1, 2, 3), keepdim=True)
    found, true = (m - (m * share).sum((1, 2, 3), keepdim=True) for m in (found, true))
    return ReliefMoments(*((a * b * share).sum((1, 2, 3)) for a, b in ((found, true), (found, found), (true, true))))


def _blur(maps: Float[Tensor, "B C S S"], sigma: float) -> Float[Tensor, "B C S S"]:
    radius = min(round(3 * sigma), maps.shape[-1] - 1)
    steps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-(steps**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)
    maps = F.conv2d(F.pad(maps, (radius, radius, 0, 0)), kernel, groups=maps.shape[1])
    return F.conv2d(F.pad(maps, (0, 0, radius, radius)), kernel.mT, groups=maps.shape[1])


def map_saturation(
    maps: Float[Tensor, "B C S S"], *, low: float, high: float, weights: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B"]:
    """The share of weighted values that lie at a limit or beyond it."""
    at_limit = ((maps <= low) | (maps >= high)).to(maps).mean(1, keepdim=True)
    return (at_limit * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3)).clamp(min=LEAST_WEIGHT)


def relief_rms(displacement: Float[Tensor, "B 1 S S"], *, weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B"]:
    """Root mean square of a displacement over weighted texels, in its own unit; what a flat face has of it is false."""
    share = weights / weights.sum((1, 2, 3), keepdim=True).clamp(min=LEAST_WEIGHT)
    return (displacement**2 * share).sum((1, 2, 3)).sqrt()


def laplacian_energy(values: Float[Tensor, "B V C"], edges: Int[Tensor, "P 2"]) -> Float[Tensor, "B"]:
    """Mean over the vertices of the squared distance between a vertex and the mean of its neighbours.

    The uniform Laplacian of `unique_edges`; in the square of the values' unit. A vertex without neighbours has none.
    """
    ends, neighbours = torch.cat([edges, edges.flip(1)]).unbind(1)
    count = torch.zeros(values.shape[1], dtype=values.dtype, device=values.device)
    count = count.index_add(0, ends, torch.ones_like(ends, dtype=values.dtype))
    sums = torch.zeros_like(values).index_add(1, ends, values[:, neighbours])
    difference = torch.where(count[:, None] > 0, values - sums / count[:, None].clamp(min=1), torch.zeros_like(values))
    return difference.square().sum(-1).mean(1)


def symmetry_noise(values: Float[Tensor, "B V C"], mirror: Int[Tensor, "V"]) -> Float[Tensor, "B"]:
    """Root mean square difference of a vertex's value to that of its mirror vertex, over vertices and channels.

    For scalars and colours; coordinates have to be mirrored first.
    """
    return (values - values[:, mirror]).square().mean((1, 2)).sqrt()
