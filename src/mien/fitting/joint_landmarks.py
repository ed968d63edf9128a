"""The landmark fit of several photos of one person: one identity; expression, pose and focal length per photo."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from mien.fitting.arrow import ArrowLayout, ArrowMatrix
from mien.fitting.identity_prior import identity_precision
from mien.fitting.landmarks import (
    DAMPING,
    DAMPING_FLOOR,
    ITERATIONS,
    POSE_ITERATIONS,
    WARM_ITERATIONS,
    LandmarkFit,
    LandmarkPriors,
    LandmarkProblem,
    LandmarkState,
)
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import FitTargets
from mien.morphable import FaceCoefficients, MorphableModel
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class PersonPrior:
    """What is known of the identity beside the photos."""

    precision: Float[Tensor, "I I"]
    """Inverse covariance of the population."""
    prediction: PredictedIdentity | None
    """What a network predicts from all photos."""

    @classmethod
    def of(cls, model: MorphableModel, *, sigma: float, prediction: PredictedIdentity | None) -> PersonPrior:
        """The prior of a model.

        Args:
            model: The morphable model.
            sigma: Factor of the standard deviations, see `identity_precision`.
            prediction: One prediction of the person.
        """
        return cls(identity_precision(model, sigma=sigma).double(), prediction)

    def energy(self, identity: Float[Tensor, "I"]) -> float:
        """Negative log-likelihood of an identity, up to a constant."""
        energy = 0.5 * identity @ self.precision @ identity
        return float(energy if self.prediction is None else energy + self.prediction.energy(identity[None]))

    def hessian(self) -> Float[Tensor, "I I"]:
        """Second derivative of the energy."""
        return self.precision if self.prediction is None else self.precision + self.prediction.precision

    def gradient(self, identity: Float[Tensor, "I"]) -> Float[Tensor, "I"]:
        """First derivative of the energy."""
        gradient = self.precision @ identity
        return gradient if self.prediction is None else gradient + self.prediction.gradient(identity[None])[0]


class JointLandmarks:
    """The least-squares problem of all photos. Photos count by weights that can change between the fits.

    Args:
        model: The morphable model.
        targets: Landmarks and cameras, one photo per element of the batch.
        point_weights: Weight of each point.
        priors: Standard deviations; that of the identity is not used.
        person: Prior of the identity.
        start: Faces near the solution; None starts from the mean face.
    """

    def __init__(
        self,
        model: MorphableModel,
        targets: FitTargets,
        *,
        point_weights: Float[Tensor, "B 468"],
        priors: LandmarkPriors,
        person: PersonPrior,
        start: FaceCoefficients | None,
    ) -> None:
        photo_priors = replace(priors, identity_sigma=math.inf)  # the prior of the person counts once, not per photo
        depths = targets.landmarks468_depth_px
        ones = [slice(k, k + 1) for k in range(len(targets.crops))]
        self.photos = [
            LandmarkProblem(
                model,
                targets.landmarks468_px[one],
                targets.camera[one],
                point_weights[one],
                priors=photo_priors,
                depths_px=None if depths is None else depths[one],
                prediction=None,
            )
            for one in ones
        ]
        self.person = person
        identity_count, expression_count, _ = model.counts
        rigid = LandmarkProblem.RIGID
        is_shared = torch.zeros(rigid + identity_count + expression_count, dtype=torch.bool)
        is_shared[rigid : rigid + identity_count] = True
        self.layout = ArrowLayout.of(is_shared.to(targets.crops.device))
        self.cold = start is None
        if start is None:
            self.states = [photo.start(None) for photo in self.photos]
        else:
            same = replace(start, identity=start.identity.mean(0, keepdim=True).expand_as(start.identity))
            self.states = [photo.start(same[one]) for photo, one in zip(self.photos, ones, strict=True)]

    def descend(self, weights: Float[Tensor, "B"], *, again: bool = False) -> None:
        """Gauss-Newton steps to the minimum.

        Args:
            weights: Influence of each photo, 0 to 1.
            again: Whether an earlier call was near the minimum already.
        """
        cold = self.cold and not again
        for iteration in range(ITERATIONS if cold else WARM_ITERATIONS):
            self._step(weights, pose_only=cold and iteration < POSE_ITERATIONS)

    def photo_energies(self) -> Float[Tensor, "B"]:
        """How badly the person fits each photo: its energy without the prior of the identity."""
        return torch.cat([photo.photo_energy(state) for photo, state in zip(self.photos, self.states, strict=True)])

    def results(self) -> list[LandmarkFit]:
        """The fit of each photo."""
        return [photo.result(state) for photo, state in zip(self.photos, self.states, strict=True)]

    def _step(self, weights: Float[Tensor, "B"], *, pose_only: bool) -> None:
        layout, identity = self.layout, self._identity(self.states[0])
        matrix = ArrowMatrix(layout, self.person.hessian())
        gradients: list[Tensor] = []
        for photo, state, weight in zip(self.photos, self.states, weights.double(), strict=True):
            hessian, gradient = photo.equations(state, pose_only=pose_only)
            matrix.add(weight * hessian[0])
            gradients.append(weight * gradient[0])
        gradient = layout.summed(gradients)
        gradient[: len(layout.shared)] += self.person.gradient(identity)
        held = layout.gathered(
            [
                photo.held(state, own[None], pose_only=pose_only)[0]
                for photo, state, own in zip(self.photos, self.states, gradients, strict=True)
            ]
        )
        matrix.damp(DAMPING, DAMPING_FLOOR)
        steps = layout.scattered(-matrix.solve(gradient, held))
        self.states = [
            photo.moved(state, step[None]) for photo, state, step in zip(self.photos, self.states, steps, strict=True)
        ]

    def _identity(self, state: LandmarkState) -> Float[Tensor, "I"]:
        return state.shape[0, ~self.photos[0].is_expression]
