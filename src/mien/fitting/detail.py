"""Texture offset and displacement maps of one photo, fitted in texture space with the paper's regularisers.

With pose, shape and light fixed, each texel that the camera sees has one colour in the photo and one in the model:
(albedo + offset) · shading(normal of the displaced surface). Fitting there instead of on screen needs no rasterizer
in the loop, gives every texel the same say whatever its size on screen, and makes eq. 8 to 11 local operations.

Which of the two maps explains a difference is decided by their priors: displacement is cheap for the fine grey
variations that folds make and impossible in brows, eyes and lips; the offset is cheap for what is broad or coloured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.arrays import Float, Tensor
from mien.errors import FitDiverged
from mien.fitting.descent import Descent
from mien.losses import magnitude_loss, map_smoothness_loss, symmetry_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface, sample_image
from mien.texture_space import TexelAtlas, TexelFace

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


@dataclass(frozen=True)
class DetailMaps:
    """What the linear model cannot hold."""

    texture_offset: Float[Tensor, "B 3 S S"]
    """Added to the albedo."""
    displacement: Float[Tensor, "B 1 S S"]
    """Metres along the normal."""

    @classmethod
    def join(cls, parts: Sequence[DetailMaps]) -> DetailMaps:
        """One batch of several of one size."""
        return cls(torch.cat([p.texture_offset for p in parts]), torch.cat([p.displacement for p in parts]))

    def to(self, target: torch.device | torch.dtype) -> DetailMaps:
        """The same on a device, or in another precision."""
        return DetailMaps(self.texture_offset.to(target), self.displacement.to(target))

    def __getitem__(self, index: slice) -> DetailMaps:
        """Some faces of the batch, as a batch."""
        return DetailMaps(self.texture_offset[index], self.displacement[index])


@dataclass(frozen=True)
class Unwrapped:
    """The photo in texture space."""

    colours: Float[Tensor, "B 3 S S"]
    weights: Float[Tensor, "B 1 S S"]
    """How well the camera sees the face at each texel, 0 to 1."""
    skin: Float[Tensor, "B 1 S S"]
    """How sure it is that the texel's colour is skin and not hair or glasses before it, 0 to 1."""


def unwrap_photo(
    atlas: TexelAtlas,
    surface: FaceSurface,
    *,
    photo: Float[Tensor, "B 5 H W"],
    vertices_px: Float[Tensor, "B V 2"],
    visibility: Float[Tensor, "B V"],
) -> Unwrapped:
    """Sample the photo at every texel of the chart; texels fade out where the surface turns away from the camera.

    The photo's channels are its colours, the skin mask and the mask of the whole face.
    """
    size = len(atlas.triangle_ids)
    points = atlas.interpolate(vertices_px).flatten(2).mT
    sampled = sample_image(photo, points).mT.unflatten(-1, (size, size))
    towards = F.normalize(-surface.vertices_camera, dim=-1) * surface.normals.new_tensor([1.0, -1.0, -1.0])
    cosine = (towards * surface.normals).sum(-1)
    # From 68° to 50° the texel's footprint in the photo grows until its colour is trustworthy.
    facing = ((cosine - 0.37) / (0.64 - 0.37)).clamp(0, 1)
    weights = atlas.interpolate((visibility * facing)[..., None])
    # Vertices just inside a hidden region still blend in: shrink, then soften.
    weights = _shrunk_and_softened(weights * sampled[:, 4:], radius=max(size // 75, 1))
    return Unwrapped(sampled[:, :3], weights * atlas.valid, sampled[:, 3:4])


def _shrunk_and_softened(weights: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    side = 2 * radius + 1
    for window, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        weights = -F.max_pool2d(-weights, window, stride=1, padding=padding)
    for window, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        weights = F.avg_pool2d(weights, window, stride=1, padding=padding, count_include_pad=False)
    return weights


def texel_face(
    atlas: TexelAtlas, model: MorphableModel, coefficients: FaceCoefficients, surface: FaceSurface
) -> TexelFace:
    """The base reconstruction on its chart."""
    return TexelFace(
        atlas,
        model,
        vertices=surface.vertices,
        normals=surface.normals,
        albedo=surface.albedo,
        rotmat=coefficients.pose.rotmat(),
        lighting=coefficients.lighting,
    )


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
    descent = Descent([*offset.levels, *displacement.levels], rate=LEARNING_RATE, steps=STEPS)
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


def complete_texture(
    albedo: Float[Tensor, "B 3 S S"], shade: Float[Tensor, "B 3 S S"], unwrapped: Unwrapped
) -> Float[Tensor, "B 3 S S"]:
    """The photo's colours where the camera sees the face, else their mirror image relit, else the albedo, lit.

    The mirrored colours are divided by the light on their own side and multiplied by that on the other. What is known
    from neither side takes on the difference that the known has at its border, so that no seam shows.
    """
    seen = unwrapped.weights
    mirrored = (unwrapped.colours / shade.clamp(min=0.15)).flip(-1) * shade
    from_mirror = (1 - seen) * seen.flip(-1)
    known = seen + from_mirror
    colours = (seen * unwrapped.colours + from_mirror * mirrored) / known.clamp(min=1e-6)
    lit = albedo * shade
    return lit + extended(colours - lit, known)


def extended(values: Float[Tensor, "B C S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B C S S"]:
    """Values where their weight is 1, smoothly continued to where it is 0 (pull-push, Gortler et al. 1996).

    Each level of a pyramid averages what is known in four texels; going back up, what a level does not know comes
    from the coarser one.
    """
    if min(values.shape[-2:]) < 2:
        return values * weights / weights.clamp(min=1e-6)
    total = _halved(weights)
    coarse = _halved(values * weights) / total.clamp(min=1e-6)
    # A texel is known as soon as one of its four is: otherwise thin borders would fade from level to level.
    coarse = extended(coarse, (4 * total).clamp(max=1))
    up = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return weights * values + (1 - weights) * up


def _halved(values: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C s s"]:
    """Means of two by two texels; of fewer at the last row and column of an odd side."""
    return F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)
