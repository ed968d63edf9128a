"""What a network says of a face crop before the camera is known, and the way from there to a metric pose and back.

A crop says nothing of the camera that took it. So the network describes the pose as it appears in the crop (turn
against the line of sight, place, size), and `Regression.coefficients` turns that into the metric pose under a known
camera: the same picture through a longer lens is a face farther away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mien.batched import SHARED, Batched
from mien.camera import Camera, Pose, to_camera_axes, to_model_axes
from mien.geometry import compose_rotations
from mien.lighting import SH_COUNT, ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.symmetry import Mirror
from mien.perception.crops import FACE_CROP_SCALE
from mien.typing import Float, Tensor

HEAD_UNITS = {
    "identity": 1.0,
    "expression": 0.2,
    "albedo": 1.0,
    "lighting": 0.15,
    "rotation": 0.3,
    "translation": 0.05,
    "scale": 0.1,
}
"""What one unit of each head's last layer means: about the standard deviation of what it predicts, so that all heads
learn at one rate. Standard deviations; strength; standard deviations; light; radians; crop sides; logarithm."""
SHAPE_HEADS, POSE_HEADS = ("identity", "expression"), ("rotation", "translation", "scale")
"""What a second look corrects."""


@dataclass(frozen=True)
class CropSpaceParameters(Batched):
    """What the network says of a batch of crops, before a camera is known."""

    identity: Float[Tensor, "B I"]
    expression: Float[Tensor, "B E"]
    """Strengths, not yet held in [0, 1]."""
    albedo: Float[Tensor, "B A"]
    lighting: Float[Tensor, "B 27"]
    """Harmonic by harmonic the three colour channels, as the difference from white light of level 1."""
    rotation: Float[Tensor, "B 3"]
    """Rotation vector in radians, against the line of sight through the crop's centre."""
    translation: Float[Tensor, "B 2"]
    """Where the model's origin lies, in sides of the crop from its centre; x right, y down."""
    scale: Float[Tensor, "B 1"]
    """Logarithm of the apparent size, 0 where the mean face fills a face crop as it does on average."""
    sides_per_m: float = field(metadata=SHARED)
    """Sides of the crop that a metre spans at scale 0."""

    def mirrored(self, mirror: Mirror) -> CropSpaceParameters:
        """What is said of the crops' mirror images."""
        light = self.lighting.unflatten(1, (SH_COUNT, 3)) * mirror.harmonics[:, None]
        return CropSpaceParameters(
            identity=self.identity @ mirror.identity,
            expression=self.expression @ mirror.expression,
            albedo=self.albedo @ mirror.albedo,
            lighting=light.flatten(1),
            rotation=self.rotation * self.rotation.new_tensor([1.0, -1.0, -1.0]),
            translation=self.translation * self.translation.new_tensor([-1.0, 1.0]),
            scale=self.scale,
            sides_per_m=self.sides_per_m,
        )

    def averaged(self, other: CropSpaceParameters) -> CropSpaceParameters:
        """The mean of two answers about the same faces, whose rotations must be near each other."""
        means = {name: (getattr(self, name) + getattr(other, name)) / 2 for name in HEAD_UNITS}
        return CropSpaceParameters(**means, sides_per_m=self.sides_per_m)

    def pose(self, camera: Camera) -> Pose:
        """The metric pose under the cameras that took the crops; differentiable."""
        side = camera.image_size[0]
        px_per_m = self.sides_per_m * side * self.scale[:, 0].exp()
        distance = camera.focal_px / px_per_m
        position = camera.ray((0.5 + self.translation) * side) * distance[:, None]
        # First the head turns against the line of sight, then the line of sight against the optical axis.
        rotation = compose_rotations(sight_rotation(camera), self.rotation)
        return Pose(rotation, translation=position, scale=torch.ones_like(distance))

    def strengths(self) -> Float[Tensor, "B E"]:
        """Expressions held in [0, 1], with the gradient of the identity: one that left can come back."""
        return self.expression + (self.expression.clamp(0, 1) - self.expression).detach()

    def coefficients(self, camera: Camera) -> FaceCoefficients:
        """The same faces under the cameras that took the crops; differentiable."""
        white = ambient_lighting(len(self.lighting)).to(self.lighting)
        lighting = white + self.lighting.unflatten(1, (SH_COUNT, 3))
        return FaceCoefficients(self.identity, self.strengths(), self.albedo, lighting, self.pose(camera))


def sight_rotation(camera: Camera) -> Float[Tensor, "B 3"]:
    """The turn, in model axes, from the optical axis to the line of sight through the crop's centre."""
    side = camera.image_size[0]
    ray = to_model_axes(camera.ray(torch.full_like(camera.centre_px, side / 2)))
    ray = -ray / ray.norm(dim=-1, keepdim=True)  # towards the viewer, who is at +z of the model's axes
    axis = torch.stack([-ray[:, 1], ray[:, 0], torch.zeros_like(ray[:, 0])], dim=-1)
    sine = axis.norm(dim=-1, keepdim=True)
    return axis * torch.where(sine > 1e-6, torch.asin(sine.clamp(max=1)) / sine.clamp(min=1e-6), torch.ones_like(sine))


def to_crop_space(coefficients: FaceCoefficients, camera: Camera, *, sides_per_m: float) -> CropSpaceParameters:
    """What a perfect network says of crops of known faces: the inverse of `Regression.coefficients`.

    Not differentiable. Poses must have scale 1.
    """
    side = camera.image_size[0]
    position = coefficients.pose.translation
    place_px = camera.project(position[:, None])[:, 0]
    px_per_m = camera.focal_px / position[:, 2]
    return CropSpaceParameters(
        identity=coefficients.identity,
        expression=coefficients.expression,
        albedo=coefficients.albedo,
        lighting=(coefficients.lighting - ambient_lighting(len(position)).to(position)).flatten(1),
        rotation=compose_rotations(-sight_rotation(camera), coefficients.pose.rotation),
        translation=place_px / side - 0.5,
        scale=(px_per_m / (sides_per_m * side)).log()[:, None],
        sides_per_m=sides_per_m,
    )


@dataclass(frozen=True)
class MeanFaceFrame:
    """How the mean face lies in its face crop, seen straight on."""

    sides_per_m: float
    """Sides of the crop that a metre spans."""
    origin: Float[Tensor, "2"]
    """Where the model's origin lies, in sides of the crop from its centre; x right, y down."""
    points: Float[Tensor, "468 2"]
    """Where MediaPipe's points lie, in the same unit."""


def mean_face_frame(model: MorphableModel) -> MeanFaceFrame:
    """The frame in which a network that says nothing shows the mean face in the right place."""
    points = model.mediapipe_points(model.mean[None])[0, :, :2]
    low, high = points.amin(0), points.amax(0)
    # `face_crop` takes FACE_CROP_SCALE times the longer side of the points' box, around its centre.
    sides_per_m = 1 / (FACE_CROP_SCALE * float((high - low).max()))
    middle = (low + high) / 2
    return MeanFaceFrame(
        sides_per_m, to_camera_axes(-middle) * sides_per_m, to_camera_axes(points - middle) * sides_per_m
    )
