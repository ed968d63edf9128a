"""The unknowns of the photometric fit as one vector, each in units of about one standard deviation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.camera import Pose, to_camera_axes
from mien.fitting.problem import FitSettings
from mien.geometry import cross_matrix, left_jacobian
from mien.morphable import FaceCoefficients, MorphableModel
from mien.typing import Bool, Float, Tensor

DEPTH_STEP_SHARE = 0.01
"""Relative change of the depth per unit of its unknown."""
ROTATION_STEP_RAD = 0.05
"""Rotation per unit of its unknown."""
FACE_SIZE_M = 0.15
"""Scale of the lateral steps: one unit moves the face by its own width times `DEPTH_STEP_SHARE`."""


@dataclass(frozen=True)
class PoseDerivatives:
    """Derivatives of points and normals of one face by its six unknowns of pose: rotation, then translation."""

    turn: Float[Tensor, "3 3"]
    """Axis, in view axes, about which a unit of each unknown of rotation turns the face; its length is the angle."""
    translation: Float[Tensor, "3 3"]
    """Change of the position in camera space per unit of each unknown of translation; columns are unknowns."""

    def of_points(self, rotated: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3 6"]:
        """Derivative of points in camera space.

        Args:
            rotated: The points in view axes, from the origin of the model.
        """
        by_rotation = to_camera_axes(self.of_normals(rotated).mT).mT
        return torch.cat([by_rotation, self.translation.expand(len(rotated), 3, 3)], dim=-1)

    def of_normals(self, normals: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3 3"]:
        """Derivative of vectors in view axes by the unknowns of rotation."""
        return -cross_matrix(normals) @ self.turn


class Unknowns:
    """The unknowns of faces, and how they become coefficients.

    Args:
        model: The morphable model.
        start: The faces at which all unknowns of light and pose are zero.
        settings: Gives the standard deviations.
    """

    def __init__(self, model: MorphableModel, start: FaceCoefficients, settings: FitSettings) -> None:
        self.start, self.settings = start, settings
        self.expression_sigmas = settings.expression_sigmas(model)
        self.least, self.largest = (bound / self.expression_sigmas for bound in model.expression_range)
        batch = len(start.identity)
        self.identity = start.identity.clone().requires_grad_()
        self.expression = (start.expression / self.expression_sigmas).requires_grad_()
        self.rotation = start.identity.new_zeros(batch, 3).requires_grad_()
        self.translation = start.identity.new_zeros(batch, 3).requires_grad_()
        self.albedo = start.albedo.clone().requires_grad_()
        self.lighting = start.lighting.new_zeros(batch, 9, 3).requires_grad_()

    def parameters(self) -> list[Tensor]:
        """The leaf tensors, in the order of `vector`: first the unknowns on which the geometry depends."""
        return [self.identity, self.expression, self.rotation, self.translation, self.albedo, self.lighting]

    def vector(self) -> Float[Tensor, "N"]:
        """Copy of all unknowns, one after the other."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])

    @torch.no_grad()
    def assign(self, vector: Float[Tensor, "N"]) -> None:
        """Set all unknowns; expressions are brought back into the range of the model."""
        parts = vector.split([parameter.numel() for parameter in self.parameters()])
        for parameter, part in zip(self.parameters(), parts, strict=True):
            parameter.copy_(part.view_as(parameter))
        self.expression.clamp_(self.least, self.largest)

    def held(self, vector: Float[Tensor, "N"], gradient: Float[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Expressions at an end of their range that a step against the gradient would move out of it."""
        first = self.identity.numel()
        part = slice(first, first + self.expression.numel())
        least, largest = (bound.repeat(len(self.expression)) for bound in (self.least, self.largest))
        held = torch.zeros_like(vector, dtype=torch.bool)
        at_floor = (vector[part] <= least) & (gradient[part] > 0)
        held[part] = at_floor | ((vector[part] >= largest) & (gradient[part] < 0))
        return held

    def coefficients(self) -> FaceCoefficients:
        """The faces; differentiable in the unknowns."""
        expression = self.expression * self.expression_sigmas
        lighting = self.start.lighting + self.settings.light_chroma_sigma * self.lighting
        return FaceCoefficients(self.identity.clone(), expression, self.albedo.clone(), lighting, self._pose())

    def _pose(self) -> Pose:
        start = self.start.pose
        distance = start.translation[:, 2:]
        lateral = self.translation[:, :2] * (DEPTH_STEP_SHARE * FACE_SIZE_M)
        depth = distance * (DEPTH_STEP_SHARE * self.translation[:, 2:]).exp()
        # The face slides along its own line of sight, so that a change of depth changes its size only.
        position = start.translation[:, :2] * (depth / distance) + lateral
        rotation = start.rotation + ROTATION_STEP_RAD * self.rotation
        return Pose(rotation, torch.cat([position, depth], dim=1), start.scale)

    @torch.no_grad()
    def pose_derivatives(self) -> PoseDerivatives:
        """Derivatives by the pose of the first face."""
        pose, start = self._pose(), self.start.pose.translation[0]
        depth = pose.translation[0, 2]
        translation = torch.eye(3).to(start) * (DEPTH_STEP_SHARE * FACE_SIZE_M)
        translation[:, 2] = DEPTH_STEP_SHARE * depth * start / start[2]
        return PoseDerivatives(left_jacobian(pose.rotation)[0] * ROTATION_STEP_RAD, translation)
