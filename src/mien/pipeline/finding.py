"""From a photo to the faces in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mien.errors import ConfigError, NoFaceFound
from mien.io.photo import Photo, read_photo
from mien.io.photo_files import MAX_PIXELS
from mien.memory import typed_out_of_memory
from mien.perception import FaceDetector, Pin, pinned
from mien.pipeline.inputs import PhotoInputs
from mien.typing import UInt8

PhotoSource = Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"]
"""A file, a photo that `read_photo` read, or its pixels: sRGB, upright."""


@dataclass(frozen=True)
class GivenCamera:
    """What the caller knows of a photo's camera, in pixels of the whole file."""

    focal_px: float | None
    """Focal length; None for that of EXIF, or an assumed one."""
    principal_point_px: tuple[float, float] | None
    """Position (x, y) of the optical axis; None for the middle."""

    def reduced(self, reduction: int) -> GivenCamera:
        """The same camera in pixels of a photo that was read at a part of its size."""
        focal_px = None if self.focal_px is None else self.focal_px / reduction
        x, y = self.principal_point_px or (0.0, 0.0)
        return GivenCamera(focal_px, None if self.principal_point_px is None else (x / reduction, y / reduction))


def opened(photo: PhotoSource, *, max_pixels: int = MAX_PIXELS) -> Photo | UInt8[np.ndarray, "H W 3"]:
    """Read a photo, unless it has been read.

    Args:
        photo: The photo.
        max_pixels: As in `read_photo`.
    """
    return photo if isinstance(photo, np.ndarray | Photo) else read_photo(photo, max_pixels=max_pixels)


def pixels_of(photo: Photo | UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a photo."""
    return photo.pixels if isinstance(photo, Photo) else photo


@dataclass(frozen=True)
class FaceFinder:
    """Finds the faces of photos."""

    detector: FaceDetector
    """Finds faces and their landmarks."""
    device: torch.device
    """Device of the fit's targets."""
    max_faces: int | None
    """Maximum number of faces per photo, the largest first; None for all."""

    @typed_out_of_memory
    def __call__(
        self,
        photo: Photo | UInt8[np.ndarray, "H W 3"],
        camera: GivenCamera,
        *,
        pins: Sequence[Sequence[Pin]] = (),
    ) -> PhotoInputs:
        """Find the faces of a photo.

        Args:
            photo: The photo.
            camera: What is known of its camera.
            pins: Landmarks that the user has placed, for each face in the order of the detections.

        Returns:
            The faces, the most prominent first.

        Raises:
            NoFaceFound: There is none.
            ConfigError: The camera is out of range, or there are pins for more faces than the photo shows.
        """
        pixels = pixels_of(photo)
        detections = self.detector.detect(pixels, max_faces=self.max_faces)
        if not detections:
            raise NoFaceFound(
                f"no face was found in the {pixels.shape[1]} × {pixels.shape[0]} photo; a face needs at least 30 "
                "pixels. Use a larger or sharper photo of it."
            )
        if len(pins) > len(detections):
            raise ConfigError(f"pins are given for {len(pins)} faces, and the photo shows {len(detections)}.")
        camera = camera.reduced(photo.reduction) if isinstance(photo, Photo) else camera
        return PhotoInputs.of(
            pixels,
            [*map(pinned, detections, pins), *detections[len(pins) :]],
            focal_px=camera.focal_px,
            exif_focal_px=photo.focal_px if isinstance(photo, Photo) else None,
            principal_point_px=camera.principal_point_px,
            device=self.device,
        )
