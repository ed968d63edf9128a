"""What a scan tells about its photo: the model's shape on the scan, and true points, depths, pose and focal length.

The model is fitted to the scan itself (closest points and landmarks, Gauss-Newton). True points are those of this face:
where they lie along the surface depends on the model and on the detected landmarks that lead the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mien.camera import Pose, to_camera_axes
from mien.evaluation.scan_alignment import known, nearby, robust_similarity, to_prediction
from mien.evaluation.scan_camera import ScanCamera
from mien.evaluation.scans import FaceScan
from mien.fitting import FitSettings, FitTargets, mesh_point_weights
from mien.fitting.depth import depth_px, plane_basis, without_plane
from mien.fitting.landmarks import ITERATIONS, POSE_ITERATIONS, LandmarkFit, initial_pose
from mien.fitting.lids import LidGaps
from mien.fitting.problem import ROBUST_SCALE_SQ
from mien.geometry import Similarity, Surface, rotmat_to_rotvec, rotvec_to_rotmat, triangle_normals
from mien.losses import geman_mcclure_weights
from mien.morphable import MorphableModel
from mien.typing import Bool, Float, Tensor

SCAN_SIGMA_MM = 1.0
"""Error of the model's surface on a scan."""
LANDMARK_SIGMA_MM = 6.0
"""Error of a detected landmark along the surface."""
LANDMARK_WEIGHT = 0.1
"""Weight of a landmark: the errors of neighbouring ones are correlated."""
LOG_SCALE_SIGMA = 0.01
"""The scan is metric, and its identity has a size."""
SCAN_POINTS = 1000
"""Number of points of a scan that the model is fitted to."""
SCAN_POSE_STEPS, SCAN_STEPS, RELAXED_STEPS = 4, 12, 8


@dataclass(frozen=True)
class Errors:
    """Errors of one kind in a least-squares problem."""

    values: Float[Tensor, "N C"]
    """Errors in standard deviations; the C values of a row have one robust weight."""
    weights: Float[Tensor, "N"]
    """Weight per row."""
    robust: bool = True
    """Whether large errors lose their influence."""

    def step_weights(self) -> Float[Tensor, "N*C"]:
        """Weight of each value in a least-squares step."""
        factor = geman_mcclure_weights(self.values.square().sum(1), scale_sq=ROBUST_SCALE_SQ) if self.robust else 1.0
        return (self.weights * factor).repeat_interleave(self.values.shape[1])


Problem = Callable[[Tensor], Sequence[Errors]]
"""Errors at a vector of unknowns, differentiable."""


@dataclass(frozen=True)
class Limits:
    """Priors and bounds of the unknowns."""

    precision: Float[Tensor, "K"]
    """Inverse variances around zero."""
    low: Float[Tensor, "K"]
    high: Float[Tensor, "K"]

    @classmethod
    def of(cls, model: MorphableModel, settings: FitSettings, *, free: int) -> Limits:
        """Limits of the shape, after `free` unknowns without any."""
        identity = torch.full((model.counts[0],), settings.identity_sigma**-2)
        precision = torch.cat([identity, settings.expression_sigmas(model) ** -2.0])
        low, high = (torch.full((free + sum(model.counts[:2]),), bound) for bound in (-torch.inf, torch.inf))
        low[free + model.counts[0] :], high[free + model.counts[0] :] = model.expression_range
        return cls(torch.cat([torch.zeros(free), precision]).double(), low.double(), high.double())


def minimise(
    problem_at: Callable[[Tensor], Problem],
    start: Float[Tensor, "K"],
    *,
    limits: Limits,
    held: Bool[Tensor, "K"],
    steps: int,
) -> Float[Tensor, "K"]:
    """Damped Gauss-Newton steps under robust weights.

    Args:
        problem_at: The problem near a vector of unknowns; closest points are found here.
        start: First unknowns.
        limits: Priors and bounds.
        held: Unknowns that keep their value.
        steps: Number of steps.
    """
    x = start
    for _ in range(steps):
        problem = problem_at(x)

        def values(v: Tensor, problem: Problem = problem) -> Tensor:
            return torch.cat([errors.values.flatten() for errors in problem(v)])

        jacobian = torch.func.jacfwd(values)(x)
        weighted = jacobian.mT * torch.cat([errors.step_weights() for errors in problem(x)])
        gradient = weighted @ values(x) + limits.precision * x
        at_bound = ((x <= limits.low) & (gradient > 0)) | ((x >= limits.high) & (gradient < 0))
        free = (~(held | at_bound)).to(x)
        hessian = (weighted @ jacobian + torch.diag(limits.precision)) * free[:, None] * free + torch.diag(1 - free)
        damping = torch.diag(1e-5 * hessian.diagonal() + 1e-8)
        step = torch.cholesky_solve((free * gradient)[:, None], torch.linalg.cholesky(hessian + damping))[:, 0]
        x = (x - step).clamp(limits.low, limits.high)
    return x


