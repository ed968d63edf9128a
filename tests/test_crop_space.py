"""Face parameters in crop space, and the way to metric coefficients and back."""

from __future__ import annotations

from dataclasses import replace

import torch

from mien.camera import Camera
from mien.morphable import MorphableModel
from mien.networks.crop_space import (
    HEAD_UNITS,
    CropSpaceParameters,
    to_crop_space,
)

SIZE, SIDES_PER_M = 64, 4.5


def off_centre_camera() -> Camera:
    return Camera(torch.tensor([150.0]), torch.tensor([[-20.0, 95.0]]), image_size=(SIZE, SIZE))


def some_parameters(model: MorphableModel) -> CropSpaceParameters:
    identity, expression, albedo = model.counts
    return CropSpaceParameters(
        identity=torch.randn(1, identity),
        expression=torch.rand(1, expression),
        albedo=torch.randn(1, albedo),
        lighting=torch.randn(1, 27) * 0.1,
        rotation=torch.tensor([[0.2, -0.5, 0.1]]),
        translation=torch.tensor([[0.06, -0.04]]),
        scale=torch.tensor([[0.15]]),
        sides_per_m=SIDES_PER_M,
    )


def test_crop_space_and_coefficients_are_inverse(tiny: MorphableModel) -> None:
    pred, camera = some_parameters(tiny), off_centre_camera()
    back = to_crop_space(pred.coefficients(camera), camera, sides_per_m=SIDES_PER_M)
    for name in HEAD_UNITS:
        torch.testing.assert_close(getattr(back, name), getattr(pred, name), atol=2e-6, rtol=1e-5, msg=name)


def test_a_longer_lens_gives_the_same_face_farther_away(tiny: MorphableModel) -> None:
    pred, camera = some_parameters(tiny), off_centre_camera()
    near, far = pred.coefficients(camera), pred.coefficients(camera.with_focal_scale(torch.tensor([3.0])))
    torch.testing.assert_close(far.pose.translation[:, 2], 3 * near.pose.translation[:, 2])
    place = camera.project(near.pose.translation[:, None])[0, 0]
    torch.testing.assert_close(place, torch.tensor([0.56 * SIZE, 0.46 * SIZE]))


def test_a_face_off_the_axis_keeps_its_direction_to_the_viewer(tiny: MorphableModel) -> None:
    """Turning the camera to the face changes its image only by a homography, so the nose keeps its direction."""
    pred = replace(some_parameters(tiny), translation=torch.zeros(1, 2))
    straight = Camera.from_fov(20.0, image_size=(SIZE, SIZE))
    expected = pred.coefficients(straight).pose.rotmat()[0, 2, 2]
    for camera in (straight, off_centre_camera()):
        face = pred.coefficients(camera)
        to_viewer = -face.pose.translation / face.pose.translation.norm() * torch.tensor([1.0, -1.0, -1.0])
        nose = face.pose.rotmat()[0, :, 2]
        assert abs(float(nose @ to_viewer[0]) - float(expected)) < 1e-5


def test_expressions_are_clamped_but_keep_their_gradient(tiny: MorphableModel) -> None:
    pred = some_parameters(tiny)
    raw = torch.tensor([[-0.5, 0.3, 1.5, 0.0]], requires_grad=True)
    held = replace(pred, expression=raw).coefficients(off_centre_camera()).expression
    torch.testing.assert_close(held, torch.tensor([[0.0, 0.3, 1.0, 0.0]]))
    held.sum().backward()
    assert raw.grad is not None
    assert raw.grad.tolist() == [[1.0, 1.0, 1.0, 1.0]]
