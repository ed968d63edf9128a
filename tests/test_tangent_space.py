from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.export.images import normal_map
from mien.export.surface import eye_triangles, unit_normals
from mien.export.tangent_space import tangent_normal_map, vertex_tangents
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from tests.tiny_face import EXPRESSION_NAMES, MAP_SIZE, PARTS, tiny_model, tiny_reconstruction

SLOPE = 0.3
"""Metres of displacement per metre along the surface."""


def changed_model(**changes: torch.Tensor) -> MorphableModel:
    plain = tiny_model()
    arrays = {key: plain.get_buffer(key) for key in dict(plain.named_buffers())} | changes
    return MorphableModel("tiny", arrays, expression_names=EXPRESSION_NAMES, licence="CC0-1.0")


def plane(*, mirrored: bool = False) -> tuple[MorphableModel, Reconstruction]:
    """A flat sheet that looks along +z, with v upwards, and u to the right or, mirrored, to the left."""
    plain = tiny_model()
    uv = plain.uv * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0]) if mirrored else plain.uv
    flat = plain.mean * torch.tensor([1.0, 1.0, 0.0])
    model = changed_model(mean=flat, uv=uv, identity_basis=torch.zeros_like(plain.identity_basis),
                          expression_basis=torch.zeros_like(plain.expression_basis))  # fmt: skip
    return model, tiny_reconstruction(model)


def slope_along(reconstruction: Reconstruction, axis: int, metres: float) -> Reconstruction:
    """A displacement that grows evenly along u (axis 1) or v upwards (axis 0), on a layout of `metres`."""
    texels = (np.indices((MAP_SIZE, MAP_SIZE))[axis] + 0.5) / MAP_SIZE * (1 if axis else -1)
    return replace(reconstruction, displacement=(texels * metres * SLOPE).astype(np.float32))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_slope_along_each_axis_of_the_layout(*, mirrored: bool) -> None:
    model, face = plane(mirrored=mirrored)
    inner = slice(3, -3)
    eyes = on_eye(face)
    expected = np.array([-SLOPE, 0, 1]) / np.hypot(SLOPE, 1)
    for axis, metres in ((1, 0.16), (0, 0.22)):  # the sheet's width and height
        # The mesh itself stays flat: all of the relief is in the map.
        found = tangent_normal_map(slope_along(face, axis, metres), model)[inner, inner][~eyes[inner, inner]]
        wanted = expected if axis else expected[[1, 0, 2]]
        np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1e-4)


def on_eye(face: Reconstruction) -> np.ndarray:
    """Texels on and beside the eye triangles."""
    low, high = face.uv[list(PARTS["eyes"])].min(0), face.uv[list(PARTS["eyes"])].max(0)
    rows, columns = np.indices((MAP_SIZE, MAP_SIZE))
    u, v, texel = (columns + 0.5) / MAP_SIZE, 1 - (rows + 0.5) / MAP_SIZE, 1 / MAP_SIZE
    return (u > low[0] - texel) & (u < high[0] + texel) & (v > low[1] - texel) & (v < high[1] + texel)


def test_eyes_and_background_are_flat() -> None:
    model, face = plane()
    relief = tangent_normal_map(slope_along(face, 1, 0.16), model)
    u, v = face.uv[list(PARTS["eyes"])].mean(0)
    assert relief[int((1 - v) * MAP_SIZE), int(u * MAP_SIZE)].tolist() == [0, 0, 1]
    assert relief[0, 0].tolist() == [0, 0, 1]  # outside the layout
    assert relief[MAP_SIZE // 2, MAP_SIZE // 2, 0] < -0.2


def test_relief_that_the_vertices_carry_is_not_in_the_map() -> None:
    model, face = tiny_model(), tiny_reconstruction(detail=False)
    relief = tangent_normal_map(face, model)
    np.testing.assert_allclose(relief, np.broadcast_to([0.0, 0, 1], relief.shape), atol=1e-3)
    # A mesh with other vertices, as the detail step makes them, under the same fine surface.
    moved = face.vertices_model.copy()
    moved[12, 2] += 0.01
    relief = tangent_normal_map(replace(face, vertices_model=moved), model)
    u, v = face.uv[12]
    beside = relief[int((1 - v) * MAP_SIZE), int(u * MAP_SIZE) + 1]
    assert beside[0] < -0.02  # the mesh slopes down to the right of the vertex, the surface does not


def test_the_side_becomes_a_power_of_two() -> None:
    """Also beside a texture offset map that keeps its size."""
    slope = np.linspace(0, 0.01, 24, dtype=np.float32)[None].repeat(24, 0)
    face = replace(tiny_reconstruction(), displacement=slope, texture_offset=np.zeros((24, 24, 3), np.float32))
    assert tangent_normal_map(face, tiny_model()).shape == (32, 32, 3)


def test_the_map_turns_the_meshs_normals_into_those_of_the_surface() -> None:
    """With the axes of a viewer that computes them in each triangle from positions and texture coordinates."""
    model = tiny_model()
    bumps = np.random.default_rng(2).normal(size=(4, 4)).repeat(4, 0).repeat(4, 1).astype(np.float32) * 2e-4
    face = replace(tiny_reconstruction(), displacement=bumps)
    wanted, relief = normal_map(face, model), tangent_normal_map(face, model)
    normals, errors, flat_errors = unit_normals(face.vertices_model, face.triangles), [], []
    for triangle in face.triangles[~eye_triangles(model)]:
        corner, uv = face.vertices_model[triangle], face.uv[triangle]
        row, column = int((1 - uv[:, 1].mean()) * MAP_SIZE), int(uv[:, 0].mean() * MAP_SIZE)
        centre = np.array([(column + 0.5) / MAP_SIZE, 1 - (row + 0.5) / MAP_SIZE, 1])
        weights = np.linalg.solve(np.vstack([uv.T, np.ones(3)]), centre)
        if weights.min() < 0:
            continue
        normal = weights @ normals[triangle]
        normal /= np.linalg.norm(normal)
        (p, q), (d, e) = corner[1:] - corner[0], uv[1:] - uv[0]
        along_u = (p * e[1] - q * d[1]) / (d[0] * e[1] - e[0] * d[1])
        along_u -= normal * (along_u @ normal)
        along_u /= np.linalg.norm(along_u)
        axes = np.stack([along_u, np.cross(normal, along_u), normal], axis=1)
        errors.append(np.linalg.norm(axes @ relief[row, column] - wanted[row, column]))
        flat_errors.append(np.linalg.norm(normal - wanted[row, column]))
    assert len(errors) > 10
    assert np.mean(errors) < 0.1 * np.mean(flat_errors)


def test_tangents_are_unit_vectors_along_u_for_every_vertex() -> None:
    model, face = plane(mirrored=True)
    lonely = changed_model(uv=model.uv, mean=model.mean, triangles=model.triangles[(model.triangles != 0).all(1)])
    normals = unit_normals(face.vertices_model, lonely.triangles.numpy())
    tangents = vertex_tangents(face.vertices_model, normals, lonely)
    np.testing.assert_allclose(tangents[1:], np.broadcast_to([-1.0, 0, 0, -1], tangents[1:].shape), atol=1e-6)
    assert np.linalg.norm(tangents[0, :3]) == pytest.approx(1)  # of no triangle
    assert abs(tangents[0, :3] @ normals[0]) < 1e-6
