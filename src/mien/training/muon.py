"""Muon (Jordan et al. 2024): steps for matrices in which all directions have the same length.

Adam scales the step of each weight separately. The gradient of a matrix has a few strong directions and many weak ones,
and what is learnt slowly lies in the weak ones. Muon replaces the gradient by the nearest orthogonal matrix.
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
"""Coefficients of the Newton-Schulz iteration, chosen by Muon's authors to be steep at 0: singular values end between
0.7 and 1.2."""
ITERATIONS = 5
MATCH_ADAM = 0.2
"""Root mean square of a step, in learning rates: about that of Adam (Liu et al. 2025), so that both use one rate."""
LEAST_NORM = 1e-12
OUTPUT_LAYERS = frozenset({"head", "heads"})
"""Names of output layers. Their rows have different units, which AdamW keeps apart."""


class Muon(AdamW):
    """Muon for the matrices of a network, AdamW for everything else, with one learning rate and weight decay.

    A convolution's weight counts as a matrix with one row per output. Depthwise convolutions, biases, norms and output
    layers belong to AdamW. `torch.optim.Muon` (since torch 2.9) does not accept convolutions.

    Args:
        network: Its parameters that require a gradient are optimised.
        lr: Learning rate of both methods.
        betas: AdamW's moment decays.
        weight_decay: Decoupled weight decay of both methods.
        iterate_in: Precision of the orthogonalisation; bfloat16 is exact enough, and on some devices faster.
        fused: As in AdamW.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        iterate_in: torch.dtype = torch.float32,
        fused: bool | None = None,
    ) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if is_matrix(name, p) == matrices], "matrices": matrices}
            for matrices in (True, False)
        ]
        kept = [group for group in groups if group["params"]]
        super().__init__(kept, lr, betas, weight_decay=weight_decay, fused=fused)
        self.defaults["iterate_in"] = iterate_in  # a copy keeps groups, state and defaults only

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or a loaded state; AdamW's version requires a step count for the matrices too."""
        Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; afterwards the matrices have no gradient.

        Raises:
            TypeError: A closure is given.
        """
        if closure is not None:
            raise TypeError("Muon.step does not accept a closure; call it without arguments")
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
            weight.grad = None  # AdamW skips parameters without gradient
        return super().step()

    def _matrices(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            if group["matrices"]:
                yield from ((weight, group) for weight in group["params"])


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon optimises a parameter, given its name in the network."""
    return weight.ndim >= 2 and weight.shape[1] > 1 and OUTPUT_LAYERS.isdisjoint(name.split("."))


def orthogonal(matrix: Float[Tensor, "M N"]) -> Float[Tensor, "M N"]:
    """Approximate the nearest matrix whose singular values are all 1, by a Newton-Schulz iteration; 0 stays 0."""
    a, b, c = QUINTIC
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    found = wide / wide.norm().clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return found.mT if matrix.shape[0] > matrix.shape[1] else found
