"""Soundness of detail maps: saturation, amount of relief, roughness and asymmetry."""

from __future__ import annotations

import torch

from mien.evaluation.detail import LEAST_WEIGHT
from mien.typing import Float, Int, Tensor


def map_saturation(
    maps: Float[Tensor, "B C S S"], *, low: float, high: float, weights: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B"]:
    """The weighted share of values at or beyond a limit."""
    at_limit = ((maps <= low) | (maps >= high)).to(maps).mean(1, keepdim=True)
    return (at_limit * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3)).clamp(min=LEAST_WEIGHT)


def relief_rms(displacement: Float[Tensor, "B 1 S S"], *, weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B"]:
    """Weighted root mean square of a displacement, in its unit."""
    share = weights / weights.sum((1, 2, 3), keepdim=True).clamp(min=LEAST_WEIGHT)
    return (displacement**2 * share).sum((1, 2, 3)).sqrt()


def laplacian_energy(values: Float[Tensor, "B V C"], edges: Int[Tensor, "P 2"]) -> Float[Tensor, "B"]:
    """Mean over the vertices of the squared distance between a vertex and the mean of its neighbours.

    This is the uniform Laplacian of the `edges` of `unique_edges`, in the square of the values' unit. A vertex without
    neighbours contributes 0.
    """
    ends, neighbours = torch.cat([edges, edges.flip(1)]).unbind(1)
    count = torch.zeros(values.shape[1], dtype=values.dtype, device=values.device)
    count = count.index_add(0, ends, torch.ones_like(ends, dtype=values.dtype))
    sums = torch.zeros_like(values).index_add(1, ends, values[:, neighbours])
    difference = torch.where(count[:, None] > 0, values - sums / count[:, None].clamp(min=1), torch.zeros_like(values))
    return difference.square().sum(-1).mean(1)


def symmetry_noise(values: Float[Tensor, "B V C"], mirror: Int[Tensor, "V"]) -> Float[Tensor, "B"]:
    """Root mean square difference between values at a vertex and at its mirror vertex; for scalars and colours."""
    return (values - values[:, mirror]).square().mean((1, 2)).sqrt()
