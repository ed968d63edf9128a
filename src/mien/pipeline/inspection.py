"""Measures how well a photo shows a face: sharpness, light, eyes, turn, and what is missing of it."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from mien.camera import Camera, to_camera_axes
from mien.fitting import lid_openings
from mien.lighting import LUMA
from mien.morphable import FaceCoefficients
from mien.morphable.landmark_tables import MEDIAPIPE_CHIN, MEDIAPIPE_TOP
from mien.perception import face_crop
from mien.perception.crops import sample_pixels
from mien.pipeline.inputs import FIT_SIZE_PX, PhotoInputs
from mien.quality import FaceMeasures
from mien.typing import Float, Tensor

SMALLEST_SIZE_PX = 48
"""Smallest side of the crop in which sharpness is measured."""
BRIGHT_QUANTILE = 0.95
WHITE = 0.98
"""Pixels whose channels are all above this are white."""
BLUR_SIDE = 5
"""Side of the box filter that takes sharp edges away, in pixels of the crop or of the photo, whichever are larger."""


def measure_face(inputs: PhotoInputs, coefficients: FaceCoefficients, camera: Camera) -> FaceMeasures:
    """Measure one face in its photo.

    Args:
        inputs: One face of a photo.
        coefficients: Its coefficients, of which the pose is used.
        camera: The camera of its crop.

    Returns:
        The measures.
    """
    (face,), (parts,), targets = inputs.faces, inputs.parts, inputs.targets
    points = face.detection.landmarks468_px[:, :2]
    right, left = lid_openings(targets.landmarks468_px)[0].tolist()
    crop = targets.crops[0].cpu()
    brightness = torch.einsum("chw,c->hw", crop, crop.new_tensor(LUMA))
    skin, oval = parts.skin > 0.5, (parts.oval > 0.5) & (parts.covered < 0.5)
    return FaceMeasures(
        covered=parts.covered_shares,
        eye_openings=(round(right, 4), round(left, 4)),
        turn_degrees=round(_turn_degrees(coefficients), 2),
        cut_off=round(parts.cut_off, 4),
        height_px=round(float(np.linalg.norm(points[MEDIAPIPE_TOP] - points[MEDIAPIPE_CHIN])), 1),
        blur=round(_blur(inputs, brightness), 4),
        brightness=round(_quantile(brightness[::2, ::2][oval[::2, ::2]], BRIGHT_QUANTILE), 4),
        overexposed=round(float((crop.amin(0)[skin] > WHITE).float().mean()), 4) if skin.any() else 0.0,
        distance_m=round(float(coefficients.pose.translation[0].norm()), 4),
    )


def _turn_degrees(coefficients: FaceCoefficients) -> float:
    """Angle to the side between the head's forward axis and the direction from the head to the camera."""
    forward = to_camera_axes(coefficients.pose.rotmat()[0, :, 2])
    up = to_camera_axes(coefficients.pose.rotmat()[0, :, 1])
    to_camera = -coefficients.pose.translation[0]
    level = to_camera - (to_camera @ up) * up
    across = torch.linalg.cross(up, forward)
    return abs(math.degrees(math.atan2(float(level @ across), float(level @ forward))))


def _blur(inputs: PhotoInputs, brightness: Float[Tensor, "S S"]) -> float:
    """How much of the gradient a box filter leaves in the inner face: a blurred picture loses little to a further blur.

    (Crété et al., The blur effect, 2007.) Measured at the resolution of the photo, if that is lower than the crop's.
    """
    (face,), (parts,) = inputs.faces, inputs.parts
    inner = parts.inner * (1 - parts.covered)
    size = max(min(round(face.crop.size * face.crop.scale), FIT_SIZE_PX), SMALLEST_SIZE_PX)
    if size < FIT_SIZE_PX:
        own = face_crop(torch.from_numpy(face.detection.landmarks468_px[:, :2]), size=size)
        picture = sample_pixels(inputs.pixels, own)[0]
        brightness = torch.einsum("chw,c->hw", picture, picture.new_tensor(LUMA))
        inner = F.interpolate(inner[None, None], size=(size, size), mode="area")[0, 0]
    picture = brightness[None, None]
    blurred = F.avg_pool2d(picture, BLUR_SIDE, stride=1, padding=BLUR_SIDE // 2, count_include_pad=False)
    total = kept = 0.0
    for dim in (-1, -2):
        weight = inner.narrow(dim, 1, inner.shape[dim] - 1)
        sharp, soft = (values[0, 0].diff(dim=dim).abs() * weight for values in (picture, blurred))
        total += float(sharp.square().sum())
        kept += float(soft.square().sum())
    return math.sqrt(kept / total) if total > 0 else 1.0


def _quantile(values: Tensor, share: float) -> float:
    return float(values.quantile(share)) if len(values) else 0.0
