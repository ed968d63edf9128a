"""Soundness of detail maps: saturation, amount of relief, roughness and asymmetry."""

from __future__ import annotations

import torch

from mien.evaluation.detail import LEAST_WEIGHT
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_LOWER_LIP
from mien.typing import Float, Int, Tensor

LEAST = 1e-12
"""Squared displacements below it count as none."""


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


def common_share(displacement: Float[Tensor, "B V C"]) -> float:
    """Share of the squared displacement that the mean over faces explains: 1 if all faces have the same, 0 for none."""
    return float(displacement.mean(0).square().sum() / (displacement.square().sum(2).mean(0).sum()).clamp(min=LEAST))


def lower_face_share(
    model: MorphableModel, displacement: Float[Tensor, "B V 3"], weights: Float[Tensor, "V"]
) -> Float[Tensor, "B"]:
    """Share of the squared displacement at vertices below the lower lip of the mean face."""
    below = (model.mean[:, 1] < model.mean[model.landmarks68[IBUG_LOWER_LIP], 1]).to(weights)
    squared = displacement.square().sum(-1) * weights
    return (squared * below).sum(1) / squared.sum(1).clamp(min=LEAST)
