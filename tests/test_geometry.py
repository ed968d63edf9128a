from __future__ import annotations

import math

import pytest
import torch

from mien.geometry import (
    align_points,
    boundary_vertices,
    compose_rotations,
    cross_matrix,
    left_jacobian,
    rotmat_to_rotvec,
    rotvec_to_rotmat,
    triangle_normals,
    unique_edges,
    vertex_areas,
    vertex_normals,
)

TETRAHEDRON = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 1.0, 3.0, math.pi - 1e-6])
def test_rotation_round_trip(angle: float) -> None:
    axis = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    rotmat = rotvec_to_rotmat(angle * axis)
    torch.testing.assert_close(rotmat @ rotmat.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(rotmat_to_rotvec(rotmat), angle * axis, atol=1e-6, rtol=1e-6)


def test_quarter_turn_about_y_takes_z_to_x() -> None:
    turned = rotvec_to_rotmat(torch.tensor([[0.0, math.pi / 2, 0.0]]))[0] @ torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(turned, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_rotation_gradient_is_right_at_zero() -> None:
    start = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotvec_to_rotmat, (start,), atol=1e-6)


def test_normals_point_outwards_and_gradients_are_exact() -> None:
    vertices = TETRAHEDRON[None].clone().requires_grad_()
    centre = TETRAHEDRON.mean(0)
    assert ((vertex_normals(vertices, FACES)[0] * (TETRAHEDRON - centre)).sum(-1) > 0).all()
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, FACES), (vertices,))


def test_vertex_normals_are_the_normalised_sums_of_triangle_normals() -> None:
    batch = torch.stack([TETRAHEDRON, TETRAHEDRON + torch.rand(4, 3, dtype=torch.float64)])
    faces = triangle_normals(batch, FACES)
    for vertex in range(4):
        summed = faces[:, torch.eq(FACES, vertex).any(1)].sum(1)
        torch.testing.assert_close(
            vertex_normals(batch, FACES)[:, vertex], torch.nn.functional.normalize(summed, dim=1)
        )


def test_the_gradient_of_normals_does_not_depend_on_the_threads() -> None:
    generator = torch.Generator().manual_seed(5)
    triangles = torch.randint(0, 500, (40_000, 3), generator=generator)
    vertices = torch.rand(1, 500, 3, generator=generator, requires_grad=True)
    weights = torch.randn(vertices.shape, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, *others = (
            torch.autograd.grad((vertex_normals(vertices, triangles) * weights).sum(), vertices)[0] for _ in range(32)
        )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


def test_normal_of_a_vertex_without_area_is_zero() -> None:
    vertices = torch.cat([TETRAHEDRON, torch.ones(1, 3, dtype=torch.float64)])[None]
    assert vertex_normals(vertices, FACES)[0, 4].tolist() == [0, 0, 0]


def test_areas_sum_to_the_surface() -> None:
    surface = triangle_normals(TETRAHEDRON[None], FACES)[0].norm(dim=-1).sum() / 2
    torch.testing.assert_close(vertex_areas(TETRAHEDRON, FACES).sum(), surface)


def test_edges_are_listed_once() -> None:
    assert unique_edges(FACES).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


def test_the_boundary_consists_of_edges_with_one_triangle() -> None:
    assert boundary_vertices(FACES).tolist() == []
    assert boundary_vertices(FACES[:1]).tolist() == sorted(FACES[0].tolist())
    fan = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]])
    assert boundary_vertices(fan).tolist() == [1, 2, 3, 4]


def test_alignment_recovers_a_similarity_and_never_reflects() -> None:
    source = torch.randn(3, 20, 3, dtype=torch.float64)
    rotation = rotvec_to_rotmat(torch.randn(3, 3, dtype=torch.float64))
    target = 1.7 * torch.einsum("bij,bpj->bpi", rotation, source) + 0.3
    found = align_points(source, target)
    torch.testing.assert_close(found(source), target)
    torch.testing.assert_close(found.scale, torch.full((3,), 1.7, dtype=torch.float64))
    mirrored = align_points(source, target * target.new_tensor([-1.0, 1, 1]))
    assert (torch.linalg.det(mirrored.rotation) > 0).all()


def test_composed_rotations_equal_the_product_of_their_matrices() -> None:
    first, second = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    found = compose_rotations(second, first)
    torch.testing.assert_close(rotvec_to_rotmat(found), rotvec_to_rotmat(second) @ rotvec_to_rotmat(first))
    assert found.norm(dim=-1).max() <= math.pi + 1e-9


def test_composed_rotations_are_differentiable_at_zero() -> None:
    rest = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    turned = torch.tensor([[0.1, -0.4, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(compose_rotations, (turned, rest))
    assert torch.autograd.gradcheck(compose_rotations, (rest, turned))


def test_alignment_ignores_points_without_weight() -> None:
    source = torch.randn(1, 20, 3, dtype=torch.float64)
    target = 0.5 * source - 0.2
    target[0, 3] += 10.0
    weights = torch.ones(20, dtype=torch.float64)
    weights[3] = 0.0
    found = align_points(source, target, weights=weights)
    assert found.scale.item() == pytest.approx(0.5)
    torch.testing.assert_close(found.translation, torch.full((1, 3), -0.2, dtype=torch.float64))


def test_cross_matrix_takes_the_cross_product() -> None:
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[-2.0, 0.5, 4.0]])
    torch.testing.assert_close((cross_matrix(a) @ b[..., None])[..., 0], torch.cross(a, b, dim=-1))


def test_small_rotations_do_not_lose_digits() -> None:
    small = torch.tensor([[1e-5, -2e-5, 3e-5], [1e-3, 0.0, 0.0]])
    expected = rotvec_to_rotmat(small.double())
    assert (rotvec_to_rotmat(small).double() - expected).abs().max() < 1e-7
    torch.testing.assert_close(compose_rotations(small, torch.zeros(2, 3)), small, rtol=1e-5, atol=0)


def test_the_left_jacobian_turns_a_rotation_as_its_vector_changes() -> None:
    for scale in (1.0, 1e-6):
        start = scale * torch.tensor([[0.3, -0.8, 0.5]], dtype=torch.float64)
        for change in 1e-6 * torch.eye(3, dtype=torch.float64):
            expected = rotvec_to_rotmat(start + change)
            turn = left_jacobian(start)[0] @ change
            found = rotvec_to_rotmat(turn[None]) @ rotvec_to_rotmat(start)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
