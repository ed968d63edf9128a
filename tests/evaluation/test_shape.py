from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.errors import ConfigError
from mien.evaluation.shape import DistanceSummary, align_surface, weighted_quantile
from mien.geometry import Similarity, Surface, closest_barycentrics, normal_distances, rotvec_to_rotmat, submesh
from tests.evaluation.shapes import ellipsoid, square


def test_distance_to_a_triangle_inside_and_outside_its_prism():
    points = torch.tensor([[0.3, -0.2, 0.7], [0.1, 0.1, -0.4], [4.0, 0.0, 4.0], [4.0, 5.0, 0.0]])
    found = square().closest(points)
    torch.testing.assert_close(found.distances, torch.tensor([0.7, 0.4, 5.0, 5.0]))
    torch.testing.assert_close(found.points[2:], torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))


def test_distance_between_concentric_spheres_is_the_difference_of_their_radii():
    inner, outer = ellipsoid(), ellipsoid(radii=(1.5, 1.5, 1.5))
    distances = outer.closest(inner.vertices).distances
    torch.testing.assert_close(distances, torch.full_like(distances, 0.5), atol=8e-3, rtol=0)


def test_closest_points_are_exact_for_long_and_small_triangles_alike():
    # A needle through a fine grid: its centroid is far from most of its surface, which defeats every search that
    # only looks at the triangles with the nearest centroids.
    fine = square(side=0.5, steps=20)
    needle = torch.tensor([[-3.0, 0.0, 0.05], [3.0, 0.0, 0.05], [0.0, 0.02, 0.05]])
    surface = Surface(
        torch.cat([fine.vertices, needle]),
        torch.cat([fine.triangles, len(fine.vertices) + torch.arange(3)[None]]),
    )
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 3, generator=generator) * torch.tensor([6.0, 0.6, 0.2]) - torch.tensor([3.0, 0.3, 0.1])
    found = surface.closest(points)
    corners = surface.vertices[surface.triangles]
    weights = closest_barycentrics(points[:, None], corners[None])
    every = ((weights[..., None] * corners).sum(2) - points[:, None]).norm(dim=-1)
    torch.testing.assert_close(found.distances, every.amin(1))
    rebuilt = (surface.vertices[surface.triangles[found.triangle_ids]] * found.barycentrics[..., None]).sum(1)
    torch.testing.assert_close(rebuilt, found.points)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_the_closest_point_of_a_triangle_is_optimal(seed: int):
    generator = torch.Generator().manual_seed(seed)
    corners, point = torch.randn(3, 3, generator=generator), 2 * torch.randn(3, generator=generator)
    weights = closest_barycentrics(point, corners)
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    others = torch.rand(500, 3, generator=generator).pow(3)
    others = others / others.sum(1, keepdim=True)
    nearest = (others @ corners - point).norm(dim=-1).min()
    assert (weights @ corners - point).norm() <= nearest + 1e-5


def test_a_degenerate_triangle_acts_as_its_edges():
    corners = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    weights = closest_barycentrics(torch.tensor([0.5, 1.0, 0.0]), corners)
    torch.testing.assert_close(weights @ corners, torch.tensor([0.5, 0.0, 0.0]))


def test_alignment_undoes_a_similarity_in_another_unit():
    gt = ellipsoid(radii=(80.0, 110.0, 60.0))
    turn = rotvec_to_rotmat(torch.tensor([[0.4, -0.3, 0.2]]))
    moved = gt.transformed(Similarity(torch.tensor([1e-3]), turn, torch.tensor([[0.1, 0.0, 0.5]])))
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(gt.vertices), generator=generator)[:20]
    noisy = moved.vertices[chosen] + 3e-3 * torch.randn(20, 3, generator=generator)
    aligned = align_surface(
        moved,
        gt.vertices,
        weights=torch.ones(len(gt.vertices)),
        landmarks=noisy,
        gt_landmarks=gt.vertices[chosen],
    )
    # 3 mm of landmark noise vanish; float32 millimetres leave microns.
    assert float(aligned.distances.max()) < 1e-2
    assert float(aligned.similarity.scale) == pytest.approx(1000, rel=1e-4)


def test_alignment_of_a_scaled_sphere_finds_the_scale():
    sphere, gt = ellipsoid(), ellipsoid(radii=(2.0, 2.0, 2.0))
    aligned = align_surface(
        sphere,
        gt.vertices,
        weights=torch.ones(len(gt.vertices)),
        landmarks=sphere.vertices[::7] * 1.3,
        gt_landmarks=gt.vertices[::7],
    )
    assert float(aligned.similarity.scale) == pytest.approx(2, rel=1e-3)
    assert float(aligned.distances.max()) < 1e-3


def test_alignment_reaches_a_local_optimum():
    gt, surface = ellipsoid(radii=(1.0, 1.2, 0.8)), ellipsoid(radii=(1.05, 1.1, 0.9))
    weights = torch.rand(len(gt.vertices), generator=torch.Generator().manual_seed(2))

    def cost(candidate: Surface) -> float:
        return float((weights * candidate.closest(gt.vertices).distances ** 2).sum())

    aligned = align_surface(
        surface, gt.vertices, weights=weights, landmarks=surface.vertices[::50], gt_landmarks=gt.vertices[::50]
    )
    least = cost(aligned.surface)
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        change = torch.randn(7, generator=generator) * 0.01
        nearby = Similarity(change[6:].exp(), rotvec_to_rotmat(change[None, :3]), change[None, 3:6])
        assert cost(aligned.surface.transformed(nearby)) > least


def test_alignment_needs_landmarks():
    surface = square()
    with pytest.raises(ConfigError, match="three or more landmarks"):
        align_surface(
            surface,
            surface.vertices,
            weights=torch.ones(81),
            landmarks=torch.rand(2, 3),
            gt_landmarks=torch.rand(2, 3),
        )


def test_summary_weights_points_by_area():
    summary = DistanceSummary.of(torch.tensor([1.0, 2.0, 10.0]), torch.tensor([1.0, 8.0, 1.0]))
    assert (summary.mean, summary.median, summary.p90) == (pytest.approx(2.7), 2.0, 2.0)
    assert weighted_quantile(torch.tensor([3.0, 1.0, 2.0]), torch.ones(3), q=1.0) == 3.0
    with pytest.raises(ConfigError):
        DistanceSummary.of(torch.zeros(0), torch.zeros(0))


def test_signed_distances_are_positive_outside():
    distances = normal_distances(ellipsoid(), torch.tensor([[0.0, 0.5, 0.0], [0.0, 1.5, 0.0]]))
    torch.testing.assert_close(distances, torch.tensor([-0.5, 0.5]), atol=8e-3, rtol=0)


def test_submesh_keeps_whole_triangles_only():
    triangles = torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert submesh(triangles, torch.tensor([True, True, True, False])).tolist() == [[0, 1, 2]]
