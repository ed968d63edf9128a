"""Pose, identity and expression from landmarks: a closed-form start, then damped Gauss-Newton steps.

There are few unknowns (6 + 160 + 52), and the Jacobian of a projected linear model is known exactly. A second-order
method therefore needs a dozen steps, where first-order descent does not converge in hundreds.

All is computed in double precision. BLAS rounds differently from call to call, depending on the position of its
operands in memory; the result for a photo must not change with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.camera import Camera, Pose, to_camera_axes, to_model_axes
from mien.fitting.depth import plane_basis, without_plane
from mien.fitting.identity_prior import identity_precision
from mien.fitting.lids import LidGaps
from mien.fitting.point_model import PointModel
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import ROBUST_SCALE_SQ
from mien.geometry import cross_matrix, rotmat_to_rotvec, rotvec_to_rotmat
from mien.losses import geman_mcclure, geman_mcclure_weights
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rasterizer.cpu import native
from mien.typing import Float, Tensor

ITERATIONS = 14
"""Steps from the closed-form pose of the mean face."""
POSE_ITERATIONS = 6
"""The first steps, in which only the pose changes: the mean face is in place before it deforms."""
WARM_ITERATIONS = 8
"""Steps from a given start."""
DAMPING, DAMPING_FLOOR = 1e-5, 1e-8
"""Levenberg-Marquardt's damping: a share of the diagonal, and a constant."""


@dataclass(frozen=True)
class LandmarkPriors:
    """Standard deviations of the landmark fit."""

    landmark_sigma: float
    """Error of a point, as a share of the size of the face in the image."""
    depth_sigma: float
    """Error of the depth of a point, in the same unit."""
    lid_sigma: float
    """Error of the distance between upper and lower lid, as a share of the eye's width."""
    identity_sigma: float
    """Factor of the standard deviations of the identity, see `mien.fitting.identity_prior`."""
    expression_sigma: float | Float[Tensor, "E"]
    """Expression coefficients, all or each."""
    focal_sigma: float | None
    """Logarithm of the focal length; None keeps the given focal length."""


@dataclass(frozen=True)
class LandmarkFit:
    """Faces that were fitted to landmarks."""

    identity: Float[Tensor, "B I"]
    """Identity coefficients, standard deviations."""
    expression: Float[Tensor, "B E"]
    """Expression coefficients, in the range of the model."""
    pose: Pose
    """Poses of scale 1."""
    camera: Camera
    """The given cameras, with the fitted focal length."""


def initial_pose(points: Float[Tensor, "B P 3"], points_px: Float[Tensor, "B P 2"], camera: Camera) -> Pose:
    """Pose from correspondences in closed form.

    The least-squares affine map from points to pixels is reduced to a rotation by SVD (scaled orthography). Its scale
    gives the distance at which the pinhole camera shows the points at that size.

    Args:
        points: Model space, metres; at least four points that do not lie in one plane.
        points_px: Projection of each point, pixels.
        camera: One camera per face.

    Returns:
        Poses of scale 1.
    """
    centroid, centroid_px = points.mean(1, keepdim=True), points_px.mean(1, keepdim=True)
    solution = torch.linalg.lstsq(points - centroid, points_px - centroid_px).solution  # B 3 2
    affine = to_model_axes(solution).mT  # the first two rows of the scaled rotation
    row_scale = affine.norm(dim=-1)
    third = torch.cross(affine[:, 0], affine[:, 1], dim=-1)
    U, _, Vh = torch.linalg.svd(torch.stack([*affine.unbind(1), third / row_scale.mean(-1, keepdim=True)], dim=1))
    rotation = U @ Vh
    distance = camera.focal_px / row_scale.mean(-1)
    centre = camera.ray(centroid_px[:, 0]) * distance[:, None]
    rotated = to_camera_axes(torch.einsum("bij,bj->bi", rotation, centroid[:, 0]))
    return Pose(rotmat_to_rotvec(rotation), centre - rotated, torch.ones_like(distance))


