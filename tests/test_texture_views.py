"""One texture from several photos."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mien.morphable import MorphableModel
from mien.texture import TexelAtlas, TextureView, Unwrapped, merge_views
from mien.texture.views import pixels_per_texel
from mien.typing import Tensor

SIZE = 128
COLOUR = torch.tensor([0.7, 0.5, 0.4])[None, :, None, None]


def view(albedo: Tensor, weights: Tensor, quality: float = 1.0) -> TextureView:
    return TextureView(albedo.half(), weights.half(), torch.full_like(weights, quality).half())


def merged_of(views: Sequence[TextureView]) -> tuple[Tensor, Tensor]:
    return merge_views(views.__getitem__, len(views))


def pattern() -> Tensor:
    """Fine detail around the mean colour of skin."""
    return COLOUR * (1 + 0.2 * torch.sign(torch.randn(1, 1, SIZE, SIZE)))


def left() -> Tensor:
    """Sees the left half well, and the right half not at all."""
    weights = torch.zeros(1, 1, SIZE, SIZE)
    weights[..., : SIZE // 2] = 1
    return weights


def test_one_photo_stays_as_it_is() -> None:
    albedo, weights = pattern(), left()
    merged, seen = merged_of([view(albedo, weights)])
    torch.testing.assert_close(merged, albedo, rtol=0, atol=1e-3)
    assert torch.equal(seen, weights)


def test_each_photo_gives_the_part_that_it_shows() -> None:
    albedo = pattern()
    merged, seen = merged_of([view(albedo, left()), view(albedo, 1 - left())])
    torch.testing.assert_close(merged, albedo, rtol=0, atol=2e-2)
    assert seen.min() == 1
    nothing, seen = merged_of([view(albedo, torch.zeros_like(left())), view(albedo, left())])
    assert torch.isfinite(nothing).all()
    assert torch.equal(seen, left())


def test_another_light_leaves_no_seam() -> None:
    """Two photos overlap in the middle; one is brighter and bluer."""
    overlap = left()
    overlap[..., : 3 * SIZE // 4] = 1
    tint = torch.tensor([1.1, 1.2, 1.3])[None, :, None, None]
    merged, _ = merged_of(
        [view(COLOUR.expand(1, 3, SIZE, SIZE), overlap), view(COLOUR * tint + 0 * overlap, overlap.flip(-1))]
    )
    steps = (merged[..., 1:] - merged[..., :-1]).abs().amax()
    assert steps < 0.15 * float((COLOUR * (tint - 1)).max())


def test_the_sharper_photo_gives_the_detail() -> None:
    sharp, blurred, weights = pattern(), COLOUR.expand(1, 3, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE)
    merged, _ = merged_of([view(sharp, weights), view(blurred, weights, 0.3)])
    error, contrast = (merged - sharp).abs().mean(), (sharp - blurred).abs().mean()
    assert error < 0.1 * contrast


def test_a_hand_in_one_of_three_photos_is_left_out() -> None:
    weights, plain = torch.ones(1, 1, SIZE, SIZE), COLOUR.expand(1, 3, SIZE, SIZE)
    hand = plain.clone()
    hand[..., 32:64, 32:64] = 0.05
    merged, _ = merged_of([view(hand, weights), view(plain, weights), view(plain, weights)])
    assert (merged - plain).abs()[..., 42:54, 42:54].max() < 0.1  # blocks fade into each other


def test_photos_of_other_exposure_and_white_balance_get_the_same_colours() -> None:
    """Three photos of one skin; a smooth light remains in one, too."""
    light = torch.linspace(0.85, 1.15, SIZE).expand(1, 1, SIZE, SIZE)
    tints = [torch.tensor(tint)[None, :, None, None] for tint in ([1.0, 1.0, 1.0], [1.3, 1.1, 0.8], [0.8, 0.9, 1.2])]
    skin, weights = COLOUR.expand(1, 3, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE)
    merged, _ = merged_of([view(skin * tints[0] * light, weights)] + [view(skin * tint, weights) for tint in tints[1:]])
    hue = merged / merged.mean(1, keepdim=True)
    assert float((hue / hue.mean((2, 3), keepdim=True) - 1).abs().max()) < 0.01
    assert float((merged.mean(1) / merged.mean() - 1).abs().max()) < 0.1  # of 0.15 in one of three


def test_a_brow_that_lies_elsewhere_does_not_make_the_skin_bright() -> None:
    """Of three photos, one has no brow, and one has it higher; a block that is only dark is not in another light."""
    weights, skin = torch.ones(1, 1, SIZE, SIZE), COLOUR.expand(1, 3, SIZE, SIZE)
    brow, higher = skin.clone(), skin.clone()
    brow[..., 66:86, 32:96], higher[..., 44:62, 32:96] = 0.1, 0.1
    merged, _ = merged_of([view(higher, weights), view(brow, weights), view(skin, weights)])
    merged[..., 44:86, 32:96] = COLOUR.expand(1, 3, 42, 64)
    assert float((merged / COLOUR - 1).abs().max()) < 0.02


def test_the_light_of_a_photo_is_taken_off(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, 32)
    colours, shade = torch.full((1, 3, 32, 32), 0.3), torch.full((1, 3, 32, 32), 0.5)
    shade[:, 2] = 0.01  # darker than what a photo can be divided by
    ones = torch.ones(1, 1, 32, 32)
    found = TextureView.of(
        atlas, tiny, Unwrapped(colours, ones, ones), shade=shade, vertices_px=tiny.uv[None] * 16, photo_weight=0.5
    )
    torch.testing.assert_close(found.albedo[0, :, 0, 0].float(), torch.tensor([0.6, 0.6, 2.0]), rtol=0, atol=1e-2)
    # 32 texels are 16 pixels wide: a quarter of a pixel per texel, at half of the weight.
    torch.testing.assert_close(found.quality[0, 0, 16, 16].float(), torch.tensor(0.125), rtol=0, atol=1e-2)


def test_pixels_per_texel_is_an_area(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, 64)
    area = pixels_per_texel(atlas, tiny, torch.stack([tiny.uv[:, 0] * 128, tiny.uv[:, 1] * 32], dim=-1)[None])
    inside = area[0, 0][atlas.valid]
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-3)
