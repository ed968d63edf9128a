"""The losses of the paper, one pure function per equation; numbers in brackets are docs/math.md's.

They take tensors and know neither models nor weights; the weighted sums are made where the terms are used.
"""

from __future__ import annotations

import torch

from mien.typing import Float, Int, Tensor


def photometric_loss(
    rendered: Float[Tensor, "B C H W"], photo: Float[Tensor, "B C H W"], *, mask: Float[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Eq. 4: squared colour distance between rendering and photo, averaged over the masked pixels of each face.

    The paper sums over the rendered part; dividing by the mask's area makes the weight independent of the
    face's size in the crop.
    """
    squared = ((rendered - photo) ** 2).sum(1)
    return ((squared * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).mean()


def landmark_loss(
    predicted: Float[Tensor, "B L 2"], target: Float[Tensor, "B L 2"], *, weights: Float[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """Eq. 5: weighted mean of the L1 distances of the landmarks, in the unit of the points."""
    distances = (predicted - target).abs().sum(-1)
    return ((distances * weights).sum(1) / weights.sum(1)).mean()


def identity_loss(rendered_features: Float[Tensor, "B P"], photo_features: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
    """Eq. 6: L1 distance of the recognition features of rendering and photo, averaged over features and faces.

    The paper does not say how its features are scaled; averaged over the 128 features of the packaged network, the
    weight of 20 in eq. 7 balances the pixel term.
    """
    return (rendered_features - photo_features).abs().mean()


def prior_loss(values: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
    """Mean square of coefficients in standard deviations: their negative log-likelihood, up to scale and a constant."""
    return values.square().mean()


def span_distance_loss(difference: Float[Tensor, "B P"], gram: Float[Tensor, "P P"]) -> Float[Tensor, ""]:
    """Root mean square of a linear model's change over its vertices, averaged over faces.

    With the Gram matrix G = A Aᵀ / V of a basis A it is √(δᵀ G δ) for coefficients that differ by δ: the distance of
    vertices without computing them. Differentiable, at zero difference too.
    """
    squared = ((difference @ gram) * difference).sum(-1)
    return (squared.clamp(min=0) + 1e-12).sqrt().mean()


def magnitude_loss(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Eq. 8: mean square of a map."""
    return (maps**2).mean()


def symmetry_loss(
    maps: Float[Tensor, "B C H W"], *, weights: Float[Tensor, "B H W"] | None = None
) -> Float[Tensor, ""]:
    """Eq. 9: mean square of the difference between a map and its mirror image (u → 1 − u)."""
    squared = ((maps - maps.flip(-1)) ** 2).mean(1)
    return squared.mean() if weights is None else (squared * weights).sum() / weights.sum().clamp(min=1)


def mesh_smoothness_loss(values: Float[Tensor, "B V C"], edges: Int[Tensor, "P 2"]) -> Float[Tensor, ""]:
    """Eq. 10 and 11: for each vertex the mean squared difference to its neighbours, averaged over vertices."""
    squared = ((values[:, edges[:, 0]] - values[:, edges[:, 1]]) ** 2).sum(-1)
    vertex_count = values.shape[1]
    ends = edges.reshape(-1)
    degree = torch.zeros(vertex_count, dtype=values.dtype, device=values.device)
    degree = degree.index_add(0, ends, torch.ones_like(ends, dtype=values.dtype)).clamp(min=1)
    share = (1 / degree)[edges].sum(1)
    return (squared * share).sum(1).mean() / vertex_count


def map_smoothness_loss(
    maps: Float[Tensor, "B C H W"], *, weights: Float[Tensor, "B H W"] | None = None
) -> Float[Tensor, ""]:
    """Eq. 10 and 11 on the texel grid: mean squared difference of each texel to its right and lower neighbour."""
    right = ((maps[..., :, 1:] - maps[..., :, :-1]) ** 2).sum(1)
    down = ((maps[..., 1:, :] - maps[..., :-1, :]) ** 2).sum(1)
    if weights is None:
        return right.mean() + down.mean()
    both_right = torch.minimum(weights[:, :, 1:], weights[:, :, :-1])
    both_down = torch.minimum(weights[:, 1:, :], weights[:, :-1, :])
    return (right * both_right).sum() / both_right.sum().clamp(min=1) + (
        down * both_down
    ).sum() / both_down.sum().clamp(min=1)
