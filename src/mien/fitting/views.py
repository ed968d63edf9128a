"""From which sides photos of one person show the head, and what each of them counts for.

Photos from one side err alike, and the depths that a network guesses err alike from all sides. Counted as independent,
they would outweigh the prior. The far side of a turned head is a guess too, and another photo may show it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.fitting.landmarks import initial_pose
from mien.fitting.point_model import PointModel
from mien.fitting.problem import FitTargets
from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor

SAME_SIDE_DEG = 15.0
"""Turn between two heads at which the correlation of the errors of their photos has fallen from 1 to 0.61: photos from
the front, whose turns differ by a few degrees, count as one, and views 45 degrees apart are independent. On 22 pairs of
frontal photos with scans, a joint fit is then as exact as fits of one photo (`benchmarks/joint.py`)."""
FACING = 0.4
"""Cosine between normal and line of sight from which a point counts fully. Points that face away are guesses."""
HIDDEN_WEIGHT = 0.05
"""Weight of a point that faces away: enough to hold the far side in place if no photo shows it."""


@dataclass(frozen=True)
class Views:
    """How the head is turned in each photo."""

    rotations: Float[Tensor, "B 3 3"]
    """From model space to view axes."""

    @classmethod
    def of(cls, model: MorphableModel, targets: FitTargets) -> Views:
        """Turn the mean face so that it fits the landmarks of each photo.

        Args:
            model: The morphable model.
            targets: Landmarks and cameras.
        """
        points_px = targets.landmarks468_px.double()
        mean = PointModel.of(model).mean.expand(len(points_px), -1, -1)
        return cls(initial_pose(mean, points_px, targets.camera.double()).rotmat())

    def influence(self, weights: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """What each photo counts for beside the others: two photos from one side count as one.

        Args:
            weights: Weight of each photo, 0 to 1; a photo without weight takes nothing from the others.

        Returns:
            The weights for photos that are the only one from their side, a share of 1 / n for n photos of equal turn.
        """
        cosine = (torch.einsum("aij,bij->ab", self.rotations, self.rotations) - 1) / 2
        turn_deg = cosine.clamp(-1, 1).arccos().rad2deg()
        correlation = torch.exp(-0.5 * (turn_deg / SAME_SIDE_DEG).square()).fill_diagonal_(0).to(weights)
        return weights / (1 + correlation @ weights)

    def count_of_sides(self) -> float:
        """Number of independent views: 1 for photos of equal turn, up to the number of photos."""
        return float(self.influence(torch.ones_like(self.rotations[:, 0, 0])).sum())

    def point_weights(self, model: MorphableModel) -> Float[Tensor, "B 468"]:
        """Weight of each of MediaPipe's points: 1 where the face is turned to the camera, `HIDDEN_WEIGHT` where away.

        Args:
            model: The morphable model.
        """
        normals = model.mediapipe_points(vertex_normals(model.mean[None], model.triangles))[0]
        unit = normals / normals.norm(dim=-1, keepdim=True)
        towards = torch.einsum("bj,pj->bp", self.rotations[:, 2].to(unit), unit)
        return HIDDEN_WEIGHT + (1 - HIDDEN_WEIGHT) * (towards / FACING).clamp(0, 1)
