"""A network's prediction of the identity as a second estimate beside points and pixels.

The errors of a network that learnt from faces, and those of points and pixels of the photo, have different causes. So
the fit takes both: the distance between its surface and the predicted one is one more error with a standard deviation.
The whole surface counts as a few points, since the errors of a prediction are smooth. A similarity between the surfaces
costs nothing: a network cannot see the size of a face.
"""

from __future__ import annotations

from dataclasses import dataclass

from mien.geometry import remove_similarity
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor

EFFECTIVE_POINTS = 30.0
"""Number of independent errors in a predicted surface."""


@dataclass(frozen=True)
class PredictedIdentity:
    """Gaussian of the identity around the prediction of a network."""

    identity: Float[Tensor, "B I"]
    """The prediction, standard deviations."""
    precision: Float[Tensor, "I I"]
    """Inverse covariance."""

    @classmethod
    def of(cls, model: MorphableModel, identity: Float[Tensor, "B I"], *, sigma_m: float) -> PredictedIdentity:
        """Weigh a prediction by the distance between surfaces.

        Args:
            model: The morphable model.
            identity: The prediction.
            sigma_m: Standard deviation of the position of a vertex, metres.
        """
        weights = (1 - model.masks.neck) * (1 - model.masks.eyes)
        roots = weights.sqrt()[:, None]
        moved = remove_similarity(model.identity_basis * roots, model.mean, weights=roots).flatten(1)
        precision = EFFECTIVE_POINTS / sigma_m**2 / weights.sum() * (moved @ moved.T)
        return cls(identity.detach(), precision)

    def __getitem__(self, index: slice) -> PredictedIdentity:
        """The predictions of some of the faces."""
        return PredictedIdentity(self.identity[index], self.precision)

    def joined(self, weights: Float[Tensor, "B"]) -> PredictedIdentity:
        """One prediction of the person that several photos show, as precise as the sum of the weights says.

        Args:
            weights: Number of independent predictions that each photo counts as.
        """
        share = (weights / weights.sum()).to(self.identity)
        return PredictedIdentity((share @ self.identity)[None], weights.sum().to(self.precision) * self.precision)

    def energy(self, identity: Float[Tensor, "B I"]) -> Float[Tensor, ""]:
        """Half the squared distance from the prediction, summed over the faces; differentiable."""
        return 0.5 * ((identity - self.identity) * self.gradient(identity)).sum()

    def gradient(self, identity: Float[Tensor, "B I"]) -> Float[Tensor, "B I"]:
        """Derivative of the energy."""
        return (identity - self.identity) @ self.precision.to(identity)
