"""Similarity transforms and the least-squares alignment of points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.typing import Float, Tensor


@dataclass(frozen=True)
class Similarity:
    """The transform x ↦ scale · rotation @ x + translation of each batch element."""

    scale: Float[Tensor, "B"]
    """Factor of lengths."""
    rotation: Float[Tensor, "B 3 3"]
    """Rotation matrices."""
    translation: Float[Tensor, "B 3"]
    """Added after rotation and scale, in the unit of the target."""

    def __call__(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Transform the points; differentiable."""
        rotated = torch.einsum("bij,bpj->bpi", self.rotation, points)
        return self.scale[:, None, None] * rotated + self.translation[:, None]

    def inverse(self) -> Similarity:
        """The similarity that undoes this one; differentiable."""
        scale, rotation = 1 / self.scale, self.rotation.mT
        return Similarity(scale, rotation, -scale[:, None] * torch.einsum("bij,bj->bi", rotation, self.translation))


def align_points(
    source: Float[Tensor, "B P 3"],
    target: Float[Tensor, "B P 3"],
    *,
    weights: Float[Tensor, "P"] | None = None,
    rigid: bool = False,
) -> Similarity:
    """The similarity that moves `source` onto `target` with the least weighted squared error (Umeyama 1991).

    Args:
        source: Points to move.
        target: Point that corresponds to each point of `source`.
        weights: Weight per correspondence; without it all are equal.
        rigid: Keep the size: the scale of the result is 1.

    Returns:
        A similarity without reflection.
    """
    w = torch.ones_like(source[0, :, 0]) if weights is None else weights
    w = (w / w.sum())[None, :, None]
    source_mean, target_mean = (w * source).sum(1, keepdim=True), (w * target).sum(1, keepdim=True)
    source, target = source - source_mean, target - target_mean
    U, S, Vh = torch.linalg.svd((w * target).mT @ source)
    sign = torch.ones_like(S)
    sign[:, 2] = torch.sign(torch.linalg.det(U @ Vh))
    rotation = U @ torch.diag_embed(sign) @ Vh
    scale = torch.ones_like(S[:, 0]) if rigid else (S * sign).sum(-1) / (w * source * source).sum((1, 2))
    translation = target_mean[:, 0] - scale[:, None] * torch.einsum("bij,bj->bi", rotation, source_mean[:, 0])
    return Similarity(scale, rotation, translation)


def remove_similarity(
    basis: Float[Tensor, "K V 3"], mean: Float[Tensor, "V 3"], *, weights: Float[Tensor, "V 1"]
) -> Float[Tensor, "K V 3"]:
    """Remove from each basis vector its part that is a small translation, rotation or scaling of the whole face.

    One image does not show a face's absolute size, and its position belongs to the pose.

    Args:
        basis: Weighted displacements of the vertices.
        mean: Vertices of the mean face.
        weights: Weight of each vertex, applied to translation, rotation and scaling.
    """
    centred = mean - (mean * weights**2).sum(0) / (weights**2).sum()
    axes = torch.eye(3).to(mean)
    rotations = [torch.linalg.cross(axis.expand_as(centred), centred) for axis in axes]
    similarity = torch.stack([*(axis.expand_as(centred) for axis in axes), *rotations, centred]) * weights
    frame = torch.linalg.qr(similarity.flatten(1).T.double()).Q.to(basis)
    flat = basis.flatten(1)
    return (flat - (flat @ frame) @ frame.T).view_as(basis)
