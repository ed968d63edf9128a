"""How far the eyes are open: a term of the fit for the distance between upper and lower lid.

The position of a detected point errs by as much as an eye is open, but upper and lower lid err together: their distance
is known ten times better. Without a term of its own, the distance loses against the prior of the expression, and closed
eyes open half way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.camera import Camera
from mien.fitting.point_model import PointModel
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import MEDIAPIPE_EYE_CORNERS, MEDIAPIPE_EYES, MEDIAPIPE_OUTER_EYE_CORNERS
from mien.typing import Float, Tensor

PAIRS = tuple((eye[16 - k], eye[k]) for eye in MEDIAPIPE_EYES for k in (3, 4, 5))
"""Upper and lower point of the three middle pairs of each eye, right eye first."""
CLOSED_OPENING = 0.085
"""Opening that the mesh network shows for closed eyes, as a share of the eye's width. On renderings of the packaged
model with closed eyes it is 0.085 ± 0.05."""
UNBIASED_OPENING = 0.3
"""Opening of a relaxed eye, from which on the network's opening is taken as it is."""
SHAPES = ("eyeBlink", "eyeSquint", "eyeWide")
"""ARKit's blendshapes that move the lids, each with a Left and a Right one."""
STEPS = 6
"""Gauss-Newton steps of `fit_lids`; the distance is almost linear in the blendshapes."""


@dataclass(frozen=True)
class LidGaps:
    """Distances between upper and lower lid in photos, in standard deviations."""

    up: Float[Tensor, "B 2"]
    """Direction across the eyes in the image, divided by the standard deviation of a distance, 1/pixels."""
    detected: Float[Tensor, "B 6"]
    """Distance of each of `PAIRS`, standard deviations."""

    @classmethod
    def of(cls, points_px: Float[Tensor, "B 468 2"], *, sigma: float) -> LidGaps:
        """Measure the distances of detected points.

        Args:
            points_px: MediaPipe's points, pixels.
            sigma: Standard deviation of a distance, as a share of the width of the wider eye.
        """
        right, left = MEDIAPIPE_OUTER_EYE_CORNERS
        along = torch.nn.functional.normalize(points_px[:, left] - points_px[:, right], dim=-1)
        up = torch.stack([along[:, 1], -along[:, 0]], dim=-1)
        width = _widths(points_px)
        gaps = cls(up, up.new_zeros(len(up), len(PAIRS))).residuals(points_px).clamp(min=0).unflatten(1, (2, -1))
        opening = gaps.mean(-1) / width
        excess = CLOSED_OPENING * (1 - opening / UNBIASED_OPENING).clamp(min=0)
        share = (1 - excess / opening.clamp(min=1e-6)).clamp(min=0)
        sigma_px = sigma * width.amax(1)
        return cls(up / sigma_px[:, None], (gaps * share[..., None]).flatten(1) / sigma_px[:, None])

    def across(self, points: Float[Tensor, "B 468 2 *C"]) -> Float[Tensor, "B 6 *C"]:
        """Distances between the lids of projected points, or of their derivatives; linear.

        Args:
            points: Pixels.

        Returns:
            Standard deviations.
        """
        upper, lower = (list(side) for side in zip(*PAIRS, strict=True))
        return torch.einsum("bpi...,bi->bp...", points[:, upper] - points[:, lower], self.up)

    def residuals(self, points_px: Float[Tensor, "B 468 2"]) -> Float[Tensor, "B 6"]:
        """Errors of the distances of projected points, standard deviations; differentiable."""
        return self.across(points_px) - self.detected


def _widths(points_px: Float[Tensor, "B 468 2"]) -> Float[Tensor, "B 2"]:
    """Distance of the corners of each eye, pixels, at least 1."""
    widths = [(points_px[:, a] - points_px[:, b]).norm(dim=-1) for a, b in MEDIAPIPE_EYE_CORNERS]
    return torch.stack(widths, 1).clamp(min=1.0)


def lid_openings(points_px: Float[Tensor, "B 468 2"]) -> Float[Tensor, "B 2"]:
    """Detected distance between the lids of the right and the left eye, as shares of the eyes' widths.

    Args:
        points_px: MediaPipe's points, pixels.

    Returns:
        About 0.3 for relaxed eyes; `CLOSED_OPENING`, not 0, for closed ones.
    """
    lids = LidGaps.of(points_px, sigma=1.0)
    scale = lids.up.norm(dim=-1, keepdim=True)  # 1 over the width of the wider eye
    gaps = LidGaps(lids.up / scale, lids.detected * 0).residuals(points_px).clamp(min=0)
    return gaps.unflatten(1, (2, -1)).mean(-1) / _widths(points_px)


def fit_lids(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    points_px: Float[Tensor, "B 468 2"],
    sigma: float,
    expression_sigma: float,
) -> FaceCoefficients:
    """Open or close the lids of faces as far as the detected points show; everything else is kept.

    An encoder sees an eye on a few pixels and predicts the mean of its uncertainty, which is neither open nor closed.
    The blendshapes of the lids are fitted to the distances, with a Gaussian prior around their prediction.

    Args:
        model: The morphable model. Without ARKit's blendshapes of the lids, the faces are returned unchanged.
        coefficients: The faces.
        camera: One camera per face.
        points_px: MediaPipe's points, pixels.
        sigma: Standard deviation of a distance, as a share of the width of the wider eye.
        expression_sigma: Standard deviation of the blendshapes around the given ones.

    Returns:
        The faces with other strengths of the blendshapes of `SHAPES`; not differentiable.
    """
    names = [shape + side for shape in SHAPES for side in ("Left", "Right")]
    chosen = [model.expression_names.index(name) for name in names if name in model.expression_names]
    if not chosen:
        return coefficients
    lids, (least, largest) = LidGaps.of(points_px, sigma=sigma), model.expression_range
    point_model = PointModel.of(model)
    points = point_model.points(coefficients)
    start_camera = coefficients.pose.to_camera(points)
    bases = point_model.basis[:, :, [model.counts[0] + k for k in chosen]].to(points).permute(2, 0, 1)
    moved_camera = torch.stack([coefficients.pose.to_camera(points + basis) for basis in bases], dim=-1)
    bases_camera = moved_camera - start_camera[..., None]  # B P 3 K
    start = coefficients.expression[:, chosen]
    strength = start.clamp(least, largest)
    for _ in range(STEPS):
        offset = strength - start
        moved = start_camera + (bases_camera @ offset[:, None, :, None])[..., 0]
        residuals, z = lids.residuals(camera.project(moved)), moved[..., 2:, None]
        along_ray = moved[..., :2, None] / z * bases_camera[:, :, 2:]
        jacobian = lids.across(camera.focal_px[:, None, None, None] * (bases_camera[:, :, :2] - along_ray) / z)
        gradient = torch.einsum("bpk,bp->bk", jacobian, residuals) + offset / expression_sigma**2
        held = ((strength <= least) & (gradient > 0)) | ((strength >= largest) & (gradient < 0))
        free = (~held).to(gradient)
        hessian = (jacobian.mT @ jacobian) * free[:, :, None] * free[:, None, :]
        hessian = hessian + torch.diag_embed(free / expression_sigma**2 + (1 - free))
        strength = (strength - torch.linalg.solve(hessian, gradient * free)).clamp(least, largest)
    expression = coefficients.expression.clone()
    expression[:, chosen] = strength
    return replace(coefficients, expression=expression)
