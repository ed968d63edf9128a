from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.fitting import DetailSettings, fit_detail
from mien.fitting.detail_equations import conjugate_gradients
from mien.fitting.maps import DISPLACEMENT_UNIT_M, _DetailEnergy, _DetailFit, _displaceable
from mien.lighting import ambient_lighting, shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import build_surface, render, visible_vertices
from mien.texture import (
    DisplacedNormals,
    TexelAtlas,
    TexelParts,
    Unwrapped,
    complete_texture,
    pull_push,
    texel_face,
    unwrap_photo,
)
from mien.typing import Tensor

SIZE = 64


def lit_face(model: MorphableModel) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    lighting = ambient_lighting(1, level=0.7)
    lighting[:, 1], lighting[:, 3] = 0.25, 0.15
    mean = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
    return replace(mean, lighting=lighting)


def completed(albedo: Tensor, shade: Tensor, unwrapped: Unwrapped) -> Tensor:
    """The completed texture of a face that is all skin, without lids and offset."""
    nothing = torch.zeros_like(unwrapped.weights)
    parts = TexelParts(torch.ones_like(nothing), nothing, nothing, shade)
    return complete_texture(albedo, torch.zeros_like(albedo), shade, unwrapped, parts).colours


def test_an_unwrapped_photo_has_the_colours_of_the_model(tiny: MorphableModel) -> None:
    atlas, face = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    rendered = render(tiny, face, Camera.from_fov(30.0, image_size=(160, 160)))
    seen = visible_vertices(rendered.surface, rendered.vertices_px, rendered.depth, slack_m=3e-3)
    found = unwrap_photo(
        atlas,
        rendered.surface,
        photo=torch.cat([rendered.image, torch.ones(1, 2, 160, 160)], dim=1),
        vertices_px=rendered.vertices_px,
        visibility=seen,
    )
    expected = atlas.interpolate(rendered.surface.colours)
    error = ((found.colours - expected).abs() * (found.weights > 0.9)).amax(1)
    assert (found.weights > 0.9).float().mean() > 0.2
    assert error.mean() < 0.01
    assert found.weights[0, 0, :, 0].mean() < 0.05  # the border of the dome faces away from the camera


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


def test_a_coloured_blemish_goes_into_the_offset(tiny: MorphableModel) -> None:
    blemish = torch.zeros(1, 3, SIZE, SIZE)
    blemish[:, 0, 20:30, 12:22], blemish[:, 2, 20:30, 12:22] = 0.08, -0.08
    colours = model_colours(tiny, torch.zeros(1, 1, SIZE, SIZE), blemish)
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


def test_hidden_texels_take_the_offset_of_their_mirror_image(tiny: MorphableModel) -> None:
    blemish = torch.zeros(1, 3, SIZE, SIZE)
    blemish[:, 0, 20:30, 10:20] = 0.1
    weights = torch.ones(1, 1, SIZE, SIZE)
    weights[..., SIZE // 2 :] = 0
    colours = model_colours(tiny, torch.zeros(1, 1, SIZE, SIZE), blemish)
    offset, _ = detail_of(tiny, colours, weights)
    assert offset[0, 0, 22:28, 46:52].mean() > 0.5 * offset[0, 0, 22:28, 12:18].mean() > 0.01


def test_completed_texture_uses_photo_then_mirror() -> None:
    shade = torch.full((1, 3, 4, 4), 0.5)
    shade[..., 2:] = 1.0
    colours = torch.full((1, 3, 4, 4), 0.3)
    weights = torch.zeros(1, 1, 4, 4)
    weights[..., :2] = 1
    found = completed(torch.full((1, 3, 4, 4), 0.8), shade, Unwrapped(colours, weights, weights))
    torch.testing.assert_close(found[..., :2], torch.full((1, 3, 4, 2), 0.3))
    torch.testing.assert_close(found[..., 2:], torch.full((1, 3, 4, 2), 0.6))


def test_completed_texture_has_no_seam_to_hidden_texels() -> None:
    size = 64
    albedo = torch.linspace(0.3, 0.5, size).reshape(1, 1, size, 1).expand(1, 3, size, size)
    weights = torch.zeros(1, 1, size, size)
    weights[..., size // 2 :, :] = 1
    found = completed(albedo, torch.ones(1, 3, size, size), Unwrapped(albedo * 1.4, weights, weights))
    torch.testing.assert_close(found, albedo * 1.4, atol=1e-5, rtol=0)


def test_completed_texture_is_the_lit_albedo_if_nothing_is_visible() -> None:
    albedo, shade = torch.full((1, 3, 8, 8), 0.8), torch.full((1, 3, 8, 8), 0.5)
    nothing = torch.zeros(1, 1, 8, 8)
    found = completed(albedo, shade, Unwrapped(torch.rand(1, 3, 8, 8), nothing, nothing))
    torch.testing.assert_close(found, albedo * shade)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 12, 30])
