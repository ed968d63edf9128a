"""Texture offset and displacement maps of one photo, fitted in texture space with the paper's regularisers.

With pose, shape and light fixed, each texel that the camera sees has one colour in the photo and one in the model:
(albedo + offset) · shading(normal of the displaced surface). Fitting there instead of on screen needs no rasterizer
in the loop, gives every texel the same say whatever its size on screen, and makes eq. 8 to 11 local operations.

Which of the two maps explains a difference is decided by their priors: displacement is cheap for the fine grey
variations that folds make and impossible in brows, eyes and lips; the offset is cheap for what is broad or coloured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.errors import FitDiverged
from mien.fitting.optimizer import CosineAdam
from mien.losses import magnitude_loss, map_smoothness_loss, symmetry_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface
from mien.texture import DetailMaps, TexelAtlas, Unwrapped, texel_face
from mien.typing import Float, Tensor

STEPS = 80
LEARNING_RATE = 0.02
PYRAMID = (1, 4, 16, 64)
"""The maps are sums of grids with these spacings in texels: a step moves broad and fine structure alike."""
DISPLACEMENT_UNIT_M = 1e-3
"""The displacement is optimised in millimetres."""


@dataclass(frozen=True)
class DetailSettings:
    """Weights of the detail step, relative to the pixel term in squared colour units."""

    offset_magnitude: float = 2e-5
    """So weak that what is not seen takes the offset of what is seen around it, not zero."""
    offset_symmetry: float = 1e-2
    offset_smoothness: float = 5e-2
    displacement_magnitude: float = 1e-2
    """Per square millimetre."""
    displacement_symmetry: float = 5e-3
    displacement_smoothness: float = 6e-2
    unseen_symmetry: float = 1.0
    """Extra symmetry of texels that the camera does not see while their mirror image is seen."""


def fit_detail(
    model: MorphableModel,
    atlas: TexelAtlas,
    *,
    surface: FaceSurface,
    coefficients: FaceCoefficients,
    unwrapped: Unwrapped,
    settings: DetailSettings,
) -> DetailMaps:
    """The maps that make the model's colours the photo's, with the least and smoothest change (eq. 12)."""
    face = texel_face(atlas, model, coefficients, surface)
    masks = model.masks
    rough = (masks.skin * (1 - masks.brows) * (1 - masks.lips) * (1 - masks.eyes) * (1 - masks.mouth)).clamp(0, 1)
    may_move = atlas.interpolate(rough[None, :, None]) * unwrapped.skin
    may_colour = atlas.valid[None, None].float()
    offset, displacement = _Pyramid(face.albedo.shape), _Pyramid(may_move.shape)
    descent = CosineAdam([*offset.levels, *displacement.levels], rate=LEARNING_RATE, steps=STEPS)
    seen = unwrapped.weights
    unseen = (seen.flip(-1) - seen).clamp(min=0)[:, 0]
    everywhere = may_colour[:, 0].expand(len(face.albedo), -1, -1)
    for step in range(STEPS):
        offset_map = offset() * may_colour
        displacement_mm = displacement() * may_move
        predicted = face.colours(offset_map, displacement_mm * DISPLACEMENT_UNIT_M)
        error = (predicted - unwrapped.colours).square().sum(1, keepdim=True)
        energy = (
            (error * seen).sum() / seen.sum().clamp(min=1)
            + settings.offset_magnitude * magnitude_loss(offset_map)
            + settings.offset_symmetry * symmetry_loss(offset_map)
            + settings.unseen_symmetry * symmetry_loss(offset_map, weights=unseen)
            + settings.offset_smoothness * map_smoothness_loss(offset_map, weights=everywhere)
            + settings.displacement_magnitude * magnitude_loss(displacement_mm)
            + settings.displacement_symmetry * symmetry_loss(displacement_mm)
            + settings.displacement_smoothness * map_smoothness_loss(displacement_mm, weights=everywhere)
        )
        if not torch.isfinite(energy):
            raise FitDiverged(f"the detail fit met a value that is not finite at step {step} of {STEPS}.")
        descent.step(energy)
    with torch.no_grad():
        return DetailMaps(offset() * may_colour, displacement() * may_move * DISPLACEMENT_UNIT_M)


class _Pyramid:
    """A map as a sum of grids of growing spacing, zero at the start."""

    def __init__(self, shape: torch.Size) -> None:
        self.size = shape[-1]
        self.levels = [
            torch.zeros(*shape[:2], -(-self.size // spacing), -(-self.size // spacing), requires_grad=True)
            for spacing in PYRAMID
        ]

    def __call__(self) -> Float[Tensor, "B C S S"]:
        finest, *coarser = self.levels
        size = (self.size, self.size)
        return sum((F.interpolate(g, size=size, mode="bilinear", align_corners=False) for g in coarser), finest)
