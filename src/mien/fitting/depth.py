"""The depth that the mesh network predicts for its points, as an input of the fit.

MediaPipe's z is in pixels, as x and y are, but it is measured from the centre of the head, and its axis is not exactly
that of the camera. On photos with scans the error of z has a plane in x and y, a turn of the head whose mean is below
1° and that varies by 1° about the vertical axis and 3° about the horizontal one. So the fit compares depths only after
the best plane is removed from their difference: what remains says how far nose, lips and chin stand out.
`benchmarks/scans.py --points` measures both.
"""

from __future__ import annotations

import torch

from mien.camera import Camera
from mien.typing import Float, Tensor


def depth_px(points: Float[Tensor, "B P 3"], camera: Camera) -> Float[Tensor, "B P"]:
    """Depth in pixels at the mean depth of the points, differentiable.

    Args:
        points: Camera space, metres.
        camera: One camera per face.
    """
    depth = points[..., 2]
    return camera.focal_px[:, None] * depth / depth.mean(1, keepdim=True)


def plane_basis(points_px: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P 3"]:
    """Orthonormal basis of all functions of the points that are planes in x and y."""
    centred = points_px - points_px.mean(1, keepdim=True)
    return torch.linalg.qr(torch.cat([centred, torch.ones_like(centred[..., :1])], dim=-1)).Q


def without_plane(values: Float[Tensor, "B P *C"], basis: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P *C"]:
    """Values at the points minus their least-squares plane; differentiable in the values."""
    flat = values.flatten(2) if values.ndim > 2 else values[..., None]
    return (flat - basis @ (basis.mT @ flat)).view_as(values)
