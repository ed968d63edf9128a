"""Removal of the photo's light from a texture, so that an engine can light it anew."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.lighting import LUMA
from mien.texture.fill import box_mean, halved
from mien.texture.skin_colour import biweight, colour_ratio, length, skin_deviations
from mien.typing import Float, Tensor

DARKEST = 0.15
"""Smallest shading that the colours of a photo are divided by."""
_LEAST_SHADE = 0.4
"""Lower bound of the shading of hidden skin, relative to the mean shading of the visible skin."""
_SPREADS = 4.0
"""As in `complete`: a colour this many standard deviations from that of the skin is no longer typical."""

_LIGHT_RADIUS = 0.05
"""Differences over more than this share of the map, 11 mm on a face, can be light that the harmonics do not hold."""
_EVEN_SHARE, _EVEN_HUE_SHARE = 0.6, 0.4
"""Share of such differences in brightness, and in hue, that is taken for light where both sides of the face have them:
the shade below nose and chin is light, a beard is not. What one side alone has is all light, as skin is symmetric."""
_GLOSS_RADIUS = 0.022
"""Gloss is what is brighter than the skin within this share of the map, 5 mm on a face."""
_GLOSS = (0.03, 0.2)
"""Log brightness above the skin around: below the first value it is skin, from the second on it is gloss."""
_GLOSS_LEFT = 0.25
"""Share of the gloss that remains, so that pores do not vanish in a smooth patch."""
_REDUCED = 4
"""Side in texels of the blocks that are filtered; the filters are far wider."""


def filled_shade(shade: Float[Tensor, "B 3 H W"], weights: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """The shading with more light where it is very dark: a photo of a face does not show the light behind the head.

    Args:
        shade: Shading of the model.
        weights: How far each texel is visible skin.
    """
    total = weights.sum((2, 3), keepdim=True).clamp(min=1e-6)
    mean = torch.einsum("bchw,bkhw->bc", shade, weights)[..., None, None] / total
    level = sum(shade.split(1, dim=1)) / 3
    missing = (_LEAST_SHADE * mean.mean(1, keepdim=True) - level).clamp(min=0)
    return shade + missing * mean / mean.mean(1, keepdim=True).clamp(min=1e-6)


def remove_light(
    texture: Float[Tensor, "B 3 S S"],
    albedo: Float[Tensor, "B 3 S S"],
    shade: Float[Tensor, "B 3 S S"],
    skin: Float[Tensor, "B 1 S S"],
) -> Float[Tensor, "B 3 S S"]:
    """Divide a texture by its shading, and reduce what the shading does not explain: cast shadows and gloss.

    Args:
        texture: Colours with light, complete, of a face whose map is symmetric.
        albedo: Albedo of the model.
        shade: Shading of the model, without dark places, see `filled_shade`.
        skin: 1 on skin, 0 on brows, eyes, lips, mouth and outside the layout.

    Returns:
        Colours in white light, 0 to 1.
    """
    shade = shade.clamp(min=DARKEST)
    ratio = colour_ratio(texture, albedo * shade)
    weights = skin * biweight(length(skin_deviations(ratio, skin)) / _SPREADS)
    unexplained = _local_mean(ratio.log(), weights, share=_LIGHT_RADIUS)
    level = unexplained.mean((2, 3), keepdim=True)
    even = (unexplained + unexplained.flip(-1)) / 2
    brightness = (even - level).mean(1, keepdim=True)
    light = unexplained - even + _EVEN_SHARE * brightness + _EVEN_HUE_SHARE * (even - level - brightness)
    colours = texture / shade * _enlarged(light.neg().exp(), texture)
    return _without_gloss(colours.clamp(min=1e-3), weights, skin=skin).clamp(0, 1)


def _without_gloss(
    colours: Float[Tensor, "B 3 S S"], weights: Float[Tensor, "B 1 S S"], *, skin: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B 3 S S"]:
    """Give glossy skin the hue of the skin around it, and a quarter of its extra brightness."""
    logs, low = colours.log(), _GLOSS[0]
    around = _enlarged(_local_mean(logs, weights, share=_GLOSS_RADIUS), logs)
    plain = weights * (luma(logs - around) < low)
    around = _enlarged(_local_mean(logs, plain, share=_GLOSS_RADIUS), logs)
    excess = luma(logs - around)
    gloss = ((excess - low) / (_GLOSS[1] - low)).clamp(0, 1) * skin
    return torch.lerp(logs, around + _GLOSS_LEFT * excess, gloss).exp()


def luma(colours: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Brightness of encoded colours, or of their logarithms."""
    red, green, blue = colours.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _local_mean(
    values: Float[Tensor, "B 3 S S"], weights: Float[Tensor, "B 1 S S"], *, share: float
) -> Float[Tensor, "B 3 s s"]:
    """Weighted mean around each block of texels, about a Gaussian's; its radius is a share of the map's side."""
    for _ in range(_REDUCED.bit_length() - 1):
        total = halved(weights)
        values, weights = halved(values * weights) / total.clamp(min=1e-6), total
    radius = max(round(share * values.shape[-1]), 1)
    both = torch.cat([values * weights, weights], dim=1)
    for _ in range(3):
        both = box_mean(both, radius=radius)
    # Far from all known texels, such as the border of a map, the mean of all counts.
    everywhere = (values * weights).sum((2, 3), keepdim=True) / weights.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return (both[:, :3] + 1e-3 * everywhere) / (both[:, 3:] + 1e-3)


def _enlarged(means: Float[Tensor, "B C s s"], like: Tensor) -> Float[Tensor, "B C S S"]:
    return F.interpolate(means, size=like.shape[-2:], mode="bilinear", align_corners=False)
