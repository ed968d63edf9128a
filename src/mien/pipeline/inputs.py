"""The inputs of fit and networks: what perception found in a photo, in crop pixels, with the camera of each crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import Camera, FocalSource
from mien.errors import ConfigError
from mien.fitting import FitTargets
from mien.io.photo import exposure_of
from mien.morphable.landmark_tables import IBUG_OUTER_EYE_CORNERS
from mien.perception import Crop, FaceDetection, FaceParts, face_crop, face_parts, typical_focal_px
from mien.perception.crops import sample_pixels
from mien.typing import Float, Tensor, UInt8

FIT_SIZE_PX = 224
"""Side of the crop that the coefficients are fitted in, as in the paper."""
SHORTEST_FOCAL = 0.1
"""Smallest focal length over the photo's longer side: 157° of view, wider than any lens without distortion."""
LARGEST_OFFSET = 5.0
"""Largest distance of the principal point from the middle of the photo, over the focal length: 79° off the axis, the
edge of that view."""


@dataclass(frozen=True)
class FaceInput:
    """One face of a photo and its crop."""

    detection: FaceDetection
    """Landmarks in photo pixels."""
    crop: Crop
    """Square of 224 pixels around the face."""

    @classmethod
    def of(cls, detection: FaceDetection, *, roll: float = 0.0) -> FaceInput:
        """Crop a face.

        Args:
            detection: The face.
            roll: Angle between the sides of the crop and those of the photo, radians.

        Returns:
            The face with its crop.
        """
        points = torch.from_numpy(detection.landmarks468_px[:, :2])
        return cls(detection, face_crop(points, size=FIT_SIZE_PX, angle=roll))

    @property
    def roll(self) -> float:
        """Angle of the line through the outer eye corners, radians, clockwise as one sees the photo."""
        right, left = self.detection.landmarks68_px[list(IBUG_OUTER_EYE_CORNERS)]
        return math.atan2(left[1] - right[1], left[0] - right[0])


@dataclass(frozen=True)
class PhotoInputs:
    """The faces of one photo, as one batch."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """The whole photo, sRGB."""
    faces: tuple[FaceInput, ...]
    """The most prominent face first."""
    camera: Camera
    """The camera of the whole photo, repeated for each face."""
    targets: FitTargets
    """The same faces in their crops."""
    focal_source: FocalSource
    """Where the focal length comes from."""
    parts: tuple[FaceParts, ...]
    """Skin, eyes, mouth and what hides them, of each face in its crop."""

    @classmethod
    def of(
        cls,
        pixels: UInt8[np.ndarray, "H W 3"],
        detections: Sequence[FaceDetection],
        *,
        focal_px: float | None = None,
        exif_focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        device: torch.device,
    ) -> PhotoInputs:
        """Crop the faces and compute their masks.

        Args:
            pixels: The whole photo, sRGB.
            detections: Its faces, the most prominent first.
            focal_px: Given focal length of the photo, pixels.
            exif_focal_px: That of EXIF, which is used if none is given. Without both, the most prominent face is
                assumed at a typical distance, see `typical_focal_px`.
            principal_point_px: Position (x, y) of the optical axis in the photo; None for the middle.
            device: Device of `targets`.

        Returns:
            The inputs.

        Raises:
            ConfigError: `focal_px` or `principal_point_px` is out of range.
        """
        faces = tuple(FaceInput.of(detection) for detection in detections)
        size = pixels.shape[0], pixels.shape[1]
        centre_px = _checked_centre(principal_point_px, size)
        source: FocalSource = "given"
        if focal_px is None:
            source, focal_px = "exif", exif_focal_px
        if focal_px is None:
            source = "prior"
            focal_px = typical_focal_px(detections[0].landmarks468_px, image_size=size, centre_px=centre_px)
        _check_focal(focal_px, centre_px, size)
        camera = Camera(
            torch.full((len(faces),), float(focal_px)), torch.tensor([centre_px]).expand(len(faces), 2), image_size=size
        )
        parts = tuple(face_parts(pixels, face.detection, face.crop) for face in faces)
        return cls(pixels, faces, camera, _targets(pixels, faces, parts, camera, device=device), source, parts)

    def __getitem__(self, index: slice) -> PhotoInputs:
        """A part of the batch."""
        return replace(
            self,
            faces=self.faces[index],
            camera=self.camera[index],
            targets=self.targets[index],
            parts=self.parts[index],
        )

    def __len__(self) -> int:
        return len(self.faces)

    def rolled(self, rolls: Sequence[float]) -> EncoderInputs:
        """Make inputs of the encoder from turned crops.

        Outside the photo they show its mirror image. With the pixels of its border instead, predictions for photos that
        were cropped to the face changed by 3.4 mm instead of 1.6 mm (mean of six portraits).

        Args:
            rolls: Angle of each face's crop, radians.

        Returns:
            The inputs, on the device of `targets`.
        """
        device = self.targets.crops.device
        turned = [FaceInput.of(face.detection, roll=roll) for face, roll in zip(self.faces, rolls, strict=True)]
        crops = torch.cat([sample_pixels(self.pixels, face.crop, padding="reflection") for face in turned]).to(device)
        return EncoderInputs(crops, _crop_cameras(self.camera, turned).to(device), _landmarks468_px(turned).to(device))


@dataclass(frozen=True)
class EncoderInputs:
    """What the encoder reads of each face."""

    crops: Float[Tensor, "B 3 S S"]
    """sRGB colours in [0, 1]."""
    camera: Camera
    """The camera of each crop."""
    landmarks468_px: Float[Tensor, "B 468 2"]
    """MediaPipe's points in crop pixels."""


