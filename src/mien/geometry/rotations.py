"""Rotation vectors and matrices."""

from __future__ import annotations

import torch

from mien.typing import Float, Tensor

# Below this squared angle the sine quotients are taken from their Taylor series: float32 loses them otherwise.
SMALL_ANGLE_SQ = 1e-8


def rotvec_to_rotmat(rotvec: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Rotation matrices of rotation vectors (axis times angle in radians), by Rodrigues' formula.

    Differentiable everywhere, the zero rotation included.
    """
    angle_sq = (rotvec * rotvec).sum(-1)[:, None, None]
    small = angle_sq < SMALL_ANGLE_SQ
    safe_sq = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = safe_sq.sqrt()
    sine_quotient = torch.where(small, 1 - angle_sq / 6, torch.sin(angle) / angle)
    cosine_quotient = torch.where(small, 0.5 - angle_sq / 24, (1 - torch.cos(angle)) / safe_sq)
    K = cross_matrix(rotvec)
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return identity + sine_quotient * K + cosine_quotient * (K @ K)


def rotmat_to_rotvec(rotmat: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3"]:
    """Rotation vectors of rotation matrices, exact up to half a turn; not meant to be differentiated.

    The axis comes from the quaternion's largest component (Shepperd 1978), so that half turns are safe.
    """
    m = rotmat
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1)
    squares = torch.cat([trace[:, None], diagonal], dim=-1)
    largest = squares.argmax(dim=-1)
    sums = torch.stack(
        [
            torch.stack([1 + trace, m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1),
            torch.stack(
                [
                    m[:, 2, 1] - m[:, 1, 2],
                    1 + 2 * m[:, 0, 0] - trace,
                    m[:, 0, 1] + m[:, 1, 0],
                    m[:, 0, 2] + m[:, 2, 0],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[:, 0, 2] - m[:, 2, 0],
                    m[:, 0, 1] + m[:, 1, 0],
                    1 + 2 * m[:, 1, 1] - trace,
                    m[:, 1, 2] + m[:, 2, 1],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[:, 1, 0] - m[:, 0, 1],
                    m[:, 0, 2] + m[:, 2, 0],
                    m[:, 1, 2] + m[:, 2, 1],
                    1 + 2 * m[:, 2, 2] - trace,
                ],
                -1,
            ),
        ],
        dim=1,
    )  # each row is the quaternion (w, x, y, z) times four times one of its components
    quaternion = torch.nn.functional.normalize(sums[torch.arange(len(m), device=m.device), largest], dim=-1)
    quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
    sine = quaternion[:, 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[:, :1])
    return torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), torch.full_like(sine, 2.0)) * quaternion[:, 1:]


def compose_rotations(second: Float[Tensor, "B 3"], first: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """The rotation vector of `first` followed by `second`, at most half a turn long.

    Differentiable, the zero rotation included, by way of quaternions.
    """
    a, b = _rotvec_to_quaternion(second), _rotvec_to_quaternion(first)
    scalar = a[:, :1] * b[:, :1] - (a[:, 1:] * b[:, 1:]).sum(-1, keepdim=True)
    vector = a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + torch.cross(a[:, 1:], b[:, 1:], dim=-1)
    flip = torch.where(scalar < 0, -1.0, 1.0)
    scalar, vector = scalar * flip, vector * flip
    sine_sq = vector.square().sum(-1, keepdim=True)
    small = sine_sq < SMALL_ANGLE_SQ
    sine = torch.where(small, torch.ones_like(sine_sq), sine_sq).sqrt()
    angle_quotient = 2 * torch.atan2(sine, scalar) / sine
    return vector * torch.where(small, 2 / scalar.clamp(min=0.5), angle_quotient)


def _rotvec_to_quaternion(rotvec: Float[Tensor, "B 3"]) -> Float[Tensor, "B 4"]:
    half = rotvec / 2
    angle_sq = half.square().sum(-1, keepdim=True)
    small = angle_sq < SMALL_ANGLE_SQ
    angle = torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    quotient = torch.where(small, 1 - angle_sq / 6, torch.sin(angle) / angle)
    return torch.cat([torch.where(small, 1 - angle_sq / 2, torch.cos(angle)), half * quotient], dim=-1)


def cross_matrix(vector: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """The matrices that take the cross product with each vector."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
