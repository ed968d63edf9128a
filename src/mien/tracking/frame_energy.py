"""How well pose and expression explain the points of each frame, for a person whose identity is known.

The terms are those of the landmark fit of photos (`mien.fitting.landmarks`): points, their depth up to a plane, the
distance between the lids, and the prior of the expression. Without the identity 58 unknowns per frame remain, so that a
step over a batch of frames takes a millisecond per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.batched import Batched
from mien.camera import Camera, to_camera_axes, to_model_axes
from mien.fitting import FitSettings, mesh_point_weights
from mien.fitting.depth import plane_basis, without_plane
from mien.fitting.landmarks import initial_pose, normal_equations
from mien.fitting.lids import LidGaps
from mien.fitting.point_model import PointModel
from mien.fitting.problem import ROBUST_SCALE_SQ
from mien.geometry import cross_matrix, rotvec_to_rotmat
from mien.losses import geman_mcclure_weights
from mien.morphable import MorphableModel
from mien.tracking.gaze import LOOK_SIGMA, Pupils, eye_openness, iris_sigma_px
from mien.typing import Float, Tensor

RIGID = 6
"""Unknowns of a pose, which come first: rotation, then translation."""
POSE_STEPS, STEPS = 3, 4
"""Gauss-Newton steps from the closed-form pose: for the pose alone, then with the expression."""
DAMPING = 1e-5
"""Share of the diagonal that is added to it."""


@dataclass(frozen=True)
class Motion(Batched):
    """Pose and expression of one person in T frames, in double precision."""

    rotation: Float[Tensor, "T 3 3"]
    """From model axes to view axes."""
    translation: Float[Tensor, "T 3"]
    """Position of the model's origin in camera space, metres."""
    expression: Float[Tensor, "T E"]
    """Expression coefficients."""

    def moved(self, delta: Float[Tensor, "T K"], limits: tuple[float, float]) -> Motion:
        """Add a step of all unknowns; expressions stay in their limits."""
        turn, shift, change = delta.split([3, 3, self.expression.shape[1]], dim=1)
        return Motion(
            rotvec_to_rotmat(turn) @ self.rotation,
            self.translation + shift,
            (self.expression + change).clamp(*limits),
        )


@dataclass(frozen=True)
class PointTracks(Batched):
    """What the mesh network found of one person in T frames, in pixels of the frames."""

    points_px: Float[Tensor, "T 468 2"]
    """MediaPipe's points."""
    depths_px: Float[Tensor, "T 468"]
    """Their depth up to a plane."""
    irises_px: Float[Tensor, "T 2 2"]
    """Centres of the right and the left iris."""
    detected: Float[Tensor, "T"]
    """1 where the face was found; 0 where the other values are meaningless."""


@dataclass(frozen=True)
class ExpressionPrior:
    """Gaussian of the expression of each frame."""

    mean: Float[Tensor, "T E"]
    sigma: Float[Tensor, "E"]


