"""Maps of texture offset and displacement, fitted to one photo in UV space with the regularisers of the paper.

With pose, shape and light fixed, each visible texel has one colour in the photo and one in the model:
(albedo + offset) · shading(normal of the displaced surface). The fit in UV space needs no rasterizer, gives every texel
the same weight whatever its size in the image, and makes eq. 8 to 11 local operations.

The priors decide which of the two maps explains a difference. Displacement is cheap for the fine grey variations of
wrinkles, and impossible in brows, eyes and lips. The offset is cheap for broad or coloured differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.errors import FitDiverged
from mien.fitting.detail_equations import (
    DISPLACEMENT_UNIT_M,
    LinearColours,
    QuadraticPrior,
    conjugate_gradients,
    offset_without_relief,
)
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

MAX_STEPS = 20
"""Largest number of Levenberg–Marquardt steps; five to twelve are the rule."""
LEAST_GAIN = 1e-3
"""The fit ends with the first step that lowers the energy by less than this share of it."""
INNER_STEPS = 8
"""Steps of conjugate gradients per step of the fit."""
DAMPING = 1.0
"""Damping of the first step, a share of the diagonal of the displacement."""
DAMPING_DECAY, DAMPING_GROWTH = 0.5, 4.0
"""Factors of the damping after a step that lowers the energy, and after one that does not and is not taken."""
CURVATURE_SHARE = 8.0
"""Weight of the curvature in the damping: where colour errors are large, the normals turn little per step."""

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
    inside = atlas.valid[None, None].float().expand_as(smooth_skin)
    with torch.no_grad():
        maps = _DetailFit(face, unwrapped, inside=inside, smooth_skin=smooth_skin, settings=settings).run(progress)
        return DetailMaps(maps[:, :3], maps[:, 3:] * DISPLACEMENT_UNIT_M)


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
    """The sum of eq. 12 as a function of offset and displacement (millimetres), and its parts for a step."""

    def __init__(
        self, face: TexelFace, unwrapped: Unwrapped, *, inside: Float[Tensor, "B 1 S S"], settings: DetailSettings
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

    def prior(self) -> QuadraticPrior:
        """The terms after the first as a quadratic form."""
        settings, texels = self.settings, self.seen.numel()
        weights = self.seen.new_tensor(
            [
                [settings.offset_magnitude / 3, settings.offset_symmetry / 3, settings.offset_smoothness],
                [settings.displacement_magnitude, settings.displacement_symmetry, settings.displacement_smoothness],
            ]
        )
        magnitude, symmetry, smoothness = weights[[0, 0, 0, 1]].T[:, None, :, None, None]
        unseen = settings.unseen_symmetry / 3 * self.unseen / self.unseen.sum().clamp(min=1)
        both = F.pad((unseen + unseen.flip(-1))[:, None].expand(-1, 3, -1, -1), (0, 0, 0, 0, 0, 1))
        return QuadraticPrior.of(
            self.inside[:, None],
            magnitude=2 * magnitude / texels,
            symmetry=4 * symmetry / texels + 2 * both,
            smoothness=2 * smoothness,
        )

    def colour_weights(self) -> Float[Tensor, "B 1 S S"]:
        """Weight of the squared colour error of each texel."""
        return self.seen / self.seen.sum().clamp(min=1)

    def linear_colours(self, maps: Float[Tensor, "B 4 S S"]) -> LinearColours:
        """The first term near offset and displacement."""
        return LinearColours.of(self.face, maps, photo=self.colours, weights=self.colour_weights(), matte=self.matte)


class _DetailFit:
    """Levenberg–Marquardt steps on the energy, from an offset that explains the photo alone."""

    def __init__(
        self,
        face: TexelFace,
        unwrapped: Unwrapped,
        *,
        inside: Float[Tensor, "B 1 S S"],
        smooth_skin: Float[Tensor, "B 1 S S"],
        settings: DetailSettings,
    ) -> None:
        self.energy_of = _DetailEnergy(face, unwrapped, inside=inside, settings=settings)
        self.prior = self.energy_of.prior()
        self.mask = torch.cat([inside.expand(-1, 3, -1, -1), smooth_skin], dim=1)

    def run(self, progress: Callable[[float], None] | None) -> Float[Tensor, "B 4 S S"]:
        """Offset and displacement (millimetres) with the least energy, as far as the steps go."""
        maps = self._start()
        energy = self._energy(maps)
        if not math.isfinite(energy):
            raise FitDiverged(f"the energy of the detail fit is {energy} at its start.")
        colours, damping = self.energy_of.linear_colours(maps), DAMPING
        for step in range(MAX_STEPS):
            trial = maps + self._step(maps, colours, damping=damping)
            reached = self._energy(trial)
            if progress is not None:
                progress((step + 1) / MAX_STEPS)
            if not reached < energy:  # also if it is not finite
                damping *= DAMPING_GROWTH
                continue
            gain, maps, energy = 1 - reached / energy, trial, reached
            if gain < LEAST_GAIN:
                break
            colours, damping = self.energy_of.linear_colours(maps), damping * DAMPING_DECAY
        if progress is not None:
            progress(1.0)
        return maps

    def _energy(self, maps: Float[Tensor, "B 4 S S"]) -> float:
        return float(self.energy_of(*maps.split([3, 1], dim=1)))

    def _start(self) -> Float[Tensor, "B 4 S S"]:
        flat = self.energy_of.linear_colours(torch.zeros_like(self.mask))
        prior = self.prior
        offsets = QuadraticPrior(prior.magnitude[:, :3], prior.symmetry[:, :3], prior.right[:, :3], prior.down[:, :3])
        offset = offset_without_relief(flat.shade.square(), -flat.gradient[:, :3], offsets)
        return F.pad(offset, (0, 0, 0, 0, 0, 1)) * self.mask

    def _step(
        self, maps: Float[Tensor, "B 4 S S"], colours: LinearColours, *, damping: float
    ) -> Float[Tensor, "B 4 S S"]:
        diagonal = colours.diagonal
        # Only the displacement bends the normals; the energy is quadratic in the offset.
        braked = F.pad(damping * (diagonal[:, 3:] + CURVATURE_SHARE * colours.curvature), (0, 0, 0, 0, 3, 0))
        diagonal = (diagonal + self.prior.diagonal + braked).clamp(min=torch.finfo(maps.dtype).tiny)

        def product(step: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 4 S S"]:
            masked = self.mask * step
            return self.mask * (colours.product(masked) + self.prior.product(masked) + braked * masked)

        downhill = -self.mask * (colours.gradient + self.prior.product(maps))
        return self.mask * conjugate_gradients(product, downhill, diagonal=diagonal, steps=INNER_STEPS)
