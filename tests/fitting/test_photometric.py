from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.errors import ConfigError, FitDiverged
from mien.fitting import FitSettings, FitTargets, fit
from mien.fitting.photometric import step_length
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import render

SIZE = (64, 64)
SETTINGS = FitSettings(landmark_sigma=0.01, photometric_steps=12)


def photographed(model: MorphableModel, batch: int = 1) -> tuple[FitTargets, FaceCoefficients]:
    identity, expression, albedo = model.counts
    gt = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, batch=batch, distance=0.5)
    lighting = ambient_lighting(batch, level=0.85)
    lighting[:, 3] = 0.2
    gt = replace(gt, identity=0.6 * torch.randn(batch, identity), albedo=torch.randn(batch, albedo), lighting=lighting)
    camera = Camera.from_fov(30.0, image_size=SIZE, batch=batch)
    with torch.no_grad():
        drawn = render(model, gt, camera)
        mesh = camera.project(model.mediapipe_points(drawn.surface.vertices_camera))
    mask = (drawn.triangle_ids >= 0).float()
    landmarks = drawn.vertices_px[:, model.landmarks68]
    return FitTargets(drawn.image * mask[:, None], mask, mask, torch.ones(batch), camera, mesh, landmarks), gt


def test_the_fit_explains_a_picture_of_the_model(tiny: MorphableModel) -> None:
    targets, gt = photographed(tiny)
    found = fit(tiny, targets, settings=SETTINGS)
    assert found.photometric_error.item() < 0.03
    shape = tiny.vertices(found.coefficients.identity, found.coefficients.expression)
    error = (shape - tiny.vertices(gt.identity, gt.expression)).norm(dim=-1).mean()
    assert error < 1.5e-3
    assert {time.name for time in found.stage_times} == {"landmarks", "light and albedo", "photometric"}


def test_the_photometric_stage_lowers_the_colour_error(tiny: MorphableModel) -> None:
    targets, _ = photographed(tiny)
    without = fit(tiny, targets, settings=replace(SETTINGS, photometric_steps=0))
    with_steps = fit(tiny, targets, settings=replace(SETTINGS, photometric_steps=25))
    assert with_steps.photometric_error.item() < without.photometric_error.item()


def test_two_faces_are_fitted_as_one_by_one(tiny: MorphableModel) -> None:
    targets, _ = photographed(tiny, batch=2)
    both = fit(tiny, targets, settings=SETTINGS)
    alone = fit(tiny, targets[slice(1, 2)], settings=SETTINGS)
    torch.testing.assert_close(alone.coefficients.identity, both.coefficients.identity[1:], atol=0.02, rtol=0)


def test_the_same_seed_gives_the_same_face(tiny: MorphableModel) -> None:
    targets, _ = photographed(tiny)
    first, again = fit(tiny, targets, settings=SETTINGS), fit(tiny, targets, settings=SETTINGS)
    assert torch.equal(first.coefficients.identity, again.coefficients.identity)
    assert torch.equal(first.coefficients.lighting, again.coefficients.lighting)


def test_nan_in_the_photo_stops_the_fit_with_its_place(tiny: MorphableModel) -> None:
    targets, _ = photographed(tiny)
    targets.crops[0, :, 30, 30] = torch.nan
    with pytest.raises(FitDiverged):
        fit(tiny, targets, settings=SETTINGS)


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="landmark_sigma"):
        FitSettings(landmark_sigma=0.0)
    with pytest.raises(ConfigError, match="photometric_steps"):
        FitSettings(photometric_steps=-1)


def test_fewer_steps_are_longer_ones_within_a_bound() -> None:
    assert [step_length(steps) for steps in (200, 100, 50, 10)] == pytest.approx([0.02, 0.04, 0.08, 0.12])
