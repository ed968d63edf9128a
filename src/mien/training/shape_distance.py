"""Distances between face shapes and albedos, without building their vertices."""

from __future__ import annotations

import torch

from mien.geometry import align_points, remove_similarity
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor

CM_PER_M = 100.0


def shape_gram(model: MorphableModel) -> Float[Tensor, "K K"]:
    """Gram matrix of the identity and expression basis on the face, in cm², without its similarity part.

    With it the mean squared distance of the vertices is a quadratic form of the coefficients' difference.
    """
    weights = (1 - model.masks.neck).sqrt()[:, None]
    basis = torch.cat([model.identity_basis, model.expression_basis]) * CM_PER_M
    return _gram(remove_similarity(basis * weights, model.mean, weights=weights))


def albedo_gram(model: MorphableModel) -> Float[Tensor, "K K"]:
    """Gram matrix of the albedo basis on the face."""
    return _gram(model.albedo_basis * (1 - model.masks.neck).sqrt()[:, None])


def _gram(basis: Float[Tensor, "K V 3"]) -> Float[Tensor, "K K"]:
    flat = basis.flatten(1)
    return flat @ flat.mT / basis.shape[1]


def aligned_distance_mm(pred: Float[Tensor, "B V 3"], gt: Float[Tensor, "B V 3"], *, model: MorphableModel) -> float:
    """Mean distance of corresponding vertices of the face after the best similarity, millimetres.

    Args:
        pred: Vertices that are aligned to the ground truth, metres.
        gt: Ground-truth vertices, metres.
        model: Face model whose mask excludes the neck.
    """
    face = (1 - model.masks.neck) > 0.5
    pred, gt = pred[:, face], gt[:, face]
    return float((align_points(pred, gt)(pred) - gt).norm(dim=-1).mean() * 1000)
