from __future__ import annotations

import math

import torch

from mien.camera import Camera, Pose
from mien.geometry import rotvec_to_rotmat


def straight_pose(distance: float = 1.0) -> Pose:
    return Pose(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, distance]]), torch.ones(1))


def test_the_one_axis_flip_between_model_and_camera() -> None:
    """The subject's left (+x) appears on the image's right, up is up, and the nose (+z) comes nearer."""
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


def test_a_rolled_pose_is_seen_in_the_turned_picture() -> None:
    camera = Camera.from_fov(40.0, image_size=(300, 300))
    pose = Pose(torch.tensor([[0.2, -0.4, 0.1]]), torch.tensor([[0.1, -0.05, 0.7]]), torch.ones(1))
    points = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    before = camera.project(pose.to_camera(points)) - 150
    after = camera.project(pose.rolled(torch.tensor([math.pi / 2])).to_camera(points)) - 150
    # A quarter turn clockwise brings what lies to the right to the bottom.
    torch.testing.assert_close(after, torch.stack([-before[..., 1], before[..., 0]], dim=-1), atol=1e-3, rtol=0)
