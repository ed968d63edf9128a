"""The coefficients of a face: everything that a rendering needs besides the model and the camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.batched import Batched
from mien.camera import Pose
from mien.lighting import ambient_lighting, rolled_lighting
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class FaceCoefficients(Batched):
    """Identity, expression, albedo, lighting and pose of a batch of B faces; differentiable everywhere.

    Example:
        >>> model = mien.load_model()
        >>> identity, expression, albedo = model.counts
        >>> face = mien.FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo)
        >>> vertices = model.vertices(face.identity, face.expression)
    """

    identity: Float[Tensor, "B I"]
    """Standard deviations of the population."""
    expression: Float[Tensor, "B E"]
    """Strengths of the blendshapes, 0 to 1, or standard deviations, as `MorphableModel.expression_kind` states."""
    albedo: Float[Tensor, "B A"]
    """Standard deviations of the population."""
    lighting: Float[Tensor, "B 9 3"]
    """Nine spherical harmonics per colour channel, see `mien.lighting`."""
    pose: Pose
    """Rotation, translation in metres and scale from model to camera axes."""

    @classmethod
    def mean(
        cls, *, identity: int, expression: int, albedo: int, batch: int = 1, distance: float = 0.6
    ) -> FaceCoefficients:
        """The mean face under ambient light, looking into the camera.

        Args:
            identity: Number of identity coefficients.
            expression: Number of expression coefficients.
            albedo: Number of albedo coefficients.
            batch: Number of faces.
            distance: Distance of the model's origin from the camera, metres.

        Returns:
            Coefficients on the CPU.
        """
        pose = Pose(
            rotation=torch.zeros(batch, 3),
            translation=torch.tensor([[0.0, 0.0, distance]]).repeat(batch, 1),
            scale=torch.ones(batch),
        )
        return cls(
            identity=torch.zeros(batch, identity),
            expression=torch.zeros(batch, expression),
            albedo=torch.zeros(batch, albedo),
            lighting=ambient_lighting(batch),
            pose=pose,
        )

    def rolled(self, angle: Float[Tensor, "B"]) -> FaceCoefficients:
        """The same faces after the picture is turned about its principal point.

        Args:
            angle: Turn per face, radians, clockwise as seen.

        Returns:
            Coefficients with rotated pose and lighting.
        """
        return replace(self, pose=self.pose.rolled(angle), lighting=rolled_lighting(self.lighting, angle))
