"""The photometric fit: second-order steps on all coefficients together.

The first steps are Gauss-Newton's, on sampled pixels and without the recognition term, which is the most expensive one
and of little use far from the solution. The following steps are those of a quasi-Newton method (L-BFGS around the
matrix of Gauss-Newton) on the whole energy. Each face has its own steps: its result does not depend on its batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from mien.fitting.descent import DenseMatrix, Descent, DescentProblem, EnergyPoint, checked_energy
from mien.fitting.normal_equations import ShapeBasis, normal_equations
from mien.fitting.photometric import PhotometricEnergy
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import FitSettings, FitTargets
from mien.fitting.unknowns import Unknowns
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.typing import Bool, Float, Tensor


def fit_photometric(
    model: MorphableModel,
    targets: FitTargets,
    start: FaceCoefficients,
    *,
    settings: FitSettings,
    point_weights: Float[Tensor, "B 468"],
    recognition: IdentityNetwork | None,
    prediction: PredictedIdentity | None = None,
    progress: Callable[[float], None] | None = None,
) -> FaceCoefficients:
    """Minimise `PhotometricEnergy`.

    Args:
        model: The morphable model.
        targets: Photos, masks, landmarks and cameras.
        start: Faces at which the descent begins.
        settings: Standard deviations, weights and largest number of steps.
        point_weights: Weight of each of MediaPipe's points, see `mesh_point_weights`.
        recognition: Network of eq. 6; None leaves the term out.
        prediction: Identities that a network predicts; None leaves the term out.
        progress: Is called with the share of the steps that is done.

    Returns:
        The faces after at most `settings.photometric_steps` steps each.

    Raises:
        FitDiverged: The energy is not finite.
    """
    if settings.photometric_steps == 0:
        return start
    basis = ShapeBasis.of(model, settings)
    faces = []
    for k in range(len(targets.crops)):
        one = slice(k, k + 1)
        energy = PhotometricEnergy(
            model,
            targets[one],
            settings=settings,
            point_weights=point_weights[one],
            recognition=recognition,
            prediction=None if prediction is None else prediction[one],
        )
        unknowns = Unknowns(model, start[one], settings)
        descent = Descent(FaceProblem(energy, basis, unknowns))
        for step in range(settings.photometric_steps):
            converged = descent.step(step)
            if progress is not None:
                share = 1 if converged else (step + 1) / settings.photometric_steps
                progress((k + share) / len(targets.crops))
            if converged:
                break
        with torch.no_grad():
            faces.append(unknowns.coefficients())
    return FaceCoefficients.join(faces)


class FacePoint(EnergyPoint):
    """Energy of a face at one place."""

    def __init__(self, energy: PhotometricEnergy, unknowns: Unknowns) -> None:
        coefficients = unknowns.coefficients()
        self.vector, self._unknowns = unknowns.vector(), unknowns
        self.rendered = energy.render(coefficients)
        self._energy = energy.terms(coefficients, self.rendered).total()
        self.value = checked_energy(self._energy.item())

    @property
    def gradient(self) -> Float[Tensor, "N"]:
        """Derivative of the energy; to be asked for before the unknowns change. Most trials do not need it."""
        return self._differentiated

    @functools.cached_property
    def _differentiated(self) -> Float[Tensor, "N"]:
        gradients = torch.autograd.grad(self._energy, self._unknowns.parameters())
        return torch.cat([gradient.flatten() for gradient in gradients])


class FaceProblem(DescentProblem[FacePoint]):
    """The energy of one face as a function of its unknowns."""

    def __init__(self, energy: PhotometricEnergy, basis: ShapeBasis, unknowns: Unknowns) -> None:
        self.energy, self.basis, self.unknowns = energy, basis, unknowns

    def vector(self) -> Float[Tensor, "N"]:
        """Copy of the unknowns."""
        return self.unknowns.vector()

    def assign(self, vector: Float[Tensor, "N"]) -> None:
        """Set the unknowns."""
        self.unknowns.assign(vector)

    def held(self, vector: Float[Tensor, "N"], gradient: Float[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Expressions that a step would move out of their range."""
        return self.unknowns.held(vector, gradient)

    def place(self) -> FacePoint:
        """The energy at the present unknowns."""
        return FacePoint(self.energy, self.unknowns)

    def equations(self, place: FacePoint | None) -> tuple[DenseMatrix, Float[Tensor, "N"]]:
        """Gauss-Newton's matrix and gradient at the present unknowns."""
        if place is None:
            with torch.no_grad():
                rendered = self.energy.render(self.unknowns.coefficients())
        else:
            rendered = place.rendered
        equations = normal_equations(self.energy, self.basis, self.unknowns, rendered)
        return DenseMatrix(equations.hessian), equations.gradient
