"""Lips that touch where the photo shows a closed mouth.

The points of the inner lips hold the mouth in its place, but the fit leaves up to 4 mm between closed lips, and teeth
show that the photo does not. With a term for the distance, as eyelids have one, the chin follows the lower lip: on the
57 photos with scans its error grew by 0.09 mm [0.05, 0.14]. So lips are closed after the fit, without the jaw.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mien.camera import Camera
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import IBUG_OUTER_EYE_CORNERS
from mien.typing import Float, Tensor

PAIRS = ((61, 67), (62, 66), (63, 65))
"""Upper and lower point of the inner lips in iBUG order, without the corners."""
SHAPE = "mouthClose"
"""ARKit's blendshape that closes the lips and leaves the jaw where it is."""
STEPS = 3
"""Newton steps; the distance is almost linear in the blendshape."""


@torch.no_grad()
def close_lips(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    landmarks68_px: Float[Tensor, "B 68 2"],
) -> FaceCoefficients:
    """Close the lips of faces as far as the detected landmarks show, and part lips that enter each other.

    Everything but the strength of `mouthClose` is kept.

    Args:
        model: The morphable model. Without ARKit's `mouthClose`, the faces are returned unchanged.
        coefficients: The faces.
        camera: One camera per face.
        landmarks68_px: Detected landmarks in iBUG order, pixels.

    Returns:
        The faces with another strength of `mouthClose`; not differentiable.
    """
    if SHAPE not in model.expression_names:
        return coefficients
    shape, (least, largest) = model.expression_names.index(SHAPE), model.expression_range
    right, left = (landmarks68_px[:, corner] for corner in IBUG_OUTER_EYE_CORNERS)
    along = torch.nn.functional.normalize(left - right, dim=-1)
    down = torch.stack([-along[:, 1], along[:, 0]], dim=-1)
    upper, lower = (list(side) for side in zip(*PAIRS, strict=True))

    def gap_px(strength: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        expression = coefficients.expression.clone()
        expression[:, shape] = strength
        vertices = model.vertices(coefficients.identity, expression)[:, model.landmarks68]
        return _gap(camera.project(coefficients.pose.to_camera(vertices)), down, upper, lower)

    first = strength = coefficients.expression[:, shape]
    crossed = gap_px(first) < 0
    wanted = torch.where(crossed, 0.0, _gap(landmarks68_px, down, upper, lower).clamp(min=0))
    least, largest = torch.where(crossed, first.clamp(max=least), first), first.clamp(min=largest)
    step = 0.05
    for _ in range(STEPS):
        gap = gap_px(strength)
        closing = (gap - gap_px(strength + step)) / step
        # Seen from far below or above, the blendshape moves the lips along the line of sight.
        change = torch.where(closing > 1e-3, (gap - wanted) / closing.clamp(min=1e-3), torch.zeros_like(gap))
        strength = torch.minimum(torch.maximum(strength + change, least), largest)
    expression = coefficients.expression.clone()
    expression[:, shape] = strength
    return replace(coefficients, expression=expression)


def _gap(
    points_px: Float[Tensor, "B 68 2"], down: Float[Tensor, "B 2"], upper: list[int], lower: list[int]
) -> Float[Tensor, "B"]:
    """Mean distance of the pairs, pixels; negative where lips enter each other."""
    return ((points_px[:, lower] - points_px[:, upper]) * down[:, None]).sum(-1).mean(1)
