"""Normal equations of several photos of one person: shared unknowns, and unknowns of each photo alone.

Unknowns of different photos meet only in the shared ones, so the matrix has the shape of an arrow:

    ⎡ A   B₁  B₂  … ⎤   shared
    ⎢ B₁ᵀ C₁        ⎥   photo 1
    ⎢ B₂ᵀ     C₂    ⎥   photo 2

Eliminating each photo (Schur complement) leaves a system of the shared unknowns. Its time grows linearly with the
number of photos, and a photo takes less memory than its pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mien.fitting.descent import Curvature
from mien.typing import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class ArrowLayout:
    """Which unknowns of one photo are shared with the other photos, and which are its own."""

    shared: Int[Tensor, "P"]
    """Numbers of the shared unknowns."""
    own: Int[Tensor, "R"]
    """Numbers of the others."""

    @classmethod
    def of(cls, is_shared: Bool[Tensor, "N"]) -> ArrowLayout:
        """Split the unknowns of a photo by a mask."""
        return cls(is_shared.nonzero()[:, 0], (~is_shared).nonzero()[:, 0])

    def gathered(self, photos: Sequence[Tensor]) -> Tensor:
        """The unknowns of all photos as one vector: the shared ones once, those of the first photo, and then the rest.

        Args:
            photos: Values of all unknowns of each photo; those of the shared ones are equal.
        """
        return torch.cat([photos[0][self.shared], *(photo[self.own] for photo in photos)])

    def summed(self, photos: Sequence[Float[Tensor, "N"]]) -> Float[Tensor, "M"]:
        """The derivative by the unknowns of all photos, in the order of `gathered`.

        Args:
            photos: Derivative of the energy of each photo by its unknowns.
        """
        return torch.cat([sum_of(photo[self.shared] for photo in photos), *(photo[self.own] for photo in photos)])

    def scattered(self, vector: Float[Tensor, "M"]) -> list[Float[Tensor, "N"]]:
        """All unknowns of each photo: the inverse of `gathered`."""
        count, own = len(self.shared), vector[len(self.shared) :].view(-1, len(self.own))
        photos = vector.new_empty(len(own), count + len(self.own))
        photos[:, self.shared], photos[:, self.own] = vector[:count], own
        return list(photos)


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors of equal shape."""
    return functools.reduce(torch.add, tensors)


class ArrowMatrix(Curvature):
    """A symmetric, positive definite matrix in the shape of an arrow, in double precision.

    Args:
        layout: The unknowns of a photo.
        shared: Matrix of the shared unknowns before any photo is added, such as their prior.
    """

    def __init__(self, layout: ArrowLayout, shared: Float[Tensor, "P P"]) -> None:
        self.layout, self.shared = layout, shared.double().clone()
        self.mixed: list[Float[Tensor, "P R"]] = []
        self.own: list[Float[Tensor, "R R"]] = []

    def add(self, photo: Float[Tensor, "N N"]) -> None:
        """Add the matrix of one photo."""
        photo, shared, own = photo.double(), self.layout.shared, self.layout.own
        self.shared += photo[shared[:, None], shared]
        self.mixed.append(photo[shared[:, None], own])
        self.own.append(photo[own[:, None], own])

    def is_finite(self) -> bool:
        """Whether all entries are finite."""
        return all(bool(torch.isfinite(block).all()) for block in (self.shared, *self.mixed, *self.own))

    def damp(self, share: float, floor: float = 0.0) -> None:
        """Add a share of the diagonal, and a constant, to the diagonal: Levenberg and Marquardt's damping."""
        for block in (self.shared, *self.own):
            diagonal = block.diagonal()
            diagonal += share * diagonal + floor

    def solve(self, vector: Float[Tensor, "M"], held: Bool[Tensor, "M"]) -> Float[Tensor, "M"]:
        """The inverse times a vector, with some unknowns held.

        Args:
            vector: Right-hand side in the order of `ArrowLayout.gathered`, double precision.
            held: Unknowns that remain zero.
        """
        count = len(self.layout.shared)
        free = ~held
        free_shared, free_own = free[:count], free[count:].view(len(self.own), -1)
        right, right_own = vector[:count] * free_shared, vector[count:].view(len(self.own), -1) * free_own
        system = self.shared * free_shared[:, None] * free_shared + torch.diag(held[:count].double())
        eliminated: list[tuple[Tensor, Tensor]] = []
        for all_mixed, own, value, kept in zip(self.mixed, self.own, right_own, free_own, strict=True):
            mixed = all_mixed * free_shared[:, None] * kept
            factor = torch.linalg.cholesky(own * kept[:, None] * kept + torch.diag((~kept).double()))
            by_shared, constant = torch.cholesky_solve(torch.cat([mixed.T, value[:, None]], dim=1), factor).split(
                [count, 1], dim=1
            )
            system -= mixed @ by_shared
            right = right - mixed @ constant[:, 0]
            eliminated.append((by_shared, constant[:, 0]))
        found = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(system))[:, 0]
        return torch.cat([found, *(constant - by_shared @ found for by_shared, constant in eliminated)])
