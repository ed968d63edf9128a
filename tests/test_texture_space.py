from __future__ import annotations

from dataclasses import replace

import torch

from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.texture import DisplacedNormals, TexelAtlas

SIZE = 96


def _hollow(atlas: TexelAtlas) -> TexelAtlas:
    """The same without the columns 40 to 49."""
    ids, barycentrics = atlas.fragments.triangle_ids.clone(), atlas.fragments.barycentrics.clone()
    ids[:, :, 40:50], barycentrics[:, :, 40:50] = -1, 0.0
    return replace(atlas, fragments=replace(atlas.fragments, triangle_ids=ids, barycentrics=barycentrics))


def test_interpolated_uv_is_the_texels_own_place(tiny: MorphableModel) -> None:
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
    """∂p/∂u by finite differences of the interpolated positions, where both texels lie in one triangle."""
    atlas = TexelAtlas.of(tiny, SIZE)
    positions = atlas.interpolate(tiny.mean[None])[0]
    tangents = atlas.tangents(tiny, tiny.mean[None])[0]
    same = (atlas.triangle_ids[:, 1:] == atlas.triangle_ids[:, :-1]) & atlas.valid[:, 1:]
    step = (positions[:, :, 1:] - positions[:, :, :-1]).permute(1, 2, 0) * SIZE
    torch.testing.assert_close(step[same], tangents[:, :-1, :, 0][same], atol=2e-4, rtol=1e-2)


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


def test_dilation_keeps_the_chart_and_fills_the_rim(tiny: MorphableModel) -> None:
    atlas = TexelAtlas.of(tiny, SIZE)
    hollow = _hollow(atlas)
    maps = torch.rand(1, 2, SIZE, SIZE) * 0.1 + 0.6
    filled = hollow.dilate(maps)
    torch.testing.assert_close(filled[:, :, hollow.valid], maps[:, :, hollow.valid])
    assert filled.min() >= 0.6
    assert filled.max() <= 0.7
    assert filled[:, :, :, 40:50].std() < 0.02
