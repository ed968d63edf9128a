"""Everything that describes one face before its camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.batched import Batched
from mien.camera import Pose
from mien.lighting import ambient_lighting, rolled_lighting
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class FaceCoefficients(Batched):
    """Identity, expression, albedo, light and pose of a batch of faces."""

    identity: Float[Tensor, "B I"]
    """Standard deviations of the population."""
    expression: Float[Tensor, "B E"]
    """Strength of each named action, 0 to 1."""
    albedo: Float[Tensor, "B A"]
    """Standard deviations of the population."""
    lighting: Float[Tensor, "B 9 3"]
    """Spherical harmonics per colour channel, see `mien.lighting`."""
    pose: Pose

    @classmethod
    def mean(
        cls, *, identity: int, expression: int, albedo: int, batch: int = 1, distance: float = 0.6
    ) -> FaceCoefficients:
        """The mean face with given coefficient counts, looking into a camera `distance` metres away."""
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
        """The same faces once the picture is turned about the camera's centre: radians, clockwise to the eye."""
        return replace(self, pose=self.pose.rolled(angle), lighting=rolled_lighting(self.lighting, angle))
