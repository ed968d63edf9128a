"""Linear blend skinning with pose correctives, for models whose neck, jaw and eyes turn (Loper et al. 2015)."""

from __future__ import annotations

import torch
from torch import nn

from mien.geometry import rotvec_to_rotmat
from mien.typing import Float, Int, Tensor


class Skinning(nn.Module):
    """Joints, weights and pose correctives of an articulated head; for FLAME the joints are global, neck, jaw, eyes."""

    joint_regressor: Tensor
    weights: Tensor
    pose_basis: Tensor
    parents: Tensor

    def __init__(
        self,
        joint_regressor: Float[Tensor, "J V"],
        weights: Float[Tensor, "V J"],
        pose_basis: Float[Tensor, "P V 3"],
        parents: Int[Tensor, "J"],
    ) -> None:
        super().__init__()
        self.register_buffer("joint_regressor", joint_regressor)
        self.register_buffer("weights", weights)
        self.register_buffer("pose_basis", pose_basis)
        self.register_buffer("parents", parents)

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the constructor was given, in its order."""
        return self.joint_regressor, self.weights, self.pose_basis, self.parents

    def forward(self, vertices: Float[Tensor, "B V 3"], rotations: Float[Tensor, "B J 3"]) -> Float[Tensor, "B V 3"]:
        """Pose shaped vertices: rotation vectors of all joints, each relative to its parent, in radians.

        v' = sum_j w_j G_j (v + P (R - I)), where G_j turns about the joints J = regressor @ v of the shaped, unposed
        face. Differentiable in both.
        """
        batch, joint_count = rotations.shape[:2]
        rotmats = rotvec_to_rotmat(rotations.reshape(-1, 3)).view(batch, joint_count, 3, 3)
        unit = torch.eye(3, dtype=vertices.dtype, device=vertices.device)
        features = (rotmats[:, 1:] - unit).reshape(batch, -1)
        joints = torch.einsum("jv,bvd->bjd", self.joint_regressor, vertices)
        corrected = vertices + (features @ self.pose_basis.flatten(1)).reshape(vertices.shape)
        turns, places = self._chained(rotmats, joints)
        # Each joint moves a point x to turn @ (x - joint) + place.
        shifts = places - torch.einsum("bjik,bjk->bji", turns, joints)
        blended_turns = torch.einsum("vj,bjik->bvik", self.weights, turns)
        blended_shifts = torch.einsum("vj,bji->bvi", self.weights, shifts)
        return torch.einsum("bvik,bvk->bvi", blended_turns, corrected) + blended_shifts

    def _chained(
        self, rotmats: Float[Tensor, "B J 3 3"], joints: Float[Tensor, "B J 3"]
    ) -> tuple[Float[Tensor, "B J 3 3"], Float[Tensor, "B J 3"]]:
        """Rotation and position of every joint after its ancestors have turned; parents come before children."""
        turns, places = [rotmats[:, 0]], [joints[:, 0]]
        for j, parent in enumerate(self.parents.tolist()):
            if j == 0:
                continue
            turns.append(turns[parent] @ rotmats[:, j])
            offset = joints[:, j] - joints[:, parent]
            places.append(places[parent] + torch.einsum("bik,bk->bi", turns[parent], offset))
        return torch.stack(turns, 1), torch.stack(places, 1)
