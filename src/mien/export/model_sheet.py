"""A face model at a glance: its mean, its first components at ±3 standard deviations, its colours."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from mien.camera import Camera
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import render
from mien.typing import Float, Tensor, UInt8

SIDE_PX = 220
SIGMAS = 3.0
COMPONENTS = 4
_LABEL_PX = 18
_PAPER = (250, 249, 247)


def model_picture(model: MorphableModel) -> UInt8[np.ndarray, "H W 3"]:
    """The mean, the first identity and albedo components at ±3 standard deviations, and the strongest expressions."""
    identity, expression, albedo = model.counts
    panels = [[_panel(model, "mean")]]
    for part, count in (("identity", identity), ("albedo", albedo)):
        shown = range(min(COMPONENTS, count))
        panels += [
            [_panel(model, f"{part} {k + 1}: {s:+.0f} SD", **{part: (k, s)}) for k in shown] for s in (-SIGMAS, SIGMAS)
        ]
    strongest = _strongest(model.expression_basis, min(COMPONENTS, expression))
    amount = 1.0 if model.expression_kind == "strength" else SIGMAS
    panels.append([_panel(model, model.expression_names[k], expression=(k, amount)) for k in strongest])
    rows = [row for row in panels if row]
    width = max(len(row) for row in rows) * SIDE_PX
    sheet = np.full((len(rows) * (SIDE_PX + _LABEL_PX), width, 3), _PAPER, np.uint8)
    for r, row in enumerate(rows):
        top, left = r * (SIDE_PX + _LABEL_PX), 0
        for k, panel in enumerate(row):
            sheet[top : top + len(panel), left + k * SIDE_PX : left + (k + 1) * SIDE_PX] = panel
    return sheet


def _strongest(basis: Float[Tensor, "E V 3"], count: int) -> list[int]:
    """The components that move most."""
    return basis.square().sum((1, 2)).argsort(descending=True)[:count].tolist()


def _panel(
    model: MorphableModel,
    label: str,
    *,
    identity: tuple[int, float] | None = None,
    expression: tuple[int, float] | None = None,
    albedo: tuple[int, float] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    counts = model.counts
    size = float((model.mean.amax(0) - model.mean.amin(0))[:2].amax())
    camera = Camera.from_fov(12.0, image_size=(SIDE_PX, SIDE_PX))
    distance = 0.6 * size / math.tan(math.radians(6.0))
    face = FaceCoefficients.mean(identity=counts[0], expression=counts[1], albedo=counts[2], distance=distance)
    for values, chosen in ((face.identity, identity), (face.expression, expression), (face.albedo, albedo)):
        if chosen is not None:
            values[0, chosen[0]] = chosen[1]
    middle = (model.mean.amax(0) + model.mean.amin(0)) / 2
    face.pose.translation[0, 0], face.pose.translation[0, 1] = -middle[0], middle[1]
    lighting = ambient_lighting(1, level=0.75)
    lighting[0, 1:4] = torch.tensor([[0.12], [0.3], [0.15]])
    face = FaceCoefficients(face.identity, face.expression, face.albedo, lighting, face.pose)
    with torch.no_grad():
        drawn = render(model, face, camera)
    alpha = drawn.coverage[0, ..., None]
    paper = torch.tensor(_PAPER) / 255
    image = drawn.image[0].permute(1, 2, 0).clamp(0, 1) * alpha + paper * (1 - alpha)
    panel = np.full((SIDE_PX + _LABEL_PX, SIDE_PX, 3), _PAPER, np.uint8)
    panel[:SIDE_PX] = (255 * image).round().byte().numpy()
    labelled = Image.fromarray(panel)
    ImageDraw.Draw(labelled).text((6, SIDE_PX + 2), label[:32], fill=(62, 60, 57))
    return np.asarray(labelled)
