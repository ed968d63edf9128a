"""Vertices of the 68 iBUG landmarks."""

from __future__ import annotations

import torch

from mien.morphable.landmark_tables import IBUG_CHIN
from mien.morphable.model import MorphableModel
from mien.typing import Float, Int, Tensor


def landmark_vertices(
    model: MorphableModel, vertices_px: Float[Tensor, "B V 2"], rotmat: Float[Tensor, "B 3 3"]
) -> Int[Tensor, "B 68"]:
    """The vertex of each of the 68 points; contour points slide along their strips to the visible outline.

    Annotators put the contour where the face ends in the picture. In each strip that is the candidate farthest out
    across the head's own up direction in the image.
    """
    up = torch.stack([rotmat[:, 0, 1], -rotmat[:, 1, 1]], dim=-1)
    rightwards = torch.stack([-up[:, 1], up[:, 0]], dim=-1)
    candidates = model.contour_candidates
    side = torch.where(torch.arange(len(candidates), device=up.device) < IBUG_CHIN, -1.0, 1.0)
    outwards = torch.einsum("bkcd,bd->bkc", vertices_px[:, candidates.clamp(min=0)], rightwards) * side[:, None]
    farthest = outwards.masked_fill(candidates < 0, -torch.inf).argmax(dim=-1)
    chosen = candidates.expand(len(vertices_px), -1, -1).gather(2, farthest[..., None])[..., 0]
    chosen[:, IBUG_CHIN] = model.landmarks68[IBUG_CHIN]
    return torch.cat([chosen, model.landmarks68[len(candidates) :].expand(len(vertices_px), -1)], dim=1)
