"""The prior of the identity: the packaged covariance, where the fit uses it, and the script that makes it."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mien.camera import Camera
from mien.fitting import identity_prior
from mien.fitting.identity_prior import identity_precision
from mien.fitting.landmarks import fit_landmarks
from mien.fitting.normal_equations import normal_equations
from mien.geometry import rotvec_to_rotmat
from mien.morphable import MorphableModel, load_model
from mien.morphable.revisions import _EARLIER
from mien.typing import Tensor
from tests.fitting.test_landmarks import PRIORS, posed
from tests.fitting.test_normal_equations import basis_of, problem_of
from tests.tiny import IDENTITY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packaged() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "models"))
    try:
        return importlib.import_module("identity_prior")
    finally:
        sys.path.pop(0)


@pytest.fixture
def correlated(tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """A precision with correlations, as if it were packaged for the tiny model."""
    root = torch.randn(IDENTITY, IDENTITY, dtype=torch.float64)
    precision = root @ root.T / IDENTITY + torch.eye(IDENTITY)
    monkeypatch.setattr(identity_prior, "_packaged_precision", lambda: (tiny.fingerprint, precision))
    return precision


def test_other_models_have_independent_coefficients(tiny: MorphableModel) -> None:
    torch.testing.assert_close(identity_precision(tiny, sigma=0.5), 4 * torch.eye(IDENTITY))


def test_the_packaged_precision_is_symmetric_positive_definite_and_scales(packaged: MorphableModel) -> None:
    precision = identity_precision(packaged, sigma=1.0)
    assert precision.dtype == packaged.mean.dtype
    assert torch.equal(precision, precision.mT)
    eigenvalues = torch.linalg.eigvalsh(precision.double())
    # A fifth of the covariance is the model's own, whose variances are one.
    assert 0.1 < float(eigenvalues.min()) < 1.0
    assert 4.0 < float(eigenvalues.max()) < 5.01
    torch.testing.assert_close(identity_precision(packaged, sigma=2.0), precision / 4)


@pytest.mark.parametrize("part, low, high", [("lips", 2.5, 5.5), ("brows", 2.0, 5.0), ("eyes", 2.0, 5.0)])
def test_people_spread_by_millimetres(packaged: MorphableModel, part: str, low: float, high: float) -> None:
    """Standard deviation of the vertices of a part, with the motion of the part as a whole."""
    covariance = torch.linalg.inv(identity_precision(packaged, sigma=1.0).double())
    basis = packaged.identity_basis[:, getattr(packaged.masks, part) > 0.5].double().flatten(1) * 1000
    spread_mm = float(3 * ((covariance @ basis) * basis).sum(0).mean()) ** 0.5
    assert low < spread_mm < high


def test_earlier_revisions_of_the_model_have_the_prior(
    tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch, correlated: Tensor
) -> None:
    monkeypatch.setattr(identity_prior, "_packaged_precision", lambda: ("0" * 64, correlated))
    torch.testing.assert_close(identity_precision(tiny, sigma=1.0), torch.eye(IDENTITY))
    monkeypatch.setitem(_EARLIER, tiny.fingerprint, ("0" * 64,))
    torch.testing.assert_close(identity_precision(tiny, sigma=1.0), correlated.float())


def test_energy_and_normal_equations_use_correlations(tiny: MorphableModel, correlated: Tensor) -> None:
    energy, unknowns, rendered = problem_of(tiny, masked=False)
    face = unknowns.coefficients()
    terms = energy.terms(face, rendered)
    identity = face.identity[0].detach().double()
    assert terms.identity_prior.item() == pytest.approx(0.5 * float(identity @ correlated @ identity), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms.total(), [unknowns.identity])
    equations = normal_equations(energy, basis_of(tiny), unknowns, rendered)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(equations.gradient[:IDENTITY], gradient[0], rtol=2e-3, atol=2e-3 * scale)
    energy.identity_precision = torch.zeros_like(energy.identity_precision)
    without = normal_equations(energy, basis_of(tiny), unknowns, rendered)
    part = (equations.hessian - without.hessian)[:IDENTITY, :IDENTITY]
    rounding = 1e-6 * float(equations.hessian.abs().max())
    torch.testing.assert_close(part, correlated.float(), rtol=1e-4, atol=rounding)


def test_the_landmark_fit_uses_correlations(tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The landmarks show the first component alone; a prior that ties the second to it moves both."""
    camera, pose = Camera.from_fov(30.0, image_size=(224, 224)), posed(20.0)
    identity = 2 * torch.eye(IDENTITY)[:1]
    points = camera.project(pose.to_camera(tiny.mediapipe_points(tiny.vertices(identity, torch.zeros(1, 4)))))
    weights, priors = torch.ones(1, 468), replace(PRIORS, landmark_sigma=0.2)
    for correlation in (0.999, -0.999):
        covariance = torch.eye(IDENTITY, dtype=torch.float64)
        covariance[0, 1] = covariance[1, 0] = correlation
        packaged = tiny.fingerprint, torch.linalg.inv(covariance)
        monkeypatch.setattr(identity_prior, "_packaged_precision", lambda value=packaged: value)
        found = fit_landmarks(tiny, points, camera, point_weights=weights, priors=priors).identity[0]
        assert float(found[0]) > 0.03
        assert float(found[1]) == pytest.approx(correlation * float(found[0]), rel=0.05)


def test_the_script_recovers_a_population_that_the_components_can_make(
    tiny: MorphableModel, script: ModuleType
) -> None:
    """ICT-FaceKit's place is taken by the tiny model itself in another pose, with modes that are known blends."""
    blends = torch.randn(5, IDENTITY, dtype=torch.float64)
    rotation = rotvec_to_rotmat(torch.tensor([[0.05, 0.1, -0.05]]))[0]
    modes = torch.einsum("mk,kvc->mvc", blends, tiny.identity_basis.double()) * 1000 @ rotation.T.double()
    landmarks = dict(enumerate(tiny.landmarks68.tolist()))
    population = script.Population(tiny.mean @ rotation.T + 0.01, tiny.triangles, modes, landmarks)
    used, offsets = script.modes_on_model(tiny, population)
    assert len(used) > 200
    points = tiny.mean[used].double() * 1000
    basis = script.without_motion(tiny.identity_basis[:, used].double() * 1000, points)
    found = script.coefficients_of(script.without_motion(offsets, points), basis, 1e-6)
    torch.testing.assert_close(found, blends, atol=0.05, rtol=0)
    covariance, _ = script.build(tiny, population)
    expected = 0.8 * blends.T @ blends + 0.2 * torch.eye(IDENTITY)
    torch.testing.assert_close(covariance, expected, atol=0.1, rtol=0.1)
