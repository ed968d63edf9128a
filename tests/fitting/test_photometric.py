from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.errors import ConfigError, FitDiverged
from mien.fitting import FitSettings, FitTargets, fit, mesh_point_weights
from mien.fitting.descent import GAUSS_NEWTON_STEPS
from mien.fitting.lighting import LightFit
from mien.fitting.stages import with_light_and_albedo
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import render
from mien.typing import Tensor
from tests.fitting.test_energy import BrightnessNetwork

SIZE = (64, 64)
SETTINGS = FitSettings(landmark_sigma=0.01, photometric_steps=12)


def targets_of(model: MorphableModel, batch: int = 1) -> tuple[FitTargets, FaceCoefficients]:
    identity, expression, albedo = model.counts
    gt = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, batch=batch, distance=0.5)
    lighting = ambient_lighting(batch, level=0.85)
    lighting[:, 3] = 0.2
    gt = replace(gt, identity=0.6 * torch.randn(batch, identity), albedo=torch.randn(batch, albedo), lighting=lighting)
    camera = Camera.from_fov(30.0, image_size=SIZE, batch=batch)
    with torch.no_grad():
        rendered = render(model, gt, camera)
        mesh = camera.project(model.mediapipe_points(rendered.surface.vertices_camera))
    mask = (rendered.triangle_ids >= 0).float()
    landmarks = rendered.vertices_px[:, model.landmarks68]
    return FitTargets(rendered.image * mask[:, None], mask, mask, torch.ones(batch), camera, mesh, landmarks), gt


def test_the_fit_recovers_a_rendering_of_the_model(tiny: MorphableModel) -> None:
    targets, gt = targets_of(tiny)
    found = fit(tiny, targets, settings=SETTINGS)
    assert found.photometric_error.item() < 0.03
    shape = tiny.vertices(found.coefficients.identity, found.coefficients.expression)
    error = (shape - tiny.vertices(gt.identity, gt.expression)).norm(dim=-1).mean()
    assert error < 1.5e-3
    assert {time.name for time in found.stage_times} == {"landmarks", "light and albedo", "photometric"}


def test_the_photometric_stage_lowers_the_colour_error(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny)
    without = fit(tiny, targets, settings=replace(SETTINGS, photometric_steps=0))
    with_steps = fit(tiny, targets, settings=replace(SETTINGS, photometric_steps=25))
    assert with_steps.photometric_error.item() < without.photometric_error.item()


def test_two_faces_are_fitted_as_one_by_one(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny, batch=2)
    both = fit(tiny, targets, settings=SETTINGS)
    alone = fit(tiny, targets[slice(1, 2)], settings=SETTINGS)
    torch.testing.assert_close(alone.coefficients.identity, both.coefficients.identity[1:], atol=0.02, rtol=0)


def test_the_same_seed_gives_the_same_face(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny)
    first, again = fit(tiny, targets, settings=SETTINGS), fit(tiny, targets, settings=SETTINGS)
    assert torch.equal(first.coefficients.identity, again.coefficients.identity)
    assert torch.equal(first.coefficients.lighting, again.coefficients.lighting)


def test_a_photo_with_nan_is_refused_by_name(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny)
    targets.crops[0, :, 30, 30] = torch.nan
    with pytest.raises(FitDiverged, match=r"targets\.crops contains values that are not finite for faces \[0\]"):
        fit(tiny, targets, settings=SETTINGS)


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="landmark_sigma"):
        FitSettings(landmark_sigma=0.0)
    with pytest.raises(ConfigError, match="photometric_steps"):
        FitSettings(photometric_steps=-1)


def test_the_fit_leaves_model_and_targets_unchanged(tiny: MorphableModel) -> None:
    targets, gt = targets_of(tiny)
    before = {name: array.clone() for name, array in tiny.state_dict().items()}
    crops, focal = targets.crops.clone(), targets.camera.focal_px.clone()
    start = gt.expression.clone()
    fit(tiny, targets, settings=replace(SETTINGS, refine_focal=True, warm_photometric_steps=2), start=gt)
    for name, array in tiny.state_dict().items():
        assert torch.equal(array, before[name]), name
    assert torch.equal(targets.crops, crops)
    assert torch.equal(targets.camera.focal_px, focal)
    assert torch.equal(gt.expression, start)


