"""Lips are closed after the fit as far as the landmarks show, and nothing else is changed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.fitting import close_lips
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.typing import Tensor
from tests.tiny import tiny_model

SIDE = 224


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera.from_fov(30.0, image_size=(SIDE, SIDE))


def face_with(model: MorphableModel, *, yaw_deg: float = 0.0, **strengths: float) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    face = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.6)
    for name, strength in strengths.items():
        face.expression[:, model.expression_names.index(name)] = strength
    turn = torch.tensor([[0.0, math.radians(yaw_deg), 0.0]])
    return replace(face, pose=replace(face.pose, rotation=turn))


def landmarks(model: MorphableModel, face: FaceCoefficients, camera: Camera) -> Tensor:
    vertices = model.vertices(face.identity, face.expression)[:, model.landmarks68]
    return camera.project(face.pose.to_camera(vertices))


def gap_mm(model: MorphableModel, face: FaceCoefficients) -> float:
    upper, lower = (model.vertices(face.identity, face.expression)[0, model.landmarks68[k], 1] for k in (62, 66))
    return 1000 * float(upper - lower)


@pytest.mark.parametrize("yaw_deg", [0.0, 35.0])
def test_lips_close_and_the_jaw_stays(model: MorphableModel, camera: Camera, yaw_deg: float) -> None:
    fitted, seen = (face_with(model, yaw_deg=yaw_deg, jawOpen=strength) for strength in (0.1, 0.0))
    closed = close_lips(model, fitted, camera, landmarks68_px=landmarks(model, seen, camera))
    assert gap_mm(model, fitted) > 3
    assert gap_mm(model, closed) == pytest.approx(0, abs=0.4)
    changed = (closed.expression != fitted.expression).nonzero()[:, 1].tolist()
    assert [model.expression_names[k] for k in changed] == ["mouthClose"]
    assert closed.pose is fitted.pose
    assert closed.identity is fitted.identity


def test_lips_close_half_way_where_the_landmarks_show_it(model: MorphableModel, camera: Camera) -> None:
    fitted, seen = face_with(model, jawOpen=0.3), face_with(model, jawOpen=0.15)
    closed = close_lips(model, fitted, camera, landmarks68_px=landmarks(model, seen, camera))
    assert gap_mm(model, closed) == pytest.approx(gap_mm(model, seen), abs=0.5)


def test_lips_that_enter_each_other_are_parted_until_they_touch(model: MorphableModel, camera: Camera) -> None:
    fitted, seen = face_with(model, jawOpen=0.1, mouthClose=0.2), face_with(model, jawOpen=0.2)
    found = close_lips(model, fitted, camera, landmarks68_px=landmarks(model, seen, camera))
    assert gap_mm(model, fitted) < -1.5
    assert gap_mm(model, found) == pytest.approx(0, abs=0.3)


def test_lips_are_never_opened(model: MorphableModel, camera: Camera) -> None:
    fitted, seen = face_with(model, jawOpen=0.1, mouthClose=0.05), face_with(model, jawOpen=0.4)
    found = close_lips(model, fitted, camera, landmarks68_px=landmarks(model, seen, camera))
    assert torch.equal(found.expression, fitted.expression)


def test_lips_that_the_blendshape_cannot_close_in_the_photo_stay(model: MorphableModel, camera: Camera) -> None:
    """Where the eyes are exchanged, `mouthClose` takes the lips farther apart in the photo."""
    fitted = face_with(model, jawOpen=0.1)
    places = landmarks(model, fitted, camera)
    places[:, [36, 45]] = places[:, [45, 36]]  # the eye corners tell what is down
    places[:, 60:68] = places[:, 60:61]  # a closed mouth
    crossed = face_with(model, mouthClose=0.2)
    for face in (fitted, crossed):
        found = close_lips(model, face, camera, landmarks68_px=places)
        assert found.expression[0, model.expression_names.index("mouthClose")] <= 0.2


def test_a_model_without_the_blendshape_is_left_alone(camera: Camera) -> None:
    tiny = tiny_model()
    face = FaceCoefficients.mean(identity=2, expression=2, albedo=2)
    assert close_lips(tiny, face, camera, landmarks68_px=torch.zeros(1, 68, 2)) is face
