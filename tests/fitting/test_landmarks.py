from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from mien.camera import Camera, Pose
from mien.errors import FitDiverged
from mien.fitting import FitSettings, FitTargets, align_to_points, fit_points, fit_prediction
from mien.fitting.depth import depth_px
from mien.fitting.landmarks import (
    LandmarkPriors,
    LandmarkProblem,
    LandmarkState,
    fit_landmarks,
    initial_pose,
    normal_equations,
)
from mien.fitting.point_model import PointModel
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import COVERED_WEIGHT
from mien.geometry import rotvec_to_rotmat
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rasterizer.cpu import native
from mien.typing import Tensor

PRIORS = LandmarkPriors(
    landmark_sigma=0.002, depth_sigma=0.004, lid_sigma=0.03, identity_sigma=1.0, expression_sigma=0.25, focal_sigma=None
)
YAWS_DEG = (0.0, 40.0, -70.0)


def posed(yaw_deg: float, roll_deg: float = 0.0) -> Pose:
    rotvec = torch.tensor([[0.1, math.radians(yaw_deg), 0.0]])
    if roll_deg:
        rotvec = torch.tensor([[0.0, 0.0, math.radians(roll_deg)]])
    return Pose(rotvec, torch.tensor([[0.05, -0.02, 0.8]]), torch.ones(1))


@pytest.mark.parametrize("yaw_deg", YAWS_DEG)
def test_closed_form_pose_is_close(tiny: MorphableModel, yaw_deg: float) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(yaw_deg)
    points = tiny.mediapipe_points(tiny.mean[None])
    found = initial_pose(points, camera.project(pose.to_camera(points)), camera)
    between = rotvec_to_rotmat(found.rotation) @ pose.rotmat().mT
    angle = torch.acos(((between.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2).clamp(-1, 1))
    assert math.degrees(angle.item()) < 6
    torch.testing.assert_close(found.translation, pose.translation, atol=0.03, rtol=0)


@pytest.mark.parametrize("roll_deg", [0.0, 90.0, 180.0])
@pytest.mark.parametrize("yaw_deg", YAWS_DEG)
def test_known_face_is_recovered(tiny: MorphableModel, yaw_deg: float, roll_deg: float) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(yaw_deg, roll_deg)
    identity = 0.7 * torch.randn(1, tiny.counts[0])
    expression = torch.tensor([[0.0, 0.4, 0.8, 0.0]])
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(identity, expression))))
    found = fit_landmarks(tiny, points, camera, point_weights=torch.ones(1, 468), priors=PRIORS)
    reached = camera.project(
        found.pose.to_camera(tiny.mediapipe_points(tiny.vertices(found.identity, found.expression)))
    )
    assert (reached - points).norm(dim=-1).mean() < 0.2
    error = (tiny.vertices(found.identity, found.expression) - tiny.vertices(identity, expression)).norm(dim=-1)
    assert error.mean() < 1e-3


def test_expressions_stay_in_their_range(tiny: MorphableModel) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(0.0)
    beyond = torch.tensor([[-0.7, 1.6, 0.0, 0.5]])
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(torch.zeros(1, 12), beyond))))
    found = fit_landmarks(tiny, points, camera, point_weights=torch.ones(1, 468), priors=PRIORS)
    assert found.expression.min() >= 0
    assert found.expression.max() <= 1


def test_outliers_do_not_deform_the_face(tiny: MorphableModel) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(0.0)
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.mean[None])))
    points[:, :40] += 60.0
    found = fit_landmarks(tiny, points, camera, point_weights=torch.ones(1, 468), priors=PRIORS)
    error = (tiny.vertices(found.identity, found.expression) - tiny.mean).norm(dim=-1)
    assert error.mean() < 1e-3


def test_the_focal_length_is_fitted_only_with_a_prior(tiny: MorphableModel) -> None:
    wrong, right = (Camera.from_fov(fov, image_size=(224, 224)) for fov in (30.0, 50.0))
    pose = Pose(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 0.35]]), torch.ones(1))
    points = right.project(pose.to_camera(tiny.mediapipe_points(tiny.mean[None])))
    fixed = fit_landmarks(tiny, points, wrong, point_weights=torch.ones(1, 468), priors=PRIORS)
    assert fixed.camera.focal_px.item() == pytest.approx(wrong.focal_px.item(), rel=1e-4)
    free_priors = replace(PRIORS, focal_sigma=0.5)
    free = fit_landmarks(tiny, points, wrong, point_weights=torch.ones(1, 468), priors=free_priors)
    assert free.camera.focal_px.item() == pytest.approx(right.focal_px.item(), rel=0.1)


