"""Draw the picture of docs/head.md.

    python models/draw_head.py

writes docs/images/heads.png from the packaged head: the mean, two random people, and facial actions.
"""

from __future__ import annotations

import numpy as np
import torch
from draw_face_model import IMAGES, grid
from preview import View, render, save

from mien.morphable import HeadModel, MorphableModel, load_head, load_model

MM_PER_M = 1000
COLOURS = {
    "mouth": (0.35, 0.10, 0.10), "tongue": (0.75, 0.36, 0.36), "teeth": (0.93, 0.91, 0.85),
    "gums": (0.74, 0.40, 0.40), "eye_left": (0.93, 0.93, 0.93), "eye_right": (0.93, 0.93, 0.93),
}  # fmt: skip
IRIS_MM, PUPIL_MM = 5.9, 2.0
WHOLE = [View(yaw, scale=1.15, width=330, height=400, centre=(0, -24, -40)) for yaw in (0, 45, 90, 180)]
MOUTH = View(20, scale=3.0, width=330, height=400, centre=(0, -35, 20))
ACTIONS = (
    {"jawOpen": 0.1}, {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "jawOpen": 0.15},
    {"tongueOut": 1.0, "jawOpen": 0.6}, {"eyeLookInLeft": 1.0, "eyeLookOutRight": 1.0, "jawOpen": 0.9},
)  # fmt: skip


def shape_of(model: MorphableModel, head: HeadModel, identity: torch.Tensor, **actions: float) -> np.ndarray:
    """All vertices of a head in millimetres."""
    expression = torch.zeros(1, model.counts[1])
    for name, strength in actions.items():
        expression[0, model.expression_names.index(name)] = strength
    parts = [model.vertices(identity, expression), head.own_vertices(identity, expression)]
    return torch.cat(parts, dim=1)[0].double().numpy() * MM_PER_M


def colours_of(model: MorphableModel, head: HeadModel, mean: np.ndarray) -> np.ndarray:
    """The mean albedo of the face, continued over the outer skin; one colour for each other part, and irises."""
    colours = np.ones((len(mean), 3))
    for part in head.parts[1:]:
        colours[part.vertices.numpy()] = COLOURS[part.name]
    albedo = model.albedo_mean.numpy()
    face_count, seam = len(albedo), albedo[head.seam.numpy()]
    colours[:face_count] = albedo
    outer = head.seam_shares.numpy() @ (seam - seam.mean(0)) + seam.mean(0)
    colours[face_count : face_count + len(outer)] = outer
    for name, centre in zip(("eye_left", "eye_right"), head.eye_centres, strict=True):
        rows = head.part(name).vertices.numpy()
        offsets = mean[rows] - mean[face_count + centre]
        from_axis = np.where(offsets[:, 2] > 0, np.hypot(offsets[:, 0], offsets[:, 1]), np.inf)
        colours[rows[from_axis < IRIS_MM]] = (0.35, 0.25, 0.15)
        colours[rows[from_axis < PUPIL_MM]] = 0.03
    return colours


def main() -> None:
    model = load_model()
    head = load_head(model)
    count = model.counts[0]
    triangles = torch.cat([part.vertices[part.triangles] for part in head.parts]).numpy()
    people = torch.cat([torch.zeros(1, count), torch.randn(2, count, generator=torch.Generator().manual_seed(2))])
    shapes = [shape_of(model, head, person[None]) for person in people]
    colours = colours_of(model, head, shapes[0])
    pictures = [render(shape, triangles, view, colours=colours) for shape in shapes for view in WHOLE]
    moved = [shape_of(model, head, people[:1], **actions) for actions in ACTIONS]
    pictures += [render(shape, triangles, MOUTH, colours=colours) for shape in moved]
    save(grid(pictures, len(WHOLE)), IMAGES / "heads.png")


if __name__ == "__main__":
    main()
