"""Parts of the face on the UV atlas."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.geometry import vertex_normals
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface
from mien.texture.atlas import TexelAtlas
from mien.texture.fill import dilated
from mien.texture.unwrap import margin_of
from mien.typing import Float, Tensor

BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
"""ARKit's names of the blendshapes that close the eyes."""
_LID_PATH_M = (2e-3, 5e-3)
"""Skin belongs to a lid if it moves by more than the second length when the eye closes; below the first it does not."""
_RIM = 64
"""The lash line lies within the side of the map over this number, 4 mm on a face, of the eyeball, and remains."""
_NEAR_EYES = 28
"""Lashes and their shadows lie within the side of the map over this number, 9 mm on a face, of the eyeball."""


@dataclass(frozen=True)
class TexelMasks:
    """Masks of the model on the UV atlas, 0 to 1; the same for all faces."""

    skin: Float[Tensor, "1 1 S S"]
    """Skin, with brows, without lips, eyes and mouth."""
    eye_rims: Float[Tensor, "1 1 S S"]
    """Eyes and the lash line."""
    near_eyes: Float[Tensor, "1 1 S S"]
    """Eyes and the skin around them that lashes and their shadows may cover."""
    near_thin: Float[Tensor, "1 1 S S"]
    """Eyes, lips, and what is as near to them as the margin of `unwrap_photo` reaches."""

    @classmethod
    def of(cls, model: MorphableModel, atlas: TexelAtlas) -> TexelMasks:
        """Find the masks.

        Args:
            model: Gives the masks of the vertices.
            atlas: UV atlas of the size of the result.
        """
        skin, eyes = (atlas.interpolate(mask[None, :, None]) for mask in (model.masks.skin, model.masks.eyes))
        thin = atlas.interpolate((model.masks.eyes + model.masks.lips).clamp(max=1)[None, :, None])
        size = len(atlas.triangle_ids)
        rims, near_eyes = (dilated(eyes, radius=max(size // share, 1)) for share in (_RIM, _NEAR_EYES))
        return cls(skin, rims, near_eyes, dilated(thin, radius=2 * margin_of(size)))


@dataclass(frozen=True)
class TexelParts:
    """Parts of a face on the UV atlas, 0 to 1."""

    skin: Float[Tensor, "1 1 S S"]
    """Skin, with brows, without lips, eyes and mouth."""
    lids: Float[Tensor, "B 1 S S"]
    """Skin that moves when the eyes close from their present opening; zero for models without these blendshapes."""
    near_eyes: Float[Tensor, "1 1 S S"]
    """Eyes and the skin around them that lashes and their shadows may cover."""
    closed_shade: Float[Tensor, "B 3 S S"]
    """Shading of the face with closed eyes; lids of open eyes are rolled up and shaded differently."""

    @classmethod
    def of(
        cls,
        model: MorphableModel,
        atlas: TexelAtlas,
        masks: TexelMasks,
        *,
        surface: FaceSurface,
        coefficients: FaceCoefficients,
    ) -> TexelParts:
        """Find the parts of posed faces.

        Args:
            model: Gives the blendshapes.
            atlas: UV atlas of the size of the result.
            masks: Those of model and atlas.
            surface: The faces as the photo shows them.
            coefficients: Their expression, which tells how far the eyes are closed.

        Returns:
            The parts.
        """
        path = _blink(model, coefficients)
        low, high = _LID_PATH_M
        moved = ((path.norm(dim=-1, keepdim=True) - low) / (high - low)).clamp(0, 1)
        lids = atlas.interpolate(moved) * masks.skin * (1 - masks.eye_rims)
        normals = vertex_normals(surface.vertices + path, model.triangles)
        shade = atlas.interpolate(shading(coefficients.pose.to_view_axes(normals), coefficients.lighting))
        return cls(masks.skin, lids, masks.near_eyes, shade)


def _blink(model: MorphableModel, coefficients: FaceCoefficients) -> Float[Tensor, "B V 3"]:
    """How the vertices move when both eyes close completely."""
    names, basis = model.blendshapes
    path = torch.zeros_like(model.mean).expand(len(coefficients.expression), -1, -1)
    for name in BLINKS:
        if name in names:
            left = 1.0
            if names == model.expression_names:
                left = 1 - coefficients.expression[:, names.index(name), None, None].clamp(0, 1)
            path = path + left * basis[names.index(name)]
    return path