def test_pull_push_spreads_one_known_texel_over_a_map_of_any_side(side: int) -> None:
    values, weights = torch.full((1, 1, side, side), 9.0), torch.zeros(1, 1, side, side)
    values[..., -1, -1], weights[..., -1, -1] = 0.3, 1
    torch.testing.assert_close(pull_push(values, weights), torch.full((1, 1, side, side), 0.3))


def test_pull_push_continues_by_half_texels() -> None:
    """Halves have means 0.5 and 2.5, their mean is 1.5; each level is enlarged with texel centres at half texels."""
    rows = torch.arange(4.0)[:, None].expand(4, 4)[None, None]
    known = (torch.arange(4) < 2).float().expand(1, 1, 4, 4)
    filled = pull_push(rows * known, known)[0, 0]
    torch.testing.assert_close(filled[:, :2], rows[0, 0, :, :2])
    torch.testing.assert_close(filled[:, 2], torch.tensor([1.25, 1.375, 1.625, 1.75]))
    torch.testing.assert_close(filled[:, 3], torch.full((4,), 1.5))


def test_pull_push_keeps_known_texels_and_stays_within_their_range() -> None:
    values = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(1, 1, 32, 32)
    weights[..., 8:20, 4:12] = 1
    found = pull_push(values, weights)
    known = weights[0, 0] > 0
    torch.testing.assert_close(found[..., known], values[..., known])
    assert found.min() >= values[..., known].min() - 1e-6
    assert found.max() <= values[..., known].max() + 1e-6


def unwrapped_beside_the_axis(model: MorphableModel, photo: Tensor) -> tuple[TexelAtlas, Unwrapped, Tensor]:
    """A face far to the right, which the camera sees from its side; and the cosine to the camera at each texel."""
    face, side = lit_face(model), photo.shape[-1]
    face = replace(face, pose=replace(face.pose, translation=torch.tensor([[0.35, -0.2, 0.5]])))
    camera = Camera(torch.tensor([300.0]), torch.tensor([[side / 2 - 210.0, side / 2 + 120.0]]), (side, side))
    surface, atlas = build_surface(model, face), TexelAtlas.of(model, SIZE)
    to_camera = torch.nn.functional.normalize(-surface.vertices_camera[0], dim=-1)
    nx, ny, nz = surface.normals[0].unbind(-1)
    cosine = (torch.stack([nx, -ny, -nz], dim=-1) * to_camera).sum(-1)
    found = unwrap_photo(
        atlas,
        surface,
        photo=photo,
        vertices_px=camera.project(surface.vertices_camera),
        visibility=torch.ones(1, len(model.mean)),
    )
    return atlas, found, atlas.interpolate(cosine[None, :, None])[0, 0]