@dataclass(frozen=True)
class ScanFace:
    """The model's face on a scan."""

    identity: Float[Tensor, "1 I"]
    expression: Float[Tensor, "1 E"]
    similarity: Similarity
    """From the model's metres to the scan's millimetres."""

    def vertices_mm(self, model: MorphableModel) -> Float[Tensor, "V 3"]:
        """The face in the frame of the scan."""
        return self.similarity(model.vertices(self.identity, self.expression).double())[0]


class _ScanProblem:
    """Closest points of a scan and its landmarks; unknowns in the order rotation, translation, log scale, shape."""

    FREE = 7

    def __init__(
        self,
        model: MorphableModel,
        scan: FaceScan,
        landmarks_mm: Float[Tensor, "468 3"],
        *,
        start: ScanFace | None,
    ) -> None:
        self.model, self.points = model, scan.points[:SCAN_POINTS]
        self.mean = 1000 * model.mean.double()
        self.basis = 1000 * torch.cat([model.identity_basis, model.expression_basis]).double()
        seen = known(landmarks_mm)
        self.landmarks = landmarks_mm[seen]
        self.landmark_mean = model.mediapipe_points(self.mean[None])[0, seen]
        self.landmark_basis = model.mediapipe_points(self.basis)[:, seen]
        if start is None:
            self.origin = robust_similarity(self.landmark_mean, self.landmarks, rigid=True)
        else:
            self.origin = replace(start.similarity, scale=start.similarity.scale / 1000)

    def similarity(self, x: Tensor) -> Similarity:
        rotation = rotvec_to_rotmat(x[None, :3]) @ self.origin.rotation
        return Similarity(self.origin.scale * x[6:7].exp(), rotation, self.origin.translation + x[None, 3:6])

    def __call__(self, x: Tensor) -> Problem:
        similarity = self.similarity(x)
        surface = Surface(self.mean + torch.einsum("k,kvc->vc", x[self.FREE :], self.basis), self.model.triangles)
        local = nearby(surface, self.points, similarity)
        found = local.closest(to_prediction(similarity, self.points))
        corners, weights = local.triangles[found.triangle_ids], found.barycentrics[..., None]
        facing = triangle_normals(surface.vertices[None], corners)[0] @ similarity.rotation[0].mT
        normals = torch.nn.functional.normalize(facing, dim=-1)
        mean, basis = (self.mean[corners] * weights).sum(-2), (self.basis[:, corners] * weights).sum(-2)

        def errors(v: Tensor) -> list[Errors]:
            moved, shape = self.similarity(v), v[self.FREE :]
            surface_mm = moved((mean + torch.einsum("k,kpc->pc", shape, basis))[None])[0]
            distances = ((self.points - surface_mm) * normals).sum(-1, keepdim=True) / SCAN_SIGMA_MM
            own = self.landmark_mean + torch.einsum("k,kpc->pc", shape, self.landmark_basis)
            offsets = (self.landmarks - moved(own[None])[0]) / LANDMARK_SIGMA_MM
            ones = torch.ones_like(offsets[:, 0])
            return [
                Errors(distances, torch.ones_like(distances[:, 0])),
                Errors(offsets, LANDMARK_WEIGHT * ones),
            ]

        return errors


def fit_to_scan(
    model: MorphableModel,
    scan: FaceScan,
    landmarks_mm: Float[Tensor, "468 3"],
    *,
    start: ScanFace | None = None,
    prior: float = 1.0,
) -> ScanFace:
    """Fit the model to a scan.

    Args:
        model: The morphable model.
        scan: The scan.
        landmarks_mm: MediaPipe's points on the scan; NaN where unknown.
        start: Face of the first step; None for the mean face, placed by the landmarks.
        prior: Factor of the precision of the shape's prior.
    """
    problem = _ScanProblem(model, scan, landmarks_mm, start=start)
    limits = Limits.of(model, FitSettings(), free=problem.FREE)
    limits.precision[problem.FREE :] *= prior
    limits.precision[6] = LOG_SCALE_SIGMA**-2
    x = torch.zeros_like(limits.precision)
    shape = torch.arange(len(x)) >= problem.FREE
    if start is None:
        x = minimise(problem, x, limits=limits, held=shape, steps=SCAN_POSE_STEPS)
    else:
        x[shape] = torch.cat([start.identity, start.expression], 1)[0].double()
    steps = SCAN_STEPS if start is None else RELAXED_STEPS
    x = minimise(problem, x, limits=limits, held=torch.zeros_like(shape), steps=steps)
    in_mm, coefficients = problem.similarity(x), x[None, problem.FREE :].float()
    identity, expression = coefficients.split(model.counts[:2], dim=1)
    return ScanFace(identity, expression, replace(in_mm, scale=1000 * in_mm.scale))


