"""The inputs of fit and networks: what perception found in a photo, in crop pixels, with the camera of each crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import DEFAULT_FOV_DEG, Camera
from mien.errors import ConfigError
from mien.fitting import FitTargets
from mien.io.photo import exposure_of
from mien.morphable.landmark_tables import IBUG_OUTER_EYE_CORNERS
from mien.perception import Crop, FaceDetection, face_crop, face_parts
from mien.perception.crops import sample_pixels
from mien.typing import Float, Tensor, UInt8

FIT_SIZE_PX = 224
"""Side of the crop that the coefficients are fitted in, as in the paper."""
SHORTEST_FOCAL = 0.1
"""Smallest focal length over the photo's longer side: 157° of view, wider than any lens without distortion."""


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

    @classmethod
    def of(
        cls,
        pixels: UInt8[np.ndarray, "H W 3"],
        detections: Sequence[FaceDetection],
        *,
        focal_px: float | None,
        device: torch.device,
    ) -> PhotoInputs:
        """Crop the faces and compute their masks.

        Args:
            pixels: The whole photo, sRGB.
            detections: Its faces.
            focal_px: Focal length of the photo in pixels; None stands for a field of view of 30°.
            device: Device of `targets`.

        Returns:
            The inputs.

        Raises:
            ConfigError: `focal_px` is out of range.
        """
        faces = tuple(FaceInput.of(detection) for detection in detections)
        camera = _camera(pixels, focal_px, len(faces))
        return cls(pixels, faces, camera, _targets(pixels, faces, camera, device=device))

    def __getitem__(self, index: slice) -> PhotoInputs:
        """A part of the batch."""
        return PhotoInputs(self.pixels, self.faces[index], self.camera[index], self.targets[index])

    def __len__(self) -> int:
        return len(self.faces)

    def rolled(self, rolls: Sequence[float]) -> EncoderInputs:
        """Make inputs of the encoder from turned crops.

        Args:
            rolls: Angle of each face's crop, radians.

        Returns:
            The inputs, on the device of `targets`.
        """
        device = self.targets.crops.device
        turned = [FaceInput.of(face.detection, roll=roll) for face, roll in zip(self.faces, rolls, strict=True)]
        crops = torch.cat([sample_pixels(self.pixels, face.crop) for face in turned]).to(device)
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
    pixels: UInt8[np.ndarray, "H W 3"], faces: Sequence[FaceInput], camera: Camera, *, device: torch.device
) -> FitTargets:
    crops = torch.cat([sample_pixels(pixels, face.crop) for face in faces]).to(device)
    parts = [face_parts(pixels, face.detection, face.crop) for face in faces]
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
    )


def _landmarks468_px(faces: Sequence[FaceInput]) -> Float[Tensor, "B 468 2"]:
    return _in_crops(faces, [f.detection.landmarks468_px[:, :2] for f in faces])


def _depths_px(faces: Sequence[FaceInput]) -> Float[Tensor, "B 468"]:
    depths = [torch.from_numpy(face.detection.landmarks468_px[:, 2]) / face.crop.scale for face in faces]
    return torch.stack(depths).float()


def _in_crops(faces: Sequence[FaceInput], points: Sequence[np.ndarray]) -> Float[Tensor, "B L 2"]:
    moved = [face.crop.to_crop(torch.from_numpy(p)) for face, p in zip(faces, points, strict=True)]
    return torch.stack(moved).float()


def _camera(pixels: UInt8[np.ndarray, "H W 3"], focal_px: float | None, batch: int) -> Camera:
    height, width = pixels.shape[:2]
    if focal_px is not None and not SHORTEST_FOCAL * max(height, width) <= focal_px < math.inf:
        raise ConfigError(
            f"focal_px={focal_px:g} is out of range for a {width} × {height} photo; use a finite value of at least "
            f"{SHORTEST_FOCAL * max(height, width):g}."
        )
    camera = Camera.from_fov(DEFAULT_FOV_DEG, image_size=(height, width), batch=batch)
    return camera if focal_px is None else replace(camera, focal_px=torch.full((batch,), float(focal_px)))


def _crop_cameras(camera: Camera, faces: Sequence[FaceInput]) -> Camera:
    """The camera of each crop: that of the photo, scaled, shifted and turned as the crop is."""
    scale = torch.tensor([1 / face.crop.scale for face in faces])
    centres = [face.crop.to_crop(centre.double()) for face, centre in zip(faces, camera.centre_px, strict=True)]
    return Camera(camera.focal_px * scale, torch.stack(centres).float(), image_size=(FIT_SIZE_PX, FIT_SIZE_PX))
