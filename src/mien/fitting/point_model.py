"""The morphable model at MediaPipe's points alone, where a fit to landmarks needs no other vertices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.per_model import per_model
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class PointModel:
    """MediaPipe's 468 points as a linear function of the shape, in double precision."""

    mean: Float[Tensor, "468 3"]
    """Points of the mean face, metres."""
    basis: Float[Tensor, "468 3 K"]
    """Their derivatives by identity, then expression."""

    @classmethod
    def of(cls, model: MorphableModel) -> PointModel:
        """The points of a model, computed once per model."""
        return per_model(model, _build)

    def points(self, faces: FaceCoefficients) -> Float[Tensor, "B 468 3"]:
        """Points of faces in model space, metres; differentiable, and accurate to float32."""
        shape = torch.cat([faces.identity, faces.expression], dim=1)
        return (self.mean + self.offsets(shape.double())).to(shape)

    def offsets(self, shape: Float[Tensor, "B K"]) -> Float[Tensor, "B 468 3"]:
        """How far the points move from the mean face."""
        return torch.einsum("pik,bk->bpi", self.basis, shape)


def _build(model: MorphableModel) -> PointModel:
    corners, weights = model.mediapipe_vertices, model.mediapipe_barycentrics[..., None].double()
    bases = [(basis[:, corners] * weights).sum(2) for basis in (model.identity_basis, model.expression_basis)]
    basis = torch.cat(bases).permute(1, 2, 0)
    return PointModel((model.mean[corners] * weights).sum(1), basis)
