"""The detail network: maps of zero before training, one network for all sizes, and the meaning of its inputs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mien.camera import Camera, Pose
from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.geometry import vertex_normals
from mien.lighting import ambient_lighting, directional_lighting, shading, shading_gradient
from mien.morphable import FaceCoefficients, MorphableModel
from mien.networks import DetailNetwork, load_detail, predict_maps, save_detail
from mien.networks.detail_unet import (
    CHANNELS,
    LOCAL_MEAN_RADIUS,
    UNIT_SIZE,
    _fine_brightness,
    doubled,
    texture_inputs,
    visible_maps,
)
from mien.rendering import build_surface, render, sample_map, sample_map_hyperbolic
from mien.texture import TexelAtlas, TexelFace, Unwrapped, texel_face, vertex_detail
from tests.tiny import tiny_model

SIZE = 48


def lit_face(model: MorphableModel) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    light = ambient_lighting(1, level=0.4) + directional_lighting(
        F.normalize(torch.tensor([[0.6, 0.5, 0.7]]), dim=-1), torch.full((1, 3), 0.7)
    )
    pose = Pose(torch.tensor([[0.1, 0.3, 0.05]]), torch.tensor([[0.0, 0.0, 0.6]]), torch.ones(1))
    return FaceCoefficients(torch.randn(1, identity), torch.zeros(1, expression), torch.zeros(1, albedo), light, pose)


def on_uv_map(model: MorphableModel, atlas: TexelAtlas) -> TexelFace:
    coefficients = lit_face(model)
    return texel_face(atlas, model, coefficients, build_surface(model, coefficients))


def trained(network: DetailNetwork) -> DetailNetwork:
    """With last layers that are not zero, as after training."""
    for head in network.heads.values():
        torch.nn.init.normal_(head.last.weight, std=0.3)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return network.eval()


@pytest.mark.parametrize("layout", ["image", "texture"])
@pytest.mark.parametrize(("displacement", "channels"), [("normal", 1), ("xyz", 3)])
def test_maps_are_zero_before_training(layout: str, displacement: str, channels: int) -> None:
    network = DetailNetwork("hash", layout=layout, displacement=displacement, width=4)  # pyright: ignore[reportArgumentType]
    pred = network(torch.rand(2, CHANNELS[network.layout], SIZE, SIZE))
    assert pred["texture_offset"].shape == (2, 3, SIZE, SIZE)
    assert pred["displacement"].shape == (2, channels, SIZE, SIZE)
    assert all(not value.any() for value in pred.values())


def test_both_heads_share_the_encoder_and_part_after_the_second_up_sampling() -> None:
    network = trained(DetailNetwork("hash", width=4))
    parts = {"down": network.down, "shared": network.shared, "own": network.heads["texture_offset"]}
    other = network.heads["displacement"]
    network(torch.rand(1, 18, SIZE, SIZE))["texture_offset"].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for part in parts.values() for p in part.parameters())
    assert all(p.grad is None for p in other.parameters())
    assert len(network.shared) == 2
    assert len(network.heads["displacement"].ups) == 2  # pyright: ignore[reportArgumentType]


def test_relief_is_half_as_deep_in_a_map_of_twice_the_size() -> None:
    """Depth is measured in texels: the same pattern is twice as fine in a map of twice the size."""
    network = trained(DetailNetwork("hash", width=4))
    pattern = torch.rand(1, 18, SIZE, SIZE)
    with torch.no_grad():
        small, large = network(pattern), network(pattern.repeat(1, 1, 2, 2))
    ratio = large["displacement"].abs().mean() / small["displacement"].abs().mean()
    assert float(ratio) == pytest.approx(0.5, rel=0.15)
    offsets = large["texture_offset"].abs().mean() / small["texture_offset"].abs().mean()
    assert float(offsets) == pytest.approx(1.0, rel=0.15)


def test_doubling_is_the_transposed_convolution_in_bf16_too() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 5, 2, stride=2)
    x = torch.randn(2, 6, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(doubled(layer, x), layer(x))  # in float32 it is the convolution itself
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = doubled(layer, x), layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    one, other = (torch.autograd.grad((y * weights).sum(), (x, *layer.parameters())) for y in (found, expected))
    for mine, convolved in zip(one, other, strict=True):
        torch.testing.assert_close(mine, convolved, rtol=0.03, atol=0.03)


def test_the_inputs_contain_the_offset_that_explains_the_photo(tiny: MorphableModel) -> None:
    """If the photo differs by an albedo offset, exactly this offset is among the inputs."""
    atlas = TexelAtlas.of(tiny, SIZE)
    face = on_uv_map(tiny, atlas)
    offset = 0.05 * torch.randn(1, 3, SIZE, SIZE) * atlas.valid
    photo = face.colours(offset, torch.zeros(1, 1, SIZE, SIZE))
    visible = atlas.valid[None, None].float()
    inputs = texture_inputs(face, Unwrapped(photo, visible, visible))
    assert inputs.shape[1] == CHANNELS["texture"]
    bright = (face.shading.amin(1, keepdim=True) > 0.2) & atlas.valid
    torch.testing.assert_close((inputs[:, 8:11] * 0.1 * bright), offset * bright, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(inputs[:, 5:8], face.albedo * face.shading)


def test_fine_brightness_is_relative_to_the_mean_of_visible_texels_around() -> None:
    """A smooth change of light is removed, a single bright texel stays, and invisible texels do not count."""
    side, middle = 64, 32
    lit = torch.full((1, 3, side, side), 0.5)
    ramp = torch.linspace(0.2, 0.4, side).expand(1, 3, side, side)
    photo, visible = ramp.clone(), torch.ones(1, 1, side, side)
    photo[..., middle, middle] *= 1.5
    photo[..., : middle - 4] = 9.0
    visible[..., : middle - 4] = 0.0
    fine = _fine_brightness(photo, lit, visible)[0, 0]
    assert not fine[:, : middle - 4].any()
    inner = fine[12:-12, 48:-12]
    assert inner.abs().max() < 1e-3  # away from all edges the mean of a ramp is its value
    window = photo[0, 0, middle - LOCAL_MEAN_RADIUS : middle + LOCAL_MEAN_RADIUS + 1, middle - 4 : middle + 9]
    assert float(fine[middle, middle]) == pytest.approx(
        float(photo[0, 0, middle, middle] / window.mean() - 1), rel=1e-4
    )
    assert float(fine[middle, middle]) > 0.4


def test_shading_gradient_is_the_derivative_of_shading() -> None:
    normals = F.normalize(torch.randn(2, 7, 3, dtype=torch.float64), dim=-1).requires_grad_()
    levels = torch.randn(2, 9, dtype=torch.float64)
    shade = shading(normals, levels[..., None].expand(-1, -1, 3))[..., 0]
    (expected,) = torch.autograd.grad(shade.sum(), normals)
    torch.testing.assert_close(shading_gradient(normals, levels), expected)


def test_slope_response_predicts_the_brightness_of_a_gentle_relief(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    face = on_uv_map(tiny, atlas)
    rows = torch.linspace(0, 6.28, SIZE)[:, None].expand(SIZE, SIZE)
    for axis, phase in enumerate((rows.T, rows)):
        wave = (2e-5 * torch.cos(3 * phase))[None, None]
        change = face.colours(torch.zeros(1, 3, SIZE, SIZE), wave) - face.albedo * face.shading
        brightness = (change / face.albedo.clamp(min=0.05)).mean(1) / face.shading.mean(1).clamp(min=0.15)
        gradient = face.displaced_normals.gradient.norm(dim=-2)[..., axis] * SIZE
        along = torch.gradient(wave[:, 0], dim=2 - axis)[0] * (1 if axis == 0 else -1) * gradient
        predicted = face.slope_response()[:, axis] * along
        inner = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        inner[6:-6, 6:-6] = True
        error = (predicted - brightness)[0][inner].norm() / brightness[0][inner].norm()
        assert float(error) < 0.1, axis


def test_slope_response_is_relative_to_the_light_but_bounded_in_the_dark(tiny: MorphableModel) -> None:
    """A light of a hundredth of the strength gives the same relative response, down to a shading of 0.15."""
    atlas, coefficients = TexelAtlas.of(tiny, SIZE), lit_face(tiny)
    surface = build_surface(tiny, coefficients)
    dark = replace(coefficients, lighting=coefficients.lighting / 100)
    face = texel_face(atlas, tiny, coefficients, surface)
    in_the_dark = texel_face(atlas, tiny, dark, build_surface(tiny, dark))
    level = face.shading.mean(1, keepdim=True)
    expected = face.slope_response() * level.clamp(min=0.15) / 100 / 0.15
    torch.testing.assert_close(in_the_dark.slope_response(), expected)


def test_maps_move_and_colour_vertices(tiny: MorphableModel) -> None:
    coefficients = lit_face(tiny)
    camera = Camera.from_fov(30.0, image_size=(32, 32))
    base = render(tiny, coefficients, camera).surface
    normal = torch.full((1, 1, SIZE, SIZE), 1e-3)
    along = vertex_detail(tiny, texture_offset=torch.full((1, 3, SIZE, SIZE), 0.1), displacement=normal)
    moved = render(tiny, coefficients, camera, detail=along).surface
    normals = vertex_normals(base.vertices, tiny.triangles)
    torch.testing.assert_close(moved.vertices, base.vertices + 1e-3 * normals)
    torch.testing.assert_close(moved.albedo, base.albedo + 0.1)
    xyz = torch.tensor([1e-3, -2e-3, 3e-3]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    shifted = vertex_detail(tiny, texture_offset=torch.zeros(1, 3, SIZE, SIZE), displacement=xyz)
    vertices = build_surface(tiny, coefficients, detail=shifted).vertices
    torch.testing.assert_close(vertices, base.vertices + xyz[:, :, 0, 0])


def test_hyperbolic_samples_are_bilinear_at_equal_depth(tiny: MorphableModel) -> None:
    maps = torch.randn(1, 2, SIZE, SIZE, dtype=torch.float64)
    uv = tiny.uv.double()
    depth = torch.full((1, 1, SIZE, SIZE), 0.37, dtype=torch.float64)
    torch.testing.assert_close(sample_map_hyperbolic(maps, uv, depth=depth), sample_map(maps, uv))


def test_hyperbolic_gradients_blow_up_at_small_depth(tiny: MorphableModel) -> None:
    """The reason why the paper dropped the variant: the same relative depth differences, a hundred times nearer to the
    camera plane, give gradients a hundred times larger; bilinear samples do not depend on depth."""
    maps = torch.randn(1, 2, SIZE, SIZE, dtype=torch.float64)
    uv = tiny.uv.double() * 0.9 + 0.05
    relief = 1 + 0.2 * torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64)
    norms = []
    for scale in (1.0, 1e-2):
        depth = (relief * scale).requires_grad_()
        sample_map_hyperbolic(maps, uv, depth=depth).square().sum().backward()
        norms.append(float(depth.grad.norm()))  # pyright: ignore[reportOptionalMemberAccess]
    assert norms[1] == pytest.approx(100 * norms[0], rel=1e-6)
    assert torch.autograd.gradcheck(
        lambda m, d: sample_map_hyperbolic(m, uv[:5], depth=d),
        (maps.clone().requires_grad_(), relief.clone().requires_grad_()),
    )


def test_saved_networks_load(tiny: MorphableModel, tmp_path: Path) -> None:
    network = trained(DetailNetwork(tiny.fingerprint, width=4))
    save_detail(network, tmp_path / "detail.safetensors", notes={"steps": "1"})
    loaded = load_detail(tiny, tmp_path / "detail.safetensors")
    inputs = torch.rand(1, 18, SIZE, SIZE)
    with torch.no_grad():
        pred, again = network(inputs), loaded(inputs)
    for name, value in pred.items():
        torch.testing.assert_close(again[name], value, atol=float(value.abs().max()) * 5e-3, rtol=5e-3)
    with pytest.raises(ModelMismatch, match="another face model"):
        load_detail(tiny_model(seed=3), tmp_path / "detail.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "mien-encoder-1"}, "has format 'mien-encoder-1'"),
        ({"format": "mien-detail-1", "network": "{}"}, "does not hold a network of format mien-detail-1"),
        ({"format": "mien-detail-1", "network": "not JSON"}, "does not hold a network of format mien-detail-1"),
        ({"format": "mien-detail-1", "network": '{"width": 0}'}, "width=0 is out of range"),
        ({"format": "mien-detail-1", "network": '{"width": 1099511627776}'}, "must be from 1 to 128"),
        ({"format": "mien-detail-1", "network": '{"layout": "sphere"}'}, "Invalid enum value 'sphere'"),
    ],
)
def test_other_files_are_refused(tiny: MorphableModel, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"model_hash": tiny.fingerprint, **metadata})
    with pytest.raises(FormatError, match=re.escape(message)):
        load_detail(tiny, path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        load_detail(tiny, path)


def test_networks_of_the_image_layout_are_refused(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    face, visible = on_uv_map(tiny, atlas), torch.ones(1, 1, SIZE, SIZE)
    photo = torch.rand(1, 3, SIZE, SIZE)
    with pytest.raises(ConfigError, match=r"layout 'image' and displacement 'normal'; use one with network\.layout"):
        predict_maps(DetailNetwork("hash", layout="image", width=2), face, Unwrapped(photo, visible, visible))
    maps = predict_maps(trained(DetailNetwork("hash", width=2)), face, Unwrapped(photo, visible, visible))
    assert maps.displacement.shape == (1, 1, SIZE, SIZE)
    assert float((maps.texture_offset * ~atlas.valid).abs().max()) == 0


def test_relief_of_large_maps_is_predicted_at_the_training_size(tiny: MorphableModel) -> None:
    network, relief = trained(DetailNetwork("hash", width=2)), {}
    photo = torch.rand(1, 3, 2 * UNIT_SIZE, 2 * UNIT_SIZE, generator=torch.Generator().manual_seed(0))
    for size in (UNIT_SIZE, 2 * UNIT_SIZE):
        image, visible = F.interpolate(photo, size=(size, size), mode="area"), torch.ones(1, 1, size, size)
        maps = predict_maps(network, on_uv_map(tiny, TexelAtlas.of(tiny, size)), Unwrapped(image, visible, visible))
        relief[size] = F.interpolate(maps.displacement, size=(UNIT_SIZE, UNIT_SIZE), mode="area").flatten()
    assert float(torch.corrcoef(torch.stack(list(relief.values())))[0, 1]) > 0.95


def test_invisible_texels_get_the_surrounding_offset_and_no_relief() -> None:
    """A prediction behind hair or on the back of the head is not used."""
    inside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    visible = torch.ones(1, 1, SIZE, SIZE)
    visible[..., :16] = 0
    offset, relief = torch.full((1, 3, SIZE, SIZE), 0.2), torch.full((1, 1, SIZE, SIZE), 1e-3)
    offset[..., :16] = -5.0
    maps = visible_maps(
        offset, relief, Unwrapped(torch.zeros(1, 3, SIZE, SIZE), visible, torch.ones_like(visible)), inside=inside
    )
    torch.testing.assert_close(maps.texture_offset, torch.full_like(offset, 0.2))
    assert not maps.displacement[..., :16].any()
    torch.testing.assert_close(maps.displacement[..., 16:], relief[..., 16:])
    hair = Unwrapped(torch.zeros(1, 3, SIZE, SIZE), torch.ones_like(visible), visible)
    assert not visible_maps(offset, relief, hair, inside=inside).displacement[..., :16].any()
