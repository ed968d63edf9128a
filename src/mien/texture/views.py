"""One texture from several photos of a person.

Each photo is divided by its fitted light, so that all show the same albedo. Nine harmonics do not describe a light
exactly, but what remains is smooth: a smooth factor gives the photos the same colours. After that they are averaged,
each where it sees the skin best, and where it agrees with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.morphable import MorphableModel
from mien.texture.atlas import TexelAtlas
from mien.texture.complete import DARKEST
from mien.texture.fill import halved, pull_push
from mien.texture.skin_colour import biweight, length
from mien.texture.unwrap import Unwrapped
from mien.typing import Float, Tensor

_SHARPEST = 3.0
"""Exponent of the quality of a view in its weight. The best view dominates: a mean of views that are a texel apart is
blurred."""
_LEVELS = 5
"""The mean colours that photos share are those of blocks of 2⁵ texels, 1/32 of a map of 1024: 5 mm on a face."""
_CORRECTIONS = (0.5, 2.0)
"""Range of the factor that reconciles the colour of a photo."""
_SMOOTH_BLOCKS = 1.5
"""Standard deviation of the filter of the factor, in blocks: 8 mm on a face."""
_ROUNDS = 4
"""How often the common colours and the factors are found from each other."""
_UNLIKE = 0.25
"""Logarithm of the ratio of a block's mean colour to that of all photos from which on it shows something else: hair, a
hand, glare."""


@dataclass(frozen=True)
class TextureView:
    """What one photo shows of the albedo."""

    albedo: Float[Tensor, "1 3 S S"]
    """Colours without the fitted light, half precision."""
    weights: Float[Tensor, "1 1 S S"]
    """Visibility of each texel, 0 to 1, half precision."""
    quality: Float[Tensor, "1 1 S S"]
    """Pixels of the photo per texel, up to 1, times the weight of the photo; half precision. A surface that is seen at
    a grazing angle covers few pixels."""

    @classmethod
    def of(
        cls,
        atlas: TexelAtlas,
        model: MorphableModel,
        unwrapped: Unwrapped,
        *,
        shade: Float[Tensor, "1 3 S S"],
        vertices_px: Float[Tensor, "1 V 2"],
        photo_weight: float,
    ) -> TextureView:
        """Take the light off a photo in UV space.

        Args:
            atlas: UV atlas of the size of the result.
            model: Gives triangles and UV coordinates.
            unwrapped: The photo.
            shade: Shading of the fitted light.
            vertices_px: Projection of each vertex into the photo, in pixels as sharp as those of the photo.
            photo_weight: Influence of the photo, 0 to 1.
        """
        albedo = unwrapped.colours / shade.clamp(min=DARKEST)
        quality = pixels_per_texel(atlas, model, vertices_px).clamp(max=1) * photo_weight
        return cls(albedo.clamp(0, 2).half(), unwrapped.weights.half(), quality.half())


def pixels_per_texel(
    atlas: TexelAtlas, model: MorphableModel, vertices_px: Float[Tensor, "1 V 2"]
) -> Float[Tensor, "1 1 S S"]:
    """Area of each texel in a photo, pixels; zero outside the UV layout.

    Args:
        atlas: The UV atlas.
        model: Gives triangles and UV coordinates.
        vertices_px: Projection of each vertex.
    """
    size, corners = len(atlas.triangle_ids), model.triangles

    def areas(points: Float[Tensor, "V 2"]) -> Float[Tensor, "T"]:
        first, second, third = points[corners].unbind(1)
        (ax, ay), (bx, by) = (second - first).unbind(-1), (third - first).unbind(-1)
        return (ax * by - ay * bx).abs()

    ratio = areas(vertices_px[0]) / (areas(model.uv) * size**2).clamp(min=1e-6)
    return (ratio[atlas.triangle_ids.clamp(min=0)] * atlas.valid)[None, None]


def merge_views(
    view_of: Callable[[int], TextureView], count: int
) -> tuple[Float[Tensor, "1 3 S S"], Float[Tensor, "1 1 S S"]]:
    """Merge what several photos show.

    Args:
        view_of: Makes the view of a photo, given its number. With several photos each view is asked for twice, so that
            only one is in memory at a time.
        count: Number of photos, at least one.

    Returns:
        Albedo, and visibility in any of the photos, 0 to 1.
    """
    if count == 1:
        view = view_of(0)
        return view.albedo.float(), view.weights.float()
    means, totals, seen = list[Tensor](), list[Tensor](), torch.zeros(1)
    for number in range(count):
        view = view_of(number)
        mean, total = _block_means(view.albedo.float(), _sharpness(view))
        means.append(mean)
        totals.append(total)
        seen = torch.maximum(seen.to(view.weights.device), view.weights.float())
    corrections, trusts = _reconciled(torch.cat(means), torch.cat(totals))
    colours, weights = torch.zeros(1, device=seen.device), torch.zeros(1, device=seen.device)
    for number in range(count):
        view, one = view_of(number), slice(number, number + 1)
        trusted = _sharpness(view) * _enlarged(trusts[one], seen).clamp(min=1e-3)
        colours = colours + trusted * view.albedo.float() * _enlarged(corrections[one], seen)
        weights = weights + trusted
    return colours / weights.clamp(min=1e-9), seen


def _sharpness(view: TextureView) -> Float[Tensor, "1 1 S S"]:
    """Weight of each texel of a view."""
    return (view.weights.float() * view.quality.float()) ** _SHARPEST


def _reconciled(
    means: Float[Tensor, "N 3 R R"], totals: Float[Tensor, "N 1 R R"]
) -> tuple[Float[Tensor, "N 3 R R"], Float[Tensor, "N 1 R R"]]:
    """Give the photos the same colours.

    First each photo gets one factor per channel, for exposure and white balance, then a smooth one, for what is left of
    the light. A block that differs even so shows something else, or a feature that lies elsewhere in this photo: its
    difference is not light and must not be spread, or a brow makes the skin beside it bright.

    Args:
        means: Mean colour of each block in each photo.
        totals: Weight of each block in each photo.

    Returns:
        The factor for the colours of each block, and how far each block agrees with the other photos, 0 to 1.
    """
    logs = means.clamp(min=1e-3).log()
    factors, others = torch.zeros_like(logs), totals.sum(0, keepdim=True) - totals
    shared = totals * others / (totals + others).clamp(min=1e-9)  # what one photo alone shows tells nothing

    def residuals() -> Float[Tensor, "N 3 R R"]:
        found = logs + factors
        level = _weighted_median(found, totals) if len(found) > 2 else _weighted_mean(found, totals)
        return level - found

    for _ in range(_ROUNDS):
        flat = [values.flatten(2).movedim(2, 0) for values in (residuals(), shared)]
        factors = factors + _weighted_median(*flat)[0, ..., None, None]
        # The factors of all photos could drift together.
        factors = factors - (factors * totals).sum((0, 2, 3), keepdim=True) / totals.sum().clamp(min=1e-9)
    for _ in range(_ROUNDS):
        left = residuals()
        factors = factors + _smooth(left, shared * _agreement(left))
    return factors.exp().clamp(*_CORRECTIONS), _agreement(residuals())


def _agreement(residuals: Float[Tensor, "N 3 R R"]) -> Float[Tensor, "N 1 R R"]:
    return biweight(length(residuals / _UNLIKE) / 2)


def _smooth(values: Float[Tensor, "N 3 R R"], weights: Float[Tensor, "N 1 R R"]) -> Float[Tensor, "N 3 R R"]:
    """Weighted mean of the blocks around each block, continued to where there are no weights."""
    radius = round(3 * _SMOOTH_BLOCKS)
    steps = torch.arange(-radius, radius + 1).to(values)
    kernel = torch.exp(-((steps / _SMOOTH_BLOCKS) ** 2) / 2)
    kernel = kernel / kernel.sum()

    def blurred(maps: Float[Tensor, "N C R R"]) -> Float[Tensor, "N C R R"]:
        single = maps.flatten(0, 1)[:, None]
        rows = F.conv2d(single, kernel[None, None, None], padding=(0, radius))
        return F.conv2d(rows, kernel[None, None, :, None], padding=(radius, 0)).view_as(maps)

    total = blurred(weights)
    known = (total > 1e-3 * total.amax((2, 3), keepdim=True).clamp(min=1e-9)).float()
    return pull_push(blurred(values * weights) / total.clamp(min=1e-9), known)


def _block_means(
    values: Float[Tensor, "1 3 S S"], weights: Float[Tensor, "1 1 S S"]
) -> tuple[Float[Tensor, "1 3 R R"], Float[Tensor, "1 1 R R"]]:
    """Weighted mean of each block, and the mean of the weights."""
    summed = values * weights
    for _ in range(_LEVELS):
        if min(weights.shape[-2:]) < 2:
            break
        summed, weights = halved(summed), halved(weights)
    return summed / weights.clamp(min=1e-9), weights


def _weighted_mean(values: Float[Tensor, "N C ..."], weights: Float[Tensor, "N #C ..."]) -> Float[Tensor, "1 C ..."]:
    return (values * weights).sum(0, keepdim=True) / weights.sum(0, keepdim=True).clamp(min=1e-9)


def _weighted_median(values: Float[Tensor, "N C ..."], weights: Float[Tensor, "N #C ..."]) -> Float[Tensor, "1 C ..."]:
    ordered, order = values.sort(dim=0)
    below = weights.expand_as(values).gather(0, order).cumsum(0)
    middle = (below >= below[-1:] / 2).byte().argmax(0, keepdim=True)
    return ordered.gather(0, middle)


def _enlarged(blocks: Float[Tensor, "1 C R R"], like: Float[Tensor, "1 1 S S"]) -> Float[Tensor, "1 C S S"]:
    return F.interpolate(blocks, size=like.shape[-2:], mode="bilinear", align_corners=False)
