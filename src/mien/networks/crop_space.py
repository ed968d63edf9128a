"""Predictions of a network in the space of a face crop, and their conversion to a metric pose and back.

A crop does not show which camera took it. The network therefore predicts the pose as it appears in the crop (rotation
against the line of sight, position, size). `CropSpaceParameters.coefficients` converts this to the metric pose under a
known camera: the same image taken with a longer lens shows a face farther away.
"""

from __future__ import annotations

from collections.abc import Mapping
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
"""Meaning of the value 1 at the output of each head: about the standard deviation of what the head predicts, so that
all heads learn at the same rate. In standard deviations; blendshape weight; standard deviations; light; radians; sides
of the crop; natural logarithm."""
SHAPE_HEADS, POSE_HEADS = ("identity", "expression"), ("rotation", "translation", "scale")
"""The heads that the refiner corrects."""


@dataclass(frozen=True)
class CropSpaceParameters(Batched):
    """Face parameters of a batch of crops that do not depend on the camera."""

    identity: Float[Tensor, "B I"]
    """Identity coefficients, standard deviations."""
    expression: Float[Tensor, "B E"]
    """Blendshape weights, not yet clamped to [0, 1]."""
    albedo: Float[Tensor, "B A"]
    """Albedo coefficients, standard deviations."""
    lighting: Float[Tensor, "B 27"]
    """Spherical harmonics minus white light of level 1; for each harmonic the three colour channels."""
    rotation: Float[Tensor, "B 3"]
    """Rotation vector in radians, relative to the line of sight through the crop's centre."""
    translation: Float[Tensor, "B 2"]
    """Position of the model's origin, in sides of the crop from its centre; x right, y down."""
    scale: Float[Tensor, "B 1"]
    """Natural logarithm of the apparent size; 0 where the mean face fills a face crop as it does on average."""
    sides_per_m: float = field(metadata=SHARED)
    """Number of crop sides per metre at scale 0."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Float[Tensor, "B _"]], *, sides_per_m: float) -> CropSpaceParameters:
        """Build the parameters from the tensors that a network's `forward` returns.

        Args:
            tensors: One tensor per name in `HEAD_UNITS`.
            sides_per_m: Number of crop sides per metre at scale 0.
        """
        return cls(**{name: tensors[name] for name in HEAD_UNITS}, sides_per_m=sides_per_m)

    def tensors(self) -> dict[str, Float[Tensor, "B _"]]:
        """The tensors by head name, in the order of `HEAD_UNITS`: the form that DDP and ONNX can pass on."""
        return {name: getattr(self, name) for name in HEAD_UNITS}

    def mirrored(self, mirror: Mirror) -> CropSpaceParameters:
        """The parameters of the mirror image of each crop; differentiable.

        Args:
            mirror: Symmetry of the face model.
        """
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
        """The mean of two predictions for the same faces; differentiable.

        Args:
            other: The second prediction. Its rotations must be close to this one's: rotation vectors are averaged
                component by component.
        """
        mine, others = self.tensors(), other.tensors()
        means = {name: (mine[name] + others[name]) / 2 for name in HEAD_UNITS}
        return self.from_tensors(means, sides_per_m=self.sides_per_m)

    def pose(self, camera: Camera) -> Pose:
        """The metric pose; differentiable.

        Args:
            camera: The cameras that took the crops, in pixels of square crops.
        """
        side = camera.image_size[0]
        px_per_m = self.sides_per_m * side * self.scale[:, 0].exp()
        distance = camera.focal_px / px_per_m
        position = camera.ray((0.5 + self.translation) * side) * distance[:, None]
        # First the head turns relative to the line of sight, then the line of sight relative to the optical axis.
        rotation = compose_rotations(sight_rotation(camera), self.rotation)
        return Pose(rotation, translation=position, scale=torch.ones_like(distance))

    def clamped_expression(self) -> Float[Tensor, "B E"]:
        """Blendshape weights clamped to [0, 1], with the gradient of the identity (straight-through).

        A weight outside the range keeps its gradient and can therefore come back.
        """
        return self.expression + (self.expression.clamp(0, 1) - self.expression).detach()

    def coefficients(self, camera: Camera) -> FaceCoefficients:
        """The faces with their metric pose; differentiable.

        Args:
            camera: The cameras that took the crops, in pixels of square crops.
        """
        white = ambient_lighting(len(self.lighting)).to(self.lighting)
        lighting = white + self.lighting.unflatten(1, (SH_COUNT, 3))
        return FaceCoefficients(self.identity, self.clamped_expression(), self.albedo, lighting, self.pose(camera))


def sight_rotation(camera: Camera) -> Float[Tensor, "B 3"]:
    """The rotation vector, in model axes, from the optical axis to the line of sight through the crop's centre.

    Args:
        camera: Cameras of square crops; the centre may lie outside the crop.
    """
    side = camera.image_size[0]
    ray = to_model_axes(camera.ray(torch.full_like(camera.centre_px, side / 2)))
    ray = -ray / ray.norm(dim=-1, keepdim=True)  # towards the viewer, at +z of the model's axes
    axis = torch.stack([-ray[:, 1], ray[:, 0], torch.zeros_like(ray[:, 0])], dim=-1)
    sine = axis.norm(dim=-1, keepdim=True)
    return axis * torch.where(sine > 1e-6, torch.asin(sine.clamp(max=1)) / sine.clamp(min=1e-6), torch.ones_like(sine))


def to_crop_space(coefficients: FaceCoefficients, camera: Camera, *, sides_per_m: float) -> CropSpaceParameters:
    """Convert known faces to crop space: the inverse of `CropSpaceParameters.coefficients`. Not differentiable.

    Args:
        coefficients: Faces whose poses have scale 1.
        camera: The cameras that took the crops, in pixels of square crops.
        sides_per_m: Number of crop sides per metre at scale 0, see `mean_face_frame`.
    """
    side = camera.image_size[0]
    position = coefficients.pose.translation
    origin_px = camera.project(position[:, None])[:, 0]
    px_per_m = camera.focal_px / position[:, 2]
    return CropSpaceParameters(
        identity=coefficients.identity,
        expression=coefficients.expression,
        albedo=coefficients.albedo,
        lighting=(coefficients.lighting - ambient_lighting(len(position)).to(position)).flatten(1),
        rotation=compose_rotations(-sight_rotation(camera), coefficients.pose.rotation),
        translation=origin_px / side - 0.5,
        scale=(px_per_m / (sides_per_m * side)).log()[:, None],
        sides_per_m=sides_per_m,
    )


@dataclass(frozen=True)
class MeanFaceFrame:
    """Position and size of the mean face in its face crop, seen from the front."""

    sides_per_m: float
    """Number of crop sides per metre."""
    origin: Float[Tensor, "2"]
    """Position of the model's origin, in sides of the crop from its centre; x right, y down."""
    points: Float[Tensor, "468 2"]
    """Positions of MediaPipe's points, in the same unit."""


def mean_face_frame(model: MorphableModel) -> MeanFaceFrame:
    """The frame in which a network with zero output shows the mean face at the right position and size.

    Args:
        model: Face model with MediaPipe's points.
    """
    points = model.mediapipe_points(model.mean[None])[0, :, :2]
    low, high = points.amin(0), points.amax(0)
    # `face_crop` takes FACE_CROP_SCALE times the longer side of the points' box, around its centre.
    sides_per_m = 1 / (FACE_CROP_SCALE * float((high - low).max()))
    middle = (low + high) / 2
    return MeanFaceFrame(
        sides_per_m, to_camera_axes(-middle) * sides_per_m, to_camera_axes(points - middle) * sides_per_m
    )
