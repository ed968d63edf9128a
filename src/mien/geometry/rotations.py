"""Rotation vectors and matrices."""

from __future__ import annotations

import torch

from mien.typing import Float, Tensor

SMALL_ANGLE_SQ = 1e-8
"""Below this squared angle, sin(x)/x and its like are computed by their Taylor series; float32 would lose them."""


def rotvec_to_rotmat(rotvec: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Rotation matrices of rotation vectors, by Rodrigues' formula.

    Args:
        rotvec: Axis times angle, radians.

    Returns:
        Rotation matrices; differentiable, also at the zero rotation.
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


def left_jacobian(rotvec: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """How a small change of a rotation vector turns the rotated frame.

    For J = left_jacobian(r) and a small d, exp([r + d]ₓ) = exp([J d]ₓ) exp([r]ₓ) (Chirikjian 2012, eq. 10.86).

    Args:
        rotvec: Axis times angle, radians.

    Returns:
        One matrix per rotation vector; differentiable.
    """
    angle_sq = (rotvec * rotvec).sum(-1)[:, None, None]
    small = angle_sq < SMALL_ANGLE_SQ
    safe_sq = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = safe_sq.sqrt()
    cosine_quotient = torch.where(small, 0.5 - angle_sq / 24, (1 - torch.cos(angle)) / safe_sq)
    cubic_quotient = torch.where(small, 1 / 6 - angle_sq / 120, (angle - torch.sin(angle)) / (safe_sq * angle))
    K = cross_matrix(rotvec)
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return identity + cosine_quotient * K + cubic_quotient * (K @ K)


def rotmat_to_rotvec(rotmat: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3"]:
    """Rotation vectors of rotation matrices, exact up to half a turn.

    The axis comes from the largest component of the quaternion (Shepperd 1978), so that half turns are safe.

    Args:
        rotmat: Rotation matrices.

    Returns:
        Axis times angle in radians, at most π long. Do not differentiate it: the gradient is not defined everywhere.
    """
    quaternion = _rotmat_to_quaternion(rotmat)
    quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
    sine = quaternion[:, 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[:, :1])
    return torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), torch.full_like(sine, 2.0)) * quaternion[:, 1:]


def _rotmat_to_quaternion(m: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 4"]:
    """Unit quaternions (w, x, y, z), with either sign."""
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1)
    largest = torch.cat([trace[:, None], diagonal], dim=-1).argmax(dim=-1)
    xx, yy, zz = (1 + 2 * diagonal - trace[:, None]).unbind(-1)
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    # Each row is the quaternion times four times one of its components.
    rows = [[1 + trace, wx, wy, wz], [wx, xx, xy, xz], [wy, xy, yy, yz], [wz, xz, yz, zz]]
    products = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
    return torch.nn.functional.normalize(products[torch.arange(len(m), device=m.device), largest], dim=-1)


def compose_rotations(second: Float[Tensor, "B 3"], first: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """The rotation vector of `first` followed by `second`, by way of quaternions.

    Args:
        second: Axis times angle of the outer rotation, radians.
        first: Axis times angle of the rotation that is applied first, radians.

    Returns:
        Axis times angle, at most π long; differentiable, also at the zero rotation.
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
    """The matrix [v]ₓ of each vector, with [v]ₓ x = v × x."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