def test_texels_fade_out_from_50_to_68_degrees_to_the_direction_of_the_camera(tiny: MorphableModel) -> None:
    atlas, found, cosine = unwrapped_beside_the_axis(tiny, torch.ones(1, 5, 160, 160))
    weights = found.weights[0, 0]
    shrunk = -torch.nn.functional.max_pool2d(-cosine[None], 5, stride=1, padding=2)[0]
    grown = torch.nn.functional.max_pool2d(cosine[None], 5, stride=1, padding=2)[0]
    surely, never = (shrunk > 0.66) & atlas.valid, (grown < 0.35) & atlas.valid
    assert surely.float().mean() > 0.1
    assert never.float().mean() > 0.1
    assert weights[surely].min() > 0.9
    assert weights[never].max() < 0.1
    between = (shrunk > 0.45) & (grown < 0.56)
    assert between.any()
    assert (weights[between] > 0.05).all()
    assert (weights[between] < 0.95).all()


def test_texels_outside_the_outline_have_no_weight_and_the_skin_mask_is_passed_on(tiny: MorphableModel) -> None:
    photo = torch.ones(1, 5, 160, 160)
    photo[:, 3] = torch.linspace(0, 1, 160)[:, None]
    whole = unwrapped_beside_the_axis(tiny, photo)[1]
    photo[:, 4, :, :80] = 0.0
    half = unwrapped_beside_the_axis(tiny, photo)[1]
    torch.testing.assert_close(half.skin, whole.skin)
    assert half.skin.max() - half.skin.min() > 0.3
    visible = whole.weights > 0.5
    assert (half.weights[visible] < 1e-6).float().mean() > 0.2
    assert (half.weights[visible] > 0.5).float().mean() > 0.1


NO_TERMS = {
    "offset_magnitude": 0.0,
    "offset_symmetry": 0.0,
    "offset_smoothness": 0.0,
    "displacement_magnitude": 0.0,
    "displacement_symmetry": 0.0,
    "displacement_smoothness": 0.0,
    "unseen_symmetry": 0.0,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One texel of 3 channels holds 0.1, another 2 mm, of 64 × 64.
        ("offset_magnitude", 0.1**2 / SIZE**2),
        ("offset_symmetry", 2 * 0.1**2 / SIZE**2),
        ("offset_smoothness", 3 * 4 * 0.1**2 / (SIZE * (SIZE - 1))),
        ("displacement_magnitude", 2.0**2 / SIZE**2),
        ("displacement_symmetry", 2 * 2.0**2 / SIZE**2),
        ("displacement_smoothness", 4 * 2.0**2 / (SIZE * (SIZE - 1))),
    ],
)
def test_each_regulariser_has_its_own_weight(tiny: MorphableModel, name: str, expected: float) -> None:
    offset, displacement = torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    offset[..., 20, 12], displacement[..., 40, 15] = 0.1, 2.0
    atlas, face = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    inside = torch.ones(1, 1, SIZE, SIZE)
    unwrapped = Unwrapped(torch.zeros(1, 3, SIZE, SIZE), torch.zeros_like(inside), inside)
    settings = DetailSettings(**(NO_TERMS | {name: 7.0}))
    energy = _DetailEnergy(
        texel_face(atlas, tiny, face, build_surface(tiny, face)), unwrapped, inside=inside, settings=settings
    )
    assert energy(offset, displacement).item() == pytest.approx(7 * expected, rel=1e-5)


