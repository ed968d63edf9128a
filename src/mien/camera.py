"""The perspective camera, the pose of a face in front of it, and the change between model axes and camera axes.

Model space has +x to the subject's left, +y up and +z out of the face. Camera space has +x right, +y down and +z
forward. The two differ by half a turn about x, so that a pose whose rotation is the identity looks straight into the
lens. This is the only module that spells it out; docs/conventions.md describes both frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
import torch

from mien.batched import SHARED, Batched
from mien.geometry import compose_rotations, rotvec_to_rotmat
from mien.typing import Float, Tensor

CAMERA_FROM_MODEL = (1.0, -1.0, -1.0)
"""Diagonal of the half turn about x between model axes and camera axes; it is its own inverse."""

FocalSource = Literal["given", "exif", "prior", "fitted", "unknown"]
"""Where a focal length comes from: the caller, EXIF, the typical distance of a face, a fit, or an older result."""

ArrayT = TypeVar("ArrayT", Tensor, np.ndarray)


def to_camera_axes(vectors: ArrayT) -> ArrayT:
    """Express vectors given in model (or view) axes in camera axes.

    Args:
        vectors: (..., 3), or (..., 2) for x and y alone: the directions right and up of an image become right and down.

    Returns:
        Vectors of the same length, shape and type; differentiable.
    """
    if isinstance(vectors, np.ndarray):
        return vectors * np.array(CAMERA_FROM_MODEL[: vectors.shape[-1]], vectors.dtype)
    return vectors * vectors.new_tensor(CAMERA_FROM_MODEL[: vectors.shape[-1]])


def to_model_axes(vectors: ArrayT) -> ArrayT:
    """Express vectors given in camera axes in model (or view) axes: the inverse of `to_camera_axes`."""
    return to_camera_axes(vectors)


def opengl_projection(
    focal_px: float, centre_px: Float[np.ndarray, "2"], *, image_size: tuple[int, int], near_m: float, far_m: float
) -> Float[np.ndarray, "4 4"]:
    """The projection matrix of OpenGL, from view axes to clip space, of a pinhole camera.

    Args:
        focal_px: Focal length, pixels.
        centre_px: Principal point (x, y), pixels.
        image_size: Rows and columns of the image.
        near_m: Depth that becomes z = -1, metres.
        far_m: Depth that becomes z = 1, metres.

    Returns:
        Acts on column vectors in view axes, x right, y up, z to the viewer. The image fills x and y from -1 to 1.
    """
    (height, width), (x, y) = image_size, map(float, centre_px)
    depth = far_m - near_m
    return np.array(
        [
            [2 * focal_px / width, 0, 1 - 2 * x / width, 0],
            [0, 2 * focal_px / height, 2 * y / height - 1, 0],
            [0, 0, -(far_m + near_m) / depth, -2 * far_m * near_m / depth],
            [0, 0, -1, 0],
        ]
    )


@dataclass(frozen=True)
class Pose(Batched):
    """Position, orientation and size of each face in front of its camera.

    A point of model space lies at `to_camera_axes(scale · R @ x_model) + translation` in camera space.
    """

    rotation: Float[Tensor, "B 3"]
    """Rotation vector (axis times angle) in radians, in model axes."""
    translation: Float[Tensor, "B 3"]
    """Position of the model's origin in camera space, metres."""
    scale: Float[Tensor, "B"]
    """Size relative to the model's metres. Poses that mien fits have scale 1: their distance sets the apparent size."""

    def rotmat(self) -> Float[Tensor, "B 3 3"]:
        """Convert `rotation` to matrices.

        Returns:
            Rotation matrices; differentiable in `rotation`.
        """
        return rotvec_to_rotmat(self.rotation)

    def to_camera(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Move points from model space to camera space.

        Args:
            points: Model space, metres.

        Returns:
            Camera space, metres; differentiable in points and pose.
        """
        rotated = torch.einsum("bij,bpj->bpi", self.rotmat(), points)
        return to_camera_axes(self.scale[:, None, None] * rotated) + self.translation[:, None]

    def to_view_axes(self, normals: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Rotate directions with the head, and keep model axes (+x right, +y up, +z to the viewer).

        Light is expressed in these axes, so that "from above" is +y for every pose.

        Args:
            normals: Directions in model space.

        Returns:
            Directions in view axes; differentiable in normals and pose.
        """
        return torch.einsum("bij,bpj->bpi", self.rotmat(), normals)

    def rolled(self, angle: Float[Tensor, "B"]) -> Pose:
        """The pose of the same face in an image that is rotated about the camera's principal point.

        Args:
            angle: Radians, clockwise as seen in the image.

        Returns:
            The rolled pose; differentiable.
        """
        x, y, z = self.translation.unbind(-1)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # The model's z axis points at the viewer: clockwise about it is negative.
        rotation = compose_rotations(torch.stack([zero, zero, -angle], dim=-1), self.rotation)
        return Pose(rotation, torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1), self.scale)


