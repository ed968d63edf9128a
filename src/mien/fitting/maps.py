"""Maps of texture offset and displacement, fitted to one photo in UV space with the regularisers of the paper.

With pose, shape and light fixed, each visible texel has one colour in the photo and one in the model:
(albedo + offset) · shading(normal of the displaced surface). The fit in UV space needs no rasterizer, gives every texel
the same weight whatever its size in the image, and makes eq. 8 to 11 local operations.

The priors decide which of the two maps explains a difference. Displacement is cheap for the fine grey variations of
wrinkles, and impossible in brows, eyes and lips. The offset is cheap for broad or coloured differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.errors import FitDiverged
from mien.fitting.optimizer import CosineAdam
from mien.losses import magnitude_loss, map_smoothness_loss, symmetry_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface
from mien.texture import (
    DetailMaps,
    TexelAtlas,
    TexelFace,
    Unwrapped,
    biweight,
    colour_ratio,
    length,
    skin_deviations,
    texel_face,
)
from mien.typing import Float, Tensor

STEPS = 80
LEARNING_RATE = 0.02
PYRAMID = (1, 4, 16, 64)
"""Spacings in texels of the grids whose sum is a map, so that a step changes broad and fine structure alike."""
DISPLACEMENT_UNIT_M = 1e-3
"""The displacement is optimised in millimetres."""

_GLOSS_SPREADS = 4.0
"""A brighter texel whose chroma is this many standard deviations from that of the skin is gloss (Tukey's biweight)."""
_GLOSS_BRIGHTNESS = (1.0, 3.0)
"""Gloss is brighter than the median of the skin by at least the first number of standard deviations; from the second
on its brightness counts fully. The bright side of a wrinkle stays below."""
_SATURATED = 0.98
"""A colour channel above this value is saturated."""
_GLOSS_MARGIN = 11
"""Side in texels of the square around gloss that counts as gloss, because its border is a slope of brightness too."""


@dataclass(frozen=True)
class DetailSettings:
    """Weights of the terms of the detail fit, relative to the mean squared colour error."""

    offset_magnitude: float = 2e-5
    """Eq. 8 of the offset; weak, so that hidden texels take the offset of the visible ones around them, not zero."""
    offset_symmetry: float = 1e-2
    """Eq. 9 of the offset."""
    offset_smoothness: float = 5e-2
    """Eq. 11 of the offset."""
    displacement_magnitude: float = 1e-2
    """Eq. 8 of the displacement, per square millimetre; the other terms of the displacement have the same unit."""
    displacement_symmetry: float = 5e-3
    """Eq. 9 of the displacement."""
    displacement_smoothness: float = 6e-2
    """Eq. 10 of the displacement."""
    unseen_symmetry: float = 1.0
    """Additional eq. 9 of the offset at hidden texels whose mirror image is visible."""


def fit_detail(
    model: MorphableModel,
    atlas: TexelAtlas,
    *,
    surface: FaceSurface,
    coefficients: FaceCoefficients,
    unwrapped: Unwrapped,
    settings: DetailSettings,
    progress: Callable[[float], None] | None = None,
) -> DetailMaps:
    """Find the smallest and smoothest maps with which the model has the colours of the photo (eq. 12).

    Args:
        model: Gives triangles, UV coordinates and masks of the parts of the face.
        atlas: UV atlas of the size of the maps.
        surface: The coarse faces.
        coefficients: Their light and pose.
        unwrapped: The photo in UV space.
        settings: Weights of the terms.
        progress: Is called with the share of the steps that is done.

    Returns:
        Maps that are zero outside the UV layout; not meant to be differentiated.

    Raises:
        FitDiverged: The energy is not finite.
    """
    face = texel_face(atlas, model, coefficients, surface)
    smooth_skin = atlas.interpolate(_displaceable(model)[None, :, None]) * unwrapped.skin
    inside = atlas.valid[None, None].float()
    energy = _DetailEnergy(face, unwrapped, inside=inside, settings=settings)
    offset, displacement = _Pyramid(face.albedo.shape), _Pyramid(smooth_skin.shape)
    optimizer = CosineAdam([*offset.levels, *displacement.levels], rate=LEARNING_RATE, steps=STEPS)
    for step in range(STEPS):
        value = energy(offset() * inside, displacement() * smooth_skin)
        if not torch.isfinite(value):
            raise FitDiverged(f"the energy of the detail fit is {value.item()} at step {step} of {STEPS}.")
        optimizer.step(value)
        if progress is not None:
            progress((step + 1) / STEPS)
    with torch.no_grad():
        return DetailMaps(offset() * inside, displacement() * smooth_skin * DISPLACEMENT_UNIT_M)


def _displaceable(model: MorphableModel) -> Float[Tensor, "V"]:
    """1 for vertices that may be displaced: skin without brows, lips, eyes and mouth."""
    masks = model.masks
    return (masks.skin * (1 - masks.brows) * (1 - masks.lips) * (1 - masks.eyes) * (1 - masks.mouth)).clamp(0, 1)


def _matte(face: TexelFace, unwrapped: Unwrapped) -> Float[Tensor, "B 1 S S"]:
    """0 where the photo shows gloss, 1 on matte skin.

    Relief changes all colour channels by the same factor. Gloss adds the colour of the light: the skin is brighter and
    paler, or a channel is saturated. A diffuse model would explain it by a bump.
    """
    weights = unwrapped.weights * unwrapped.skin
    ratio = colour_ratio(unwrapped.colours, face.albedo * face.shading)
    brighter, *chroma = skin_deviations(ratio, weights).split(1, dim=1)
    tinted = biweight(length(torch.cat(chroma, dim=1)) / _GLOSS_SPREADS)
    low, high = _GLOSS_BRIGHTNESS
    gloss = ((brighter - low) / (high - low)).clamp(0, 1) * (1 - tinted)
    gloss = torch.maximum(gloss, (unwrapped.colours.amax(1, keepdim=True) > _SATURATED).float())
    return 1 - F.max_pool2d(gloss, _GLOSS_MARGIN, stride=1, padding=_GLOSS_MARGIN // 2)


class _DetailEnergy:
    """The sum of eq. 12 as a function of offset and displacement (millimetres)."""

    def __init__(
        self, face: TexelFace, unwrapped: Unwrapped, *, inside: Float[Tensor, "1 1 S S"], settings: DetailSettings
    ) -> None:
        self.face, self.settings, self.colours, self.seen = face, settings, unwrapped.colours, unwrapped.weights
        self.matte = _matte(face, unwrapped)
        self.unseen = (self.seen.flip(-1) - self.seen).clamp(min=0)[:, 0]
        self.inside = inside[:, 0].expand(len(face.albedo), -1, -1)

    def __call__(
        self, offset: Float[Tensor, "B 3 S S"], displacement_mm: Float[Tensor, "B 1 S S"]
    ) -> Float[Tensor, ""]:
        settings = self.settings
        colours = self.face.colours(offset, displacement_mm * DISPLACEMENT_UNIT_M, matte=self.matte)
        error = (colours - self.colours).square().sum(1, keepdim=True)
        return (
            (error * self.seen).sum() / self.seen.sum().clamp(min=1)
            + settings.offset_magnitude * magnitude_loss(offset)
            + settings.offset_symmetry * symmetry_loss(offset)
            + settings.unseen_symmetry * symmetry_loss(offset, weights=self.unseen)
            + settings.offset_smoothness * map_smoothness_loss(offset, weights=self.inside)
            + settings.displacement_magnitude * magnitude_loss(displacement_mm)
            + settings.displacement_symmetry * symmetry_loss(displacement_mm)
            + settings.displacement_smoothness * map_smoothness_loss(displacement_mm, weights=self.inside)
        )


class _Pyramid:
    """A map as the sum of grids of increasing spacing, zero at the start."""

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
