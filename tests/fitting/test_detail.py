from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.fitting import DetailSettings, fit_detail
from mien.lighting import ambient_lighting, shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import build_surface, render, visible_vertices
from mien.texture import DisplacedNormals, TexelAtlas, Unwrapped, complete_texture, pull_push, unwrap_photo

SIZE = 64


def lit_face(model: MorphableModel) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    lighting = ambient_lighting(1, level=0.7)
    lighting[:, 1], lighting[:, 3] = 0.25, 0.15
    mean = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
    return replace(mean, lighting=lighting)


def test_unwrapped_picture_has_the_models_colours(tiny: MorphableModel) -> None:
    atlas, face = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    drawn = render(tiny, face, Camera.from_fov(30.0, image_size=(160, 160)))
    seen = visible_vertices(drawn.surface, drawn.vertices_px, drawn.depth, slack_m=3e-3)
    found = unwrap_photo(
        atlas,
        drawn.surface,
        photo=torch.cat([drawn.image, torch.ones(1, 2, 160, 160)], dim=1),
        vertices_px=drawn.vertices_px,
        visibility=seen,
    )
    expected = atlas.interpolate(drawn.surface.colours)
    error = ((found.colours - expected).abs() * (found.weights > 0.9)).amax(1)
    assert (found.weights > 0.9).float().mean() > 0.2
    assert error.mean() < 0.01
    assert found.weights[0, 0, :, 0].mean() < 0.05  # the rim turns away from the camera


def detail_of(model: MorphableModel, colours: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    atlas, face = TexelAtlas.of(model, SIZE), lit_face(model)
    maps = fit_detail(
        model,
        atlas,
        surface=build_surface(model, face),
        coefficients=face,
        unwrapped=Unwrapped(colours, weights, torch.ones_like(weights)),
        settings=DetailSettings(),
    )
    return maps.texture_offset, maps.displacement


def model_colours(model: MorphableModel, displacement: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    atlas, face = TexelAtlas.of(model, SIZE), lit_face(model)
    surface = build_surface(model, face)
    normals = DisplacedNormals(
        atlas, model, vertices=surface.vertices, normals=surface.normals, rotmat=face.pose.rotmat()
    )(displacement)
    return (atlas.interpolate(surface.albedo) + offset) * shading(normals, face.lighting).permute(0, 3, 1, 2)


def test_a_coloured_mark_goes_into_the_offset(tiny: MorphableModel) -> None:
    mark = torch.zeros(1, 3, SIZE, SIZE)
    mark[:, 0, 20:30, 12:22], mark[:, 2, 20:30, 12:22] = 0.08, -0.08
    colours = model_colours(tiny, torch.zeros(1, 1, SIZE, SIZE), mark)
    offset, displacement = detail_of(tiny, colours, torch.ones(1, 1, SIZE, SIZE))
    assert offset[0, 0, 22:28, 14:20].mean() > 0.04
    assert offset[0, 2, 22:28, 14:20].mean() < -0.04
    assert displacement.abs().mean() < 5e-5


def test_a_fold_goes_into_the_displacement(tiny: MorphableModel) -> None:
    rows = torch.linspace(-1, 1, SIZE)
    fold = (4e-4 * torch.cos(14 * rows))[:, None].expand(SIZE, SIZE)[None, None]
    colours = model_colours(tiny, fold, torch.zeros(1, 3, SIZE, SIZE))
    _, displacement = detail_of(tiny, colours, torch.ones(1, 1, SIZE, SIZE))
    found, gt = displacement[0, 0, 8:-8, 8:-8], fold[0, 0, 8:-8, 8:-8]
    found, gt = found - found.mean(), gt - gt.mean()
    assert (found * gt).sum() / (found.norm() * gt.norm()) > 0.6


def test_unseen_texels_take_their_mirror_image(tiny: MorphableModel) -> None:
    mark = torch.zeros(1, 3, SIZE, SIZE)
    mark[:, 0, 20:30, 10:20] = 0.1
    weights = torch.ones(1, 1, SIZE, SIZE)
    weights[..., SIZE // 2 :] = 0
    colours = model_colours(tiny, torch.zeros(1, 1, SIZE, SIZE), mark)
    offset, _ = detail_of(tiny, colours, weights)
    assert offset[0, 0, 22:28, 46:52].mean() > 0.5 * offset[0, 0, 22:28, 12:18].mean() > 0.01


def test_completed_texture_uses_photo_then_mirror() -> None:
    shade = torch.full((1, 3, 4, 4), 0.5)
    shade[..., 2:] = 1.0
    colours = torch.full((1, 3, 4, 4), 0.3)
    weights = torch.zeros(1, 1, 4, 4)
    weights[..., :2] = 1
    found = complete_texture(torch.full((1, 3, 4, 4), 0.8), shade, Unwrapped(colours, weights, weights))
    torch.testing.assert_close(found[..., :2], torch.full((1, 3, 4, 2), 0.3))
    torch.testing.assert_close(found[..., 2:], torch.full((1, 3, 4, 2), 0.6))


def test_completed_texture_has_no_seam_to_what_is_not_seen() -> None:
    size = 64
    albedo = torch.linspace(0.3, 0.5, size).reshape(1, 1, size, 1).expand(1, 3, size, size)
    weights = torch.zeros(1, 1, size, size)
    weights[..., size // 2 :, :] = 1
    found = complete_texture(albedo, torch.ones(1, 3, size, size), Unwrapped(albedo + 0.2, weights, weights))
    torch.testing.assert_close(found, albedo + 0.2, atol=1e-5, rtol=0)


def test_completed_texture_is_the_lit_albedo_where_nothing_is_known() -> None:
    albedo, shade = torch.full((1, 3, 8, 8), 0.8), torch.full((1, 3, 8, 8), 0.5)
    nothing = torch.zeros(1, 1, 8, 8)
    found = complete_texture(albedo, shade, Unwrapped(torch.rand(1, 3, 8, 8), nothing, nothing))
    torch.testing.assert_close(found, albedo * shade)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 12, 30])
def test_one_known_texel_extends_over_a_map_of_any_side(side: int) -> None:
    values, weights = torch.full((1, 1, side, side), 9.0), torch.zeros(1, 1, side, side)
    values[..., -1, -1], weights[..., -1, -1] = 0.3, 1
    torch.testing.assert_close(pull_push(values, weights), torch.full((1, 1, side, side), 0.3))


def test_extension_keeps_what_is_known_and_stays_within_its_range() -> None:
    values = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(1, 1, 32, 32)
    weights[..., 8:20, 4:12] = 1
    found = pull_push(values, weights)
    known = weights[0, 0] > 0
    torch.testing.assert_close(found[..., known], values[..., known])
    assert found.min() >= values[..., known].min() - 1e-6
    assert found.max() <= values[..., known].max() + 1e-6
