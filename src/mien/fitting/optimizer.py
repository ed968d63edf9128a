"""Adam without `torch.optim.Adam`, whose construction imports PyTorch's compiler: the first face would wait two seconds
for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim.adam import adam

from mien.typing import Float, Tensor

BETAS = (0.9, 0.95)
"""Decay of the first and second moment. A fit takes tens of steps, and the second moment must forget the first ones."""
FINAL_RATE_SHARE = 0.1
"""Learning rate of the last step as a share of the first one."""


class CosineAdam:
    """Adam (Kingma and Ba 2015) over a fixed number of steps, with a cosine schedule of the learning rate.

    Args:
        parameters: Leaf tensors that are changed in place.
        rate: Learning rate of the first step; that of the last step is a tenth of it.
        steps: Number of steps of the schedule.
    """

    def __init__(self, parameters: Sequence[Float[Tensor, "..."]], *, rate: float, steps: int) -> None:
        self.parameters = list(parameters)
        self.rate, self.steps, self.taken = rate, steps, 0
        self._first = [torch.zeros_like(p) for p in self.parameters]
        self._second = [torch.zeros_like(p) for p in self.parameters]
        self._counts = [torch.zeros(()) for _ in self.parameters]

    def step(self, energy: Float[Tensor, ""]) -> None:
        """Differentiate the energy and change the parameters; those that it does not depend on keep their value."""
        gradients = torch.autograd.grad(energy, self.parameters, allow_unused=True)
        share = self.taken / max(self.steps - 1, 1)
        self.taken += 1
        used = [k for k, gradient in enumerate(gradients) if gradient is not None]
        with torch.no_grad():
            adam(
                [self.parameters[k] for k in used],
                [g for g in gradients if g is not None],
                [self._first[k] for k in used],
                [self._second[k] for k in used],
                [],
                [self._counts[k] for k in used],
                foreach=False,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=self.rate * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * share))),
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