def _targets(
    pixels: UInt8[np.ndarray, "H W 3"],
    faces: Sequence[FaceInput],
    parts: Sequence[FaceParts],
    camera: Camera,
    *,
    device: torch.device,
) -> FitTargets:
    crops = torch.cat([sample_pixels(pixels, face.crop) for face in faces]).to(device)
    exposure = torch.full((len(faces),), exposure_of(pixels), device=device)
    return FitTargets(
        crops=crops,
        mask=torch.stack([part.skin for part in parts]).to(device),
        outline=torch.stack([part.face for part in parts]).to(device),
        exposure=exposure,
        camera=_crop_cameras(camera, faces).to(device),
        landmarks468_px=_landmarks468_px(faces).to(device),
        landmarks68_px=_in_crops(faces, [f.detection.landmarks68_px for f in faces]).to(device),
        landmarks468_depth_px=_depths_px(faces).to(device),
        covered=torch.stack([part.covered for part in parts]).to(device),
    )


def _landmarks468_px(faces: Sequence[FaceInput]) -> Float[Tensor, "B 468 2"]:
    return _in_crops(faces, [f.detection.landmarks468_px[:, :2] for f in faces])


def _depths_px(faces: Sequence[FaceInput]) -> Float[Tensor, "B 468"]:
    depths = [torch.from_numpy(face.detection.landmarks468_px[:, 2]) / face.crop.scale for face in faces]
    return torch.stack(depths).float()


def _in_crops(faces: Sequence[FaceInput], points: Sequence[np.ndarray]) -> Float[Tensor, "B L 2"]:
    moved = [face.crop.to_crop(torch.from_numpy(p)) for face, p in zip(faces, points, strict=True)]
    return torch.stack(moved).float()


def _checked_centre(given: tuple[float, float] | None, size: tuple[int, int]) -> tuple[float, float]:
    """The principal point, by default the middle of the photo."""
    height, width = size
    x, y = (width / 2, height / 2) if given is None else map(float, given)
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ConfigError(f"principal_point_px=({x:g}, {y:g}) is not a position; use finite numbers.")
    return x, y


def _check_focal(focal_px: float, centre_px: tuple[float, float], size: tuple[int, int]) -> None:
    (height, width), (x, y) = size, centre_px
    least = SHORTEST_FOCAL * max(height, width)
    if not least <= focal_px < math.inf:
        raise ConfigError(
            f"focal_px={focal_px:g} is out of range for a {width} × {height} photo; use a finite value of at least "
            f"{least:g}."
        )
    if math.hypot(x - width / 2, y - height / 2) > LARGEST_OFFSET * focal_px:
        raise ConfigError(
            f"principal_point_px=({x:g}, {y:g}) is out of range for a {width} × {height} photo with a focal length of "
            f"{focal_px:g} pixels; use a point within {LARGEST_OFFSET * focal_px:g} pixels of its middle."
        )


def _crop_cameras(camera: Camera, faces: Sequence[FaceInput]) -> Camera:
    """The camera of each crop: that of the photo, scaled, shifted and turned as the crop is."""
    scale = torch.tensor([1 / face.crop.scale for face in faces])
    centres = [face.crop.to_crop(centre.double()) for face, centre in zip(faces, camera.centre_px, strict=True)]
    return Camera(camera.focal_px * scale, torch.stack(centres).float(), image_size=(FIT_SIZE_PX, FIT_SIZE_PX))
