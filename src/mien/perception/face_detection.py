"""The results of face detection, in pixels of the photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mien.perception.landmarks import landmarks68_from_mesh
from mien.perception.occluders import OccluderMap


@dataclass(frozen=True)
class FaceBox:
    """A detected face box."""

    score: float
    """Confidence of the box detector, 0 to 1."""
    box_px: np.ndarray
    """(4,) left, top, right, bottom in photo pixels."""
    keypoints_px: np.ndarray
    """(6, 2) right eye, left eye, nose tip, mouth, right ear, left ear; right and left are the person's."""

    @property
    def size_px(self) -> float:
        """Longer side of the box, pixels."""
        return float((self.box_px[2:] - self.box_px[:2]).max())


@dataclass(frozen=True)
class FaceDetection(FaceBox):
    """A detected face with its landmarks."""

    landmarks468_px: np.ndarray
    """(468, 3) MediaPipe's face mesh: x, y in photo pixels; z in the same unit, relative to the centre of the head,
    smaller towards the camera."""
    irises_px: np.ndarray
    """(2, 5, 2) right and left iris: the centre, then four points on the rim."""
    confidence: float
    """Probability that the crop shows a face, from the mesh network, 0 to 1."""
    occluders: OccluderMap | None = None
    """What hides the face; None if that is unknown, as in faces that were not detected in a photo."""

    @property
    def landmarks68_px(self) -> np.ndarray:
        """(68, 2) iBUG landmarks, computed from the mesh."""
        return landmarks68_from_mesh(self.landmarks468_px)
