"""The photo of a real face that tests share, and its detection, made once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mien.perception import (
    FaceDetection,
    FaceDetector,
)

# Eyes, nose tip and mouth corners of the astronaut, placed manually (pixels).
ASTRONAUT_POINTS = {36: (193, 102), 45: (259, 103), 30: (224, 129), 48: (202, 140), 54: (247, 141)}


@cache
def detector() -> FaceDetector:
    return FaceDetector()


@cache
def astronaut() -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="the photo is scikit-image's astronaut")
    return np.ascontiguousarray(data.astronaut())


@cache
def astronaut_face() -> FaceDetection:
    (face,) = detector().detect(astronaut())
    return face
