"""Light is removed from textures, and photos without colours stay without them."""

from __future__ import annotations

import pytest
import torch

from mien.lighting import LUMA
from mien.texture import TexelParts, Unwrapped, complete_texture
from mien.texture.relight import remove_light
from mien.texture.tint import PhotoTint
from mien.typing import Tensor

SIZE = 256
SKIN = torch.tensor([0.70, 0.52, 0.43])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def skin_albedo() -> Tensor:
    """Skin with small symmetric spots."""
    spots = 0.04 * noise(1, 1, SIZE, SIZE)
    return SKIN[None, :, None, None] * (1 + (spots + spots.flip(-1)) / 2)


def across() -> Tensor:
    return torch.linspace(-1, 1, SIZE).expand(1, 1, SIZE, SIZE)


def test_shading_shadow_of_one_side_and_gloss_are_removed_but_spots_stay() -> None:
    """A shadow on one side that the harmonics do not hold, and a highlight of 15 mm."""
    albedo, one = skin_albedo(), torch.ones(1, 1, SIZE, SIZE)
    mean = SKIN[None, :, None, None].expand_as(albedo)
    shade = (0.8 + 0.25 * across()).expand_as(albedo)
    shadow = 1 - 0.35 * torch.sigmoid(12 * (across() - 0.5))
    place = torch.arange(SIZE) - 90.0
    gloss = 0.35 * torch.exp(-(place**2 + (place[:, None] - 40) ** 2) / 60)
    found = remove_light(albedo * shade * shadow + gloss, mean, shade, one)

    def error(maps: Tensor) -> Tensor:
        """Deviation of the relative colours: the brightness of all is not known."""
        return (maps / maps.mean((2, 3), keepdim=True) / (albedo / mean) - 1).abs()

    naive = error(albedo * shadow + gloss / shade)
    assert error(found).mean() < 0.4 * naive.mean()
    highlight = (slice(None), slice(None), slice(125, 135), slice(85, 95))
    assert error(found)[highlight].mean() < 0.4 * naive[highlight].mean()
    fine = [(maps - torch.nn.functional.avg_pool2d(maps, 9, 1, 4))[:, :, 20:-20, 140:-40] for maps in (found, albedo)]
    correlation = (fine[0] * fine[1]).mean() / (fine[0].square().mean() * fine[1].square().mean()).sqrt()
    assert correlation > 0.95


def test_a_shade_near_zero_gives_no_noise() -> None:
    albedo, one = skin_albedo(), torch.ones(1, 1, SIZE, SIZE)
    shade = (0.5 + 0.5 * across()).expand_as(albedo)
    grain = 0.02 * noise(1, 3, SIZE, SIZE, seed=1)
    found = remove_light((albedo * shade + grain).clamp(0, 1), albedo, shade, one)
    assert found.std((2, 3)).max() < 0.25
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("toned", [(0.0, 0.0), (0.06, -0.1)], ids=["grey", "sepia"])
def test_a_photo_with_one_colour_per_brightness_has_a_tint(toned: tuple[float, float]) -> None:
    level = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    tone = torch.tensor([toned[0], -(LUMA[0] * toned[0] + LUMA[2] * toned[1]) / LUMA[1], toned[1]])
    photo = level + (tone[None, :, None, None] * 4 * level * (1 - level))
    photo = (photo * 255).round() / 255
    tint = PhotoTint.of(photo, torch.ones_like(level))
    assert tint is not None
    colours = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1))
    brightness = torch.einsum("chw,c->hw", colours, torch.tensor(LUMA))
    expected = brightness + tone[:, None, None] * 4 * brightness * (1 - brightness)
    torch.testing.assert_close(tint(colours), expected, atol=0.01, rtol=0)


def test_a_colour_photo_has_no_tint_and_few_texels_tell_nothing() -> None:
    photo = SKIN[None, :, None, None] * (0.6 + 0.4 * torch.rand(1, 1, 64, 64))
    photo[..., 20:24, 10:50] = torch.tensor([0.6, 0.35, 0.35])[None, :, None, None]  # lips
    weights = torch.ones(1, 1, 64, 64)
    assert PhotoTint.of(photo, weights) is None
    flat = SKIN[None, :, None, None].expand(1, 3, 64, 64)
    assert PhotoTint.of(flat, weights) is None  # what is the colour of another brightness?
    weights[..., 5:, :] = 0
    weights[..., 20:] = 0
    assert PhotoTint.of(photo.mean(1, keepdim=True).expand(-1, 3, -1, -1), 0 * weights) is None


def test_completion_of_a_grey_photo_is_grey() -> None:
    """The model's albedo is not, and neither is the light that the fit found to explain the photo."""
    shade = torch.tensor([0.7, 0.95, 1.1])[None, :, None, None].expand(1, 3, SIZE, SIZE)
    albedo = skin_albedo()
    albedo[..., :80, :] *= torch.tensor([1.0, 0.7, 0.7])[None, :, None, None]  # redder, not in the photo
    photo = (albedo * shade).mean(1, keepdim=True).expand(-1, 3, -1, -1) * (1 + 0.5 * across())
    weights = torch.zeros(1, 1, SIZE, SIZE)
    weights[..., 100:200, 90:150] = 1
    nothing = torch.zeros_like(weights)
    parts = TexelParts((across() > -0.5).float(), nothing, nothing, shade)
    found = complete_texture(albedo, None, shade, Unwrapped(photo, weights, weights), parts).colours
    assert float((found.amax(1) - found.amin(1)).max()) < 2e-3
    assert float(found.std()) > 1e-3


def test_the_share_of_the_photo_is_given() -> None:
    albedo, shade = skin_albedo(), torch.ones(1, 3, SIZE, SIZE)
    weights = torch.zeros(1, 1, SIZE, SIZE)
    weights[..., 100:200, 90:150] = 1
    nothing = torch.zeros_like(weights)
    parts = TexelParts(torch.ones_like(weights), nothing, nothing, shade)
    found = complete_texture(albedo, None, shade, Unwrapped(albedo, weights, weights), parts)
    torch.testing.assert_close(found.from_photo, weights)


def test_a_closed_lid_that_faces_away_from_the_light_is_not_black() -> None:
    """Harmonics can be negative; the lid once had black holes where the open one is lit."""
    albedo, shade = skin_albedo(), torch.full((1, 3, SIZE, SIZE), 0.8)
    weights, lids = torch.ones(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    lids[..., 60:80, 60:196] = 1
    lashes = albedo * shade * (1 - 0.9 * lids)
    parts = TexelParts(torch.ones_like(lids), lids, lids, torch.full_like(shade, -0.9))
    found = complete_texture(albedo, None, shade, Unwrapped(lashes, weights, weights), parts).colours
    assert float(found[:, 0][lids[:, 0] > 0].min()) > 0.2
