from __future__ import annotations

import math

import numpy as np
import torch

from mien.camera import Camera, Pose, to_camera_axes, to_model_axes
from mien.geometry import rotvec_to_rotmat


def straight_pose(distance: float = 1.0) -> Pose:
    return Pose(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, distance]]), torch.ones(1))


def test_the_one_axis_flip_between_model_and_camera() -> None:
    """The subject's left (+x) is on the right of the image, up is up, and the nose (+z) is nearer."""
    left, up, nose = straight_pose().to_camera(torch.eye(3)[None] * 0.1)[0]
    assert left.tolist() == torch.tensor([0.1, 0.0, 1.0]).tolist()
    assert up[1] < 0
    assert nose[2] < 1.0


def test_field_of_view_spans_the_longer_side() -> None:
    camera = Camera.from_fov(30.0, image_size=(200, 400))
    edge = torch.tensor([[[math.tan(math.radians(15)), 0.0, 1.0]]])
    torch.testing.assert_close(camera.project(edge)[0, 0], torch.tensor([400.0, 100.0]))


def test_ndc_of_a_wide_image_has_square_pixels() -> None:
    camera = Camera.from_fov(30.0, image_size=(200, 400))
    corner = torch.tensor([[[math.tan(math.radians(15)), 0.5 * math.tan(math.radians(15)), 1.0]]])
    torch.testing.assert_close(camera.to_ndc(corner)[0, 0], torch.tensor([2.0, 1.0, 1.0]))


def test_crop_moves_the_camera_with_the_pixels() -> None:
    camera = Camera.from_fov(30.0, image_size=(300, 300), batch=2)
    scale, shift = torch.tensor([0.5, 2.0]), torch.tensor([[-10.0, 4.0], [3.0, 7.0]])
    points = torch.randn(2, 5, 3) * 0.1 + torch.tensor([0.0, 0.0, 1.0])
    cropped = camera.cropped(scale=scale, shift_px=shift, image_size=(224, 224)).project(points)
    torch.testing.assert_close(cropped, camera.project(points) * scale[:, None, None] + shift[:, None])


def test_view_axes_turn_with_the_head_and_keep_up_up() -> None:
    pose = Pose(torch.tensor([[0.0, 0.4, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
    turned = pose.to_view_axes(torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]))
    torch.testing.assert_close(turned[0, 0], rotvec_to_rotmat(pose.rotation)[0, :, 2])
    torch.testing.assert_close(turned[0, 1], torch.tensor([0.0, 1.0, 0.0]))


def test_a_rolled_pose_projects_into_the_rotated_image() -> None:
    camera = Camera.from_fov(40.0, image_size=(300, 300))
    pose = Pose(torch.tensor([[0.2, -0.4, 0.1]]), torch.tensor([[0.1, -0.05, 0.7]]), torch.ones(1))
    points = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    before = camera.project(pose.to_camera(points)) - 150
    after = camera.project(pose.rolled(torch.tensor([math.pi / 2])).to_camera(points)) - 150
    # A quarter turn clockwise moves points on the right to the bottom.
    torch.testing.assert_close(after, torch.stack([-before[..., 1], before[..., 0]], dim=-1), atol=1e-3, rtol=0)


def test_axes_change_by_half_a_turn_about_x() -> None:
    vectors = torch.tensor([[1.0, 2.0, 3.0]])
    assert to_camera_axes(vectors).tolist() == [[1.0, -2.0, -3.0]]
    assert to_camera_axes(vectors[:, :2]).tolist() == [[1.0, -2.0]]
    assert torch.equal(to_model_axes(to_camera_axes(vectors)), vectors)
    found = to_model_axes(np.array([[1, 2, 3]], np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, -2.0, -3.0]]


def test_a_ray_leads_to_the_point_that_is_projected_to_its_pixel() -> None:
    camera = Camera(torch.tensor([300.0]), torch.tensor([[90.0, 70.0]]), image_size=(200, 150))
    points_px = torch.tensor([[20.0, 130.0]])
    torch.testing.assert_close(camera.project(0.7 * camera.ray(points_px)[:, None])[:, 0], points_px)
    assert camera.ray(points_px)[0, 2] == 1


def test_pose_scales_about_the_origin_of_the_model() -> None:
    pose = Pose(torch.zeros(1, 3), torch.tensor([[0.1, 0.2, 0.9]]), torch.tensor([2.0]))
    torch.testing.assert_close(pose.to_camera(torch.tensor([[[0.1, 0.1, 0.1]]])), torch.tensor([[[0.3, 0.0, 0.7]]]))


def test_a_resized_square_image_scales_focal_length_and_centre() -> None:
    camera = Camera(torch.tensor([300.0]), torch.tensor([[90.0, 70.0]]), image_size=(200, 200)).resized(50)
    assert (camera.focal_px.item(), camera.centre_px.tolist(), camera.image_size) == (75.0, [[22.5, 17.5]], (50, 50))
