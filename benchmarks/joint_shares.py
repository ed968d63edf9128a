"""What the errors of two photos of one person have in common.

The mean of two faces keeps the error that both have. The error that only one has halves in it, but the mean shows
neither photo: it has to be changed to the face of each. So what counts is how well the change is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class Shape:
    """Identity and expression of one face."""

    identity: Float[Tensor, "1 I"]
    expression: Float[Tensor, "1 E"]

    @classmethod
    def of(cls, face: Reconstruction) -> Shape:
        """The shape of a reconstruction."""
        return cls(torch.from_numpy(face.identity)[None], torch.from_numpy(face.expression)[None])

    def towards(self, other: Shape, share: float) -> Shape:
        """A part of the way to another shape."""
        return Shape(
            torch.lerp(self.identity, other.identity, share), torch.lerp(self.expression, other.expression, share)
        )

    def moved(self, start: Shape, end: Shape, share: float) -> Shape:
        """This shape, changed by a part of the change between two others."""
        return Shape(
            self.identity + share * (end.identity - start.identity),
            self.expression + share * (end.expression - start.expression),
        )

    def vertices(self, model: MorphableModel) -> Float[Tensor, "V 3"]:
        """Vertices, metres."""
        return model.vertices(self.identity, self.expression)[0]


@dataclass(frozen=True)
class Moments:
    """Sums over the vertices of a part of the face, of displacements along the normal, mm²."""

    errors: tuple[float, float, float]
    """Product of the errors of the two photos, and the square of each."""
    change: tuple[float, float, float]
    """Product of the change from one photo to the other, predicted photo by photo, with the true one, and the square of
    each."""
    joint_change: tuple[float, float, float]
    """The same for the joint fit."""

    @classmethod
    def of(cls, alone: Sequence[Tensor], joint: Sequence[Tensor], true: Sequence[Tensor]) -> Moments:
        """Sums of a pair.

        Args:
            alone: Displacements of the two fits of one photo.
            joint: Those of the joint fit.
            true: Those of the scans.
        """
        own, together, real = (values[0] - values[1] for values in (alone, joint, true))
        first, second = (found - right for found, right in zip(alone, true, strict=True))
        return cls(_products(first, second), _products(own, real), _products(together, real))


def _products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    return float(a @ b), float(a @ a), float(b @ b)


@dataclass(frozen=True)
class PairMoments:
    """The sums of one pair."""

    parts: dict[str, Moments]
    """By the name of the part of the face."""


@dataclass(frozen=True)
class Shares:
    """What the errors of two photos have in common."""

    part: str
    """Part of the face."""
    correlation: float
    """Correlation of the errors of the two photos."""
    bound: float
    """Error of the mean of both relative to one, if the true change between the photos were known."""
    change_seen: float
    """Correlation of the predicted change between the photos with the true one."""
    joint_change_seen: float
    """The same for the joint fit, whose change is expression alone."""
    noise: float
    """Share of the squared error that the best weighting of the two photos removes."""

    @classmethod
    def of(cls, part: str, pairs: Sequence[Moments]) -> Shares:
        """Shares over some pairs."""
        product, first, second = np.sum([pair.errors for pair in pairs], 0)
        correlation = product / np.sqrt(first * second)
        along, predicted, true = np.sum([pair.change for pair in pairs], 0)
        joint_along, joint, _ = np.sum([pair.joint_change for pair in pairs], 0)
        # The mean of both photos and their change are two unknowns. Only the change is known better with a weight.
        now, best = predicted - 2 * along + true, true - along**2 / predicted
        return cls(
            part,
            float(correlation),
            float(np.sqrt((1 + correlation) / 2)),
            float(along / np.sqrt(predicted * true)),
            float(joint_along / np.sqrt(joint * true)),
            float((now - best) / (2 * (first + second))),
        )
