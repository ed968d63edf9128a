"""Similarity transforms and the least-squares alignment of points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.typing import Float, Tensor


@dataclass(frozen=True)
class Similarity:
    """x ↦ scale · rotation @ x + translation, one per batch element."""

    scale: Float[Tensor, "B"]
    rotation: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]

    def __call__(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Transform the points."""
        turned = torch.einsum("bij,bpj->bpi", self.rotation, points)
        return self.scale[:, None, None] * turned + self.translation[:, None]


def align_points(
    source: Float[Tensor, "B P 3"],
    target: Float[Tensor, "B P 3"],
    *,
    weights: Float[Tensor, "P"] | None = None,
) -> Similarity:
    """The similarity that takes `source` onto `target` with the least weighted squared error (Umeyama 1991)."""
    w = torch.ones_like(source[0, :, 0]) if weights is None else weights
    w = (w / w.sum())[None, :, None]
    source_mean, target_mean = (w * source).sum(1, keepdim=True), (w * target).sum(1, keepdim=True)
    source, target = source - source_mean, target - target_mean
    U, S, Vh = torch.linalg.svd((w * target).mT @ source)
    sign = torch.ones_like(S)
    sign[:, 2] = torch.sign(torch.linalg.det(U @ Vh))
    rotation = U @ torch.diag_embed(sign) @ Vh
    scale = (S * sign).sum(-1) / (w * source * source).sum((1, 2))
    translation = target_mean[:, 0] - scale[:, None] * torch.einsum("bij,bj->bi", rotation, source_mean[:, 0])
    return Similarity(scale, rotation, translation)
