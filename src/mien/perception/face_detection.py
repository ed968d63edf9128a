"""What perception knows of a face, in pixels of the photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mien.perception.landmarks import landmarks68_from_mesh


@dataclass(frozen=True)
class FaceBox:
    """A detection: score in [0,1], box x0 y0 x1 y1 and six keypoints in photo pixels.

    Keypoints: right eye, left eye, nose tip, mouth, right ear, left ear (the person's right and left).
    """

    score: float
    box_px: np.ndarray
    keypoints_px: np.ndarray

    @property
    def size_px(self) -> float:
        """Longer side of the box."""
        return float((self.box_px[2:] - self.box_px[:2]).max())


@dataclass(frozen=True)
class FaceDetection(FaceBox):
    """A face with its mesh.

    landmarks468_px (468,3): x, y in photo pixels; z in the same unit, smaller towards the camera, relative to the
    centre of the head. irises_px (2,5,2): right, left; centre, then four ring points. landmarks68_px (68,2): iBUG.
    confidence: the mesh network's belief in [0,1] that a face is there.
    """

    landmarks468_px: np.ndarray
    irises_px: np.ndarray
    confidence: float

    @property
    def landmarks68_px(self) -> np.ndarray:
        """The 68 iBUG points (68,2), taken from the mesh."""
        return landmarks68_from_mesh(self.landmarks468_px)