@dataclass(frozen=True)
class PhotoTruth:
    """What is true of the points of a photo with a scan."""

    points_px: Float[Tensor, "P 2"]
    """Projection into the photo; the centre of the first pixel is at (0.5, 0.5)."""
    depths_px: Float[Tensor, "P"]
    """Depth along the line of sight to the middle of the points, in pixels at its distance."""
    focal_px: float
    """Focal length of the photo."""

    @classmethod
    def of(cls, camera: ScanCamera, points_mm: Float[Tensor, "P 3"]) -> PhotoTruth:
        """Project points of a scan."""
        matrix = torch.from_numpy(camera.matrix)
        axis = matrix[2, :3] / matrix[2, :3].norm()
        focal = float(torch.linalg.cross(matrix[0, :3], axis).norm() / matrix[2, :3].norm())
        eye = -torch.linalg.solve(matrix[:, :3], matrix[:, 3])
        sight = points_mm.mean(0) - eye
        depths = focal * (points_mm - eye) @ sight / sight.square().sum()
        return cls(camera.project(points_mm)[:, :2] + 0.5, depths, focal)


def fit_points(
    model: MorphableModel,
    targets: FitTargets,
    *,
    settings: FitSettings,
    start: LandmarkFit | None = None,
    hold: Literal["shape", "rotation"] | None = None,
) -> LandmarkFit:
    """Fit one face to points and depths, as `fit_landmarks` does; shape or rotation can be held.

    Args:
        model: The morphable model.
        targets: Points, depths and camera of one face.
        settings: Standard deviations.
        start: Face whose shape or rotation is kept, as `hold` says.
        hold: What keeps its value.
    """
    target, camera = targets.landmarks468_px.double(), targets.camera.double()
    bases = [model.mediapipe_points(b.double()) for b in (model.identity_basis, model.expression_basis)]
    mean, basis = model.mediapipe_points(model.mean[None].double()), torch.cat(bases)
    limits, extent = Limits.of(model, settings, free=6), targets.extent_px.double()
    x = torch.zeros_like(limits.precision)
    if start is not None:
        x[6:] = torch.cat([start.identity, start.expression], 1)[0].double()
    shaped = mean + torch.einsum("k,kpc->pc", x[6:], basis)
    pose = initial_pose(shaped, target, camera)
    if start is not None and hold == "rotation":
        pose = replace(pose, rotation=start.pose.rotation.double())
        x[6:] = 0
    rotation, weights = rotvec_to_rotmat(pose.rotation), mesh_point_weights(model).double()
    planes, lids = plane_basis(target), LidGaps.of(target, sigma=settings.lid_sigma)

    def rotation_of(v: Tensor) -> Tensor:
        return rotvec_to_rotmat(v[None, :3]) @ rotation

    def errors(v: Tensor) -> list[Errors]:
        points = (mean + torch.einsum("k,kpc->pc", v[6:], basis)) @ rotation_of(v).mT
        points = to_camera_axes(points) + pose.translation + v[3:6]
        projected = camera.project(points)
        found = [Errors((projected - target)[0] / (settings.landmark_sigma * extent), weights)]
        if targets.landmarks468_depth_px is not None:
            away = without_plane(depth_px(points, camera) - targets.landmarks468_depth_px.double(), planes)
            found.append(Errors(away.mT / (settings.depth_sigma * extent), weights))
        gaps = lids.residuals(projected).mT
        return [*found, Errors(gaps, torch.ones_like(gaps[:, 0]), robust=False)]

    numbers = torch.arange(len(x))
    kept = (numbers >= 6) if hold == "shape" else (numbers < 3) & (hold == "rotation")
    x = minimise(lambda _: errors, x, limits=limits, held=kept | (numbers >= 6), steps=POSE_ITERATIONS)
    x = minimise(lambda _: errors, x, limits=limits, held=kept, steps=ITERATIONS - POSE_ITERATIONS)
    identity, expression = x[None, 6:].float().split(model.counts[:2], dim=1)
    translation = (pose.translation + x[3:6]).float()
    found = Pose(rotmat_to_rotvec(rotation_of(x)).float(), translation, torch.ones_like(translation[:, 0]))
    return LandmarkFit(identity, expression, found, targets.camera)