@dataclass(frozen=True)
class Camera(Batched):
    """A pinhole camera with square pixels for each image of the batch.

    Pixel (0, 0) is the top-left corner of the image; the centre of the first pixel is at (0.5, 0.5).

    Example:
        >>> import torch
        >>> from mien import Camera
        >>> camera = Camera.from_fov(30.0, image_size=(480, 640))
        >>> camera.project(torch.tensor([[[0.0, 0.0, 1.0]]])).tolist()
        [[[320.0, 240.0]]]
    """

    focal_px: Float[Tensor, "B"]
    """Focal length, pixels."""
    centre_px: Float[Tensor, "B 2"]
    """Principal point (x, y), pixels."""
    image_size: tuple[int, int] = field(metadata=SHARED)
    """Rows and columns of the images."""

    @classmethod
    def from_fov(cls, fov_deg: float, *, image_size: tuple[int, int], batch: int = 1) -> Camera:
        """A camera with a given field of view whose principal point is the centre of the image.

        Args:
            fov_deg: Field of view across the longer side of the image, degrees.
            image_size: Rows and columns.
            batch: Number of equal cameras.

        Returns:
            The cameras, in single precision.
        """
        height, width = image_size
        focal = 0.5 * max(height, width) / math.tan(math.radians(fov_deg) / 2)
        centre = torch.tensor([[width / 2, height / 2]]).expand(batch, 2)
        return cls(torch.full((batch,), focal), centre, image_size)

    def project(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 2"]:
        """Project points to pixels.

        Args:
            points: Camera space, metres. The result is meaningless for points behind the camera (z ≤ 0).

        Returns:
            Positions (x, y) in pixels; differentiable in points and camera.
        """
        return self.focal_px[:, None, None] * points[..., :2] / points[..., 2:] + self.centre_px[:, None]

    def ray(self, points_px: Float[Tensor, "B 2"]) -> Float[Tensor, "B 3"]:
        """Direction through one pixel position per image, scaled to depth 1.

        Args:
            points_px: Positions (x, y), pixels.

        Returns:
            Camera axes, z = 1; times a depth it is a point in camera space. Differentiable.
        """
        xy = (points_px - self.centre_px) / self.focal_px[:, None]
        return torch.cat([xy, torch.ones_like(xy[:, :1])], dim=-1)

    def to_ndc(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Project points to the normalised device coordinates that `mien.rasterizer` takes.

        Args:
            points: Camera space, metres.

        Returns:
            x right and y down, with the shorter side of the image from -1 to 1; z is the depth in metres.
            Differentiable.
        """
        height, width = self.image_size
        size = points.new_tensor([width, height])
        xy = (2 * self.project(points) - size) / min(height, width)
        return torch.cat([xy, points[..., 2:]], dim=-1)

    def cropped(
        self, *, scale: Float[Tensor, "B"], shift_px: Float[Tensor, "B 2"], image_size: tuple[int, int]
    ) -> Camera:
        """The camera of a scaled crop.

        Args:
            scale: Pixels of the crop per pixel of the image.
            shift_px: Added to scaled positions: a position u of the image lies at scale · u + shift in the crop.
            image_size: Rows and columns of the crop.

        Returns:
            The camera that projects to pixels of the crop.
        """
        return Camera(self.focal_px * scale, self.centre_px * scale[:, None] + shift_px, image_size=image_size)

    def resized(self, size: int) -> Camera:
        """The camera of a square image after it is resized.

        Args:
            size: New side of the image, pixels.

        Returns:
            The camera that projects to pixels of the resized image.
        """
        factor = size / self.image_size[0]
        return Camera(self.focal_px * factor, self.centre_px * factor, image_size=(size, size))

    def with_focal_scale(self, factor: Float[Tensor, "B"]) -> Camera:
        """Scale the focal length.

        Args:
            factor: Positive factor per camera.

        Returns:
            The cameras with their focal lengths multiplied; differentiable.
        """
        return replace(self, focal_px=self.focal_px * factor)
