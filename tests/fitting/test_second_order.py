"""The second-order steps of the photometric fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mien.errors import FitDiverged
from mien.fitting import FitSettings, FitTargets
from mien.fitting.descent import DAMPING, GAUSS_NEWTON_STEPS, DenseMatrix, Descent, InverseHessian
from mien.fitting.normal_equations import ShapeBasis
from mien.fitting.photometric import PhotometricEnergy
from mien.fitting.second_order import FacePoint, FaceProblem, fit_photometric
from mien.fitting.unknowns import Unknowns
from mien.morphable import FaceCoefficients, MorphableModel
from tests.fitting.test_energy import BrightnessNetwork, ground_truth, targets_of
from tests.fitting.test_normal_equations import away_from

SETTINGS = FitSettings()


def energy_of(model: MorphableModel, face: FaceCoefficients, targets: FitTargets) -> float:
    energy = PhotometricEnergy(model, targets, settings=SETTINGS, point_weights=torch.ones(1, 468))
    return energy.terms(face, energy.render(face)).total().item()


def fitted(
    model: MorphableModel,
    targets: FitTargets,
    start: FaceCoefficients,
    steps: int,
    *,
    settings: FitSettings = SETTINGS,
) -> FaceCoefficients:
    return fit_photometric(
        model,
        targets,
        start,
        settings=replace(settings, photometric_steps=steps),
        point_weights=torch.ones(len(targets.crops), 468),
        recognition=None,
    )


def test_each_gauss_newton_step_lowers_the_energy(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets, start = targets_of(tiny, face), away_from(face)
    values = [energy_of(tiny, fitted(tiny, targets, start, steps), targets) for steps in range(GAUSS_NEWTON_STEPS)]
    assert values[1] < 0.5 * values[0]
    assert values[-1] < values[1]


def test_quasi_newton_steps_never_raise_the_energy(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    energy = PhotometricEnergy(
        tiny, targets, settings=SETTINGS, point_weights=torch.ones(1, 468), recognition=BrightnessNetwork()
    )
    basis = ShapeBasis(tiny, expression_sigmas=SETTINGS.expression_sigmas(tiny))
    problem = FaceProblem(energy, basis, Unknowns(tiny, away_from(face), SETTINGS))
    descent, places = Descent(problem), [problem.place()]
    for _ in range(8):
        descent.quasi_newton()
        assert descent.here is not None
        places.append(descent.here)
    values = [place.value for place in places]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.5 * values[0]
    torch.testing.assert_close(problem.unknowns.identity[0].detach(), places[-1].vector[: tiny.counts[0]])


def test_the_energy_is_differentiated_once_per_step(tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    face = ground_truth(tiny)
    energy = PhotometricEnergy(tiny, targets_of(tiny, face), settings=SETTINGS, point_weights=torch.ones(1, 468))
    descent = Descent(FaceProblem(energy, ShapeBasis.of(tiny, SETTINGS), Unknowns(tiny, away_from(face), SETTINGS)))
    counts = {"values": 0, "gradients": 0}
    render, grad = energy.render, torch.autograd.grad

    def counted(name, function):
        def call(*args, **settings):
            counts[name] += 1
            return function(*args, **settings)

        return call

    monkeypatch.setattr(energy, "render", counted("values", render))
    monkeypatch.setattr(torch.autograd, "grad", counted("gradients", grad))
    steps = 1
    while not descent.quasi_newton():
        steps += 1
    assert counts["gradients"] == steps
    assert counts["values"] > steps + 1


def test_a_failed_step_is_shortened_to_the_minimum_of_the_parabola(
    tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = ground_truth(tiny)
    energy = PhotometricEnergy(tiny, targets_of(tiny, face), settings=SETTINGS, point_weights=torch.ones(1, 468))
    problem = FaceProblem(energy, ShapeBasis.of(tiny, SETTINGS), Unknowns(tiny, away_from(face), SETTINGS))
    descent, start, tried = Descent(problem), problem.vector(), []
    here = problem.place()

    def trial() -> FacePoint:
        tried.append(problem.vector() - start)
        return SimpleNamespace(value=values[len(tried) - 1])  # pyright: ignore[reportReturnType]

    descent.here = here
    monkeypatch.setattr(problem, "place", trial)
    monkeypatch.setattr(InverseHessian, "times", lambda self, gradient, held: 1e-3 * gradient)
    slope = -1e-3 * float(here.gradient.square().sum())
    # With a slope of -s, a value of 0.5 s above puts the minimum at 1/3; the second one is far beyond the limit.
    values = [here.value - 0.5 * slope, here.value - 1000 * slope, here.value - slope]
    assert descent.quasi_newton()
    lengths = [(step @ tried[0] / (tried[0] @ tried[0])).item() for step in tried]
    assert lengths == pytest.approx([1, 1 / 3, 1 / 30], rel=1e-2)


def test_a_converged_fit_takes_no_more_steps(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    reported: list[float] = []
    fit_photometric(
        tiny,
        targets_of(tiny, face),
        away_from(face),
        settings=replace(SETTINGS, photometric_steps=200),
        point_weights=torch.ones(1, 468),
        recognition=None,
        progress=reported.append,
    )
    assert GAUSS_NEWTON_STEPS < len(reported) < 60
    assert reported[-1] == 1


def test_a_face_does_not_depend_on_its_batch(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets, start = targets_of(tiny, face), away_from(face)
    other = replace(start, albedo=start.albedo + 1)
    both = fitted(tiny, FitTargets.join([targets, targets]), FaceCoefficients.join([other, start]), 6)
    alone = fitted(tiny, targets, start, 6)
    torch.testing.assert_close(both.identity[1:], alone.identity, rtol=0, atol=1e-5)
    torch.testing.assert_close(both.lighting[1:], alone.lighting, rtol=0, atol=1e-5)


def test_expressions_stay_in_the_range_of_the_model(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, replace(face, expression=torch.tensor([[-1.0, 2.0, 0.3, 0.4]])))
    found = fitted(tiny, targets, face, 8, settings=replace(SETTINGS, expression_sigma=10.0)).expression
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize("value", [1e30, float("nan")])
def test_an_energy_that_is_not_finite_is_refused(tiny: MorphableModel, value: float) -> None:
    face = ground_truth(tiny)
    targets = targets_of(tiny, face)
    targets.crops[:] = value
    with pytest.raises(FitDiverged, match="the energy of the photometric fit is"):
        fitted(tiny, targets, face, GAUSS_NEWTON_STEPS + 1)


def test_a_step_and_its_change_of_gradient_correct_the_matrix() -> None:
    hessian = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    free, held = torch.zeros(3, dtype=torch.bool), torch.tensor([False, True, False])
    matrix = InverseHessian(DenseMatrix(hessian))
    gradient = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(matrix.times(gradient, free), torch.ones(3) / (1 + DAMPING))
    torch.testing.assert_close(matrix.times(gradient, held), torch.tensor([1.0, 0.0, 1.0]) / (1 + DAMPING))
    step, change = torch.tensor([0.5, -0.2, 0.1]), torch.tensor([1.0, -0.1, 0.3])
    matrix.learn(step, change)
    torch.testing.assert_close(matrix.times(change, free), step)
    matrix.learn(step, -change)  # a step along which the gradient falls has no curvature to learn
    torch.testing.assert_close(matrix.times(change, free), step)
