"""Fast filters of texture maps against the poolings of torch, and the completed texture against a plain formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mien.morphable import MorphableModel
from mien.texture import TexelAtlas, TexelParts, Unwrapped, biweight, complete_texture, pull_push, skin_deviations
from mien.texture import complete as completion
from mien.texture.fill import box_mean, halved, largest
from mien.texture.relight import filled_shade
from mien.texture.skin_colour import colour_ratio, length
from mien.typing import Tensor

SIZE = 64


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 13])
def test_the_largest_value_around_each_texel_is_that_of_a_pooling(radius: int) -> None:
    values = noise(2, 1, 37, 37) - 0.5
    pooled = F.max_pool2d(values, 2 * radius + 1, stride=1, padding=radius)
    torch.testing.assert_close(largest(values, radius=radius), pooled, rtol=0, atol=0)


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 13])
def test_the_mean_around_each_texel_is_that_of_a_pooling(radius: int) -> None:
    values = noise(2, 1, 37, 37)
    pooled = F.avg_pool2d(values, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    torch.testing.assert_close(box_mean(values, radius=radius), pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (8, 5), (1, 3)])
def test_halves_are_those_of_a_pooling(shape: tuple[int, int]) -> None:
    values = noise(2, 3, *shape)
    torch.testing.assert_close(halved(values), F.avg_pool2d(values, 2, ceil_mode=True))


@pytest.mark.parametrize("side", [SIZE, SIZE - 1])
def test_dilation_keeps_the_layout_and_continues_it_by_pull_push(tiny: MorphableModel, side: int) -> None:
    atlas = TexelAtlas.of(tiny, side)
    ids = atlas.fragments.triangle_ids.clone()
    ids[:, 10:30, 20:25] = ids[:, :, -6:] = -1
    atlas, maps = replace(atlas, fragments=replace(atlas.fragments, triangle_ids=ids)), noise(2, 3, side, side)
    expected = pull_push(maps, atlas.valid.float()[None, None])
    found = atlas.dilate(maps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[..., atlas.valid], maps[..., atlas.valid], rtol=0, atol=0)


def plainly_completed(albedo: Tensor, offset: Tensor, shade: Tensor, unwrapped: Unwrapped, parts: TexelParts) -> Tensor:
    """The formula of `complete_texture` on the whole map."""

    def continued(values: Tensor, weights: Tensor) -> Tensor:
        total = F.avg_pool2d(weights, 4)
        coarse = F.avg_pool2d(values * weights, 4) / total.clamp(min=1e-6)
        return F.interpolate(pull_push(coarse, (16 * total).clamp(max=1)), scale_factor=4, mode="bilinear")

    def typical(colours: Tensor, model: Tensor, *, darker: bool = False) -> Tensor:
        deviations = skin_deviations(colour_ratio(colours, model), visible)
        if darker:
            deviations[:, 0].clamp_(min=0)
        return biweight(length(deviations) / 4)

    skin, lids, visible = parts.skin, parts.lids, unwrapped.weights * parts.skin
    shade = filled_shade(shade, visible)
    albedo = albedo + offset * (1 - skin + skin * typical(albedo + offset, albedo, darker=True))
    lit, photo = albedo * shade, unwrapped.colours
    sure = typical(photo, lit)
    seen = completion._trusted(unwrapped.weights, sure, skin=skin, lids=lids, size=SIZE)
    mirrored = (1 - seen) * seen.flip(-1)
    known = seen + mirrored
    colours = seen * photo + mirrored * (photo / shade.clamp(min=0.15)).flip(-1) * shade
    colours = colours / known.clamp(min=1e-6)
    ratio, source = colour_ratio(colours, lit) - 1, known * skin * sure
    around = source * (1 - lids) * (1 - parts.near_eyes)
    other = continued(ratio.clamp(-0.3, 0.3), known)
    found = lit * (1 + skin * continued(ratio, source) + (1 - skin) * other)
    skin_albedo, skin_ratio = (1 + continued(torch.cat([albedo - 1, ratio], dim=1), around)).split(3, dim=1)
    lid_colours = skin_albedo * skin_ratio * (shade + parts.closed_shade) / 2
    return known * colours + (1 - known) * (lids * lid_colours + (1 - lids) * found)


@pytest.mark.parametrize("columns", [(20, 30), (3, 61), (40, 44)])
def test_the_completed_texture_is_that_of_the_whole_map(columns: tuple[int, int]) -> None:
    """Only the part with the photo and its mirror image is computed; the plain formula takes the whole map."""
    weights = torch.zeros(1, 1, SIZE, SIZE)
    weights[..., 13:50, columns[0] : columns[1]] = 1
    lids, one = torch.zeros_like(weights), torch.ones_like(weights)
    lids[..., 20:23, 25:33] = 0.7
    smooth = F.interpolate(noise(1, 9, 4, 4), size=SIZE, mode="bilinear")
    albedo, shade, photo = 0.2 + 0.5 * smooth[:, :3], 0.3 + 0.7 * smooth[:, 3:6], 0.2 + 0.3 * smooth[:, 6:]
    parts = TexelParts(one, lids, lids, 0.8 * shade)
    offset = 0.1 * smooth[:, [6, 3, 0]] - 0.05
    unwrapped = Unwrapped(photo, weights, one)
    found = complete_texture(albedo, offset, shade, unwrapped, parts).colours
    expected = plainly_completed(albedo, offset, shade, unwrapped, parts)
    # The product of two interpolations is not the interpolation of the product: a thousandth on lids.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    elsewhere = lids.expand(-1, 3, -1, -1) == 0
    torch.testing.assert_close(found[elsewhere], expected[elsewhere], rtol=1e-4, atol=1e-5)
    without = complete_texture(albedo, None, shade, unwrapped, parts).colours
    torch.testing.assert_close(without, complete_texture(albedo, 0 * offset, shade, unwrapped, parts).colours)


def test_weights_that_rounding_makes_negative_do_not_grow() -> None:
    """At 2,048 texels, lids once were white: 1 - 1.0000001 was the weight of the skin around them."""
    values, weights = torch.full((1, 1, 256, 256), 0.5), torch.full((1, 1, 256, 256), -1.2e-7)
    values[..., ::2] = -3.0
    values[..., 128:132, 128:132], weights[..., 128:132, 128:132] = 0.5, 1.0
    filled = pull_push(values, weights)
    assert float((filled[..., 64:192, 64:192] - 0.5).abs().max()) < 0.1
