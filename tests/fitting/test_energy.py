"""The terms of the photometric energy one by one: values that can be computed by hand, and directions of gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mien.camera import Camera
from mien.fitting import FitSettings, FitTargets
from mien.fitting.depth import depth_px
from mien.fitting.photometric import EFFECTIVE_PIXELS, EnergyTerms, PhotometricEnergy
from mien.fitting.prediction import EFFECTIVE_POINTS, PredictedIdentity
from mien.fitting.unknowns import Unknowns
from mien.geometry import remove_similarity
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.rendering import render
from mien.typing import Tensor

SIDE = 96
EXPOSURE = 0.5
BACKGROUND = torch.tensor([0.1, 0.2, 0.5])
SETTINGS = FitSettings()


class BrightnessNetwork(IdentityNetwork):
    """A recognition network whose features are the brightness of 8 × 16 blocks of the image."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def crop(self, image: Tensor, landmarks68_px: Tensor) -> Tensor:
        return image

    def forward(self, faces: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(faces.mean(1, keepdim=True), (8, 16)).flatten(1)


def ground_truth(model: MorphableModel) -> FaceCoefficients:
    """A turned face with every coefficient used, under coloured light from the side."""
    identity, expression, albedo = model.counts
    mean = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
    lighting = ambient_lighting(1, level=EXPOSURE)
    lighting[:, 1], lighting[:, 3], lighting[:, 0, 0] = 0.1, 0.2, EXPOSURE + 0.02
    return replace(
        mean,
        identity=torch.linspace(-1, 1, identity)[None],
        expression=torch.tensor([[0.2, 0.1, 0.3, 0.4]]),
        albedo=torch.linspace(-0.5, 1, albedo)[None],
        lighting=lighting,
        pose=replace(mean.pose, rotation=torch.tensor([[0.1, 0.6, 0.05]])),
    )


def targets_of(model: MorphableModel, face: FaceCoefficients) -> FitTargets:
    camera = Camera.from_fov(30.0, image_size=(SIDE, SIDE))
    rendered = render(model, face, camera)
    inside = (rendered.triangle_ids >= 0).float()
    photo = rendered.image * inside[:, None] + BACKGROUND[:, None, None] * (1 - inside)[:, None]
    points = camera.project(model.mediapipe_points(rendered.surface.vertices_camera))
    landmarks = rendered.vertices_px[:, model.landmarks68]
    depths = depth_px(model.mediapipe_points(rendered.surface.vertices_camera), camera)
    return FitTargets(photo, inside, inside, torch.tensor([EXPOSURE]), camera, points, landmarks, depths)


def terms_of(
    model: MorphableModel, face: FaceCoefficients, targets: FitTargets, *, point_weights: Tensor | None = None
) -> EnergyTerms:
    weights = torch.ones(1, 468) if point_weights is None else point_weights
    energy = PhotometricEnergy(
        model, targets, settings=SETTINGS, point_weights=weights, recognition=BrightnessNetwork()
    )
    return energy.terms(face, energy.render(face))


def test_terms_of_the_data_vanish_at_the_ground_truth(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    terms = terms_of(tiny, face, targets)
    assert terms.colour.item() == pytest.approx(0, abs=1e-6)
    assert terms.landmarks.item() == pytest.approx(0, abs=1e-6)
    assert terms.depth.item() == pytest.approx(0, abs=1e-6)
    assert terms.recognition.item() == pytest.approx(0, abs=1e-4)
    # The triangles are large: their edges and the contour of the smooth normals are most of a pixel apart.
    moved = terms_of(tiny, CHANGES["right"](face, 1.0), targets)
    assert terms.contour.item() < 0.3 * moved.contour.item()


def test_priors_are_half_the_squares_in_standard_deviations(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    terms = terms_of(tiny, face, targets_of(tiny, face))
    assert terms.identity_prior.item() == pytest.approx(0.5 * float(face.identity.square().sum()))
    assert terms.expression_prior.item() == pytest.approx(0.5 * (0.04 + 0.01 + 0.09 + 0.16) / 0.25**2)
    assert terms.albedo_prior.item() == pytest.approx(0.5 * float(face.albedo.square().sum()))


def test_a_prediction_counts_as_a_few_points_of_one_standard_deviation(tiny: MorphableModel) -> None:
    """A surface whose weighted distance from the predicted one is one standard deviation costs half per point."""
    predicted, identity = torch.randn(2, 1, tiny.counts[0]).unbind(0)
    weights = (1 - tiny.masks.neck) * (1 - tiny.masks.eyes)
    moved = tiny.vertices(identity, torch.zeros(1, 4)) - tiny.vertices(predicted, torch.zeros(1, 4))
    roots = weights.sqrt()[:, None]
    bent = remove_similarity(moved * roots, tiny.mean, weights=roots)
    assert float(bent.norm()) < 0.99 * float((moved * roots).norm())
    distance = (bent.square().sum() / weights.sum()).sqrt()
    prediction = PredictedIdentity.of(tiny, predicted, sigma_m=float(distance))
    assert prediction.energy(identity).item() == pytest.approx(0.5 * EFFECTIVE_POINTS, rel=1e-3)
    assert prediction.energy(predicted).item() == 0
    free = identity.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prediction.energy(free), free)
    torch.testing.assert_close(prediction.gradient(identity), gradient)


def test_the_energy_contains_the_prediction(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    prediction = PredictedIdentity.of(tiny, face.identity + 0.5, sigma_m=0.002)
    targets = targets_of(tiny, face)
    energy = PhotometricEnergy(
        tiny, targets, settings=SETTINGS, point_weights=torch.ones(1, 468), prediction=prediction
    )
    terms = energy.terms(face, energy.render(face))
    assert terms.prediction.item() == pytest.approx(prediction.energy(face.identity).item())
    assert terms_of(tiny, face, targets).prediction.item() == 0


def test_the_light_prior_is_centred_on_white_light_of_the_exposure(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)

    def prior(lighting: Tensor) -> float:
        return terms_of(tiny, replace(face, lighting=lighting), targets).light_prior.item()

    assert prior(ambient_lighting(1, level=EXPOSURE)) == pytest.approx(0, abs=1e-6)
    brighter = ambient_lighting(1, level=EXPOSURE + 0.06)
    assert prior(brighter) == pytest.approx(0.5 * (1 + (0.06 / 0.2) ** 2), rel=1e-4)
    from_above = ambient_lighting(1, level=EXPOSURE)
    from_above[:, 1] = 0.2
    assert prior(from_above) == pytest.approx(0.5, rel=1e-4)
    reddish = ambient_lighting(1, level=EXPOSURE)
    reddish[:, 1, 0] = 0.06  # a third is grey, 0.02; the rest, of squared length 2/3 · 0.06², is chroma
    assert prior(reddish) == pytest.approx(0.5 * ((0.02 / 0.2) ** 2 + 2 / 3), rel=1e-4)


def test_the_colour_term_is_robust_with_a_scale_of_three_sigmas_per_channel(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    photo = render(tiny, face, targets.camera).image
    for sigmas, expected in ((1.0, 3 / (1 + 3 / 27)), (3.0, 13.5), (30.0, 2700 / 101)):
        terms = terms_of(tiny, face, replace(targets, crops=photo + sigmas * SETTINGS.pixel_sigma))
        assert terms.colour.item() == pytest.approx(0.5 * EFFECTIVE_PIXELS * expected, rel=1e-4)


def test_the_colour_term_counts_masked_pixels_only(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    targets.crops[:, :, :, : SIDE // 2] += 0.5
    mask = targets.mask.clone()
    mask[:, :, : SIDE // 2] = 0
    assert terms_of(tiny, face, replace(targets, mask=mask)).colour.item() == pytest.approx(0, abs=1e-6)
    assert terms_of(tiny, face, targets).colour.item() > 100


def test_the_depth_term_ignores_planes_and_counts_one_point_by_its_error(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    depths = targets.landmarks468_depth_px
    assert depths is not None
    points_px = targets.landmarks468_px
    tilted = replace(targets, landmarks468_depth_px=depths + 0.5 * points_px[..., 0] - 0.1 * points_px[..., 1] + 9)
    assert terms_of(tiny, face, tilted).depth.item() == pytest.approx(0, abs=1e-5)
    sigma_px = SETTINGS.depth_sigma * targets.extent_px.item()
    middle = int((points_px[0] - points_px[0].mean(0)).norm(dim=-1).argmin())
    wrong = depths.clone()
    wrong[0, middle] += sigma_px
    weights = torch.ones(1, 468)
    weights[0, middle] = 2.0
    # A single point hardly tilts the plane; the error of one sigma counts 1 / (1 + 1/9).
    energy = terms_of(tiny, face, replace(targets, landmarks468_depth_px=wrong), point_weights=weights).depth.item()
    assert energy == pytest.approx(0.5 * 2 * 0.9, rel=0.02)
    unknown = replace(targets, landmarks468_depth_px=None)
    assert terms_of(tiny, CHANGES["right"](face, 1.0), unknown).depth.item() == 0


def test_the_landmark_term_weighs_each_point_and_is_robust_beyond_three_sigmas(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    # A point inside the bounding box, so that the size of the face does not change.
    middle = int((targets.landmarks468_px[0] - targets.landmarks468_px[0].mean(0)).norm(dim=-1).argmin())
    weights = torch.ones(1, 468)
    weights[0, middle] = 2.0
    for sigmas, expected in ((1.0, 0.9), (3.0, 4.5)):
        moved = targets.landmarks468_px.clone()
        moved[0, middle, 0] += sigmas * SETTINGS.landmark_sigma * targets.extent_px[0]
        terms = terms_of(tiny, face, replace(targets, landmarks468_px=moved), point_weights=weights)
        assert terms.landmarks.item() == pytest.approx(0.5 * 2 * expected, rel=1e-3)


def test_the_recognition_term_is_the_weighted_mean_of_feature_distances(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    # Without a mask the whole photo remains, and with it the features: only the mask lets the rendering in.
    unmasked = terms_of(tiny, face, replace(targets, mask=torch.zeros_like(targets.mask)))
    assert unmasked.recognition.item() == pytest.approx(0, abs=1e-4)
    inside = (render(tiny, face, targets.camera).triangle_ids >= 0).float()
    dark = replace(face, lighting=torch.zeros(1, 9, 3))
    black = terms_of(tiny, dark, targets)
    features = BrightnessNetwork()(targets.crops * inside[:, None])
    assert black.recognition.item() == pytest.approx(1200 * features.mean().item(), rel=0.02)


def test_without_a_network_there_is_no_recognition_term(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, replace(face, albedo=-face.albedo))
    with_it, without = (
        PhotometricEnergy(tiny, targets, settings=SETTINGS, point_weights=torch.ones(1, 468), recognition=network)
        for network in (BrightnessNetwork(), None)
    )
    rendered = with_it.render(face)
    with_it, without = with_it.terms(face, rendered), without.terms(face, rendered)
    assert with_it.recognition.item() > 1
    assert without.recognition.item() == 0
    assert with_it.total().item() - without.total().item() == pytest.approx(with_it.recognition.item(), rel=1e-3)


CHANGES = {
    "identity": lambda face, t: replace(face, identity=face.identity + t * torch.eye(12)[:1]),
    "expression": lambda face, t: replace(face, expression=face.expression + 0.3 * t * torch.eye(4)[2:3]),
    "albedo": lambda face, t: replace(face, albedo=face.albedo + t),
    "light": lambda face, t: replace(face, lighting=face.lighting + 0.1 * t * torch.eye(9)[0][:, None]),
    "yaw": lambda face, t: replace(
        face, pose=replace(face.pose, rotation=face.pose.rotation + 0.1 * t * torch.tensor([0.0, 1.0, 0.0]))
    ),
    "right": lambda face, t: replace(
        face, pose=replace(face.pose, translation=face.pose.translation + 4e-3 * t * torch.tensor([1.0, 0.0, 0.0]))
    ),
    "depth": lambda face, t: replace(
        face, pose=replace(face.pose, translation=face.pose.translation + 0.02 * t * torch.tensor([0.0, 0.0, 1.0]))
    ),
}


@pytest.mark.parametrize(
    ("term", "unknown"),
    [
        *[("colour", unknown) for unknown in ("albedo", "light", "yaw", "right", "identity", "expression")],
        *[("landmarks", unknown) for unknown in ("identity", "expression", "yaw", "right", "depth")],
        ("contour", "right"),
        ("recognition", "albedo"),
        ("recognition", "light"),
        ("identity_prior", "identity"),
        ("expression_prior", "expression"),
        ("albedo_prior", "albedo"),
        ("light_prior", "light"),
    ],
)
@pytest.mark.parametrize("offset", [1.0, -1.0])
def test_each_term_pulls_a_changed_face_back(tiny: MorphableModel, term: str, unknown: str, offset: float) -> None:
    face = ground_truth(tiny)
    if term.endswith("_prior"):
        identity, expression, albedo = tiny.counts
        face = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
        face = replace(face, lighting=ambient_lighting(1, level=EXPOSURE))
    targets = targets_of(tiny, face)
    t = torch.tensor(offset, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(terms_of(tiny, CHANGES[unknown](face, t), targets), term), t)
    assert slope.item() * offset > 0


def test_a_change_of_depth_slides_the_face_along_its_line_of_sight(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    start = replace(face, pose=replace(face.pose, translation=torch.tensor([[0.08, -0.05, 0.5]])))
    camera = Camera.from_fov(30.0, image_size=(SIDE, SIDE))
    unknowns = Unknowns(tiny, start, SETTINGS)
    with torch.no_grad():
        unknowns.translation[0, 2] = 10.0
        moved = unknowns.coefficients().pose.translation
    assert moved[0, 2].item() == pytest.approx(0.5 * math.exp(0.1))
    torch.testing.assert_close(camera.project(moved[:, None]), camera.project(start.pose.translation[:, None]))


def test_a_unit_of_each_unknown_is_about_one_standard_deviation(tiny: MorphableModel) -> None:
    start = ground_truth(tiny)
    unknowns = Unknowns(tiny, start, SETTINGS)
    with torch.no_grad():
        for parameter in unknowns.parameters():
            parameter.add_(1)
        found = unknowns.coefficients()
    torch.testing.assert_close(found.identity - start.identity, torch.ones(1, 12))
    torch.testing.assert_close(found.expression - start.expression, torch.full((1, 4), 0.25))
    torch.testing.assert_close(found.lighting - start.lighting, torch.full((1, 9, 3), 0.06))
    torch.testing.assert_close(found.pose.rotation - start.pose.rotation, torch.full((1, 3), 0.05))
    shift = (found.pose.translation - start.pose.translation)[0]
    torch.testing.assert_close(shift, torch.tensor([0.0015, 0.0015, 0.5 * (math.exp(0.01) - 1)]))
    with torch.no_grad():
        unknowns.expression += 100
        unknowns.assign(unknowns.vector())
        assert unknowns.coefficients().expression.max().item() == pytest.approx(1.0)