def align_to_points(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    points_px: Float[Tensor, "B 468 2"],
    point_weights: Float[Tensor, "B 468"],
) -> FaceCoefficients:
    """Translate faces so that their projected points match given points; shape and rotation are kept.

    The shift and the change of size are a least-squares fit of the projected points; the result is exact except for the
    change of perspective.

    Args:
        model: The morphable model.
        coefficients: The faces.
        camera: One camera per face.
        points_px: Target of each of MediaPipe's points, pixels.
        point_weights: Weight of each point; the sum per face must be positive.

    Returns:
        The faces with another translation; differentiable.
    """
    pose, share = coefficients.pose, (point_weights / point_weights.sum(1, keepdim=True))[..., None]
    own_px = camera.project(pose.to_camera(PointModel.of(model).points(coefficients)))
    own_centre, centre = (share * own_px).sum(1, keepdim=True), (share * points_px).sum(1, keepdim=True)
    own, target = own_px - own_centre, points_px - centre
    growth = (share * own * target).sum((1, 2)) / (share * own.square()).sum((1, 2))
    origin_px = camera.project(pose.translation[:, None])
    origin_px = (centre + (origin_px - own_centre) * growth[:, None, None])[:, 0]
    translation = camera.ray(origin_px) * (pose.translation[:, 2:] / growth[:, None])
    return replace(coefficients, pose=replace(pose, translation=translation))


def fit_landmarks(
    model: MorphableModel,
    points_px: Float[Tensor, "B 468 2"],
    camera: Camera,
    *,
    point_weights: Float[Tensor, "B 468"],
    priors: LandmarkPriors,
    depths_px: Float[Tensor, "B 468"] | None = None,
    start: FaceCoefficients | None = None,
    prediction: PredictedIdentity | None = None,
    steps: int | None = None,
) -> LandmarkFit:
    """The most probable pose, identity and expression given MediaPipe's points.

    Args:
        model: The morphable model.
        points_px: MediaPipe's points, pixels.
        camera: One camera per face.
        point_weights: Weight of each point.
        priors: Standard deviations.
        depths_px: Depth of each point up to a plane, pixels; None if it is unknown.
        start: Faces near the solution, at which the search begins. None starts from the mean face.
        prediction: Identities that a network predicts, as a second estimate; None leaves it out.
        steps: Number of Gauss-Newton steps; by default `ITERATIONS` from the mean face and `WARM_ITERATIONS` from a
            start.

    Returns:
        The fitted faces; not meant to be differentiated.
    """
    problem = LandmarkProblem(
        model, points_px, camera, point_weights, priors=priors, depths_px=depths_px, prediction=prediction
    )
    state = problem.start(start)
    cold = start is None
    for iteration in range(steps or (ITERATIONS if cold else WARM_ITERATIONS)):
        state = problem.step(state, pose_only=cold and iteration < POSE_ITERATIONS)
    return problem.result(state)


@dataclass(frozen=True)
class LandmarkState:
    """Faces between two steps, in double precision."""

    rotation: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]
    log_focal: Float[Tensor, "B"]
    shape: Float[Tensor, "B K"]
    """Identity, then expression."""


