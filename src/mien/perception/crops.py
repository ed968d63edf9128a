"""Square crops of photos by similarity transforms: invertible, sampled without aliasing, differentiable.

Pixel coordinates follow the package's convention: (0, 0) is the top-left corner of the picture, and pixel centres lie
at +0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from mien.typing import Float, Tensor, UInt8

Padding = Literal["zeros", "border", "reflection"]
FACE_CROP_SIZE = 224
# The box of the 468 points ends below the hairline and at the chin: 1.6 times it also shows forehead, ears and neck.
FACE_CROP_SCALE = 1.6


@dataclass(frozen=True)
class Crop:
    """A square crop of a photo: S×S pixels and the similarity transform to the photo, float64 on the CPU."""

    photo_from_crop: Float[Tensor, "2 3"]
    """Maps homogeneous crop pixels to photo pixels."""
    crop_from_photo: Float[Tensor, "2 3"]
    """The inverse."""
    size: int
    """S, pixels."""

    @classmethod
    def around(
        cls, centre: tuple[float, float], side: float, *, size: int = FACE_CROP_SIZE, angle: float = 0.0
    ) -> Crop:
        """The crop of a square in the photo.

        Args:
            centre: Centre of the square, photo pixels.
            side: Side of the square, photo pixels.
            size: Side of the crop, crop pixels.
            angle: Direction of the crop's x axis in the photo, radians, clockwise as seen.
        """
        scale = side / size
        cos, sin = math.cos(angle), math.sin(angle)
        linear = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
        middle = torch.tensor(centre, dtype=torch.float64)
        half = torch.full((2,), size / 2, dtype=torch.float64)
        forward = torch.cat([linear * scale, (middle - linear @ half * scale)[:, None]], 1)
        backward = torch.cat([linear.T / scale, (half - linear.T @ middle / scale)[:, None]], 1)
        return cls(forward, backward, size)

    @property
    def scale(self) -> float:
        """Photo pixels per crop pixel."""
        return float(self.photo_from_crop[:, 0].norm())

    @property
    def angle(self) -> float:
        """Direction of the crop's x axis in the photo, radians, clockwise as seen."""
        x, y = self.photo_from_crop[:, 0].tolist()
        return math.atan2(y, x)

    def to_crop(self, points: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
        """Map photo pixels to crop pixels."""
        return _apply(self.crop_from_photo, points)

    def to_photo(self, points: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
        """Map crop pixels to photo pixels."""
        return _apply(self.photo_from_crop, points)

    def sample(
        self, image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"], *, padding: Padding = "border"
    ) -> Float[Tensor, "B C S S"]:
        """Sample the crop from a photo with `sample_affine`.

        Args:
            image: The photo, or several of the same size.
            padding: How pixels outside the photo are filled; `inside` returns where they are.

        Returns:
            The crop, differentiable in the image.
        """
        matrix = self.photo_from_crop.to(image.device)[None].expand(len(image), -1, -1)
        return sample_affine(image, matrix, size=(self.size, self.size), padding=padding)

    def inside(self, height: int, width: int) -> Float[Tensor, "S S"]:
        """Return 1 where the crop shows a photo of this size in pixels, and 0 where it is padding."""
        steps = torch.arange(self.size, dtype=torch.float64) + 0.5
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        u, v = self.to_photo(torch.stack([x, y], -1)).unbind(-1)
        return ((u >= 0) & (u <= width) & (v >= 0) & (v <= height)).float()


def _apply(matrix: Float[Tensor, "2 3"], points: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
    matrix = matrix.to(points.device, points.dtype)
    return points @ matrix[:, :2].T + matrix[:, 2]


def sample_affine(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    photo_from_crop: Float[Tensor, "B 2 3"],
    *,
    size: tuple[int, int],
    padding: Padding = "border",
) -> Float[Tensor, "B C h w"]:
    """Sample an affine window of each image.

    If the window shrinks the image, the image is first averaged over boxes of the integer number of pixels that fit
    into one window pixel, which prevents aliasing. Then it is sampled bilinearly. Bytes keep their range, 0 to 255, and
    become floating point when they are averaged or sampled.

    Args:
        image: The images.
        photo_from_crop: Matrix from window pixels to image pixels.
        size: Height and width of the window, pixels.
        padding: How pixels outside the image are filled.

    Returns:
        The windows, differentiable in image and matrix.
    """
    height, width = image.shape[2:]
    shrink = float(photo_from_crop.detach()[:, :, :2].norm(dim=1).amin())
    factor = max(1, min(int(shrink + 1e-6), height, width))
    if factor > 1:
        image = _box_means(image, factor)
    image = image if image.is_floating_point() else image.float()
    # The grid in the sampler's coordinates, -1 to 1 over the image, as a sum of a row term and a column term.
    extent = torch.tensor([image.shape[3], image.shape[2]], device=image.device, dtype=image.dtype)
    matrix = photo_from_crop.to(image.dtype) * (2 / (factor * extent))[:, None]
    steps_y = torch.arange(size[0], device=image.device, dtype=image.dtype)[:, None] + 0.5
    steps_x = torch.arange(size[1], device=image.device, dtype=image.dtype)[:, None] + 0.5
    along_x, along_y, origin = (matrix[:, None, :, k] for k in range(3))
    grid = (steps_y * along_y + (origin - 1))[:, :, None] + (steps_x * along_x)[:, None]
    return F.grid_sample(image, grid, padding_mode=padding, align_corners=False)


def _box_means(image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C h w"]:
    """Means of boxes of `side` × `side` pixels as floating point; sums of views are faster than avg_pool2d on a CPU."""
    right, bottom = -image.shape[3] % side, -image.shape[2] % side
    # Replicated edges make the last, partial box a mean of image pixels only.
    image = torch.cat([image, image[:, :, -1:].expand(-1, -1, bottom, -1)], 2) if bottom else image
    image = torch.cat([image, image[:, :, :, -1:].expand(-1, -1, -1, right)], 3) if right else image
    rows = _sum(image.unflatten(2, (-1, side)).unbind(3))
    return _sum(rows.unflatten(3, (-1, side)).unbind(4)) / side**2


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum as floating point, accumulated in place: allocating a result per term costs more than the addition."""
    first = parts[0]
    total = first.to(first.dtype if first.is_floating_point() else torch.float32, copy=True)
    for part in parts[1:]:
        total += part
    return total


def face_crop(
    points_px: Float[Tensor, "L 2"],
    *,
    size: int = FACE_CROP_SIZE,
    scale: float = FACE_CROP_SCALE,
    angle: float = 0.0,
) -> Crop:
    """Return the square crop around the points of a face.

    Args:
        points_px: Points in photo pixels.
        size: Side of the crop, crop pixels.
        scale: Side of the square as a multiple of the longer side of the points' box.
        angle: Rotation as in `Crop.around`; 0 is upright.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    to_photo = points_px.new_tensor([[cos, -sin], [sin, cos]])
    turned = points_px @ to_photo
    low, high = turned.amin(0), turned.amax(0)
    x, y = (to_photo @ ((low + high) / 2)).tolist()
    return Crop.around((x, y), float((high - low).max()) * scale, size=size, angle=angle)


def sample_pixels(
    pixels: UInt8[np.ndarray, "H W 3"], crop: Crop, *, padding: Padding = "border"
) -> Float[Tensor, "1 3 S S"]:
    """Sample the crop from a photo of bytes, as RGB in [0, 1]; reads only the pixels around the crop."""
    height, width = pixels.shape[:2]
    corners = crop.to_photo(torch.tensor([[0.0, 0.0], [crop.size, 0.0], [0.0, crop.size], [crop.size, crop.size]]))
    margin = 2 * math.ceil(crop.scale) + 2
    left, top = (int(v) for v in (corners.amin(0) - margin).floor())
    right, bottom = (int(v) for v in (corners.amax(0) + margin).ceil())
    left, right = min(max(left, 0), width - 1), max(min(right, width), 1)
    top, bottom = min(max(top, 0), height - 1), max(min(bottom, height), 1)
    patch = torch.from_numpy(np.ascontiguousarray(pixels[top:bottom, left:right].transpose(2, 0, 1)))[None]
    matrix = crop.photo_from_crop - torch.tensor([[0.0, 0.0, left], [0.0, 0.0, top]])
    return sample_affine(patch, matrix[None], size=(crop.size, crop.size), padding=padding) / 255


def similarity_between(source: Float[Tensor, "B L 2"], target: Float[Tensor, "B L 2"]) -> Float[Tensor, "B 2 3"]:
    """Return the least-squares similarity, without reflection, that maps `source` to `target`.

    Umeyama 1991 in two dimensions, where it has a closed form. Differentiable in both arguments.
    """
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    a, b = source - source_mean, target - target_mean
    power = (a * a).sum((1, 2))
    cos = (a * b).sum((1, 2)) / power
    sin = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1) / power
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    offset = target_mean[:, 0] - (linear @ source_mean.mT)[..., 0]
    return torch.cat([linear, offset[..., None]], -1)


@dataclass(frozen=True)
class Deep3dAlignment:
    """Alignment of a photo as in Deep3DFaceRecon: resize, then crop."""

    scale: float
    """Factor of the photo's size."""
    translation: tuple[float, float]
    """x, y of the face in unscaled pixels, y up."""
    resized_size: tuple[int, int]
    """Width and height of the resized photo, pixels."""
    corner: tuple[int, int]
    """x, y of the crop's top-left corner in the resized photo, pixels."""


def deep3d_alignment(
    points_px: Float[Tensor, "5 2"],
    standard_points: Float[Tensor, "5 3"],
    *,
    image_size: tuple[int, int],
    size: int = 224,
    rescale_factor: float = 102.0,
) -> Deep3dAlignment:
    """The five-point alignment of Deep3DFaceRecon_pytorch, for models trained on its crops.

    Args:
        points_px: Eyes, nose tip and mouth corners, y down, with pixel centres at integers as in that code.
        standard_points: The same points on its mean face.
        image_size: Width and height of the photo, pixels.
        size: Side of the crop, pixels.
        rescale_factor: Size of the face in the crop, pixels per unit of `standard_points`.

    Returns:
        The alignment, without rotation; not differentiable.
    """
    width, height = image_size
    flipped = torch.stack([points_px[:, 0], height - 1 - points_px[:, 1]], 1).double()
    homogeneous = torch.cat([standard_points.double(), torch.ones(len(flipped), 1, dtype=torch.float64)], 1)
    # Scaled orthography: each image axis is an affine function of the standard points.
    rows = torch.linalg.lstsq(homogeneous, flipped).solution.T
    length = rows[:, :3].norm(dim=1).mean()
    scale = float(rescale_factor / length)
    tx, ty = rows[:, 3].tolist()
    resized = (int(width * scale), int(height * scale))
    left = int(resized[0] / 2 - size / 2 + (tx - width / 2) * scale)
    up = int(resized[1] / 2 - size / 2 + (height / 2 - ty) * scale)
    return Deep3dAlignment(scale, (tx, ty), resized, (left, up))
