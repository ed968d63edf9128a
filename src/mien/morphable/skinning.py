"""Linear blend skinning with pose correctives, for models with joints at neck, jaw and eyes (Loper et al. 2015)."""

from __future__ import annotations

import torch
from torch import nn

from mien.geometry import rotvec_to_rotmat
from mien.typing import Float, Int, Tensor


class Skinning(nn.Module):
    """Joints, skin weights and pose correctives of an articulated head.

    FLAME's joints are, in this order: root, neck, jaw, two eyes.
    """

    joint_regressor: Tensor
    """(J, V) joint positions as weighted sums of vertices."""
    weights: Tensor
    """(V, J) how far each vertex follows each joint; rows sum to 1."""
    pose_basis: Tensor
    """(P, V, 3) metres per entry of R - I of all joints but the root; P = 9 (J - 1)."""
    parents: Tensor
    """(J,) index of each joint's parent, -1 for the root; parents come first."""

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
        """The four arrays, in the order of the constructor."""
        return self.joint_regressor, self.weights, self.pose_basis, self.parents

    def forward(self, vertices: Float[Tensor, "B V 3"], rotations: Float[Tensor, "B J 3"]) -> Float[Tensor, "B V 3"]:
        """Turn the joints of shaped faces.

        v' = sum_j w_j G_j (v + P (R - I)), where G_j turns about the joints J = regressor @ v of the unposed face.

        Args:
            vertices: Shaped but unposed vertices, metres.
            rotations: Rotation vector of each joint relative to its parent, radians.

        Returns:
            Posed vertices in metres, differentiable in both arguments.
        """
        batch, joint_count = rotations.shape[:2]
        rotmats = rotvec_to_rotmat(rotations.reshape(-1, 3)).view(batch, joint_count, 3, 3)
        unit = torch.eye(3, dtype=vertices.dtype, device=vertices.device)
        features = (rotmats[:, 1:] - unit).reshape(batch, -1)
        joints = torch.einsum("jv,bvd->bjd", self.joint_regressor, vertices)
        corrected = vertices + (features @ self.pose_basis.flatten(1)).reshape(vertices.shape)
        global_rotmats, positions = self._chained(rotmats, joints)
        # Each joint moves a point x to rotation @ (x - joint) + position.
        shifts = positions - torch.einsum("bjik,bjk->bji", global_rotmats, joints)
        blended_rotmats = torch.einsum("vj,bjik->bvik", self.weights, global_rotmats)
        blended_shifts = torch.einsum("vj,bji->bvi", self.weights, shifts)
        return torch.einsum("bvik,bvk->bvi", blended_rotmats, corrected) + blended_shifts

    def _chained(
        self, rotmats: Float[Tensor, "B J 3 3"], joints: Float[Tensor, "B J 3"]
    ) -> tuple[Float[Tensor, "B J 3 3"], Float[Tensor, "B J 3"]]:
        """Global rotation and position of every joint, from the root outwards."""
        global_rotmats, positions = [rotmats[:, 0]], [joints[:, 0]]
        for j, parent in enumerate(self.parents.tolist()):
            if j == 0:
                continue
            offset = joints[:, j] - joints[:, parent]
            global_rotmats.append(global_rotmats[parent] @ rotmats[:, j])
            positions.append(positions[parent] + torch.einsum("bik,bk->bi", global_rotmats[parent], offset))
        return torch.stack(global_rotmats, 1), torch.stack(positions, 1)
