"""Pose, identity and expression from landmarks: a closed-form start, then damped Gauss-Newton.

The unknowns are few (6 + 160 + 52) and the Jacobian of a projected linear model is known exactly, so a second-order
method finds in a dozen steps what first-order descent does not find in hundreds.

Computed in double precision: BLAS may round differently from call to call, depending on where its operands lie in
memory, and the photo's result must not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.camera import CAMERA_FROM_MODEL, Camera, Pose
from mien.geometry import cross_matrix, rotmat_to_rotvec, rotvec_to_rotmat
from mien.morphable import FaceCoefficients, MorphableModel
from mien.typing import Float, Tensor

ITERATIONS = 14
POSE_ITERATIONS = 6
"""Steps in which only the pose moves, so that the mean face is in place before it deforms."""
WARM_ITERATIONS = 8
"""Steps from a guess."""
ROBUST_SCALE = 3.0
"""Errors beyond this many sigmas lose their pull (Geman-McClure): a hand before the mouth must not bend the face."""


@dataclass(frozen=True)
class LandmarkPriors:
    """Standard deviations of the landmark fit."""

    landmark_sigma: float
    identity_sigma: float
    expression_sigma: float
    focal_sigma: float | None
    """Of the logarithm of the focal length; None holds it."""


@dataclass(frozen=True)
class LandmarkFit:
    """What the landmarks say of a batch of faces."""

    identity: Float[Tensor, "B I"]
    expression: Float[Tensor, "B E"]
    pose: Pose
    camera: Camera


def initial_pose(points: Float[Tensor, "B P 3"], points_px: Float[Tensor, "B P 2"], camera: Camera) -> Pose:
    """Pose from correspondences in closed form: least squares under scaled orthography, made a rotation by SVD.

    The scale becomes the distance at which the pinhole shows the points that large.
    """
    centroid, centroid_px = points.mean(1, keepdim=True), points_px.mean(1, keepdim=True)
    affine = torch.linalg.lstsq(points - centroid, points_px - centroid_px).solution.mT  # B 2 3
    affine = affine * affine.new_tensor([[1.0], [-1.0]])  # rows of the model's rotation: y is up there
    row_scale = affine.norm(dim=-1)
    third = torch.cross(affine[:, 0], affine[:, 1], dim=-1)
    U, _, Vh = torch.linalg.svd(torch.stack([*affine.unbind(1), third / row_scale.mean(-1, keepdim=True)], dim=1))
    rotation = U @ Vh
    distance = camera.focal_px / row_scale.mean(-1).clamp(min=1e-9)
    flip = points.new_tensor(CAMERA_FROM_MODEL)
    ray = (centroid_px[:, 0] - camera.centre_px) / camera.focal_px[:, None]
    centre = torch.cat([ray, torch.ones_like(ray[:, :1])], dim=-1) * distance[:, None]
    turned = torch.einsum("bij,bj->bi", rotation, centroid[:, 0]) * flip
    return Pose(rotmat_to_rotvec(rotation), centre - turned, torch.ones_like(distance))


def placed_on_points(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    points_px: Float[Tensor, "B 468 2"],
    point_weights: Float[Tensor, "B 468"],
) -> FaceCoefficients:
    """The same faces moved and sized, shape and turn as they are, so that their points lie on given ones.

    Least squares of the projected points; exact but for the change of perspective. Differentiable.
    """
    pose, share = coefficients.pose, (point_weights / point_weights.sum(1, keepdim=True))[..., None]
    vertices = pose.to_camera(model.vertices(coefficients.identity, coefficients.expression))
    own_px = camera.project(model.mediapipe_points(vertices))
    own_centre, centre = (share * own_px).sum(1, keepdim=True), (share * points_px).sum(1, keepdim=True)
    own, given = own_px - own_centre, points_px - centre
    growth = (share * own * given).sum((1, 2)) / (share * own.square()).sum((1, 2))
    origin_px = camera.project(pose.translation[:, None])
    origin_px = (centre + (origin_px - own_centre) * growth[:, None, None])[:, 0]
    ray = (origin_px - camera.centre_px) / camera.focal_px[:, None]
    depth = pose.translation[:, 2:] / growth[:, None]
    translation = torch.cat([ray, torch.ones_like(depth)], dim=-1) * depth
    return replace(coefficients, pose=replace(pose, translation=translation))


def fit_landmarks(
    model: MorphableModel,
    points_px: Float[Tensor, "B 468 2"],
    camera: Camera,
    *,
    point_weights: Float[Tensor, "B 468"],
    priors: LandmarkPriors,
    start: FaceCoefficients | None = None,
) -> LandmarkFit:
    """The most probable pose, identity and expression given MediaPipe's points.

    `start` is somebody's guess, a network's: the search begins there, and the priors of shape are centred on it.
    """
    problem = _Problem(model, points_px, camera, point_weights, priors=priors, guess=start)
    state = problem.start()
    alone = start is None
    for iteration in range(ITERATIONS if alone else WARM_ITERATIONS):
        state = problem.step(state, pose_only=alone and iteration < POSE_ITERATIONS)
    identity, expression = state.shape.to(points_px).split(model.counts[:2], dim=1)
    translation = state.translation.to(points_px)
    pose = Pose(rotmat_to_rotvec(state.rotation).to(points_px), translation, torch.ones_like(translation[:, 0]))
    return LandmarkFit(identity, expression, pose, camera.with_focal_scale(state.log_focal.exp().to(points_px)))


@dataclass(frozen=True)
class _State:
    rotation: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]
    log_focal: Float[Tensor, "B"]
    shape: Float[Tensor, "B K"]
    """Identity, then expression."""


class _Problem:
    """The least-squares problem of one batch; unknowns in the order rotation, translation, focal length, shape."""

    RIGID = 7

    def __init__(
        self,
        model: MorphableModel,
        points_px: Float[Tensor, "B 468 2"],
        camera: Camera,
        point_weights: Float[Tensor, "B 468"],
        *,
        priors: LandmarkPriors,
        guess: FaceCoefficients | None,
    ) -> None:
        self.guess = guess
        self.camera, self.target = camera.double(), points_px.double()
        self.flip = self.target.new_tensor(CAMERA_FROM_MODEL)
        corners, weights = model.mediapipe_vertices, model.mediapipe_barycentrics[..., None].double()
        self.mean = (model.mean[corners] * weights).sum(1)
        bases = [(basis[:, corners] * weights).sum(2) for basis in (model.identity_basis, model.expression_basis)]
        self.basis = torch.cat(bases).permute(1, 2, 0)  # P 3 K
        identity_count, expression_count, _ = model.counts
        self.is_expression = torch.arange(identity_count + expression_count, device=points_px.device) >= identity_count
        self.least, self.largest = model.expression_range
        focal_sigma = priors.focal_sigma or 1e-6
        self.prior_precision = torch.cat(
            [
                torch.zeros(6),
                torch.tensor([focal_sigma**-2]),
                torch.full((identity_count,), priors.identity_sigma**-2),
                torch.full((expression_count,), priors.expression_sigma**-2),
            ]
        ).to(self.target)
        extent = (self.target.amax(1) - self.target.amin(1)).norm(dim=-1)
        self.sigma_px = priors.landmark_sigma * extent
        self.point_weights = point_weights

        self.centre = self.target.new_zeros(len(self.target), identity_count + expression_count)
        if guess is not None:
            self.centre = torch.cat([guess.identity, guess.expression.clamp(self.least, self.largest)], dim=1).double()

    def start(self) -> _State:
        if self.guess is not None:
            pose = self.guess.pose
            log_focal = torch.zeros_like(pose.scale).double()
            return _State(pose.rotmat().double(), pose.translation.double(), log_focal, self.centre)
        batch = len(self.target)
        pose = initial_pose(self.mean.expand(batch, -1, -1), self.target, self.camera)
        shape = self.target.new_zeros(batch, self.basis.shape[-1])
        return _State(rotvec_to_rotmat(pose.rotation), pose.translation, torch.zeros_like(pose.scale), shape)

    def step(self, state: _State, *, pose_only: bool) -> _State:
        """One damped Gauss-Newton step under robust weights, with expression held in the model's range."""
        residuals, jacobian = self._linearise(state)
        weights = self._weights(residuals)
        weighted = jacobian * weights[..., None, None]
        hessian = torch.einsum("bpik,bpil->bkl", weighted, jacobian) + torch.diag(self.prior_precision)
        off_centre = state.shape - self.centre
        values = torch.cat([torch.zeros_like(state.translation).repeat(1, 2), state.log_focal[:, None], off_centre], 1)
        gradient = torch.einsum("bpik,bpi->bk", weighted, residuals) + self.prior_precision * values
        held = self._held(state, gradient, pose_only=pose_only)
        gradient = gradient.masked_fill(held, 0.0)
        free = (~held).to(hessian)
        hessian = hessian * free[:, :, None] * free[:, None, :] + torch.diag_embed(held.to(hessian))
        damping = 1e-5 * hessian.diagonal(dim1=1, dim2=2) + 1e-8
        # Cholesky, not LU: MKL's LU fails on batches of two and more when it runs on several threads.
        factor = torch.linalg.cholesky(hessian + torch.diag_embed(damping))
        delta = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        return self._moved(state, delta)

    def _linearise(self, state: _State) -> tuple[Float[Tensor, "B P 2"], Float[Tensor, "B P 2 K"]]:
        shaped = self.mean + torch.einsum("pik,bk->bpi", self.basis, state.shape)
        turned = torch.einsum("bij,bpj->bpi", state.rotation, shaped)
        points = turned * self.flip + state.translation[:, None]
        focal = (self.camera.focal_px * state.log_focal.exp())[:, None]
        x, y, z = points.unbind(-1)
        from_centre = focal[..., None] * points[..., :2] / z[..., None]
        residuals = from_centre + self.camera.centre_px[:, None] - self.target
        zero = torch.zeros_like(z)
        d_projection = torch.stack(
            [focal / z, zero, -focal * x / z**2, zero, focal / z, -focal * y / z**2], dim=-1
        ).view(*z.shape, 2, 3)
        d_turned = d_projection * self.flip
        batch, count = z.shape
        d_rotation = -d_turned @ cross_matrix(turned.reshape(-1, 3)).view(batch, count, 3, 3)
        d_shape = torch.einsum("bpij,bjl,plk->bpik", d_turned, state.rotation, self.basis)
        return residuals, torch.cat([d_rotation, d_projection, from_centre[..., None], d_shape], dim=-1)

    def _weights(self, residuals: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P"]:
        scaled_sq = (residuals**2).sum(-1) / self.sigma_px[:, None] ** 2
        robust = (1 + scaled_sq / ROBUST_SCALE**2) ** -2
        return self.point_weights * robust / self.sigma_px[:, None] ** 2

    def _held(self, state: _State, gradient: Tensor, *, pose_only: bool) -> Tensor:
        held = torch.zeros_like(gradient, dtype=torch.bool)
        shape_gradient = gradient[:, self.RIGID :]
        at_floor = (state.shape <= self.least) & (shape_gradient > 0)
        at_ceiling = (state.shape >= self.largest) & (shape_gradient < 0)
        held[:, self.RIGID :] = (self.is_expression & (at_floor | at_ceiling)) | pose_only
        return held

    def _moved(self, state: _State, delta: Float[Tensor, "B K"]) -> _State:
        shape = state.shape + delta[:, self.RIGID :]
        bounded = shape.clamp(self.least, self.largest)
        return _State(
            rotation=rotvec_to_rotmat(delta[:, :3]) @ state.rotation,
            translation=state.translation + delta[:, 3:6],
            log_focal=state.log_focal + delta[:, 6],
            shape=torch.where(self.is_expression, bounded, shape),
        )
