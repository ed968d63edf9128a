"""Adam without the optimiser class: constructing `torch.optim.Adam` imports PyTorch's compiler, two seconds that a
first face would wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim.adam import adam

from mien.typing import Float, Tensor

BETAS = (0.9, 0.95)
"""A fit takes tens of steps: the second moment must forget the first of them."""
FINAL_RATE_SHARE = 0.1


class CosineAdam:
    """Adam (Kingma and Ba 2015) over a fixed number of steps with a cosine schedule from `rate` to a tenth of it."""

    def __init__(self, parameters: Sequence[Float[Tensor, "..."]], *, rate: float, steps: int) -> None:
        self.parameters = list(parameters)
        self.rate, self.steps, self.taken = rate, steps, 0
        self._first = [torch.zeros_like(p) for p in self.parameters]
        self._second = [torch.zeros_like(p) for p in self.parameters]
        self._counts = [torch.zeros(()) for _ in self.parameters]

    def step(self, energy: Float[Tensor, ""]) -> None:
        """Differentiate the energy and move the parameters; those that it does not depend on stay."""
        gradients = torch.autograd.grad(energy, self.parameters, allow_unused=True)
        share = self.taken / max(self.steps - 1, 1)
        self.taken += 1
        known = [k for k, gradient in enumerate(gradients) if gradient is not None]
        with torch.no_grad():
            adam(
                [self.parameters[k] for k in known],
                [g for g in gradients if g is not None],
                [self._first[k] for k in known],
                [self._second[k] for k in known],
                [],
                [self._counts[k] for k in known],
                foreach=False,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=self.rate * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * share))),
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
