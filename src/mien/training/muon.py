"""Muon (Jordan et al. 2024): a step for every matrix whose directions all count the same.

Adam scales each weight's step on its own. A matrix's gradient has a few strong directions and many weak ones, and the
weak ones hold what is learnt slowly; Muon puts the nearest orthogonal matrix in the gradient's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from mien.typing import Float, Tensor

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration, chosen by its authors to be steep at 0: singular values end between 0.7 and 1.2."""
ITERATIONS = 5
MATCH_ADAM = 0.2
"""Root mean square of a step, in learning rates: what Adam's usually is (Liu et al. 2025), so that one rate does."""
LEAST_NORM = 1e-12
ANSWERS = frozenset({"head", "heads"})
"""Layers of or under these names write the answer; their rows are told apart by their units, and Adam keeps these."""


class Muon(AdamW):
    """Muon for the matrices of a network, AdamW for everything else, with one learning rate and weight decay.

    A convolution's weight is a matrix of one row per output. Depthwise ones, biases, norms and heads are AdamW's.
    torch's own class, which torch 2.9 began with, takes no convolutions.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        iterate_in: torch.dtype = torch.float32,
    ) -> None:
        """`iterate_in` is what steps are made orthogonal in; bfloat16 does, where it is faster."""
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if is_matrix(name, p) == matrices], "matrices": matrices}
            for matrices in (True, False)
        ]
        super().__init__([group for group in groups if group["params"]], lr, betas, weight_decay=weight_decay)
        self.defaults["iterate_in"] = iterate_in  # defaults are all that a copy keeps besides groups and state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill a copy or a loaded state in; Adam's would ask for a number of steps of the matrices too."""
        Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step and leave no gradient on the matrices; without a closure."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for weight, group in self._matrices():
            if weight.grad is None:
                continue
            state = self.state[weight]
            momentum = state.setdefault("momentum", torch.zeros_like(weight))
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            wanted = weight.grad.lerp(momentum, MOMENTUM).flatten(1).to(self.defaults["iterate_in"])
            direction = orthogonal(wanted).to(weight).view_as(weight)
            length = group["lr"] * MATCH_ADAM * max(direction.flatten(1).shape) ** 0.5
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-length)
            weight.grad = None  # AdamW passes over what has none
        return super().step()

    def _matrices(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            if group["matrices"]:
                yield from ((weight, group) for weight in group["params"])


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is Muon's."""
    return weight.ndim >= 2 and weight.shape[1] > 1 and ANSWERS.isdisjoint(name.split("."))


def orthogonal(matrix: Float[Tensor, "M N"]) -> Float[Tensor, "M N"]:
    """About the nearest matrix whose singular values are all 1, by Newton and Schulz's iteration; 0 stays 0."""
    a, b, c = QUINTIC
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    found = wide / wide.norm().clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return found.mT if matrix.shape[0] > matrix.shape[1] else found