@pytest.mark.parametrize(("sigmas", "expected"), [(0.0, 1.0), (3.0, 0.25), (9.0, 0.01)])
def test_the_weight_of_a_point_falls_to_a_quarter_at_three_sigmas(
    tiny: MorphableModel, sigmas: float, expected: float
) -> None:
    camera = Camera.from_fov(30.0, image_size=(224, 224))
    points = camera.project(posed(0.0).to_camera(tiny.mediapipe_points(tiny.mean[None])))
    problem = _problem(tiny, points, camera, point_weights=torch.full((1, 468), 0.5))
    size = (points.amax(1) - points.amin(1)).norm()
    residuals = torch.zeros(1, 468, 2, dtype=torch.float64)
    residuals[..., 0] = sigmas * PRIORS.landmark_sigma * size
    weights = problem._weights(residuals, problem.sigma_px) * (PRIORS.landmark_sigma * size) ** 2
    torch.testing.assert_close(weights, torch.full((1, 468), 0.5 * expected).double(), rtol=1e-5, atol=0)


def test_depth_tells_two_faces_apart_that_look_the_same(tiny: MorphableModel) -> None:
    """Seen from the front, a change of depth moves no point, so without depth the fit keeps the mean face."""
    camera = Camera.from_fov(1.0, image_size=(224, 224))
    pose = Pose(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 12.0]]), torch.ones(1))
    model = copy.deepcopy(tiny)
    model.identity_basis[0] = 0
    model.identity_basis[0, :, 2] = 0.004 * torch.randn(len(model.mean))
    identity = torch.zeros(1, model.counts[0])
    identity[:, 0] = 1.5
    points = pose.to_camera(model.mediapipe_points(model.vertices(identity, torch.zeros(1, model.counts[1]))))
    points_px = camera.project(points)
    weights = torch.ones(1, 468)
    without = fit_landmarks(model, points_px, camera, point_weights=weights, priors=PRIORS)
    assert abs(without.identity[0, 0].item()) < 0.8
    # The plane stands for the turned axis of the network's depth.
    depths_px = depth_px(points, camera) + 0.4 * points_px[..., 0] - 0.3 * points_px[..., 1] + 50
    fitted = fit_landmarks(model, points_px, camera, point_weights=weights, priors=PRIORS, depths_px=depths_px)
    assert fitted.identity[0, 0].item() == pytest.approx(1.5, abs=0.15)


def _problem(
    model: MorphableModel,
    points_px: Tensor,
    camera: Camera,
    *,
    point_weights: Tensor | None = None,
    depths_px: Tensor | None = None,
) -> LandmarkProblem:
    weights = torch.ones(1, 468) if point_weights is None else point_weights
    return LandmarkProblem(model, points_px, camera, weights, priors=PRIORS, depths_px=depths_px, prediction=None)


@pytest.mark.parametrize("with_depth", [False, True])
def test_the_jacobian_is_the_derivative_of_the_residuals(tiny: MorphableModel, with_depth: bool) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(25.0)
    mean = pose.to_camera(tiny.mediapipe_points(tiny.mean[None]))
    points = camera.project(mean)
    problem = _problem(tiny, points, camera, depths_px=depth_px(mean, camera) if with_depth else None)
    state = LandmarkState(
        pose.rotmat().double(), pose.translation.double(), torch.full((1,), 0.1).double(), torch.randn(1, 16).double()
    )
    jacobian = problem._linearise(state)[1]
    # Expressions are held in their range by `moved`; the derivative is taken without it.
    problem.least, problem.largest = -torch.inf, torch.inf
    for unknown in (*range(7), 8, 20):
        step = torch.zeros(1, 23, dtype=torch.float64)
        step[0, unknown] = 1e-6
        ahead, back = (problem._linearise(problem.moved(state, sign * step))[0] for sign in (1, -1))
        torch.testing.assert_close(jacobian[..., unknown], (ahead - back) / 2e-6, rtol=1e-4, atol=1e-4)


