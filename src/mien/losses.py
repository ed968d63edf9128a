"""The losses of the paper, one pure function per equation; the numbers of equations are those of docs/math.md.

The functions take tensors only and depend on no model and no network. The weighted sums are made where they are used.
All are differentiable in their first argument.
"""

from __future__ import annotations

import torch

from mien.typing import Float, Int, Tensor


def photometric_loss(
    rendered: Float[Tensor, "B C H W"], photo: Float[Tensor, "B C H W"], *, mask: Float[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Eq. 4: squared colour distance between rendering and photo, averaged over the masked pixels of each face.

    The paper sums over the rendered pixels. Division by the area of the mask makes the weight independent of the size
    of the face in the crop.

    Args:
        rendered: Colours of the rendering.
        photo: Colours of the photo.
        mask: Weight per pixel, 0 to 1; the loss of an empty mask is 0.

    Returns:
        The mean over faces.
    """
    squared = ((rendered - photo) ** 2).sum(1)
    return ((squared * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).mean()


def landmark_loss(
    predicted: Float[Tensor, "B L 2"], target: Float[Tensor, "B L 2"], *, weights: Float[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """Eq. 5: weighted mean of the L1 distances of the landmarks.

    Args:
        predicted: Landmarks of the model, in any unit.
        target: Landmarks of the photo, in the same unit.
        weights: Weight per landmark; the sum per face must be positive.

    Returns:
        The mean over faces, in the unit of the landmarks.
    """
    distances = (predicted - target).abs().sum(-1)
    return ((distances * weights).sum(1) / weights.sum(1)).mean()


def identity_loss(rendered_features: Float[Tensor, "B P"], photo_features: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
    """Eq. 6: L1 distance of the recognition features of rendering and photo, averaged over features and faces.

    The paper does not state the scale of its features. With the mean over the 128 features of the packaged network, the
    weight of 20 in eq. 7 balances the photometric term.
    """
    return (rendered_features - photo_features).abs().mean()


def prior_loss(values: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
    """Mean square of coefficients in standard deviations: their negative log-likelihood, up to scale and a constant."""
    return values.square().mean()


def geman_mcclure(
    squared: Float[Tensor, "*P"], *, scale_sq: float, weights: Float[Tensor, "*P"] | float = 1.0
) -> Float[Tensor, "*P"]:
    """Robust squared error of Geman and McClure: e² / (1 + e²/s²), which grows like e² and is bounded by s².

    Args:
        squared: Squared errors e², usually in standard deviations of the error.
        scale_sq: Squared scale s², in the unit of `squared`. The pull on an error, the derivative by e, is largest at
            e = s/√3 and vanishes far beyond s.
        weights: Factors of the robust errors.

    Returns:
        The weighted robust squared errors.
    """
    return weights * squared / (1 + squared / scale_sq)


def geman_mcclure_weights(squared: Float[Tensor, "*P"], *, scale_sq: float) -> Float[Tensor, "*P"]:
    """Weights with which a least-squares step minimises `geman_mcclure`: its derivative by e², (1 + e²/s²)⁻².

    Args:
        squared: Squared errors e².
        scale_sq: Squared scale s², in the unit of `squared`.

    Returns:
        1 for a small error, a quarter at e = s, 0 in the limit.
    """
    return (1 + squared / scale_sq) ** -2


def span_distance_loss(difference: Float[Tensor, "B P"], gram: Float[Tensor, "P P"]) -> Float[Tensor, ""]:
    """Root mean square distance of the vertices of two faces of a linear model, averaged over faces.

    With the Gram matrix G = A Aᵀ / V of a basis A the distance is √(δᵀ G δ) for coefficients that differ by δ, so that
    no vertices are computed.

    Args:
        difference: Difference δ of the coefficients; the gradient is finite at zero too.
        gram: Gram matrix G, square metres.

    Returns:
        The mean over faces, metres.
    """
    squared = ((difference @ gram) * difference).sum(-1)
    return (squared.clamp(min=0) + 1e-12).sqrt().mean()


def magnitude_loss(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Eq. 8: mean square of a map."""
    return (maps**2).mean()


def symmetry_loss(
    maps: Float[Tensor, "B C H W"], *, weights: Float[Tensor, "B H W"] | None = None
) -> Float[Tensor, ""]:
    """Eq. 9: mean square of the difference between a map and its mirror image (u → 1 − u).

    Args:
        maps: UV maps.
        weights: Weight per texel; without it every texel has the weight 1.
    """
    squared = ((maps - maps.flip(-1)) ** 2).mean(1)
    return squared.mean() if weights is None else (squared * weights).sum() / weights.sum().clamp(min=1)


def mesh_smoothness_loss(values: Float[Tensor, "B V C"], edges: Int[Tensor, "P 2"]) -> Float[Tensor, ""]:
    """Eq. 10 and 11: per vertex the mean squared difference to its neighbours, averaged over vertices.

    Args:
        values: Values per vertex.
        edges: Each edge of the mesh once, as two vertex numbers.
    """
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
    """Eq. 10 and 11 on texels: mean squared difference of each texel to its right and to its lower neighbour.

    Args:
        maps: UV maps.
        weights: Weight per texel; a pair of texels has the smaller weight of the two. Without it every pair has the
            weight 1.
    """
    right = ((maps[..., :, 1:] - maps[..., :, :-1]) ** 2).sum(1)
    down = ((maps[..., 1:, :] - maps[..., :-1, :]) ** 2).sum(1)
    if weights is None:
        return right.mean() + down.mean()
    both_right = torch.minimum(weights[:, :, 1:], weights[:, :, :-1])
    both_down = torch.minimum(weights[:, 1:, :], weights[:, :-1, :])
    return (right * both_right).sum() / both_right.sum().clamp(min=1) + (
        down * both_down
    ).sum() / both_down.sum().clamp(min=1)
