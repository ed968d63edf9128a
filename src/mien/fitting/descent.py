"""Second-order descent: Gauss-Newton's steps, then those of a quasi-Newton method around its matrix.

The method knows nothing of faces. `second_order` descends on the energy of one photo, `joint` on that of all photos of
a person.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch

from mien.errors import FitDiverged
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


class Curvature(ABC):
    """A positive definite matrix that can be inverted."""

    @abstractmethod
    def damp(self, share: float) -> None:
        """Add a share of the diagonal to the diagonal."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether all entries are finite."""

    @abstractmethod
    def solve(self, vector: Float[Tensor, "N"], held: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """The inverse times a vector in double precision; held unknowns remain zero."""


class DenseMatrix(Curvature):
    """A matrix whose entries are all stored, in double precision."""

    def __init__(self, entries: Float[Tensor, "N N"]) -> None:
        self.entries = entries.double()

    def damp(self, share: float) -> None:
        """Add a share of the diagonal to the diagonal."""
        self.entries += share * torch.diag(self.entries.diagonal())

    def is_finite(self) -> bool:
        """Whether all entries are finite."""
        return bool(torch.isfinite(self.entries).all())

    def solve(self, vector: Float[Tensor, "N"], held: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """The inverse times a vector in double precision; held unknowns remain zero."""
        free = ~held
        matrix = self.entries * free[:, None] * free + torch.diag(held.to(self.entries))
        return torch.cholesky_solve((vector * free)[:, None], torch.linalg.cholesky(matrix))[:, 0] * free


class EnergyPoint(ABC):
    """The energy at one place."""

    vector: Float[Tensor, "N"]
    """The unknowns."""
    value: float
    """The energy."""

    @property
    @abstractmethod
    def gradient(self) -> Float[Tensor, "N"]:
        """Its derivative; is asked for before the unknowns change, and at few of the places."""


PointT = TypeVar("PointT", bound=EnergyPoint)


class DescentProblem(ABC, Generic[PointT]):
    """An energy of unknowns that can be set."""

    @abstractmethod
    def vector(self) -> Float[Tensor, "N"]:
        """Copy of the unknowns."""

    @abstractmethod
    def assign(self, vector: Float[Tensor, "N"]) -> None:
        """Set the unknowns; they are brought back into their range."""

    @abstractmethod
    def held(self, vector: Float[Tensor, "N"], gradient: Float[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Unknowns at an end of their range that a step against the gradient would move out of it."""

    @abstractmethod
    def place(self) -> PointT:
        """The energy at the present unknowns."""

    @abstractmethod
    def equations(self, place: PointT | None) -> tuple[Curvature, Float[Tensor, "N"]]:
        """Gauss-Newton's matrix and gradient at the present unknowns, without the terms that have no such form.

        Args:
            place: The energy there, if it is known.
        """


class Descent(Generic[PointT]):
    """A descent from the present unknowns of a problem."""

    def __init__(self, problem: DescentProblem[PointT]) -> None:
        self.problem = problem
        self.here: PointT | None = None
        self.previous: PointT | None = None
        self.matrix: InverseHessian | None = None

    def step(self, number: int) -> bool:
        """Step number 0, 1, 2 …; True if the descent has converged."""
        return self.gauss_newton() if number < GAUSS_NEWTON_STEPS else self.quasi_newton()

    def gauss_newton(self) -> bool:
        """One damped Gauss-Newton step; the step is not checked, so it never converges."""
        curvature, gradient = self.problem.equations(None)
        if not curvature.is_finite():
            raise diverged(float("nan"))
        vector = self.problem.vector()
        held = self.problem.held(vector, gradient)
        matrix = InverseHessian(curvature)
        self.problem.assign(vector - matrix.times(gradient, held).clamp(-LONGEST_STEP, LONGEST_STEP))
        return False

    def quasi_newton(self) -> bool:
        """One step of L-BFGS on the whole energy; True if it has converged."""
        here = self.here or self.problem.place()
        if self.previous is not None and self.matrix is not None:
            self.matrix.learn(here.vector - self.previous.vector, here.gradient - self.previous.gradient)
            self.previous = None
        if self.matrix is None or self.matrix.age >= MATRIX_LIFE:
            pairs = [] if self.matrix is None else self.matrix.pairs
            self.matrix = InverseHessian(self.problem.equations(here)[0], pairs)
        held = self.problem.held(here.vector, here.gradient)
        step = -self.matrix.times(here.gradient, held).clamp(-LONGEST_STEP, LONGEST_STEP)
        self.matrix.age += 1
        slope = float(here.gradient @ step)
        for _ in range(TRIALS):
            self.problem.assign(here.vector + step)
            there = self.problem.place()
            if there.value < here.value:
                self.previous, self.here = here, there
                return here.value - there.value < CONVERGED * abs(here.value)
            # The minimum of the parabola through both values and the slope.
            factor = slope / (2 * (slope - there.value + here.value)) if slope < 0 else 0.0
            factor = min(max(factor, SHORTER[0]), SHORTER[1])
            step, slope = step * factor, slope * factor
        self.problem.assign(here.vector)
        return True


def checked_energy(value: float) -> float:
    """An energy.

    Raises:
        FitDiverged: It is not finite.
    """
    if not math.isfinite(value):
        raise diverged(value)
    return value


def diverged(value: float) -> FitDiverged:
    """The error of an energy that is not finite."""
    return FitDiverged(
        f"the energy of the photometric fit is {value}; the photo's crop or the landmarks contain extreme values. "
        "Use mode net for this photo, and report it."
    )


class InverseHessian:
    """An approximation of the inverse Hessian: that of Gauss-Newton, corrected by the changes of the gradient that
    earlier steps have shown (Nocedal and Wright 2006, algorithm 7.4).

    Args:
        curvature: Gauss-Newton's matrix, which is damped.
        pairs: Steps and the changes of the gradient over them.
    """

    def __init__(self, curvature: Curvature, pairs: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.curvature = curvature
        self.curvature.damp(DAMPING)
        self.pairs = [] if pairs is None else pairs
        self.age = 0

    def learn(self, step: Float[Tensor, "N"], change: Float[Tensor, "N"]) -> None:
        """Add a step and the change of the gradient over it."""
        if step @ change > 1e-6:
            self.pairs.append((step.double(), change.double()))

    def times(self, gradient: Float[Tensor, "N"], held: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Inverse Hessian times gradient, with some unknowns held."""
        free = ~held
        pairs = [(step * free, change * free) for step, change in self.pairs]
        pairs = [(step, change, 1 / (step @ change)) for step, change in pairs if step @ change > 1e-8]
        q, shares = gradient.double() * free, []
        for step, change, rate in reversed(pairs):
            shares.append(rate * (step @ q))
            q = q - shares[-1] * change
        q = self.curvature.solve(q, held)
        for (step, change, rate), share in zip(pairs, reversed(shares), strict=True):
            q = q + (share - rate * (change @ q)) * step
        return q.to(gradient)
