"""What perception says of the faces of a photo, in the crops and the camera that fit and networks take."""

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
from mien.perception import Crop, FaceDetection, face_crop, face_parts
from mien.perception.crops import sample_pixels
from mien.typing import Float, Tensor, UInt8

FIT_SIZE_PX = 224
"""Side of the crop that the coefficients are fitted in, the paper's."""
SHORTEST_FOCAL = 0.1
"""Least focal length in longer sides of the photo: a view of 157°, wider than any lens without distortion."""


@dataclass(frozen=True)
class FaceInput:
    """One face's place in the photo."""

    observation: FaceDetection
    crop: Crop

    @classmethod
    def of(cls, observation: FaceDetection, *, roll: float = 0.0) -> FaceInput:
        """In its upright crop, or in one that is turned by `roll` radians."""
        points = torch.from_numpy(observation.landmarks468_px[:, :2])
        return cls(observation, face_crop(points, size=FIT_SIZE_PX, angle=roll))

    @property
    def roll(self) -> float:
        """How far the line of the eyes is turned in the photo, radians clockwise to the eye."""
        right, left = self.observation.landmarks68_px[[36, 45]]
        return math.atan2(left[1] - right[1], left[0] - right[0])


@dataclass(frozen=True)
class PhotoInputs:
    """Some faces of one photo."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """The whole photo."""
    faces: tuple[FaceInput, ...]
    camera: Camera
    """The photo's, once for each face."""
    targets: FitTargets

    @classmethod
    def of(
        cls,
        pixels: UInt8[np.ndarray, "H W 3"],
        observations: Sequence[FaceDetection],
        *,
        focal_px: float | None,
        device: torch.device,
    ) -> PhotoInputs:
        """With 30° of view where no focal length (pixels) is given; ConfigError for one that is none."""
        faces = tuple(FaceInput.of(observation) for observation in observations)
        camera = _camera(pixels, focal_px, len(faces))
        return cls(pixels, faces, camera, _targets(pixels, faces, camera, device=device))

    def __getitem__(self, index: slice) -> PhotoInputs:
        """Some of the faces."""
        return PhotoInputs(self.pixels, self.faces[index], self.camera[index], self.targets[index])

    def __len__(self) -> int:
        return len(self.faces)

    def turned(self, rolls: Sequence[float]) -> NetworkView:
        """What an encoder is shown of each face where its crop is turned by its roll, radians."""
        device = self.targets.crops.device
        turned = [FaceInput.of(face.observation, roll=roll) for face, roll in zip(self.faces, rolls, strict=True)]
        crops = torch.cat([sample_pixels(self.pixels, face.crop) for face in turned]).to(device)
        return NetworkView(crops, _through_crops(self.camera, turned).to(device), _mesh_px(turned).to(device))


@dataclass(frozen=True)
class NetworkView:
    """Crops, the camera seen through them, and the 468 points in them, pixels."""

    crops: Float[Tensor, "B 3 S S"]
    camera: Camera
    landmarks468_px: Float[Tensor, "B 468 2"]


def _targets(
    pixels: UInt8[np.ndarray, "H W 3"], faces: Sequence[FaceInput], camera: Camera, *, device: torch.device
) -> FitTargets:
    crops = torch.cat([sample_pixels(pixels, face.crop) for face in faces]).to(device)
    parts = [face_parts(pixels, face.observation, face.crop) for face in faces]
    exposure = torch.full((len(faces),), exposure_of(pixels), device=device)
    return FitTargets(
        crops=crops,
        mask=torch.stack([part.skin for part in parts]).to(device),
        outline=torch.stack([part.face for part in parts]).to(device),
        exposure=exposure,
        camera=_through_crops(camera, faces).to(device),
        landmarks468_px=_mesh_px(faces).to(device),
        landmarks68_px=_in_crops(faces, [f.observation.landmarks68_px for f in faces]).to(device),
    )


def _mesh_px(faces: Sequence[FaceInput]) -> Float[Tensor, "B 468 2"]:
    return _in_crops(faces, [f.observation.landmarks468_px[:, :2] for f in faces])


def _in_crops(faces: Sequence[FaceInput], points: Sequence[np.ndarray]) -> Float[Tensor, "B L 2"]:
    moved = [face.crop.to_crop(torch.from_numpy(p)) for face, p in zip(faces, points, strict=True)]
    return torch.stack(moved).float()


def _camera(pixels: UInt8[np.ndarray, "H W 3"], focal_px: float | None, batch: int) -> Camera:
    height, width = pixels.shape[:2]
    if focal_px is not None and not SHORTEST_FOCAL * max(height, width) <= focal_px < math.inf:
        raise ConfigError(
            f"a focal length of {focal_px:g} pixels is none of a {width} × {height} photo; it has to be finite and at "
            f"least {SHORTEST_FOCAL * max(height, width):g}."
        )
    camera = Camera.from_fov(DEFAULT_FOV_DEG, image_size=(height, width), batch=batch)
    return camera if focal_px is None else replace(camera, focal_px=torch.full((batch,), float(focal_px)))


def _through_crops(camera: Camera, faces: Sequence[FaceInput]) -> Camera:
    """The photo's camera as each face's crop shows it, turned where the crop is."""
    scale = torch.tensor([1 / face.crop.scale for face in faces])
    centres = [face.crop.to_crop(centre.double()) for face, centre in zip(faces, camera.centre_px, strict=True)]
    return Camera(camera.focal_px * scale, torch.stack(centres).float(), image_size=(FIT_SIZE_PX, FIT_SIZE_PX))
