"""The camera of a photo and the place of the face before it, as glTF and USD describe them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from mien.geometry.rotations import rotmat_to_rotvec
from mien.result import FAR_M, NEAR_M, Reconstruction
from mien.typing import Float


@dataclass(frozen=True)
class PhotoCamera:
    """A camera at the origin with x right, y up and z to the viewer, and the placement of the face.

    A camera of glTF looks through the middle of its frame. The frame here is the smallest one around the photo whose
    middle is the optical axis: the photo itself, if its principal point is in its middle.
    """

    focal_px: float
    frame_px: tuple[float, float]
    """Width and height of the frame."""
    offset_px: tuple[float, float]
    """Position of the photo's top-left corner in the frame, right and down."""
    photo_px: tuple[int, int]
    """Width and height of the photo."""
    rotation: Float[np.ndarray, "4"]
    """Unit quaternion (x, y, z, w) of the head."""
    translation: Float[np.ndarray, "3"]
    """Position of the model's origin, metres."""
    scale: float

    @classmethod
    def of(cls, reconstruction: Reconstruction) -> PhotoCamera:
        """The camera of a reconstruction's photo."""
        (width, height), (x, y) = reconstruction.image_size, map(float, reconstruction.centre_px)
        half_width, half_height = max(x, width - x), max(y, height - y)
        view = reconstruction.view_matrix_opengl
        return cls(
            focal_px=float(reconstruction.focal_px),
            frame_px=(2 * half_width, 2 * half_height),
            offset_px=(half_width - x, half_height - y),
            photo_px=(width, height),
            rotation=_quaternion(view[:3, :3] / reconstruction.scale),
            translation=view[:3, 3],
            scale=float(reconstruction.scale),
        )

    @property
    def gltf_camera(self) -> dict[str, object]:
        """The camera of a glTF document; its extras say where the photo is in its frame."""
        width, height = self.frame_px
        perspective = {
            "yfov": 2 * math.atan(height / 2 / self.focal_px),
            "aspectRatio": width / height,
            "znear": NEAR_M,
            "zfar": FAR_M,
        }
        photo = {
            "framePx": list(self.frame_px),
            "photoOffsetPx": list(self.offset_px),
            "photoPx": list(self.photo_px),
        }
        return {"name": "photo", "type": "perspective", "perspective": perspective, "extras": photo}

    @property
    def gltf_transform(self) -> dict[str, object]:
        """The transform of the face's node before this camera."""
        return {
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
            "scale": [self.scale] * 3,
        }


def _quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """The unit quaternion (x, y, z, w) of a rotation matrix."""
    vector = rotmat_to_rotvec(torch.from_numpy(rotation)[None])[0].numpy()
    angle = float(np.linalg.norm(vector))
    return np.append(0.5 * np.sinc(angle / 2 / math.pi) * vector, math.cos(angle / 2))
