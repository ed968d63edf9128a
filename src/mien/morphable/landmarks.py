"""The model's vertices at the 68 iBUG landmarks, for a given head pose."""

from __future__ import annotations

import torch

from mien.morphable.landmark_tables import IBUG_CHIN
from mien.morphable.model import MorphableModel
from mien.typing import Float, Int, Tensor


def landmark_vertices(
    model: MorphableModel, vertices_px: Float[Tensor, "B V 2"], rotmat: Float[Tensor, "B 3 3"]
) -> Int[Tensor, "B 68"]:
    """The vertex of each of the 68 landmarks, with contour points on the visible outline.

    Annotators place the 17 contour points where the face ends in the photo. The model has one strip of candidate
    vertices per contour point; the candidate farthest from the face's middle is taken, measured in the image at a right
    angle to the head's up direction. The chin and the 51 inner points do not depend on the view.

    Args:
        model: The face model.
        vertices_px: All vertices projected into the image, pixels, y down.
        rotmat: Rotation from model to camera axes (x right, y up) as `Pose.rotmat` gives it.

    Returns:
        Vertex indices in iBUG order; not differentiable.
    """
    up = torch.stack([rotmat[:, 0, 1], -rotmat[:, 1, 1]], dim=-1)
    rightwards = torch.stack([-up[:, 1], up[:, 0]], dim=-1)
    candidates = model.contour_candidates
    side = torch.where(torch.arange(len(candidates), device=up.device) < IBUG_CHIN, -1.0, 1.0)
    distance = torch.einsum("bkcd,bd->bkc", vertices_px[:, candidates.clamp(min=0)], rightwards) * side[:, None]
    farthest = distance.masked_fill(candidates < 0, -torch.inf).argmax(dim=-1)
    chosen = candidates.expand(len(vertices_px), -1, -1).gather(2, farthest[..., None])[..., 0]
    chosen[:, IBUG_CHIN] = model.landmarks68[IBUG_CHIN]
    return torch.cat([chosen, model.landmarks68[len(candidates) :].expand(len(vertices_px), -1)], dim=1)
