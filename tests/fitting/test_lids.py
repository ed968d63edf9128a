"""Distances between the lids: what the packaged model shows, and that closed eyes are fitted closed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.fitting import FitSettings, FitTargets, fit, fit_lids
from mien.fitting.lids import CLOSED_OPENING, UNBIASED_OPENING, LidGaps
from mien.fitting.photometric import PhotometricEnergy
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.morphable.landmark_tables import IBUG_LEFT_EYE, IBUG_RIGHT_EYE, MEDIAPIPE_EYES
from mien.morphable.revisions import is_made_for
from mien.rendering import render
from mien.typing import Tensor

SIDE = 224
CLOSED = 0.75
"""Strength of a blink at which the lids of the packaged model meet."""
LIDS = {"sigma": 0.03, "expression_sigma": 0.25}


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture
def camera() -> Camera:
    return Camera.from_fov(30.0, image_size=(SIDE, SIDE))


def face_with(model: MorphableModel, **strengths: float) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    face = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.45)
    values = torch.zeros(1, expression)
    for name, strength in strengths.items():
        values[0, model.expression_names.index(name)] = strength
    turned = replace(face.pose, rotation=torch.tensor([[0.1, 0.3, 0.1]]))
    return replace(face, expression=values, pose=turned)


def points_of(model: MorphableModel, face: FaceCoefficients, camera: Camera) -> Tensor:
    vertices = face.pose.to_camera(model.vertices(face.identity, face.expression))
    return camera.project(model.mediapipe_points(vertices))


def openings(model: MorphableModel, face: FaceCoefficients) -> list[float]:
    """Distance of the lids over the width, right eye first, of the iBUG landmarks seen from the front."""
    landmarks = model.vertices(face.identity, face.expression)[0, model.landmarks68, :2]
    found = []
    for eye in (IBUG_RIGHT_EYE, IBUG_LEFT_EYE):
        outer, upper_1, upper_2, inner, lower_2, lower_1 = landmarks[eye]
        gap = ((upper_1 - lower_1).norm() + (upper_2 - lower_2).norm()) / 2
        found.append(float(gap / (outer - inner).norm()))
    return found


def test_the_landmarks_of_the_packaged_model_close_with_its_eyes(model: MorphableModel) -> None:
    right, left = openings(model, face_with(model))
    assert right == pytest.approx(left, abs=1e-3)
    assert right > 0.28
    right, left = openings(model, face_with(model, eyeBlinkRight=CLOSED))
    assert right < 0.05
    assert left > 0.28


def test_the_points_of_the_upper_lid_follow_a_blink(model: MorphableModel) -> None:
    blink = model.expression_basis[model.expression_names.index("eyeBlinkRight")]
    moved = model.mediapipe_points(blink[None])[0].norm(dim=-1)
    assert moved[list(MEDIAPIPE_EYES[0][11:14])].min() > 0.65 * blink.norm(dim=-1).max()


@pytest.mark.parametrize("closed", [("Right",), ("Left",), ("Right", "Left"), ()])
def test_the_fit_closes_the_eyes_that_are_closed(
    model: MorphableModel, camera: Camera, closed: tuple[str, ...]
) -> None:
    face = face_with(model, **{f"eyeBlink{side}": CLOSED for side in closed})
    # With points this uncertain, only the distance between the lids can move them against the priors.
    settings = FitSettings(photometric_steps=0, landmark_sigma=0.1)
    found = fit(model, targets_of(model, face, camera), settings=settings).coefficients
    assert openings(model, found) == pytest.approx(openings(model, face), abs=0.03)
    # The person has closed the eyes; it is not the shape of the person's face.
    assert found.identity.norm() < 1.2
    for side in ("Right", "Left"):
        strength = found.expression[0, model.expression_names.index(f"eyeBlink{side}")]
        assert float(strength) == pytest.approx(CLOSED if side in closed else 0.0, abs=0.2)


def targets_of(model: MorphableModel, face: FaceCoefficients, camera: Camera) -> FitTargets:
    with torch.no_grad():
        rendered = render(model, face, camera)
    inside = (rendered.triangle_ids >= 0).float()
    landmarks = rendered.vertices_px[:, model.landmarks68]
    points = points_of(model, face, camera)
    return FitTargets(rendered.image * inside[:, None], inside, inside, torch.ones(1), camera, points, landmarks)


@pytest.mark.parametrize(("predicted", "shown"), [(0.3, CLOSED), (0.3, 0.0)])
def test_a_prediction_gets_the_lids_that_the_points_show(
    model: MorphableModel, camera: Camera, predicted: float, shown: float
) -> None:
    prediction = face_with(model, eyeBlinkLeft=predicted, eyeBlinkRight=predicted, jawOpen=0.4)
    face = face_with(model, eyeBlinkLeft=shown)
    points = points_of(model, face, camera)
    found = fit_lids(model, prediction, camera, points_px=points, **LIDS)
    assert openings(model, found) == pytest.approx(openings(model, face), abs=0.03)
    assert found.expression[0, model.expression_names.index("jawOpen")] == 0.4
    assert torch.equal(found.identity, prediction.identity)
    assert found.expression.min() >= 0
    assert found.expression.max() <= 1


def test_faces_of_a_batch_are_independent(model: MorphableModel, camera: Camera) -> None:
    faces = [face_with(model, eyeBlinkLeft=CLOSED), face_with(model)]
    prediction, both = FaceCoefficients.join([face_with(model)] * 2), Camera.join([camera] * 2)
    points = torch.cat([points_of(model, face, camera) for face in faces])
    found = fit_lids(model, prediction, both, points_px=points, **LIDS)
    for k in range(2):
        alone = fit_lids(model, face_with(model), camera, points_px=points[k : k + 1], **LIDS)
        torch.testing.assert_close(found.expression[k : k + 1], alone.expression, atol=1e-4, rtol=0)


def test_a_model_without_blinks_keeps_its_faces(tiny: MorphableModel, camera: Camera) -> None:
    identity, expression, albedo = tiny.counts
    face = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
    assert fit_lids(tiny, face, camera, points_px=points_of(tiny, face, camera), **LIDS) is face


@pytest.mark.parametrize(("shown", "expected"), [(CLOSED_OPENING / 2, 0.0), (UNBIASED_OPENING + 0.05, 1.0)])
def test_the_bias_of_the_network_is_removed_from_closed_eyes_only(shown: float, expected: float) -> None:
    points = torch.zeros(1, 468, 2)
    for k, eye in enumerate(MEDIAPIPE_EYES):
        angle = torch.linspace(0, 2 * torch.pi, 17)[:16]
        # Outer corner first: the right eye is on the left of the picture. The lower lid comes first, y points down.
        points[0, list(eye), 0] = (1 if k else -1) * (60 + 20 * angle.cos())
        points[0, list(eye), 1] = angle.sin().round(decimals=4).sign() * 20 * shown
    gaps = LidGaps.of(points, sigma=0.1)
    assert gaps.across(points)[0].tolist() == pytest.approx([10 * shown] * 6, rel=1e-3)
    assert gaps.detected[0].tolist() == pytest.approx([10 * shown * expected] * 6, rel=1e-3, abs=1e-4)


def test_the_photometric_energy_holds_the_lids(model: MorphableModel, camera: Camera) -> None:
    face = face_with(model)
    weights = torch.ones(1, 468)
    energy = PhotometricEnergy(
        model, targets_of(model, face, camera), settings=FitSettings(lid_sigma=0.1), point_weights=weights
    )
    with torch.no_grad():
        at_truth, blinking = (
            energy.terms(f, energy.render(f)).lids.item() for f in (face, face_with(model, eyeBlinkLeft=CLOSED))
        )
    assert at_truth < 1e-6
    # Three distances of 0.3 of the width, with a standard deviation of 0.1.
    assert blinking == pytest.approx(0.5 * 3 * 3**2, rel=0.3)


def test_files_of_an_earlier_revision_belong_to_the_packaged_model(model: MorphableModel) -> None:
    before = "30b9aee4acb2432d83ef93b78207b8773029285ea413a9b9b7deaa9791884891"
    assert is_made_for(before, model.fingerprint)
    assert is_made_for(model.fingerprint, model.fingerprint)
    assert not is_made_for(model.fingerprint, before)
    assert not is_made_for("0" * 64, model.fingerprint)
