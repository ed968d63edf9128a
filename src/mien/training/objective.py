"""What the training loop asks of a branch: losses of a batch, figures, and a picture to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import nn

from mien.training.data.batch import FaceBatch
from mien.typing import Float, Tensor, UInt8


@dataclass(frozen=True)
class LossTerm:
    """One loss of a step."""

    name: str
    weight: float
    value: Float[Tensor, ""]


@dataclass(frozen=True)
class Metric:
    """One measured number, e.g. of a validation."""

    name: str
    value: float
    unit: str


@runtime_checkable
class Prepared(Protocol):
    """A batch ready for the network."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network's `forward` takes."""
        ...


P = TypeVar("P", bound=Prepared)


@runtime_checkable
class Objective(Protocol[P]):
    """A branch of the system as the loop sees it."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    def prepare(self, batch: FaceBatch) -> P:
        """What the network sees of a batch, and what its answer is held against; no gradient."""
        ...

    def losses(self, said: dict[str, Tensor], prepared: P, *, progress: float) -> list[LossTerm]:
        """The losses of what the network said of a batch, `progress` (0 to 1) into the run."""
        ...

    def evaluate(self, network: nn.Module) -> list[Metric]:
        """Figures on faces that are not trained on."""
        ...

    def visualize(self, network: nn.Module) -> UInt8[np.ndarray, "H W 3"]:
        """A sheet of held-out faces and what the network makes of them."""
        ...
