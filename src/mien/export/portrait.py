"""A picture of the face model alone, without a photo: frontal, softly lit, on a light background."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import Camera
from mien.export.contact_sheet import PAPER
from mien.io.pixels import to_uint8
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import RenderOutput, render
from mien.typing import Float, Tensor, UInt8

FOV_DEG = 12.0
HALF_VIEW = math.tan(math.radians(FOV_DEG / 2))
"""Half the width of the view at a distance of one."""


@dataclass(frozen=True)
class Portrait:
    """A rendered face with everything that it was rendered from."""

    face: FaceCoefficients
    """The coefficients with pose and lighting."""
    camera: Camera
    """The camera of the picture."""
    rendered: RenderOutput
    """What `mien.render` returned."""
    pixels: UInt8[np.ndarray, "S S 3"]
    """The picture on its background."""


def render_portrait(
    model: MorphableModel,
    *,
    identity: Float[Tensor, "I"],
    expression: Float[Tensor, "E"],
    albedo: Float[Tensor, "A"],
    centre: Float[Tensor, "3"],
    distance: float,
    side_px: int,
) -> Portrait:
    """Render one face of the model.

    Args:
        model: The face model.
        identity: Standard deviations of the population.
        expression: In the model's own units, see `MorphableModel.expression_kind`.
        albedo: Standard deviations of the population.
        centre: Point of model space in the middle of the picture, metres.
        distance: From the camera to the origin of model space, metres.
        side_px: Side of the square picture.

    Returns:
        The picture, its camera, and the coefficients with pose and lighting.
    """
    counts = model.counts
    face = FaceCoefficients.mean(identity=counts[0], expression=counts[1], albedo=counts[2], distance=distance)
    face.pose.translation[0, :2] = centre[:2] * torch.tensor([-1.0, 1.0])
    lighting = ambient_lighting(1, level=0.75)
    lighting[0, 1:4] = torch.tensor([[0.12], [0.3], [0.15]])
    face = replace(face, identity=identity[None], expression=expression[None], albedo=albedo[None], lighting=lighting)
    camera = Camera.from_fov(FOV_DEG, image_size=(side_px, side_px))
    with torch.no_grad():
        rendered = render(model, face, camera)
    alpha = rendered.coverage[0, ..., None]
    image = rendered.image[0].permute(1, 2, 0).clamp(0, 1) * alpha + torch.tensor(PAPER) / 255 * (1 - alpha)
    return Portrait(face, camera, rendered, to_uint8(image))
