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
    facing_camera,
    render,
    sample_image,
    sample_map,
    sample_map_hyperbolic,
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


def test_under_ambient_light_the_image_shows_the_albedo(tiny: MorphableModel) -> None:
    rendered = render(tiny, mean_face(tiny), Camera.from_fov(30.0, image_size=SIZE))
    inside = rendered.triangle_ids[0] >= 0
    assert inside.float().mean() > 0.2
    torch.testing.assert_close(rendered.image[0][:, inside].mean(1), tiny.albedo_mean[0], atol=1e-3, rtol=0)


def test_depth_is_where_the_face_is(tiny: MorphableModel) -> None:
    for distance in (0.3, 3.0, 30.0):
        camera = Camera.from_fov(30.0 * 0.5 / distance, image_size=SIZE)
        rendered = render(tiny, mean_face(tiny, distance), camera)
        depth = rendered.depth[0][rendered.triangle_ids[0] >= 0]
        assert (depth - distance).abs().max() < 0.12
        assert len(depth) > 500


@pytest.mark.parametrize("distance", [-1.0, math.nan, math.inf])
def test_a_face_without_a_position_in_front_of_the_camera_is_refused(tiny: MorphableModel, distance: float) -> None:
    with pytest.raises(FitDiverged, match=r"face 0 .* cannot be rendered"):
        render(tiny, mean_face(tiny, distance), Camera.from_fov(30.0, image_size=SIZE))


def test_the_gradient_of_the_image_reaches_every_coefficient(tiny: MorphableModel) -> None:
    face = mean_face(tiny)
    leaves = [face.identity, face.expression, face.albedo, face.lighting, face.pose.rotation, face.pose.translation]
    for leaf in leaves:
        leaf.requires_grad_()
    rendered = render(tiny, face, Camera.from_fov(30.0, image_size=SIZE))
    # The ramp makes every change visible: the sum of a uniformly lit dome does not change when it turns.
    (rendered.image * torch.linspace(0, 1, SIZE[1])).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


def test_silhouette_gradient_moves_the_face_sideways(tiny: MorphableModel) -> None:
    """The centre of mass of alpha moves by focal / distance pixels per metre of translation."""
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
    rendered = render(tiny, turned, Camera.from_fov(30.0, image_size=SIZE))
    seen = visible_vertices(rendered.surface, rendered.vertices_px, rendered.depth, slack_m=3e-3)[0]
    # The head turns to its left, so that the camera sees its right side.
    right, left = seen[tiny.mean[:, 0] < -0.05].mean(), seen[tiny.mean[:, 0] > 0.05].mean()
    assert right > left + 0.3


def test_contour_landmarks_slide_to_the_visible_contour(tiny: MorphableModel) -> None:
    pixels = torch.zeros(1, 525, 2)
    candidates = tiny.contour_candidates[3]
    pixels[0, candidates[2], 0] = -50.0
    chosen = landmark_vertices(tiny, pixels, torch.eye(3)[None])
    assert chosen[0, 3] == candidates[2]
    assert chosen[0, 8] == tiny.landmarks68[8]
    upside_down = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))[None]
    pixels[0, candidates[2], 0] = 50.0
    assert landmark_vertices(tiny, pixels, upside_down)[0, 3] == candidates[2]


def test_texture_is_rendered_at_its_uv(tiny: MorphableModel) -> None:
    texture = torch.zeros(1, 3, 32, 32)
    texture[:, 0, :, 16:] = 1.0  # u > 0.5: the subject's left, the image's right
    camera = Camera.from_fov(30.0, image_size=SIZE)
    surface = build_surface(tiny, mean_face(tiny))
    image, covered = draw_texture(tiny, surface.vertices_camera, camera, texture=texture)
    reds = image[0, 0] * covered[0]
    assert reds[:, 34:].sum() > 20 * max(reds[:, :30].sum().item(), 1e-6)
    assert math.isclose(float(reds.max()), 1.0, abs_tol=1e-5)


def test_perspective_correct_samples_weigh_texels_by_their_inverse_depth() -> None:
    maps, depth = torch.tensor([[[[0.0, 1.0]] * 2]]), torch.tensor([[[[0.5, 1.0]] * 2]])
    middle = torch.tensor([[0.5, 0.5]])
    found = sample_map_hyperbolic(maps, middle, depth=depth)[0, 0, 0]
    assert found.item() == pytest.approx((0 / 0.5 + 1 / 1.0) / (1 / 0.5 + 1 / 1.0))
    assert sample_map(maps, middle)[0, 0, 0].item() == pytest.approx(0.5)


def test_facing_is_the_cosine_to_the_camera_not_to_its_axis(tiny: MorphableModel) -> None:
    face = mean_face(tiny)
    face = replace(face, pose=replace(face.pose, translation=torch.tensor([[0.5, 0.0, 0.5]])))
    surface = build_surface(tiny, face)
    nose = int(tiny.mean[:, 2].argmax())
    x, y, z = surface.vertices_camera[0, nose].tolist()
    normal = surface.normals[0, nose].tolist()  # view axes: y up, z to the viewer
    expected = (-x * normal[0] + y * normal[1] + z * normal[2]) / math.hypot(x, y, z)
    assert facing_camera(surface)[0, nose].item() == pytest.approx(expected, abs=1e-5)
    assert expected < 0.8 < normal[2]


def test_displacement_and_shift_add_up(tiny: MorphableModel) -> None:
    shift = torch.zeros(1, 525, 3)
    shift[..., 0] = 3e-3
    base = build_surface(tiny, mean_face(tiny))
    detail = VertexDetail(torch.full((1, 525), 2e-3), torch.full((1, 525, 3), 0.1), shift=shift)
    found = build_surface(tiny, mean_face(tiny), detail=detail)
    torch.testing.assert_close(found.vertices, base.vertices + 2e-3 * base.normals + shift)
    torch.testing.assert_close(found.albedo, base.albedo + 0.1)


def test_vertices_behind_the_z_buffer_are_hidden_beyond_the_slack(tiny: MorphableModel) -> None:
    rendered = render(tiny, mean_face(tiny), Camera.from_fov(30.0, image_size=SIZE))

    def seen(nearer_m: float) -> int:
        depth = torch.where(rendered.depth > 0, rendered.depth - nearer_m, 0.0)
        return int(visible_vertices(rendered.surface, rendered.vertices_px, depth, slack_m=3e-2).sum())

    assert seen(0.0) > 300
    assert seen(0.1) == 0
    assert seen(-0.1) >= seen(0.0)
