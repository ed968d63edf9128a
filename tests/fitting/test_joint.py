"""Several photos of one person: the joint fit against fits of one photo, and its energy against plain formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mien.errors import ConfigError, FitDiverged
from mien.fitting import FitSettings, FitTargets, fit, fit_joint, mesh_point_weights
from mien.fitting.joint import joined_prediction
from mien.fitting.joint_landmarks import JointLandmarks, PersonPrior
from mien.fitting.joint_photometric import PersonProblem
from mien.fitting.normal_equations import ShapeBasis, normal_equations, photo_equations
from mien.fitting.photometric import PhotometricEnergy
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.stages import landmark_priors
from mien.fitting.unknowns import Unknowns
from mien.morphable import FaceCoefficients, MorphableModel
from mien.typing import Tensor
from tests.fitting.test_energy import BrightnessNetwork, ground_truth, targets_of
from tests.fitting.test_normal_equations import away_from

SETTINGS = FitSettings(photometric_steps=6)
YAWS = (0.0, 0.5, -0.5)


def person_of(model: MorphableModel, *, yaws: tuple[float, ...] = YAWS) -> tuple[FitTargets, FaceCoefficients]:
    """Photos of one person with another pose, expression and light in each."""
    face, faces = ground_truth(model), []
    for k, yaw in enumerate(yaws):
        pose = replace(face.pose, rotation=torch.tensor([[0.05 * k, yaw, 0.0]]))
        lighting = face.lighting.clone()
        lighting[:, 3] = 0.1 * k
        faces.append(replace(face, expression=face.expression.roll(k, 1), lighting=lighting, pose=pose))
    return FitTargets.join([targets_of(model, one) for one in faces]), FaceCoefficients.join(faces)


def shape_error(model: MorphableModel, found: FaceCoefficients, gt: FaceCoefficients) -> float:
    neutral = torch.zeros_like(found.expression)
    return float((model.vertices(found.identity, neutral) - model.vertices(gt.identity, neutral)).norm(dim=-1).mean())


@pytest.mark.parametrize("predicted", [False, True])
def test_one_photo_is_fitted_as_by_fit(tiny: MorphableModel, predicted: bool) -> None:
    face = ground_truth(tiny)
    targets, start = targets_of(tiny, face), away_from(face) if predicted else None
    network = BrightnessNetwork()
    alone = fit(tiny, targets, settings=SETTINGS, recognition=network, start=start)
    joint = fit_joint(tiny, targets, settings=SETTINGS, recognition=network, start=start)
    for name in ("identity", "expression", "albedo", "lighting"):
        own, expected = getattr(joint.coefficients, name), getattr(alone.coefficients, name)
        torch.testing.assert_close(own, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(joint.photometric_error, alone.photometric_error, rtol=0, atol=1e-4)
    assert joint.photo_weights.tolist() == [1.0]
    assert [time.name for time in joint.stage_times] == [time.name for time in alone.stage_times]


def test_a_photo_that_is_given_twice_halves_the_prior(tiny: MorphableModel) -> None:
    """Twice the energy of a photo and once the prior have the minimum of one energy and half the prior."""
    targets = targets_of(tiny, ground_truth(tiny))
    points = mesh_point_weights(tiny)

    def landmarks(targets: FitTargets, sigma: float) -> JointLandmarks:
        problem = JointLandmarks(
            tiny,
            targets,
            point_weights=points.expand(len(targets.crops), -1),
            priors=landmark_priors(tiny, SETTINGS),
            person=PersonPrior.of(tiny, sigma=sigma, prediction=None),
            start=None,
        )
        problem.descend(torch.ones(len(targets.crops)))
        problem.descend(torch.ones(len(targets.crops)), again=True)
        return problem

    twice = landmarks(FitTargets.join([targets, targets]), 1.0).results()
    halved, usual = (landmarks(targets, sigma).results()[0] for sigma in (math.sqrt(2), 1.0))
    torch.testing.assert_close(twice[0].identity, halved.identity, rtol=0, atol=1e-4)
    torch.testing.assert_close(twice[1].expression, halved.expression, rtol=0, atol=1e-4)
    assert (usual.identity - halved.identity).abs().max() > 1e-3


def problem_of(
    model: MorphableModel, targets: FitTargets, faces: FaceCoefficients, weights: Tensor
) -> tuple[PersonProblem, list[PhotometricEnergy], list[Unknowns]]:
    count = len(targets.crops)
    one = [slice(k, k + 1) for k in range(count)]
    energies = [
        PhotometricEnergy(
            model,
            targets[k],
            settings=SETTINGS,
            point_weights=torch.ones(1, 468),
            recognition=BrightnessNetwork(),
        )
        for k in one
    ]
    unknowns = [Unknowns(model, faces[k], SETTINGS) for k in one]
    prediction = PredictedIdentity.of(model, faces.identity[:1] + 0.1, sigma_m=0.01)
    person = PersonPrior.of(model, sigma=1.0, prediction=prediction)
    basis = ShapeBasis.of(model, SETTINGS)
    return PersonProblem(energies, unknowns, basis, person=person, weights=weights), energies, unknowns


def test_value_and_gradient_are_those_of_one_graph(tiny: MorphableModel) -> None:
    """The energy of all photos as one function of shared tensors, differentiated by autograd."""
    targets, gt = person_of(tiny)
    faces, weights = away_from(gt), torch.tensor([1.0, 0.5, 0.25])
    problem, energies, unknowns = problem_of(tiny, targets, faces, weights)
    place = problem.place()
    identity = faces.identity[:1].clone().requires_grad_()
    albedo = faces.albedo[:1].clone().requires_grad_()
    prediction = problem.person.prediction
    assert prediction is not None
    total = 0.5 * identity.square().sum() + 0.5 * albedo.square().sum() + prediction.energy(identity)
    for energy, photo, weight in zip(energies, unknowns, weights, strict=True):
        coefficients = replace(photo.coefficients(), identity=identity, albedo=albedo)
        terms = energy.terms(coefficients, energy.render(coefficients))
        total = total + weight * (
            terms.colour + terms.landmarks + terms.depth + terms.lids + terms.contour
            + terms.expression_prior + terms.light_prior + terms.recognition
        )  # fmt: skip
    own = [part for photo in unknowns for part in (photo.expression, photo.rotation, photo.translation, photo.lighting)]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(total, [identity, albedo, *own])])
    assert place.value == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(place.gradient, expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(problem.vector()[: tiny.counts[0]], faces.identity[0])


def test_equations_are_those_of_the_photos_and_one_prior(tiny: MorphableModel) -> None:
    targets, gt = person_of(tiny, yaws=(0.0, 0.4))
    faces = away_from(gt)
    problem, energies, unknowns = problem_of(tiny, targets, faces, torch.tensor([1.0, 0.5]))
    matrix, gradient = problem.equations(None)
    count = len(problem.layout.shared)
    basis = ShapeBasis.of(tiny, SETTINGS)

    def of_photo(k: int) -> tuple[Tensor, Tensor]:
        rendered = energies[k].render(unknowns[k].coefficients())
        found = photo_equations(energies[k], basis, unknowns[k], rendered)
        with_prior = normal_equations(energies[k], basis, unknowns[k], rendered)
        prior = (with_prior.hessian - found.hessian)[problem.layout.shared][:, problem.layout.shared]
        torch.testing.assert_close(prior, torch.eye(count), atol=2e-2, rtol=0)
        return found.hessian, found.gradient

    (first, slope_first), (second, slope_second) = of_photo(0), of_photo(1)
    identity, albedo, _ = tiny.counts[0], tiny.counts[2], None
    prior = torch.block_diag(problem.person.hessian(), torch.eye(albedo).double())
    shared = problem.layout.shared
    expected = prior + (first + 0.5 * second)[shared[:, None], shared]
    torch.testing.assert_close(matrix.shared, expected.double(), rtol=1e-4, atol=1e-2)
    pull = torch.cat([problem.person.gradient(faces.identity[0].double()), faces.albedo[0].double()])
    torch.testing.assert_close(
        gradient[:count].double(), (slope_first + 0.5 * slope_second)[shared] + pull, rtol=1e-4, atol=1e-2
    )
    assert identity + albedo == count


def test_the_order_of_the_photos_does_not_matter(tiny: MorphableModel) -> None:
    targets, _ = person_of(tiny)
    order = torch.tensor([2, 0, 1])
    found, moved = (fit_joint(tiny, photos, settings=SETTINGS) for photos in (targets, targets[order]))
    torch.testing.assert_close(moved.coefficients.identity[0], found.coefficients.identity[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.coefficients.expression, found.coefficients.expression[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.photo_weights, found.photo_weights[order], rtol=0, atol=1e-5)


def test_three_views_tell_more_than_one(tiny: MorphableModel) -> None:
    exact, gt = person_of(tiny)
    noise = torch.randn(exact.landmarks468_px.shape, generator=torch.Generator().manual_seed(0))
    targets = replace(exact, landmarks468_px=exact.landmarks468_px + 1.5 * noise)
    found = fit_joint(tiny, targets, settings=SETTINGS)
    identity, albedo = found.coefficients.identity, found.coefficients.albedo
    assert torch.equal(identity, identity[:1].expand_as(identity))
    assert torch.equal(albedo, albedo[:1].expand_as(albedo))
    assert (found.coefficients.expression[0] - found.coefficients.expression[1]).abs().max() > 0.05
    alone = [fit(tiny, targets[k : k + 1], settings=SETTINGS).coefficients for k in range(len(YAWS))]
    errors = [shape_error(tiny, face, gt[:1]) for face in alone]
    assert shape_error(tiny, found.coefficients[:1], gt[:1]) < 0.75 * sum(errors) / len(errors)
    assert found.photo_weights.min() > 0.8


def test_a_photo_of_somebody_else_counts_for_little(tiny: MorphableModel) -> None:
    targets, gt = person_of(tiny, yaws=(0.0, 0.3, -0.3, 0.15))
    other = replace(gt[:1], identity=3 * gt.identity[:1].roll(3, 1))
    with_other = FitTargets.join([targets, targets_of(tiny, other)])
    settings = replace(SETTINGS, photometric_steps=0)
    found = fit_joint(tiny, with_other, settings=settings)
    assert found.photo_weights[:4].min() > 0.5
    assert found.photo_weights[4] < 0.1
    clean = fit_joint(tiny, targets, settings=settings).coefficients
    assert shape_error(tiny, found.coefficients[:1], clean[:1]) < 0.3e-3


def test_predictions_of_two_photos_count_less_than_twice(tiny: MorphableModel) -> None:
    prediction = PredictedIdentity.of(tiny, torch.randn(2, tiny.counts[0]), sigma_m=0.002)
    joined = joined_prediction(prediction, torch.tensor([1.0, 1.0]))
    assert joined is not None
    torch.testing.assert_close(joined.identity, prediction.identity.mean(0, keepdim=True))
    torch.testing.assert_close(joined.precision, prediction.precision * 2 / 1.5)
    alone = joined_prediction(prediction[:1], torch.ones(1))
    assert alone is not None
    torch.testing.assert_close(alone.precision, prediction.precision)


def test_no_photos_and_values_that_are_not_finite_are_refused(tiny: MorphableModel) -> None:
    targets, _ = person_of(tiny, yaws=(0.0, 0.3))
    with pytest.raises(ConfigError, match="targets is empty"):
        fit_joint(tiny, targets[:0])
    targets.crops[1, 0, 0, 0] = torch.nan
    with pytest.raises(FitDiverged, match=r"faces \[1\]"):
        fit_joint(tiny, targets)
