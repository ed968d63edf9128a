"""The photometric fit of several photos of one person: the energies of the photos with one identity and albedo.

Photos are rendered, compared and differentiated one after the other, so that one rendering at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mien.fitting.arrow import ArrowLayout, ArrowMatrix
from mien.fitting.descent import Descent, DescentProblem, EnergyPoint, checked_energy
from mien.fitting.joint_landmarks import PersonPrior
from mien.fitting.normal_equations import ShapeBasis, photo_equations
from mien.fitting.photometric import PhotometricEnergy
from mien.fitting.problem import FitSettings, FitTargets
from mien.fitting.unknowns import Unknowns
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.typing import Bool, Float, Tensor


def fit_joint_photometric(
    model: MorphableModel,
    photos: Sequence[FitTargets],
    start: Sequence[FaceCoefficients],
    *,
    settings: FitSettings,
    point_weights: Float[Tensor, "B 468"],
    recognition: IdentityNetwork | None,
    person: PersonPrior,
    weights: Float[Tensor, "B"],
    progress: Callable[[float], None] | None = None,
) -> list[FaceCoefficients]:
    """Minimise the sum of the photos' energies, with the terms of the person once.

    Args:
        model: The morphable model.
        photos: The photos one by one.
        start: The faces at which the descent begins, with the same identity and albedo.
        settings: Standard deviations, weights and largest number of steps.
        point_weights: Weight of each of MediaPipe's points.
        recognition: Network of eq. 6; None leaves the term out.
        person: Prior of the identity.
        weights: Influence of each photo, 0 to 1.
        progress: Is called with the share of the steps that is done.

    Returns:
        The face in each photo.

    Raises:
        FitDiverged: The energy is not finite.
    """
    energies = [
        PhotometricEnergy(
            model, targets, settings=settings, point_weights=points[None], recognition=recognition, prediction=None
        )
        for targets, points in zip(photos, point_weights, strict=True)
    ]
    unknowns = [Unknowns(model, face, settings) for face in start]
    problem = PersonProblem(energies, unknowns, ShapeBasis.of(model, settings), person=person, weights=weights)
    descent = Descent(problem)
    for step in range(settings.photometric_steps):
        converged = descent.step(step)
        if progress is not None:
            progress(1.0 if converged else (step + 1) / settings.photometric_steps)
        if converged:
            break
    with torch.no_grad():
        return [photo.coefficients() for photo in unknowns]


class PersonPoint(EnergyPoint):
    """Energy of all photos at one place."""

    def __init__(self, vector: Float[Tensor, "N"], value: float, gradient: Float[Tensor, "N"]) -> None:
        self.vector, self.value, self._gradient = vector, value, gradient

    @property
    def gradient(self) -> Float[Tensor, "N"]:
        """Derivative of the energy."""
        return self._gradient


class PersonProblem(DescentProblem[PersonPoint]):
    """The energy of one person in several photos as a function of all unknowns.

    Args:
        energies: Energy of each photo.
        unknowns: Unknowns of each photo; identity and albedo are the same.
        basis: Bases of the model.
        person: Prior of the identity.
        weights: Influence of each photo, 0 to 1.
    """

    def __init__(
        self,
        energies: Sequence[PhotometricEnergy],
        unknowns: Sequence[Unknowns],
        basis: ShapeBasis,
        *,
        person: PersonPrior,
        weights: Float[Tensor, "B"],
    ) -> None:
        self.energies, self.unknowns, self.basis = energies, unknowns, basis
        self.person, self.weights = person, weights
        first = unknowns[0]
        shared = {id(first.identity), id(first.albedo)}
        masks = [torch.full((part.numel(),), id(part) in shared) for part in first.parameters()]
        self.layout = ArrowLayout.of(torch.cat(masks).to(first.identity.device))
        self.counts = first.identity.numel(), first.albedo.numel()

    def vector(self) -> Float[Tensor, "N"]:
        """Copy of the unknowns: identity, albedo, and then those of each photo."""
        return self.layout.gathered([photo.vector() for photo in self.unknowns])

    def assign(self, vector: Float[Tensor, "N"]) -> None:
        """Set the unknowns of all photos."""
        for photo, part in zip(self.unknowns, self.layout.scattered(vector), strict=True):
            photo.assign(part)

    def held(self, vector: Float[Tensor, "N"], gradient: Float[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Expressions that a step would move out of their range."""
        parts = zip(self.unknowns, self.layout.scattered(vector), self.layout.scattered(gradient), strict=True)
        return self.layout.gathered([photo.held(values, slopes) for photo, values, slopes in parts])

    def place(self) -> PersonPoint:
        """The energy at the present unknowns, with its gradient: one photo after the other."""
        value, gradients = 0.0, list[Tensor]()
        for energy, photo, weight in zip(self.energies, self.unknowns, self.weights.tolist(), strict=True):
            coefficients = photo.coefficients()
            terms = energy.terms(coefficients, energy.render(coefficients))
            own = weight * (terms.total() - terms.person())
            value += checked_energy(own.item())
            parts = torch.autograd.grad(own, photo.parameters())
            gradients.append(torch.cat([part.flatten() for part in parts]))
        gradient = self.layout.summed(gradients)
        self._add_person_gradient(gradient)
        return PersonPoint(self.vector(), value + self._person_energy(), gradient)

    def equations(self, place: PersonPoint | None) -> tuple[ArrowMatrix, Float[Tensor, "N"]]:
        """Gauss-Newton's matrix and gradient at the present unknowns."""
        _, albedo = self.counts
        of_albedo = torch.eye(albedo, dtype=torch.float64, device=self.weights.device)
        matrix = ArrowMatrix(self.layout, torch.block_diag(self.person.hessian(), of_albedo))
        gradients: list[Tensor] = []
        for energy, photo, weight in zip(self.energies, self.unknowns, self.weights, strict=True):
            with torch.no_grad():
                rendered = energy.render(photo.coefficients())
            equations = photo_equations(energy, self.basis, photo, rendered)
            matrix.add(weight * equations.hessian)
            gradients.append(weight * equations.gradient)
        gradient = self.layout.summed(gradients)
        self._add_person_gradient(gradient)
        return matrix, gradient

    @torch.no_grad()
    def _person_energy(self) -> float:
        first = self.unknowns[0]
        return self.person.energy(first.identity[0].double()) + 0.5 * float(first.albedo.square().sum())

    @torch.no_grad()
    def _add_person_gradient(self, gradient: Float[Tensor, "N"]) -> None:
        first, (identity, albedo) = self.unknowns[0], self.counts
        gradient[:identity] += self.person.gradient(first.identity[0].double()).to(gradient)
        gradient[identity : identity + albedo] += first.albedo[0]