class FrameEnergy:
    """The energy of frames given pose and expression, and its second-order expansion.

    Args:
        model: The morphable model.
        identity: The person.
        camera: The camera of all frames, a batch of one.
        settings: Standard deviations of the errors.
    """

    def __init__(
        self, model: MorphableModel, identity: Float[Tensor, "I"], camera: Camera, *, settings: FitSettings
    ) -> None:
        points = PointModel.of(model)
        count = model.counts[0]
        self.neutral = points.mean + points.basis[..., :count] @ identity.double()
        self.basis = points.basis[..., count:]
        self.camera, self.settings = camera.double(), settings
        self.limits = model.expression_range
        self.prior_sigma = settings.expression_sigmas(model).double()
        self.point_weights = mesh_point_weights(model).double()
        self.pupils = Pupils.of(model)
        if self.pupils is not None:
            self.neutral_pupils = self.pupils.mean + self.pupils.identity_basis @ identity.double()
            self.prior_sigma[self.pupils.looks] = LOOK_SIGMA

    @property
    def unknowns(self) -> int:
        """Number of unknowns per frame."""
        return RIGID + self.basis.shape[-1]

    def start(self, tracks: PointTracks) -> Motion:
        """The closed-form pose of the neutral face in each frame."""
        count = len(tracks)
        pose = initial_pose(self.neutral.expand(count, -1, -1), tracks.points_px.double(), self._cameras(count))
        zero = pose.translation.new_zeros(count, self.basis.shape[-1])
        return Motion(rotvec_to_rotmat(pose.rotation), pose.translation, zero)

    def solve(
        self,
        tracks: PointTracks,
        *,
        near: Motion | None = None,
        prior: ExpressionPrior | None = None,
        steps: int = STEPS,
    ) -> Motion:
        """Each frame by itself: its most probable pose and expression.

        Args:
            tracks: The frames, in which the face was found.
            near: Where the search begins; None for the closed-form pose.
            prior: Prior of the expression; None for that of photos.
            steps: Gauss-Newton steps after those for the pose alone.
        """
        motion = near or self.start(tracks)
        for step in range(steps if near is not None else POSE_STEPS + steps):
            pose_only = near is None and step < POSE_STEPS
            hessian, gradient = self.expansion(motion, tracks, prior=prior)
            held = self.held(motion, gradient)
            held[:, RIGID:] |= pose_only
            motion = motion.moved(-solve_free(hessian, gradient, held), self.limits)
        return motion

    def expansion(
        self, motion: Motion, tracks: PointTracks, *, prior: ExpressionPrior | None = None
    ) -> tuple[Float[Tensor, "T K K"], Float[Tensor, "T K"]]:
        """Gauss-Newton's matrix and the gradient of the energy of each frame; zero where no face was found.

        Args:
            motion: Where to expand.
            tracks: The points.
            prior: As in `solve`.
        """
        target = tracks.points_px.double()
        residuals, jacobian, weights = self._linearised(motion, tracks)
        weights = weights * tracks.detected.double()[:, None, None]
        hessian, gradient = normal_equations(jacobian.flatten(1, 2), residuals.flatten(1), weights.flatten(1))
        lids = LidGaps.of(target, sigma=self.settings.lid_sigma)
        across = lids.across(jacobian[:, :, :2]) * tracks.detected.double()[:, None, None]
        hessian = hessian + across.mT @ across
        gradient = gradient + torch.einsum("bpk,bp->bk", across, lids.residuals(target + residuals[..., :2]))
        if self.pupils is not None:
            d_irises, offsets = self._irises(motion, tracks, self.pupils)
            hessian = hessian + d_irises.mT @ d_irises
            gradient = gradient + torch.einsum("brk,br->bk", d_irises, offsets)
        mean, sigma = (0.0, self.prior_sigma) if prior is None else (prior.mean, prior.sigma)
        hessian.diagonal(dim1=1, dim2=2)[:, RIGID:] += sigma**-2
        gradient[:, RIGID:] += (motion.expression - mean) * sigma**-2
        return hessian, gradient

    def held(self, motion: Motion, gradient: Float[Tensor, "T K"]) -> Tensor:
        """Unknowns (T, K) at a limit of the expression that a step would cross."""
        least, largest = self.limits
        slope = gradient[:, RIGID:]
        crossing = ((motion.expression <= least) & (slope > 0)) | ((motion.expression >= largest) & (slope < 0))
        return torch.cat([torch.zeros_like(gradient[:, :RIGID], dtype=torch.bool), crossing], dim=1)

    def points_camera(self, motion: Motion) -> Float[Tensor, "T 468 3"]:
        """MediaPipe's points of the face in camera space, metres."""
        shaped = self.neutral + torch.einsum("pik,bk->bpi", self.basis, motion.expression)
        return to_camera_axes(torch.einsum("bij,bpj->bpi", motion.rotation, shaped)) + motion.translation[:, None]

    def _cameras(self, count: int) -> Camera:
        return self.camera[torch.zeros(count, dtype=torch.int64)]

    def _linearised(
        self, motion: Motion, tracks: PointTracks
    ) -> tuple[Float[Tensor, "T P R"], Float[Tensor, "T P R K"], Float[Tensor, "T P R"]]:
        """Residuals of x, y and depth, their Jacobian and weights."""
        target, focal = tracks.points_px.double(), self.camera.focal_px[0]
        points = self.points_camera(motion)
        z = points[..., 2]
        mean_z = z.mean(1, keepdim=True)
        offset = focal * points[..., :2] / z[..., None] + self.camera.centre_px - target
        planes = plane_basis(target)
        away = without_plane(focal * z / mean_z - tracks.depths_px.double(), planes)
        jacobian = self._derivatives(points, motion, self.basis)
        # The third row is the derivative of z so far; the residual is focal · z / mean(z), up to a plane.
        d_z = jacobian[:, :, 2]
        d_z = (focal / mean_z)[..., None] * (d_z - (z / mean_z)[..., None] * d_z.mean(1, keepdim=True))
        jacobian[:, :, 2] = without_plane(d_z, planes)
        extent = (target.amax(1) - target.amin(1)).norm(dim=-1).clamp(min=1.0)
        weights = torch.stack(
            [
                self._weights((offset**2).sum(-1), self.settings.landmark_sigma * extent),
                self._weights(away**2, self.settings.depth_sigma * extent),
            ],
            dim=-1,
        )[..., [0, 0, 1]]
        return torch.cat([offset, away[..., None]], dim=-1), jacobian, weights

    def _derivatives(
        self, points: Float[Tensor, "T P 3"], motion: Motion, basis: Float[Tensor, "P 3 E"]
    ) -> Float[Tensor, "T P 3 K"]:
        """Derivatives of the projection, x and y, and of the depth of points in camera space by all unknowns."""
        focal, (x, y, z) = self.camera.focal_px[0], points.unbind(-1)
        zero = torch.zeros_like(z)
        d_point = torch.stack(
            [focal / z, zero, -focal * x / z**2, zero, focal / z, -focal * y / z**2, zero, zero, torch.ones_like(z)],
            dim=-1,
        ).view(*z.shape, 3, 3)
        d_rotated = to_model_axes(d_point)
        rotated = to_model_axes(points - motion.translation[:, None])
        d_rotation = -d_rotated @ cross_matrix(rotated.reshape(-1, 3)).view(*z.shape, 3, 3)
        return torch.cat([d_rotation, d_point, (d_rotated @ motion.rotation[:, None]) @ basis], dim=-1)

    def _irises(
        self, motion: Motion, tracks: PointTracks, pupils: Pupils
    ) -> tuple[Float[Tensor, "T R K"], Float[Tensor, "T R"]]:
        """Jacobian and residuals of the pupils' positions, standard deviations; zero for closed eyes."""
        points_px = tracks.points_px.double()
        shaped = self.neutral_pupils + torch.einsum("pik,bk->bpi", pupils.expression_basis, motion.expression)
        points = to_camera_axes(torch.einsum("bij,bpj->bpi", motion.rotation, shaped)) + motion.translation[:, None]
        projected = self.camera.focal_px[0] * points[..., :2] / points[..., 2:] + self.camera.centre_px
        root = (eye_openness(points_px).sqrt() * tracks.detected.double()[:, None] / iris_sigma_px(points_px))[
            ..., None
        ]
        jacobian = self._derivatives(points, motion, pupils.expression_basis)[:, :, :2] * root[..., None]
        # Only the looks follow the irises: pose and lids are seen better elsewhere.
        jacobian[..., :RIGID] = 0
        jacobian[..., RIGID:] *= pupils.looks
        return jacobian.flatten(1, 2), ((projected - tracks.irises_px.double()) * root).flatten(1)

    def _weights(self, squared: Float[Tensor, "T P"], sigma_px: Float[Tensor, "T"]) -> Float[Tensor, "T P"]:
        precision = sigma_px[:, None] ** -2
        return self.point_weights * precision * geman_mcclure_weights(squared * precision, scale_sq=ROBUST_SCALE_SQ)


def solve_free(hessian: Float[Tensor, "T K K"], gradient: Float[Tensor, "T K"], held: Tensor) -> Float[Tensor, "T K"]:
    """Solve each frame's equations for the unknowns that are not held."""
    matrix, right = without_held(hessian, gradient, held)
    damping = DAMPING * matrix.diagonal(dim1=1, dim2=2) + 1e-8
    factor = torch.linalg.cholesky(matrix + torch.diag_embed(damping))
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def without_held(
    hessian: Float[Tensor, "T K K"], gradient: Float[Tensor, "T K"], held: Tensor
) -> tuple[Float[Tensor, "T K K"], Float[Tensor, "T K"]]:
    """The equations with those of held unknowns replaced by 1 · x = 0."""
    free = (~held).to(hessian)
    return hessian * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free), gradient * free
