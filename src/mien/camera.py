"""The perspective camera and the pose of a face before it; every axis flip of the package lives here.

Model space has +x to the subject's left, +y up, +z out of the face; camera space has +x right, +y down,
+z forward. A subject who faces the camera therefore needs the half turn `CAMERA_FROM_MODEL` about x, and a
pose whose rotation is the identity looks straight into the lens. docs/conventions.md draws both frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from mien.batched import SHARED, Batched
from mien.geometry import compose_rotations, rotvec_to_rotmat
from mien.typing import Float, Tensor

CAMERA_FROM_MODEL = (1.0, -1.0, -1.0)
"""The diagonal of the half turn about x between model axes and camera axes."""

DEFAULT_FOV_DEG = 30.0
"""Field of view across a photo's longer side where nothing better is known: the paper's, that of a 67 mm lens on
a full-frame camera."""


@dataclass(frozen=True)
class Pose(Batched):
    """Where the face is: x_camera = flip · (scale · R @ x_model) + translation."""

    rotation: Float[Tensor, "B 3"]
    """Rotation vector in radians, in model axes."""
    translation: Float[Tensor, "B 3"]
    """Position of the model's origin in camera space, metres."""
    scale: Float[Tensor, "B"]
    """Size relative to the model's metres; 1 where the distance carries the apparent size."""

    def rotmat(self) -> Float[Tensor, "B 3 3"]:
        """The rotation as matrices."""
        return rotvec_to_rotmat(self.rotation)

    def to_camera(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Points of model space, in camera space."""
        flip = points.new_tensor(CAMERA_FROM_MODEL)
        turned = torch.einsum("bij,bpj->bpi", self.rotmat(), points)
        return self.scale[:, None, None] * turned * flip + self.translation[:, None]

    def to_view_axes(self, normals: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Directions of model space turned with the head but with model axes (+y up, +z to the viewer).

        Light is expressed in these axes, so that "from above" is +y for every pose.
        """
        return torch.einsum("bij,bpj->bpi", self.rotmat(), normals)

    def rolled(self, angle: Float[Tensor, "B"]) -> Pose:
        """The pose once the picture is turned about the camera's centre: radians, clockwise to the eye."""
        x, y, z = self.translation.unbind(-1)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # The model's z axis points at the viewer, about which clockwise is negative.
        rotation = compose_rotations(torch.stack([zero, zero, -angle], dim=-1), self.rotation)
        return Pose(rotation, torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1), self.scale)


@dataclass(frozen=True)
class Camera(Batched):
    """A pinhole camera with square pixels for each image of the batch.

    Pixel (0, 0) is the top-left corner of the image; the centre of the first pixel is at (0.5, 0.5).
    """

    focal_px: Float[Tensor, "B"]
    centre_px: Float[Tensor, "B 2"]
    image_size: tuple[int, int] = field(metadata=SHARED)
    """Rows and columns."""

    @classmethod
    def from_fov(cls, fov_deg: float, *, image_size: tuple[int, int], batch: int = 1) -> Camera:
        """A camera whose field of view spans the longer image side, looking through the image's centre."""
        height, width = image_size
        focal = 0.5 * max(height, width) / math.tan(math.radians(fov_deg) / 2)
        centre = torch.tensor([[width / 2, height / 2]]).expand(batch, 2)
        return cls(torch.full((batch,), focal), centre, image_size)

    def project(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 2"]:
        """Pixel positions of points in camera space; differentiable, meaningless for points behind the camera."""
        return self.focal_px[:, None, None] * points[..., :2] / points[..., 2:] + self.centre_px[:, None]

    def to_ndc(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """What the rasterizer takes: x right and y down with the shorter side spanning [-1, 1], z in metres."""
        height, width = self.image_size
        size = points.new_tensor([width, height])
        xy = (2 * self.project(points) - size) / min(height, width)
        return torch.cat([xy, points[..., 2:]], dim=-1)

    def cropped(
        self, *, scale: Float[Tensor, "B"], shift_px: Float[Tensor, "B 2"], image_size: tuple[int, int]
    ) -> Camera:
        """The same camera seen through the crop u' = scale · u + shift."""
        return Camera(self.focal_px * scale, self.centre_px * scale[:, None] + shift_px, image_size=image_size)

    def resized(self, size: int) -> Camera:
        """The same view of a square image with `size` pixels a side."""
        factor = size / self.image_size[0]
        return Camera(self.focal_px * factor, self.centre_px * factor, image_size=(size, size))

    def with_focal_scale(self, factor: Float[Tensor, "B"]) -> Camera:
        """The same camera with its focal length multiplied."""
        return replace(self, focal_px=self.focal_px * factor)