def test_a_batch_gives_the_same_as_its_faces_one_by_one(tiny: MorphableModel) -> None:
    camera = Camera.from_fov(30.0, image_size=(224, 224), batch=2)
    pose = Pose(
        torch.tensor([[0.0, 0.3, 0.0], [0.1, 0.0, 0.2]]), torch.tensor([[0.0, 0, 0.7], [0, 0, 1]]), torch.ones(2)
    )
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(torch.randn(2, 12), torch.zeros(2, 4)))))
    both = fit_landmarks(tiny, points, camera, point_weights=torch.ones(2, 468), priors=PRIORS)
    for k in range(2):
        one = slice(k, k + 1)
        alone = fit_landmarks(tiny, points[one], camera[one], point_weights=torch.ones(1, 468), priors=PRIORS)
        torch.testing.assert_close(alone.identity, both.identity[one], atol=2e-3, rtol=0)


def test_a_predicted_identity_stays_where_points_have_no_influence(tiny: MorphableModel) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(20.0)
    identity = torch.randn(1, 12)
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(identity, torch.zeros(1, 4)))))
    weak = replace(PRIORS, landmark_sigma=1.0, depth_sigma=1.0, lid_sigma=1e3, identity_sigma=10.0)
    prediction = PredictedIdentity.of(tiny, identity, sigma_m=1e-4)
    weights = torch.ones(1, 468)
    guided = fit_landmarks(tiny, points, camera, point_weights=weights, priors=weak, prediction=prediction)
    torch.testing.assert_close(guided.identity, identity, atol=1e-2, rtol=0)
    alone = fit_landmarks(tiny, points, camera, point_weights=weights, priors=replace(weak, identity_sigma=0.01))
    assert alone.identity.abs().max() < 0.1


def test_few_steps_from_a_start_find_what_many_from_the_mean_find(tiny: MorphableModel) -> None:
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(20.0)
    identity, expression = torch.randn(1, 12), torch.tensor([[0.0, 0.4, 0.8, 0.0]])
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(identity, expression))))
    near = FaceCoefficients(identity + 0.1, expression, torch.zeros(1, 5), torch.zeros(1, 9, 3), pose)
    weights = torch.ones(1, 468)
    cold = fit_landmarks(tiny, points, camera, point_weights=weights, priors=PRIORS)
    warm = fit_landmarks(tiny, points, camera, point_weights=weights, priors=PRIORS, start=near, steps=3)
    torch.testing.assert_close(warm.identity, cold.identity, atol=5e-3, rtol=0)
    torch.testing.assert_close(warm.pose.translation, cold.pose.translation, atol=1e-3, rtol=0)


def test_a_prediction_follows_the_points_and_keeps_its_colours(tiny: MorphableModel) -> None:
    """The predicted identity is only where the search starts: a wrong one changes the result little."""
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(20.0)
    identity, expression = 0.7 * torch.randn(1, 12), torch.tensor([[0.0, 0.4, 0.8, 0.0]])
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(identity, expression))))
    blank = torch.zeros(1, 224, 224)
    targets = FitTargets(
        blank[:, None].expand(1, 3, 224, 224), blank, blank, torch.ones(1), camera, points, torch.zeros(1, 68, 2)
    )
    near = replace(pose, translation=pose.translation + 0.01)
    prediction = FaceCoefficients(identity + 1.0, expression, torch.rand(1, 5), torch.rand(1, 9, 3), near)
    found = fit_prediction(tiny, targets, prediction, settings=FitSettings(landmark_sigma=0.002, depth_sigma=0.004))
    error = (tiny.vertices(found.identity, found.expression) - tiny.vertices(identity, expression)).norm(dim=-1)
    assert error.mean() < 2e-3
    assert torch.equal(found.albedo, prediction.albedo)
    assert torch.equal(found.lighting, prediction.lighting)
    other = fit_prediction(tiny, targets, replace(prediction, identity=identity), settings=FitSettings())
    again = fit_prediction(tiny, targets, prediction, settings=FitSettings())
    assert torch.equal(other.identity, again.identity)
    with pytest.raises(FitDiverged, match="landmarks468_px"):
        fit_prediction(tiny, replace(targets, landmarks468_px=points * math.nan), prediction, settings=FitSettings())


