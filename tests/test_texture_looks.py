"""Faults of textures and relief that users saw, each in a small scene."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.fitting import DetailSettings, fit_detail
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.rendering import VertexDetail, build_surface, render, vertex_visibility
from mien.texture import TexelAtlas, TexelMasks, TexelParts, Unwrapped, complete_texture, texel_face, unwrap_photo
from mien.typing import Tensor

SIZE = 256
DARK_SKIN = torch.tensor([0.25, 0.15, 0.10])


@pytest.fixture(scope="module")
def packaged() -> MorphableModel:
    return load_model()


def lit_face(model: MorphableModel) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    lighting = ambient_lighting(1, level=0.7)
    lighting[:, 1], lighting[:, 3] = 0.25, 0.15
    mean = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
    return replace(mean, lighting=lighting)


def skin_only(shade: Tensor) -> TexelParts:
    nothing = torch.zeros_like(shade[:, :1])
    return TexelParts(torch.ones_like(nothing), nothing, nothing, shade)


def plain(colour: Tensor, size: int = SIZE) -> Tensor:
    return colour[None, :, None, None].expand(1, 3, size, size).clone()


def test_a_glint_is_not_a_wart(tiny: MorphableModel) -> None:
    """White light on dark skin that a lamp lights from above and from the side."""
    size, glint, face = 64, 0.6, lit_face(tiny)
    face.lighting[:, 1], face.lighting[:, 3] = 0.8, 0.5
    atlas, surface = TexelAtlas.of(tiny, size), build_surface(tiny, face)
    surface = replace(surface, albedo=DARK_SKIN.expand_as(surface.albedo))
    texels = texel_face(atlas, tiny, face, surface)
    rows, columns = torch.meshgrid(torch.arange(size) - 30.0, torch.arange(size) - 32.0, indexing="ij")
    colours = texels.albedo * texels.shading + glint * torch.exp(-(rows**2 + columns**2) / 16)
    one = torch.ones(1, 1, size, size)
    maps = fit_detail(
        tiny,
        atlas,
        surface=surface,
        coefficients=face,
        unwrapped=Unwrapped(colours.clamp(max=1), one, one),
        settings=DetailSettings(),
    )
    assert maps.displacement.abs().max() < 5e-5  # as a bump it is 0.13 mm high
    assert maps.texture_offset[0, 2, 30, 32] > 0.2 * glint  # it is in the offset instead


def test_sheen_at_the_outline_does_not_spread_over_hidden_skin() -> None:
    """Skin seen from the side reflects grey light, and is the last that a photo shows before the hidden part."""
    albedo, shade = plain(DARK_SKIN), torch.ones(1, 3, SIZE, SIZE)
    from_centre = (torch.arange(SIZE) - SIZE / 2).abs().expand(1, 1, SIZE, SIZE)
    weights = ((80 - from_centre) / 30).clamp(0, 1)
    colours = albedo + 0.1 * (from_centre > 45)
    found = complete_texture(
        albedo, torch.zeros_like(albedo), shade, Unwrapped(colours, weights, weights), skin_only(shade)
    ).colours
    for hidden in (found[..., :40], found[..., -40:]):
        torch.testing.assert_close(hidden.mean((0, 2, 3)), DARK_SKIN, rtol=0.05, atol=0)


def test_hidden_offset_of_another_colour_does_not_spread_either() -> None:
    """The detail fit continues the offset of the visible border, sheen and all."""
    albedo, shade = plain(DARK_SKIN), torch.ones(1, 3, SIZE, SIZE)
    weights = torch.ones(1, 1, SIZE, SIZE)
    weights[..., :64] = weights[..., -64:] = 0
    offset = 0.1 * (1 - weights).expand(1, 3, -1, -1)
    found = complete_texture(albedo, offset, shade, Unwrapped(albedo, weights, weights), skin_only(shade)).colours
    torch.testing.assert_close(found, albedo, rtol=0.02, atol=0)


def test_the_back_of_a_head_is_not_black() -> None:
    """Light that was fitted to the front is near zero behind the head."""
    albedo, shade = plain(torch.tensor([0.7, 0.5, 0.4])), torch.full((1, 3, SIZE, SIZE), 0.8)
    weights = torch.zeros(1, 1, SIZE, SIZE)
    weights[..., 64:192] = 1
    shade[..., :32] = shade[..., -32:] = 0.02
    found = complete_texture(
        albedo, torch.zeros_like(albedo), shade, Unwrapped(albedo * 0.8, weights, weights), skin_only(shade)
    ).colours
    back, front = found[..., :32].mean((0, 2, 3)), (albedo * 0.8).mean((0, 2, 3))
    assert (back > 0.3 * front).all()
    torch.testing.assert_close(back / back.sum(), front / front.sum(), rtol=0.02, atol=0)


def test_closed_lids_show_no_lashes(packaged: MorphableModel) -> None:
    """Lashes in front of the lids, every sixth column black, vanish from the skin that comes down with the lid."""
    face, atlas = lit_face(packaged), TexelAtlas.of(packaged, SIZE)
    surface = build_surface(packaged, face)
    masks = TexelMasks.of(packaged, atlas)
    parts = TexelParts.of(packaged, atlas, masks, surface=surface, coefficients=face)
    lid = parts.lids > 0.9
    assert lid.sum() > 50
    shade, skin = atlas.interpolate(surface.shading), plain(torch.tensor([0.6, 0.45, 0.4]))
    colours = skin * shade
    lashes = colours.clone()
    lashes[..., ::6] = torch.where(parts.lids[..., ::6] > 0.5, 0.05, lashes[..., ::6])
    weights = torch.ones(1, 1, SIZE, SIZE)
    found = complete_texture(skin, torch.zeros_like(skin), shade, Unwrapped(lashes, weights, weights), parts).colours
    assert (lashes[:, :1][lid] / colours[:, :1][lid]).min() < 0.2
    assert (found[:, :1][lid] / colours[:, :1][lid]).min() > 0.8
    open_eyes = replace(face, expression=face.expression.clone())
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        open_eyes.expression[:, packaged.expression_names.index(name)] = 1
    closed = TexelParts.of(packaged, atlas, masks, surface=surface, coefficients=open_eyes)
    assert closed.lids.max() == 0  # closed already: the photo shows them


def test_near_black_eyes_are_those_of_the_photo(packaged: MorphableModel) -> None:
    """Eyes are thinner than the margin that keeps occluders out of a texture, and once came from the model alone."""
    face, atlas, eyes = lit_face(packaged), TexelAtlas.of(packaged, 512), packaged.masks.eyes[None, :, None]
    black = VertexDetail(displacement=None, albedo_offset=0.03 * eyes - packaged.albedo(face.albedo) * eyes)
    camera = Camera.from_fov(30.0, image_size=(512, 512))
    photo = render(packaged, face, camera, detail=black)
    surface, masks = build_surface(packaged, face), TexelMasks.of(packaged, atlas)
    unwrapped = unwrap_photo(
        atlas,
        surface,
        photo=torch.cat([photo.image, torch.ones(1, 2, 512, 512)], dim=1),
        vertices_px=camera.project(surface.vertices_camera),
        visibility=vertex_visibility(packaged, surface, camera),
        near_thin=masks.near_thin,
    )
    albedo, shade = atlas.interpolate(torch.cat([surface.albedo, surface.shading], dim=-1)).split(3, dim=1)
    parts = TexelParts.of(packaged, atlas, masks, surface=surface, coefficients=face)
    found = complete_texture(albedo, torch.zeros_like(albedo), shade, unwrapped, parts).colours
    inner = -torch.nn.functional.max_pool2d(-atlas.interpolate(eyes), 5, stride=1, padding=2)[0, 0] > 0.99
    assert inner.sum() > 100
    assert found[0][:, inner].max() < 0.08
    assert found[0][:, inner].std(1).max() < 0.02