class LandmarkProblem:
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
        depths_px: Float[Tensor, "B 468"] | None,
        prediction: PredictedIdentity | None,
    ) -> None:
        self.prediction = prediction
        self.given_camera, self.dtype = camera, points_px.dtype
        self.camera, self.target = camera.double(), points_px.double()
        self.points = PointModel.of(model)
        identity_count, expression_count, _ = model.counts
        self.is_expression = torch.arange(identity_count + expression_count, device=points_px.device) >= identity_count
        self.least, self.largest = model.expression_range
        self.prior_precision = _prior_precision(model, priors).to(self.target)
        extent = (self.target.amax(1) - self.target.amin(1)).norm(dim=-1)
        self.sigma_px = priors.landmark_sigma * extent
        self.depth_sigma_px = priors.depth_sigma * extent
        self.point_weights = point_weights
        self.depths_px = None if depths_px is None else depths_px.double()
        self.planes = plane_basis(self.target)
        self.lids = LidGaps.of(self.target, sigma=priors.lid_sigma)

    def start(self, near: FaceCoefficients | None) -> LandmarkState:
        """The given faces, or the mean face in the pose that fits the points best."""
        if near is not None:
            pose, log_focal = near.pose, torch.zeros_like(near.pose.scale).double()
            shape = torch.cat([near.identity, near.expression.clamp(self.least, self.largest)], dim=1).double()
            return LandmarkState(pose.rotmat().double(), pose.translation.double(), log_focal, shape)
        batch = len(self.target)
        pose = initial_pose(self.points.mean.expand(batch, -1, -1), self.target, self.camera)
        shape = self.target.new_zeros(batch, self.points.basis.shape[-1])
        return LandmarkState(rotvec_to_rotmat(pose.rotation), pose.translation, torch.zeros_like(pose.scale), shape)

    def step(self, state: LandmarkState, *, pose_only: bool) -> LandmarkState:
        """One damped Gauss-Newton step under robust weights, with expressions kept in the range of the model."""
        hessian, gradient = self.equations(state, pose_only=pose_only)
        held = self.held(state, gradient, pose_only=pose_only)
        gradient = gradient.masked_fill(held, 0.0)
        free = (~held).to(hessian)
        hessian = hessian * free[:, :, None] * free[:, None, :] + torch.diag_embed(held.to(hessian))
        damping = DAMPING * hessian.diagonal(dim1=1, dim2=2) + DAMPING_FLOOR
        # Cholesky, not LU: MKL's LU fails on batches of two and more when it runs on several threads.
        factor = torch.linalg.cholesky(hessian + torch.diag_embed(damping))
        return self.moved(state, -torch.cholesky_solve(gradient[..., None], factor)[..., 0])

    def equations(
        self, state: LandmarkState, *, pose_only: bool
    ) -> tuple[Float[Tensor, "B K K"], Float[Tensor, "B K"]]:
        """Gauss-Newton's second and first derivative of the energy.

        Args:
            state: The faces.
            pose_only: Whether the step will move the pose alone, for which the lids do not count.
        """
        residuals, jacobian, weights = self._linearise(state)
        hessian, gradient = normal_equations(jacobian.flatten(1, 2), residuals.flatten(1), weights.flatten(1))
        hessian += self.prior_precision
        values = torch.cat([torch.zeros_like(state.translation).repeat(1, 2), state.log_focal[:, None], state.shape], 1)
        gradient += values @ self.prior_precision
        if self.prediction is not None:
            part = slice(self.RIGID, self.RIGID + len(self.prediction.precision))
            hessian[:, part, part] += self.prediction.precision
            gradient[:, part] += self.prediction.gradient(state.shape[:, : len(self.prediction.precision)])
        if not pose_only:
            lid_jacobian = self.lids.across(jacobian[:, :, :2])
            hessian = hessian + lid_jacobian.mT @ lid_jacobian
            lid_residuals = self.lids.residuals(self.target + residuals[..., :2])
            gradient = gradient + torch.einsum("bpk,bp->bk", lid_jacobian, lid_residuals)
        return hessian, gradient

    def photo_energy(self, state: LandmarkState) -> Float[Tensor, "B"]:
        """The energy of each face without the priors of identity and focal length."""
        residuals, _, _ = self._linearise(state)
        squares = [residuals[..., :2].square().sum(-1) / self.sigma_px[:, None] ** 2]
        if self.depths_px is not None:
            squares.append(residuals[..., 2].square() / self.depth_sigma_px[:, None] ** 2)
        robust = [geman_mcclure(each, scale_sq=ROBUST_SCALE_SQ, weights=self.point_weights).sum(1) for each in squares]
        lids = self.lids.residuals(self.target + residuals[..., :2]).square().sum(1)
        shape = state.shape[:, self.is_expression]
        expression = self.prior_precision.diagonal()[self.RIGID :][self.is_expression] * shape.square()
        return 0.5 * (sum(robust, start=lids) + expression.sum(1))

    def _linearise(
        self, state: LandmarkState
    ) -> tuple[Float[Tensor, "B P R"], Float[Tensor, "B P R K"], Float[Tensor, "B P R"]]:
        """Residuals of x, y and, if it is known, depth; their Jacobian and weights."""
        shaped = self.points.mean + self.points.offsets(state.shape)
        rotated = torch.einsum("bij,bpj->bpi", state.rotation, shaped)
        points = to_camera_axes(rotated) + state.translation[:, None]
        focal = (self.camera.focal_px * state.log_focal.exp())[:, None]
        x, y, z = points.unbind(-1)
        from_centre = focal[..., None] * points[..., :2] / z[..., None]
        residuals = from_centre + self.camera.centre_px[:, None] - self.target
        zero = torch.zeros_like(z)
        d_projection = torch.stack(
            [focal / z, zero, -focal * x / z**2, zero, focal / z, -focal * y / z**2], dim=-1
        ).view(*z.shape, 2, 3)
        weights = self._weights(residuals, self.sigma_px)[..., None].expand(-1, -1, 2)
        if self.depths_px is not None:
            away = without_plane(focal * z / z.mean(1, keepdim=True) - self.depths_px, self.planes)
            d_depth = torch.zeros_like(points)
            d_depth[..., 2] = 1
            d_projection = torch.cat([d_projection, d_depth[:, :, None]], dim=2)
            from_centre = torch.cat([from_centre, zero[..., None]], dim=-1)
            residuals = torch.cat([residuals, away[..., None]], dim=-1)
            depth_weights = self._weights(away[..., None], self.depth_sigma_px)[..., None]
            weights = torch.cat([weights, depth_weights], dim=-1)
        d_rotated = to_model_axes(d_projection)
        batch, count = z.shape
        d_rotation = -d_rotated @ cross_matrix(rotated.reshape(-1, 3)).view(batch, count, 3, 3)
        d_shape = (d_rotated @ state.rotation[:, None]) @ self.points.basis
        jacobian = torch.cat([d_rotation, d_projection, from_centre[..., None], d_shape], dim=-1)
        if self.depths_px is not None:
            # The third row is the derivative of z so far; the residual is focal · z / mean(z).
            mean, d_z = z.mean(1, keepdim=True), jacobian[:, :, 2]
            d_z = (focal / mean)[..., None] * (d_z - (z / mean)[..., None] * d_z.mean(1, keepdim=True))
            d_z[..., 6] = focal * z / mean
            jacobian[:, :, 2] = without_plane(d_z, self.planes)
        return residuals, jacobian, weights

    def _weights(self, residuals: Float[Tensor, "B P R"], sigma_px: Float[Tensor, "B"]) -> Float[Tensor, "B P"]:
        scaled_sq = (residuals**2).sum(-1) / sigma_px[:, None] ** 2
        robust = geman_mcclure_weights(scaled_sq, scale_sq=ROBUST_SCALE_SQ)
        return self.point_weights * robust / sigma_px[:, None] ** 2

    def held(self, state: LandmarkState, gradient: Tensor, *, pose_only: bool) -> Tensor:
        """Unknowns that this step keeps: all of shape, or expressions that the step would move out of their range."""
        held = torch.zeros_like(gradient, dtype=torch.bool)
        shape_gradient = gradient[:, self.RIGID :]
        at_floor = (state.shape <= self.least) & (shape_gradient > 0)
        at_ceiling = (state.shape >= self.largest) & (shape_gradient < 0)
        held[:, self.RIGID :] = (self.is_expression & (at_floor | at_ceiling)) | pose_only
        return held

    def moved(self, state: LandmarkState, delta: Float[Tensor, "B K"]) -> LandmarkState:
        """The faces after a step; expressions are brought back into the range of the model."""
        shape = state.shape + delta[:, self.RIGID :]
        bounded = shape.clamp(self.least, self.largest)
        return LandmarkState(
            rotation=rotvec_to_rotmat(delta[:, :3]) @ state.rotation,
            translation=state.translation + delta[:, 3:6],
            log_focal=state.log_focal + delta[:, 6],
            shape=torch.where(self.is_expression, bounded, shape),
        )

    def result(self, state: LandmarkState) -> LandmarkFit:
        """The faces in the type of the points."""
        identity_count = int((~self.is_expression).sum())
        shape, translation = state.shape.to(self.dtype), state.translation.to(self.dtype)
        pose = Pose(rotmat_to_rotvec(state.rotation).to(self.dtype), translation, torch.ones_like(translation[:, 0]))
        camera = self.given_camera.with_focal_scale(state.log_focal.exp().to(self.dtype))
        return LandmarkFit(shape[:, :identity_count], shape[:, identity_count:], pose, camera)