def test_refine_focal_finds_the_focal_length_of_a_near_face(tiny: MorphableModel) -> None:
    gt_camera, wrong = (Camera.from_fov(fov, image_size=SIZE) for fov in (50.0, 35.0))
    identity, expression, albedo = tiny.counts
    face = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.3)
    with torch.no_grad():
        rendered = render(tiny, face, gt_camera)
        points = gt_camera.project(tiny.mediapipe_points(rendered.surface.vertices_camera))
    mask = (rendered.triangle_ids >= 0).float()
    landmarks = rendered.vertices_px[:, tiny.landmarks68]
    targets = FitTargets(rendered.image * mask[:, None], mask, mask, torch.ones(1), wrong, points, landmarks)
    settings = FitSettings(landmark_sigma=0.001, photometric_steps=2)
    fixed = fit(tiny, targets, settings=settings)
    free = fit(tiny, targets, settings=replace(settings, refine_focal=True))
    torch.testing.assert_close(fixed.camera.focal_px, wrong.focal_px, rtol=1e-4, atol=0)
    assert abs(float(free.camera.focal_px / gt_camera.focal_px) - 1) < 0.1
    assert free.coefficients.pose.translation[0, 2].item() == pytest.approx(0.3, rel=0.1)


def test_points_that_the_network_sees_weigh_more_than_those_it_estimates(tiny: MorphableModel) -> None:
    weights = mesh_point_weights(tiny)
    parts = torch.stack([tiny.masks.lips, tiny.masks.brows]).amax(0)
    share = (parts[tiny.mediapipe_vertices] * tiny.mediapipe_barycentrics).sum(1)
    oval, lids = [10, 152, 234, 454], [33, 133, 159, 145, 263, 362, 386, 374]
    assert weights[oval].tolist() == pytest.approx([0.1] * 4)
    assert weights[lids].tolist() == [2.0] * 8
    others = torch.ones(468, dtype=torch.bool)
    others[weights < 0.5] = False
    others[weights == 2.0] = False
    torch.testing.assert_close(weights[others], 1 + share[others])
    assert share[others].max() > 0.3
    assert int((weights < 0.5).sum()) == 36


def test_a_warm_start_takes_fewer_steps(tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, gt = targets_of(tiny)
    seen: list[int] = []
    monkeypatch.setattr(
        "mien.fitting.stages.fit_photometric",
        lambda model, targets, start, *, settings, **rest: seen.append(settings.photometric_steps) or start,
    )
    settings = FitSettings(photometric_steps=9, warm_photometric_steps=4)
    fit(tiny, targets, settings=settings)
    fit(tiny, targets, settings=settings, start=gt)
    assert seen == [9, 4]


def test_the_identity_of_a_start_is_an_estimate_in_both_stages(tiny: MorphableModel) -> None:
    targets, gt = targets_of(tiny)
    off = replace(gt, identity=gt.identity + 1.0)
    for steps in (0, 8):
        settings = replace(SETTINGS, warm_photometric_steps=steps)
        trusted, doubted = (
            fit(tiny, targets, settings=replace(settings, prediction_sigma=sigma), start=off).coefficients.identity
            for sigma in (1e-5, 1e3)
        )
        torch.testing.assert_close(trusted, off.identity, atol=0.05, rtol=0)
        assert float((doubted - off.identity).abs().mean()) > 0.3


def test_recognition_joins_after_the_gauss_newton_steps(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny)

    def looks(steps: int) -> int:
        network = CountingNetwork()
        fit(tiny, targets, settings=replace(SETTINGS, photometric_steps=steps), recognition=network)
        return network.looks

    assert looks(GAUSS_NEWTON_STEPS) == 1  # at the photo
    assert looks(GAUSS_NEWTON_STEPS + 1) > 2


class CountingNetwork(BrightnessNetwork):
    """Counts the images that it sees."""

    looks = 0

    def forward(self, faces: Tensor) -> Tensor:
        self.looks += 1
        return super().forward(faces)


def test_light_is_fitted_to_visible_skin_under_the_exposure_of_the_photo(
    tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, gt = targets_of(tiny)
    targets = replace(targets, exposure=torch.tensor([0.5]))
    targets.mask[..., : SIZE[1] // 2] = 0
    seen: dict[str, torch.Tensor] = {}

    def recorded(model: MorphableModel, **given: torch.Tensor) -> LightFit:
        seen.update(given)
        return LightFit(gt.lighting, gt.albedo)

    monkeypatch.setattr("mien.fitting.stages.fit_light_and_albedo", recorded)
    turned = replace(gt, pose=replace(gt.pose, rotation=torch.tensor([[0.0, 0.9, 0.0]])))
    found = with_light_and_albedo(tiny, targets, turned, settings=SETTINGS)
    assert found.albedo is gt.albedo
    assert seen["exposure"].item() == 0.5
    weights, masks = seen["weights"][0], tiny.masks
    for part in (masks.eyes, masks.mouth, masks.neck):
        assert (weights[part > 0] == 0).all()
    x = render(tiny, turned, targets.camera).vertices_px[0, :, 0]
    assert (weights[x < SIZE[1] / 2 - 1] == 0).all()
    hidden = tiny.mean[:, 0] > 0.07  # the left side, which the head turns away
    assert (weights[hidden] == 0).all()
    assert weights[masks.lips > 0].max() > 0.5
