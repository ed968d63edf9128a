"""Completion of a texture from the visible part of a face."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.texture.fill import dilated, pull_push
from mien.texture.parts import TexelParts
from mien.texture.skin_colour import biweight, colour_ratio, skin_deviations
from mien.texture.unwrap import Unwrapped
from mien.typing import Float, Tensor

DARKEST = 0.15
"""Smallest shading that the colours of a photo are divided by."""

_LEAST_SHADE = 0.4
"""Lower bound of the shading of hidden skin, relative to the mean shading of the visible skin."""
_SPREADS = 4.0
"""A colour this many standard deviations from that of the visible skin is no longer typical (Tukey's biweight)."""
_OTHER_RATIO = (-0.3, 0.3)
"""Range of the relative difference to the lit albedo that is continued over hidden eyes, lips and teeth: their albedos
differ so much that only the strength of the light can be taken from one to the other."""
_LASH_MARGIN = 128
"""Skin of a lid this close to a lash is left out with it: the side of the map over this number, 2 mm on a face."""
_BLOCK = 4
"""Side in texels of the blocks whose means are continued; a continuation is smooth."""


def complete_texture(
    albedo: Float[Tensor, "B 3 S S"],
    offset: Float[Tensor, "B 3 S S"],
    shade: Float[Tensor, "B 3 S S"],
    unwrapped: Unwrapped,
    parts: TexelParts,
) -> Float[Tensor, "B 3 S S"]:
    """Fill a texture: the photo where the camera sees the face, then its relit mirror image, then the lit albedo.

    Mirrored colours are divided by the shading of their own side and multiplied by that of the other. Texels that are
    known from neither side are the lit albedo times the continued ratio of known colours and lit albedo, so that no
    seam shows. Only typical skin is continued over skin: no sheen at the outline, no beard, no lashes.

    Args:
        albedo: Albedo of the model.
        offset: Texture offset of the detail maps; on skin it counts as far as it leaves the albedo typical.
        shade: Shading of the model.
        unwrapped: The photo in UV space.
        parts: Skin, and the skin of the lids; lashes that the photo shows in front of the latter are left out.

    Returns:
        Colours of all texels, with the light of the photo; not clamped.
    """
    skin, lids = parts.skin, parts.lids
    shade, visible = _filled_shade(shade, unwrapped.weights * skin), unwrapped.weights * skin
    albedo = albedo + offset * (1 - skin + skin * _typical(albedo + offset, albedo, visible, darker=True))
    lit = albedo * shade
    typical = _typical(unwrapped.colours, lit, visible)
    seen = _trusted(unwrapped.weights, typical, parts)
    mirrored = (unwrapped.colours / shade.clamp(min=DARKEST)).flip(-1) * shade
    from_mirror = (1 - seen) * seen.flip(-1)
    known = seen + from_mirror
    colours = (seen * unwrapped.colours + from_mirror * mirrored) / known.clamp(min=1e-6)
    ratio, source = colour_ratio(colours, lit) - 1, known * skin * typical
    other_ratio = _continued(ratio.clamp(*_OTHER_RATIO), known)
    continued = lit * (1 + skin * _continued(ratio, source) + (1 - skin) * other_ratio)
    # The model's lids have lashes, too: closed lids take albedo and ratio from the skin around them.
    around = source * (1 - lids) * (1 - parts.near_eyes)
    skin_albedo, skin_ratio = _continued(torch.cat([albedo - 1, ratio], dim=1), around).split(3, dim=1)
    lid_shade = (shade + parts.closed_shade) / 2
    continued = lids * (1 + skin_albedo) * lid_shade * (1 + skin_ratio) + (1 - lids) * continued
    return known * colours + (1 - known) * continued


def _typical(
    colours: Float[Tensor, "B 3 S S"],
    lit: Float[Tensor, "B 3 S S"],
    visible: Float[Tensor, "B 1 S S"],
    *,
    darker: bool = False,
) -> Float[Tensor, "B 1 S S"]:
    """How typical of the visible skin each colour is, 0 to 1; with `darker`, dark skin is as typical as any."""
    deviations = skin_deviations(colours, lit, visible)
    if darker:
        deviations = torch.cat([deviations[:, :1].clamp(min=0), deviations[:, 1:]], dim=1)
    return biweight(deviations.norm(dim=1, keepdim=True) / _SPREADS)


def _filled_shade(shade: Float[Tensor, "B 3 S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B 3 S S"]:
    """The shading with more light where it is very dark: a photo of a face does not show the light behind the head."""
    total = weights.sum((2, 3), keepdim=True).clamp(min=1e-6)
    mean = (shade * weights).sum((2, 3), keepdim=True) / total
    level = shade.mean(1, keepdim=True)
    missing = (_LEAST_SHADE * mean.mean(1, keepdim=True) - level).clamp(min=0)
    return shade + missing * mean / mean.mean(1, keepdim=True).clamp(min=1e-6)


def _continued(values: Float[Tensor, "B C S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B C S S"]:
    """`pull_push` in blocks of texels, for values that are needed outside the known texels only."""
    total = F.avg_pool2d(weights, _BLOCK, ceil_mode=True)
    coarse = F.avg_pool2d(values * weights, _BLOCK, ceil_mode=True) / total.clamp(min=1e-6)
    filled = pull_push(coarse, (_BLOCK**2 * total).clamp(max=1))
    return F.interpolate(filled, size=values.shape[-2:], mode="bilinear", align_corners=False)


def _trusted(
    weights: Float[Tensor, "B 1 S S"], typical: Float[Tensor, "B 1 S S"], parts: TexelParts
) -> Float[Tensor, "B 1 S S"]:
    """Visibility, less where the photo shows sheen near the outline, or lashes and folds instead of the lid's skin."""
    fading = weights * (1 - (1 - weights) * parts.skin * (1 - typical))
    radius = max(weights.shape[-1] // _LASH_MARGIN, 1)
    lid_skin = -dilated(-typical, radius=radius)
    return fading * (1 - parts.lids * (1 - lid_skin))