def test_symmetry_is_stronger_where_only_the_mirror_image_is_visible(tiny: MorphableModel) -> None:
    offset = torch.zeros(1, 3, SIZE, SIZE)
    offset[..., 20, 12] = 0.1
    atlas, face = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    seen = torch.zeros(1, 1, SIZE, SIZE)
    seen[..., : SIZE // 2] = 1
    one = torch.ones_like(seen)
    texels = texel_face(atlas, tiny, face, build_surface(tiny, face))
    colours = texels.colours(offset, torch.zeros_like(one))
    settings = DetailSettings(**(NO_TERMS | {"unseen_symmetry": 7.0}))
    energy = _DetailEnergy(texels, Unwrapped(colours, seen, one), inside=one, settings=settings)
    # The mirror image of the texel is one of SIZE²/2 hidden ones.
    expected = 7 * 0.1**2 / (SIZE**2 / 2)
    assert energy(offset, torch.zeros_like(one)).item() == pytest.approx(expected, rel=1e-5)


def test_the_detail_energy_counts_colour_errors_of_visible_texels(tiny: MorphableModel) -> None:
    atlas, face = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    texels = texel_face(atlas, tiny, face, build_surface(tiny, face))
    zero = torch.zeros(1, 1, SIZE, SIZE)
    seen = zero.clone()
    seen[..., 10:20, 10:20] = 1
    colours = texels.colours(zero.expand(-1, 3, -1, -1), zero)
    colours = torch.where(seen > 0, colours + 0.1, colours + 0.7)
    energy = _DetailEnergy(
        texels, Unwrapped(colours, seen, seen), inside=torch.ones_like(zero), settings=DetailSettings(**NO_TERMS)
    )
    assert energy(zero.expand(-1, 3, -1, -1), zero).item() == pytest.approx(3 * 0.1**2, rel=1e-4)


def test_only_smooth_skin_is_displaced(tiny: MorphableModel) -> None:
    found, masks = _displaceable(tiny), tiny.masks
    for part in (masks.brows, masks.lips, masks.eyes, masks.mouth):
        assert part.any()
        assert (found[part > 0] == 0).all()
    assert found.mean() > 0.8


def test_mirrored_colours_are_relit_by_a_bounded_factor() -> None:
    shade = torch.full((1, 3, 4, 4), 0.6)
    shade[..., :2] = 0.01  # deep shadow on the visible side
    weights = torch.zeros(1, 1, 4, 4)
    weights[..., :2] = 1
    found = completed(torch.full((1, 3, 4, 4), 0.5), shade, Unwrapped(torch.full((1, 3, 4, 4), 0.03), weights, weights))
    torch.testing.assert_close(found[..., 2:], torch.full((1, 3, 4, 2), 0.03 / 0.15 * 0.6))


def test_texels_without_skin_are_not_displaced(tiny: MorphableModel) -> None:
    atlas, face = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    rows = torch.linspace(-1, 1, SIZE)
    fold = (4e-4 * torch.cos(14 * rows))[:, None].expand(SIZE, SIZE)[None, None]
    colours = model_colours(tiny, fold, torch.zeros(1, 3, SIZE, SIZE))
    skin = torch.ones(1, 1, SIZE, SIZE)
    skin[..., : SIZE // 2] = 0.0  # hair hangs over this half
    maps = fit_detail(
        tiny,
        atlas,
        surface=build_surface(tiny, face),
        coefficients=face,
        unwrapped=Unwrapped(colours, torch.ones_like(skin), skin),
        settings=DetailSettings(),
    )
    assert maps.displacement[..., : SIZE // 2].abs().max() == 0
    assert maps.displacement[..., SIZE // 2 :].abs().max() > 1e-6


def bumpy_problem(model: MorphableModel, *, batch: int = 1) -> tuple[_DetailEnergy, Tensor, Tensor]:
    """An energy with gloss, hidden texels and a border inside the map; maps at which it is evaluated, and others."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, SIZE, SIZE, generator=generator)

    atlas, one = TexelAtlas.of(model, SIZE), lit_face(model)
    face = one if batch == 1 else type(one).join([one] * batch)
    texels = texel_face(atlas, model, face, build_surface(model, face))
    unwrapped = Unwrapped(noise(3), (2 * noise(1) - 0.5).clamp(0, 1), torch.ones(batch, 1, SIZE, SIZE))
    inside = atlas.valid[None, None].float().expand(batch, -1, -1, -1)
    energy = _DetailEnergy(texels, unwrapped, inside=inside, settings=DetailSettings())
    energy.matte = noise(1)
    scale = torch.tensor([0.2, 0.2, 0.2, 0.5])[:, None, None]
    return energy, scale * (noise(4) - 0.5), scale * (noise(4) - 0.5)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_gradient_of_the_equations_is_that_of_the_energy(tiny: MorphableModel, batch: int) -> None:
    energy, maps, _ = bumpy_problem(tiny, batch=batch)
    maps.requires_grad_()
    (expected,) = torch.autograd.grad(energy(*maps.split([3, 1], dim=1)), maps)
    with torch.no_grad():
        found = energy.linear_colours(maps).gradient + energy.prior().product(maps)
    for channels in (slice(0, 3), slice(3, 4)):
        part = expected[:, channels]
        assert (found[:, channels] - part).abs().max() < 1e-4 * part.abs().max()


@torch.no_grad()
def test_the_matrix_is_symmetric_and_its_diagonal_is_known(tiny: MorphableModel) -> None:
    energy, maps, other = bumpy_problem(tiny)
    prior, colours = energy.prior(), energy.linear_colours(maps)
    for operator in (prior, colours):
        left, right = (other * operator.product(maps)).sum(), (maps * operator.product(other)).sum()
        torch.testing.assert_close(left, right, rtol=1e-3, atol=0)
        assert (maps * operator.product(maps)).sum() > 0
        for place in ((0, 0, 30, 20), (0, 3, 20, 41)):
            unit = torch.zeros_like(maps)
            unit[place] = 1
            torch.testing.assert_close(operator.product(unit)[place], operator.diagonal[place], rtol=1e-4, atol=1e-12)


@torch.no_grad()
def test_without_gloss_and_error_the_matrix_is_the_derivative_of_the_gradient(tiny: MorphableModel) -> None:
    energy, maps, change = bumpy_problem(tiny)
    energy.matte = torch.ones_like(energy.matte)
    energy.colours = energy.face.colours(maps[:, :3], maps[:, 3:] * DISPLACEMENT_UNIT_M)
    before, after = (energy.linear_colours(m) for m in (maps, maps + 1e-3 * change))
    expected, found = (after.gradient - before.gradient) / 1e-3, before.product(change)
    assert (found - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_conjugate_gradients_solve_a_small_system() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix, expected = root @ root.T + torch.eye(12), torch.randn(12, generator=generator, dtype=torch.float64)

    def product(maps: Tensor) -> Tensor:
        return (matrix @ maps.flatten()).view_as(maps)

    right_side = product(expected.view(1, 3, 2, 2))
    diagonal = matrix.diagonal().view(1, 3, 2, 2)
    found = conjugate_gradients(product, right_side, diagonal=diagonal, steps=30)
    torch.testing.assert_close(found.flatten(), expected)
    assert (conjugate_gradients(product, 0 * right_side, diagonal=diagonal, steps=3) == 0).all()


@torch.no_grad()
def test_the_detail_fit_ends_where_the_energy_is_flat(tiny: MorphableModel) -> None:
    energy, _, _ = bumpy_problem(tiny)
    unwrapped = Unwrapped(energy.colours, energy.seen, torch.ones_like(energy.seen))
    inside = energy.inside[:, None]
    shares: list[float] = []
    fit = _DetailFit(energy.face, unwrapped, inside=inside, smooth_skin=inside, settings=DetailSettings())
    found = fit.run(shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1

    def downhill(maps: Tensor) -> float:
        colours = fit.energy_of.linear_colours(maps)
        gradient = fit.mask * (colours.gradient + fit.prior.product(maps))
        return float((gradient.square() / (colours.diagonal + fit.prior.diagonal)).sum())

    flat = torch.zeros_like(found)
    assert fit.energy_of(*found.split([3, 1], dim=1)) < 0.9 * fit.energy_of(*flat.split([3, 1], dim=1))
    assert downhill(found) < 0.01 * downhill(flat)
