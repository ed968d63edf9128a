"""Small encoders with random weights, and inputs for them."""

from __future__ import annotations

import torch

from mien.camera import Camera, Pose
from mien.morphable import FaceCoefficients, load_model
from mien.networks import FaceEncoder
from mien.networks.crop_space import mean_face_frame, to_crop_space
from tests.tiny import tiny_model

SIZE = 64


def randomized(encoder: FaceEncoder) -> FaceEncoder:
    """With batch statistics of some images, without which all features are 0, and with random heads."""
    for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        encoder.backbone.train()(torch.rand(4, 3, SIZE, SIZE))
    for head in encoder.heads.values():
        torch.nn.init.normal_(head.get_parameter("weight"), std=0.05)
        torch.nn.init.normal_(head.get_parameter("bias"))
    return encoder.eval()


def inputs_of(encoder: FaceEncoder, count: int) -> tuple[torch.Tensor, ...]:
    """Inputs of the network for images of noise with plausible points."""
    side = encoder.crop_size
    camera = Camera.from_fov(20.0, image_size=(side, side), batch=count)
    return encoder.inputs(torch.rand(count, 3, side, side), camera, landmarks468_px=(some_points(count) + 0.5) * side)


def some_points(count: int) -> torch.Tensor:
    """Points near those of the mean face, in sides of the crop from its centre."""
    return mean_face_frame(tiny_model()).points + 0.05 * torch.randn(count, 468, 2)


def off_centre_camera() -> Camera:
    return Camera(torch.tensor([150.0]), torch.tensor([[-20.0, 95.0]]), image_size=(SIZE, SIZE))


def a_face(encoder: FaceEncoder, camera: Camera) -> FaceCoefficients:
    counts = load_model().counts
    face = FaceCoefficients(
        torch.randn(1, counts[0]) * 0.5,
        torch.rand(1, counts[1]) * 0.3 + 0.3,
        torch.randn(1, counts[2]),
        torch.rand(1, 9, 3),
        Pose(torch.tensor([[0.1, -0.2, 0.05]]), camera.ray(torch.tensor([[30.0, 36.0]])) * 0.9, torch.ones(1)),
    )
    back = to_crop_space(face, camera, sides_per_m=encoder.sides_per_m).coefficients(camera)
    torch.testing.assert_close(back.pose.translation, face.pose.translation)
    return face
