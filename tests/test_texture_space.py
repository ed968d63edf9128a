from __future__ import annotations

from dataclasses import replace

import torch

from mien.geometry import vertex_normals
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import build_surface
from mien.texture import DisplacedNormals, TexelAtlas, along_normal, vertex_detail
from mien.texture.atlas import triangle_tangents
from tests.tiny import tiny_model

SIZE = 96


def _hollow(atlas: TexelAtlas) -> TexelAtlas:
    """The same without the columns 40 to 49."""
    ids, barycentrics = atlas.fragments.triangle_ids.clone(), atlas.fragments.barycentrics.clone()
    ids[:, :, 40:50], barycentrics[:, :, 40:50] = -1, 0.0
    return replace(atlas, fragments=replace(atlas.fragments, triangle_ids=ids, barycentrics=barycentrics))


def test_interpolated_uv_is_the_position_of_the_texel(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    assert atlas.valid.float().mean() > 0.95
    u, v = atlas.interpolate(tiny.uv[None])[0]
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    assert ((u - centres[None, :]).abs() * atlas.valid).max() < 1e-3
    assert ((v - (1 - centres)[:, None]).abs() * atlas.valid).max() < 1e-3


def test_interpolation_of_a_batch_is_linear_in_each_triangle_and_zero_outside(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    hollow = _hollow(atlas)
    values = torch.rand(2, len(tiny.mean), 4)
    corners = tiny.triangles[atlas.triangle_ids.clamp(min=0)]
    plain = (values[:, corners] * atlas.fragments.barycentrics[0, ..., None]).sum(3).permute(0, 3, 1, 2)
    torch.testing.assert_close(hollow.interpolate(values), plain * hollow.valid)


def test_tangents_are_the_derivatives_of_position(tiny: MorphableModel) -> None:
    """∂p/∂u by finite differences of interpolated positions, where both texels are in one triangle."""
    atlas = TexelAtlas.of(tiny, SIZE)
    positions = atlas.interpolate(tiny.mean[None])[0]
    tangents = atlas.tangents(tiny, tiny.mean[None])[0]
    same = (atlas.triangle_ids[:, 1:] == atlas.triangle_ids[:, :-1]) & atlas.valid[:, 1:]
    step = (positions[:, :, 1:] - positions[:, :, :-1]).permute(1, 2, 0) * SIZE
    torch.testing.assert_close(step[same], tangents[:, :-1, :, 0][same], atol=2e-4, rtol=1e-2)


def test_tangents_of_a_mirrored_layout_point_the_other_way(tiny: MorphableModel) -> None:
    """Layouts of other projects may run clockwise; u that grows to the other side has the opposite derivative."""
    mirrored = tiny_model()
    mirrored.uv[:, 0] = 1 - mirrored.uv[:, 0]
    plain = triangle_tangents(tiny, tiny.mean[None])
    torch.testing.assert_close(triangle_tangents(mirrored, tiny.mean[None]), plain * torch.tensor([-1.0, 1.0]))


def test_displaced_normals_are_those_of_the_displaced_mesh(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    vertices = tiny.mean[None]
    normals = vertex_normals(vertices, tiny.triangles)
    wave = 4e-4 * torch.cos(12 * tiny.uv[:, 0]) * torch.cos(9 * tiny.uv[:, 1])
    gt = vertex_normals(vertices + wave[None, :, None] * normals, tiny.triangles)
    operator = DisplacedNormals(atlas, tiny, vertices=vertices, normals=normals, rotmat=torch.eye(3)[None])
    found = operator(atlas.interpolate(wave[None, :, None]))[0]
    expected = torch.nn.functional.normalize(atlas.interpolate(gt)[0].permute(1, 2, 0), dim=-1)
    before = torch.nn.functional.normalize(atlas.interpolate(normals)[0].permute(1, 2, 0), dim=-1)
    inner = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inner[12:-12, 12:-12] = True
    error, change = (found - expected)[inner].norm(dim=-1).mean(), (before - expected)[inner].norm(dim=-1).mean()
    assert error < 0.35 * change


def test_normals_at_the_border_of_the_layout_ignore_the_displacement_map(tiny: MorphableModel) -> None:
    """There a central difference would reach texels outside, which hold no displacement."""
    atlas = _hollow(TexelAtlas.of(tiny, SIZE))
    vertices, displacement = tiny.mean[None], torch.zeros(1, 1, SIZE, SIZE)
    displacement[..., :40] = 1e-3 * torch.arange(40)
    normals = vertex_normals(vertices, tiny.triangles)
    operator = DisplacedNormals(atlas, tiny, vertices=vertices, normals=normals, rotmat=torch.eye(3)[None])
    moved = (operator(displacement) - operator.normals).abs().amax((0, 1, 3))
    assert moved[39] < 1e-6
    assert moved[38] > 0.05
    along_u = torch.nn.functional.normalize(operator.gradient[..., 0], dim=-1)
    torch.testing.assert_close(operator.steepest(along_u)[0, 0].amax(0)[38:40], torch.tensor([1.0, 0.0]))


def test_dilation_keeps_the_layout_and_fills_the_rest(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    hollow = _hollow(atlas)
    maps = torch.rand(1, 2, SIZE, SIZE) * 0.1 + 0.6
    filled = hollow.dilate(maps)
    torch.testing.assert_close(filled[:, :, hollow.valid], maps[:, :, hollow.valid])
    assert filled.min() >= 0.6
    assert filled.max() <= 0.7
    assert filled[:, :, :, 40:50].std() < 0.02


def test_where_the_layout_overlaps_outer_surfaces_hide_inner_ones_and_the_front_hides_the_back(
    tiny: MorphableModel,
) -> None:
    """Two copies of the dome share one UV layout: one smaller and turned inside out, one behind the first."""
    count = len(tiny.mean)
    for copy, triangles in (
        (tiny.mean * torch.tensor([0.9, 0.9, 1.2]), tiny.triangles.flip(1)),
        (tiny.mean - torch.tensor([0.0, 0.0, 0.1]), tiny.triangles),
    ):
        arrays = {name: array.clone() for name, array in tiny.state_dict().items()}
        arrays["mean"] = torch.cat([copy, tiny.mean])
        arrays["uv"] = tiny.uv.repeat(2, 1)
        arrays["triangles"] = torch.cat([triangles, tiny.triangles + count])
        arrays["landmarks68"] = tiny.landmarks68 + count
        for name in ("identity_basis", "expression_basis", "albedo_basis"):
            arrays[name] = arrays[name].repeat(1, 2, 1)
        for name in ("albedo_mean", "mirror", *(n for n in arrays if n.startswith("mask_"))):
            arrays[name] = arrays[name].repeat(2, *[1] * (arrays[name].ndim - 1))
        arrays["mirror"] = torch.cat([tiny.mirror, tiny.mirror + count])
        both = MorphableModel("two", arrays, expression_names=tiny.expression_names, licence=tiny.licence)
        ids = TexelAtlas.of(both, SIZE).triangle_ids[20:-20, 20:-20]
        assert (ids >= len(tiny.triangles)).float().mean() > 0.95


def test_maps_of_three_channels_shift_vertices_and_have_a_part_along_the_normal(tiny: MorphableModel) -> None:
    offset, shift = torch.full((1, 3, SIZE, SIZE), 0.1), torch.zeros(1, 3, SIZE, SIZE)
    shift[:, 2] = 1e-3
    three = vertex_detail(tiny, texture_offset=offset, displacement=shift)
    assert three.displacement is None
    assert three.shift is not None
    torch.testing.assert_close(three.shift[0, :, 2], torch.full((525,), 1e-3))
    one = vertex_detail(tiny, texture_offset=offset, displacement=shift[:, 2:])
    assert one.shift is None
    assert one.displacement is not None
    torch.testing.assert_close(one.displacement, torch.full((1, 525), 1e-3))
    torch.testing.assert_close(one.albedo_offset, torch.full((1, 525, 3), 0.1))
    atlas = TexelAtlas.of(tiny, SIZE)
    surface = build_surface(tiny, FaceCoefficients.mean(identity=12, expression=4, albedo=5))
    normals = atlas.interpolate(vertex_normals(surface.vertices, tiny.triangles))
    torch.testing.assert_close(along_normal(atlas, surface, shift, tiny), 1e-3 * normals[:, 2:])
    torch.testing.assert_close(along_normal(atlas, surface, shift[:, 2:], tiny), shift[:, 2:])
