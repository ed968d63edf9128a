from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mien.camera import Camera, Pose
from mien.errors import FitDiverged
from mien.morphable import FaceCoefficients, MorphableModel, landmark_vertices
from mien.rendering import (
    VertexDetail,
    build_surface,
    draw_texture,
    render,
    sample_image,
    sample_map,
    sample_nearest,
    visible_vertices,
)

SIZE = (64, 64)


def mean_face(model: MorphableModel, distance: float = 0.5) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    return FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=distance)


def test_nearest_samples_are_the_pixels_that_points_lie_in() -> None:
    values = torch.arange(6).view(1, 2, 3)
    points = torch.tensor([[[0.0, 0.0], [0.99, 0.99], [1.0, 0.5], [2.5, 1.2], [-4.0, 0.5], [7.0, 9.0]]])
    assert sample_nearest(values, points).tolist() == [[0, 0, 1, 5, 0, 5]]


def test_under_ambient_light_the_picture_shows_the_albedo(tiny: MorphableModel) -> None:
    drawn = render(tiny, mean_face(tiny), Camera.from_fov(30.0, image_size=SIZE))
    inside = drawn.triangle_ids[0] >= 0
    assert inside.float().mean() > 0.2
    torch.testing.assert_close(drawn.image[0][:, inside].mean(1), tiny.albedo_mean[0], atol=1e-3, rtol=0)


def test_depth_is_where_the_face_is(tiny: MorphableModel) -> None:
    for distance in (0.3, 3.0, 30.0):
        camera = Camera.from_fov(30.0 * 0.5 / distance, image_size=SIZE)
        drawn = render(tiny, mean_face(tiny, distance), camera)
        depth = drawn.depth[0][drawn.triangle_ids[0] >= 0]
        assert (depth - distance).abs().max() < 0.12
        assert len(depth) > 500


@pytest.mark.parametrize("distance", [-1.0, math.nan, math.inf])
def test_a_face_behind_the_camera_or_nowhere_is_named(tiny: MorphableModel, distance: float) -> None:
    with pytest.raises(FitDiverged, match=r"face 0 .* cannot be rendered"):
        render(tiny, mean_face(tiny, distance), Camera.from_fov(30.0, image_size=SIZE))


def test_gradient_of_the_picture_reaches_every_coefficient(tiny: MorphableModel) -> None:
    face = mean_face(tiny)
    leaves = [face.identity, face.expression, face.albedo, face.lighting, face.pose.rotation, face.pose.translation]
    for leaf in leaves:
        leaf.requires_grad_()
    drawn = render(tiny, face, Camera.from_fov(30.0, image_size=SIZE))
    # Light from the side, or turning a uniformly lit dome would change nothing.
    (drawn.image * torch.linspace(0, 1, SIZE[1])).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


def test_silhouette_gradient_moves_the_face_sideways(tiny: MorphableModel) -> None:
    """The alpha's centre of mass follows the translation as the projection says: focal / distance pixels a metre."""
    camera = Camera.from_fov(30.0, image_size=SIZE)
    face = mean_face(tiny)
    face.pose.translation.requires_grad_()
    alpha = render(tiny, face, camera, sigma=1e-4).alpha[0]
    columns = torch.arange(SIZE[1]) + 0.5
    (alpha * columns).sum().backward()
    assert face.pose.translation.grad is not None
    moved = face.pose.translation.grad[0, 0] / alpha.sum().detach()
    expected = camera.focal_px[0] / 0.5
    assert abs(moved / expected - 1) < 0.1


def test_displacement_moves_along_the_normal(tiny: MorphableModel) -> None:
    detail = VertexDetail(torch.full((1, 525), 2e-3), torch.zeros(1, 525, 3))
    base, moved = build_surface(tiny, mean_face(tiny)), build_surface(tiny, mean_face(tiny), detail=detail)
    torch.testing.assert_close((moved.vertices - base.vertices).norm(dim=-1), torch.full((1, 525), 2e-3))
    outwards = ((moved.vertices - base.vertices) * base.normals).sum(-1)
    assert (outwards > 0).all()


def test_samples_hit_pixel_centres() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.5, 0.5], [3.5, 2.5], [1.0, 0.5]]])
    torch.testing.assert_close(sample_image(image, points)[0, :, 0], torch.tensor([0.0, 11.0, 0.5]))


def test_maps_have_v_up() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[..., 0, :] = 1.0
    sampled = sample_map(maps, torch.tensor([[0.5, 0.99], [0.5, 0.01]]))
    assert sampled[0, :, 0].tolist() == [1.0, 0.0]


def test_turned_head_hides_its_far_side(tiny: MorphableModel) -> None:
    turned = replace(
        mean_face(tiny), pose=Pose(torch.tensor([[0.0, 0.9, 0.0]]), torch.tensor([[0.0, 0.0, 0.5]]), torch.ones(1))
    )
    drawn = render(tiny, turned, Camera.from_fov(30.0, image_size=SIZE))
    seen = visible_vertices(drawn.surface, drawn.vertices_px, drawn.depth, slack_m=3e-3)[0]
    # The head turns to its left, so that its right side comes to the front.
    right, left = seen[tiny.mean[:, 0] < -0.05].mean(), seen[tiny.mean[:, 0] > 0.05].mean()
    assert right > left + 0.3


def test_contour_points_slide_to_the_outline(tiny: MorphableModel) -> None:
    pixels = torch.zeros(1, 525, 2)
    candidates = tiny.contour_candidates[3]
    pixels[0, candidates[2], 0] = -50.0
    chosen = landmark_vertices(tiny, pixels, torch.eye(3)[None])
    assert chosen[0, 3] == candidates[2]
    assert chosen[0, 8] == tiny.landmarks68[8]
    upside_down = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))[None]
    pixels[0, candidates[2], 0] = 50.0
    assert landmark_vertices(tiny, pixels, upside_down)[0, 3] == candidates[2]


def test_texture_lands_where_its_uv_says(tiny: MorphableModel) -> None:
    texture = torch.zeros(1, 3, 32, 32)
    texture[:, 0, :, 16:] = 1.0  # u > 0.5: the subject's left, the image's right
    camera = Camera.from_fov(30.0, image_size=SIZE)
    surface = build_surface(tiny, mean_face(tiny))
    image, covered = draw_texture(tiny, surface.vertices_camera, camera, texture=texture)
    reds = image[0, 0] * covered[0]
    assert reds[:, 34:].sum() > 20 * max(reds[:, :30].sum().item(), 1e-6)
    assert math.isclose(float(reds.max()), 1.0, abs_tol=1e-5)