def test_guessed_points_behind_an_occluder_move_the_face_less(tiny: MorphableModel) -> None:
    """The points of the lower part of the crop are 6 pixels too low, as a detector may guess them under a mask."""
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(20.0)
    identity, expression = 0.7 * torch.randn(1, 12), torch.zeros(1, 4)
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(identity, expression))))
    half = float(points[0, :, 1].median())
    guessed = points + torch.tensor([0.0, 6.0]) * (points[..., 1:] > half)
    blank, covered = torch.zeros(1, 224, 224), (torch.arange(224) > half).float()[None, :, None].repeat(1, 1, 224)
    picture, sixty_eight = blank[:, None].expand(1, 3, 224, 224), torch.zeros(1, 68, 2)
    trusting = FitTargets(picture, blank, blank, torch.ones(1), camera, guessed, sixty_eight)
    wary = replace(trusting, covered=covered)
    below, above = points[..., 1] > half + 2, points[..., 1] < half - 2
    assert (wary.trust(points)[below] < COVERED_WEIGHT + 1e-6).all()
    assert (wary.trust(points)[above] == 1).all()
    start = FaceCoefficients(identity, expression, torch.zeros(1, 5), torch.zeros(1, 9, 3), pose)
    errors = []
    for targets in (trusting, wary):
        for face in (
            fit_points(tiny, targets, settings=FitSettings()),
            fit_prediction(tiny, targets, start, settings=FitSettings()),
        ):
            moved = tiny.mediapipe_points(face.pose.to_camera(tiny.vertices(face.identity, face.expression)))
            errors.append(float((camera.project(moved) - points)[above].norm(dim=-1).mean()))
    assert errors[2] < 0.6 * errors[0]
    assert errors[3] < 0.6 * errors[1]


def test_a_face_is_translated_onto_points(tiny: MorphableModel) -> None:
    """The face is far away, so that the perspective does not change; a point without weight has no influence."""
    camera = Camera.from_fov(3.0, image_size=(224, 224))
    pose = Pose(torch.tensor([[0.1, 0.5, 0.0]]), torch.tensor([[0.05, -0.02, 8.0]]), torch.ones(1))
    face = replace(
        FaceCoefficients.mean(identity=tiny.counts[0], expression=tiny.counts[1], albedo=tiny.counts[2]), pose=pose
    )
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.mean[None])))
    points[0, 5] += 100.0
    weights = torch.ones(1, 468)
    weights[0, 5] = 0.0
    off = replace(face, pose=replace(pose, translation=torch.tensor([[0.02, 0.03, 10.0]])))
    found = align_to_points(tiny, off, camera, points_px=points, point_weights=weights)
    torch.testing.assert_close(found.pose.translation, pose.translation, atol=0.02, rtol=0)
    assert abs(float(found.pose.translation[0, 0]) - 0.05) < 5e-4
    assert torch.equal(found.pose.rotation, pose.rotation)
    dragged = align_to_points(tiny, off, camera, points_px=points, point_weights=torch.ones(1, 468))
    assert float((dragged.pose.translation - pose.translation).norm()) > 0.002


def test_native_normal_equations_equal_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(2, 50, 53, generator=generator, dtype=torch.float64)
    residuals, weights = torch.randn(2, 2, 50, generator=generator, dtype=torch.float64).unbind()
    before = native().current_isa()
    for isa in native().available_isas().split():
        native().select_isa(isa)
        hessian, gradient = normal_equations(jacobian, residuals, weights.abs())
        weighted = jacobian * weights.abs()[..., None]
        torch.testing.assert_close(hessian, weighted.mT @ jacobian)
        torch.testing.assert_close(gradient, (weighted.mT @ residuals[..., None])[..., 0])
    native().select_isa(before)


def test_the_point_model_gives_the_points_of_the_model(tiny: MorphableModel) -> None:
    identity, expression = torch.randn(2, tiny.counts[0]), torch.rand(2, tiny.counts[1])
    rest = torch.zeros(2, tiny.counts[2]), torch.zeros(2, 9, 3), Pose.join([posed(0.0), posed(40.0)])
    faces = FaceCoefficients(identity, expression, *rest)
    points = tiny.mediapipe_points(tiny.vertices(identity, expression))
    torch.testing.assert_close(PointModel.of(tiny).points(faces), points, rtol=0, atol=1e-7)
    assert PointModel.of(tiny) is PointModel.of(tiny)
    other = copy.deepcopy(tiny)
    other.mean += 0.1
    assert PointModel.of(other).mean[0, 0] != PointModel.of(tiny).mean[0, 0]
