"""The skin of the head around a face: ears, scalp and neck, of which the fit needs to know where they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.camera import Camera
from mien.errors import ModelMismatch
from mien.morphable import FaceCoefficients, MorphableModel, load_head
from mien.morphable.per_model import per_model
from mien.rasterizer import rasterize_hard
from mien.typing import Bool, Float, Int, Tensor

_DEPTHS_M = (0.01, 1000.0)
"""Clipping planes: any distance at which a photo shows a face."""


@dataclass(frozen=True)
class HeadSkin:
    """The outer skin of a model's head; it follows the coefficients of the face."""

    mean: Float[Tensor, "O 3"]
    """Vertices of the mean head beyond the face, metres."""
    bases: Float[Tensor, "K O 3"]
    """Metres per unit of the identity coefficients, then of the expression coefficients."""
    rim: Int[Tensor, "R"]
    """The face's vertices at which the outer skin begins."""
    triangles: Int[Tensor, "T 3"]
    """Of the outer skin and the strip between it and the face; vertex numbers in the rim, then in `mean`."""

    @classmethod
    def of(cls, model: MorphableModel) -> HeadSkin | None:
        """The outer skin of a model, computed once per model; None for models without a head."""
        return per_model(model, _head_skin)

    def covered(
        self, coefficients: FaceCoefficients, vertices_camera: Float[Tensor, "B V 3"], camera: Camera
    ) -> Bool[Tensor, "B H W"]:
        """The pixels at which there is skin of the head beyond the face, in front of the face or behind it.

        Args:
            coefficients: The faces.
            vertices_camera: Vertices of the faces in camera space, metres.
            camera: One camera per face.

        Returns:
            Not differentiable.
        """
        with torch.no_grad():
            strengths = torch.cat([coefficients.identity, coefficients.expression], dim=1)
            outer = self.mean + torch.tensordot(strengths, self.bases, dims=1)
            shown = torch.cat([vertices_camera[:, self.rim], coefficients.pose.to_camera(outer)], dim=1)
            near, far = _DEPTHS_M
            fragments = rasterize_hard(
                camera.to_ndc(shown), self.triangles, image_size=camera.image_size, near=near, far=far
            )
            return fragments.triangle_ids >= 0


def _head_skin(model: MorphableModel) -> HeadSkin | None:
    try:
        head = load_head(model)
    except ModelMismatch:
        return None
    face, outer = len(model.mean), len(head.seam_shares)  # the outer skin's vertices are the first beyond the face
    skin = head.part("skin")
    triangles = skin.vertices[skin.triangles]
    triangles = triangles[(triangles >= face).any(1)]
    used, local = torch.unique(triangles, return_inverse=True)
    rim = used[used < face]
    bases = torch.cat([head.identity_basis[:, :outer], head.expression_basis[:, :outer]])
    assert torch.equal(used[len(rim) :], torch.arange(face, face + outer))
    return HeadSkin(
        head.mean[:outer].to(model.mean),
        bases.to(model.mean),
        rim.to(model.mean.device),
        local.int().to(model.mean.device),
    )
