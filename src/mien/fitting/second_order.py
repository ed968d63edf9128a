"""The photometric fit: second-order steps on all coefficients together.

The first steps are Gauss-Newton's, on sampled pixels and without the recognition term, which is the most expensive one
and of little use far from the solution. The following steps are those of a quasi-Newton method (L-BFGS around the
matrix of Gauss-Newton) on the whole energy. Each face has its own steps: its result does not depend on its batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from mien.errors import FitDiverged
from mien.fitting.normal_equations import ShapeBasis, normal_equations
from mien.fitting.photometric import PhotometricEnergy
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import FitSettings, FitTargets
from mien.fitting.unknowns import Unknowns
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.typing import Bool, Float, Tensor

GAUSS_NEWTON_STEPS = 4
"""Number of first steps without recognition. More do not lower the final energy."""
DAMPING = 0.02
"""Levenberg-Marquardt's factor: added to the matrix, as a share of its diagonal."""
LONGEST_STEP = 1.5
"""Limit of the change of each unknown in one step, standard deviations."""
MATRIX_LIFE = 4
"""Number of quasi-Newton steps that use the same matrix of Gauss-Newton."""
TRIALS = 3
"""Largest number of lengths of a quasi-Newton step. The contour makes the energy jump, so that a step can fail."""
SHORTER = (0.1, 0.5)
"""Limits of the factor of a step that raised the energy."""
CONVERGED = 1e-4
"""The fit ends when a step lowers the energy by less than this share."""


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
        descent = _Descent(energy, basis, Unknowns(model, start[one], settings))
        for step in range(settings.photometric_steps):
            converged = descent.gauss_newton() if step < GAUSS_NEWTON_STEPS else descent.quasi_newton()
            if progress is not None:
                share = 1 if converged else (step + 1) / settings.photometric_steps
                progress((k + share) / len(targets.crops))
            if converged:
                break
        faces.append(descent.result())
    return FaceCoefficients.join(faces)


class _Place:
    """Energy of a face at one place."""

    def __init__(self, energy: PhotometricEnergy, unknowns: Unknowns) -> None:
        coefficients = unknowns.coefficients()
        self.vector, self._unknowns = unknowns.vector(), unknowns
        self.rendered = energy.render(coefficients)
        self._energy = energy.terms(coefficients, self.rendered).total()
        self.value = self._energy.item()
        if not math.isfinite(self.value):
            raise _diverged(self.value)

    @functools.cached_property
    def gradient(self) -> Float[Tensor, "N"]:
        """Derivative of the energy; to be asked for before the unknowns change. Most trials do not need it."""
        gradients = torch.autograd.grad(self._energy, self._unknowns.parameters())
        return torch.cat([gradient.flatten() for gradient in gradients])


class _Descent:
    """The descent of one face."""

    def __init__(self, energy: PhotometricEnergy, basis: ShapeBasis, unknowns: Unknowns) -> None:
        self.energy, self.basis, self.unknowns = energy, basis, unknowns
        self.place: _Place | None = None
        self.previous: _Place | None = None
        self.matrix: _Matrix | None = None

    def gauss_newton(self) -> bool:
        """One damped Gauss-Newton step; the step is not checked, so it never converges."""
        with torch.no_grad():
            rendered = self.energy.render(self.unknowns.coefficients())
        equations = normal_equations(self.energy, self.basis, self.unknowns, rendered)
        if not torch.isfinite(equations.hessian).all():
            raise _diverged(float("nan"))
        vector = self.unknowns.vector()
        held = self.unknowns.held(vector, equations.gradient)
        matrix = _Matrix(equations.hessian)
        self.unknowns.assign(vector - matrix.solve(equations.gradient, held).clamp(-LONGEST_STEP, LONGEST_STEP))
        return False

    def quasi_newton(self) -> bool:
        """One step of L-BFGS on the whole energy; True if it has converged."""
        here = self.place or _Place(self.energy, self.unknowns)
        if self.previous is not None and self.matrix is not None:
            self.matrix.learn(here.vector - self.previous.vector, here.gradient - self.previous.gradient)
            self.previous = None
        if self.matrix is None or self.matrix.age >= MATRIX_LIFE:
            pairs = [] if self.matrix is None else self.matrix.pairs
            equations = normal_equations(self.energy, self.basis, self.unknowns, here.rendered)
            self.matrix = _Matrix(equations.hessian, pairs)
        held = self.unknowns.held(here.vector, here.gradient)
        step = -self.matrix.solve(here.gradient, held).clamp(-LONGEST_STEP, LONGEST_STEP)
        self.matrix.age += 1
        slope = float(here.gradient @ step)
        for _ in range(TRIALS):
            self.unknowns.assign(here.vector + step)
            there = _Place(self.energy, self.unknowns)
            if there.value < here.value:
                self.previous, self.place = here, there
                return here.value - there.value < CONVERGED * abs(here.value)
            # The minimum of the parabola through both values and the slope.
            factor = slope / (2 * (slope - there.value + here.value)) if slope < 0 else 0.0
            factor = min(max(factor, SHORTER[0]), SHORTER[1])
            step, slope = step * factor, slope * factor
        self.unknowns.assign(here.vector)
        return True

    def result(self) -> FaceCoefficients:
        """The present face."""
        with torch.no_grad():
            return self.unknowns.coefficients()


def _diverged(value: float) -> FitDiverged:
    return FitDiverged(
        f"the energy of the photometric fit is {value}; the photo's crop or the landmarks contain extreme values. "
        "Use mode net for this photo, and report it."
    )


class _Matrix:
    """An approximation of the inverse Hessian: that of Gauss-Newton, corrected by the changes of the gradient that
    earlier steps have shown (Nocedal and Wright 2006, algorithm 7.4)."""

    def __init__(self, hessian: Float[Tensor, "N N"], pairs: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.hessian = hessian.double()
        self.hessian += DAMPING * torch.diag(self.hessian.diagonal())
        self.pairs = [] if pairs is None else pairs
        self.age = 0

    def learn(self, step: Float[Tensor, "N"], change: Float[Tensor, "N"]) -> None:
        """Add a step and the change of the gradient over it."""
        if step @ change > 1e-6:
            self.pairs.append((step.double(), change.double()))

    def solve(self, gradient: Float[Tensor, "N"], held: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Inverse Hessian times gradient, with some unknowns held."""
        free = ~held
        pairs = [(step * free, change * free) for step, change in self.pairs]
        pairs = [(step, change, 1 / (step @ change)) for step, change in pairs if step @ change > 1e-8]
        q, shares = gradient.double() * free, []
        for step, change, rate in reversed(pairs):
            shares.append(rate * (step @ q))
            q = q - shares[-1] * change
        matrix = self.hessian * free[:, None] * free + torch.diag(held.to(self.hessian))
        q = torch.cholesky_solve(q[:, None], torch.linalg.cholesky(matrix))[:, 0] * free
        for (step, change, rate), share in zip(pairs, reversed(shares), strict=True):
            q = q + (share - rate * (change @ q)) * step
        return q.to(gradient)