def normal_equations(
    jacobian: Float[Tensor, "B N K"], residuals: Float[Tensor, "B N"], weights: Float[Tensor, "B N"]
) -> tuple[Float[Tensor, "B K K"], Float[Tensor, "B K"]]:
    """Jᵀ W J and Jᵀ W r, in double precision; native on a CPU, where only half of the symmetric matrix is summed."""
    if jacobian.device.type != "cpu":
        weighted = jacobian * weights[..., None]
        return weighted.mT @ jacobian, (weighted.mT @ residuals[..., None])[..., 0]
    batch, _, unknowns = jacobian.shape
    hessian, gradient = jacobian.new_empty(batch, unknowns, unknowns), jacobian.new_empty(batch, unknowns)
    inputs = (x.detach().contiguous().numpy() for x in (jacobian, residuals, weights))
    native().normal_equations(*inputs, hessian.numpy(), gradient.numpy())
    return hessian, gradient


def _prior_precision(model: MorphableModel, priors: LandmarkPriors) -> Float[Tensor, "K K"]:
    """Inverse covariance of the unknowns; rotation and translation have no prior."""
    identity = identity_precision(model, sigma=priors.identity_sigma).cpu().double()
    focal_sigma = priors.focal_sigma or 1e-6
    expression_sigma = torch.as_tensor(priors.expression_sigma).cpu().expand(model.counts[1])
    return torch.block_diag(
        torch.zeros(6, 6), torch.tensor([[focal_sigma**-2]]), identity, torch.diag(expression_sigma**-2.0)
    )
