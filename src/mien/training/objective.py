"""Interface between the training loop and what is trained: predictions, losses, metrics and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import nn

from mien.training.data.batch import FaceBatch
from mien.typing import Float, Tensor, UInt8


@dataclass(frozen=True)
class LossTerm:
    """One loss of a step."""

    name: str
    """Name of its weight in the configuration's [loss] section."""
    weight: float
    value: Float[Tensor, ""]
    """Value before weighting."""


@dataclass(frozen=True)
class Metric:
    """One measured number, e.g. of a validation."""

    name: str
    value: float
    unit: str
    """Empty for a number without unit."""


@runtime_checkable
class Prepared(Protocol):
    """A batch ready for the network."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of the network's `forward`."""
        ...


P = TypeVar("P", bound=Prepared)


@runtime_checkable
class Objective(Protocol[P]):
    """One network to train, with its losses and metrics.

    An objective uses the modules that it is given and neither moves nor copies them: the caller puts all of them on one
    device. It trains `network` and changes nothing else.
    """

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        ...

    def train_mode(self) -> None:
        """Put the network into training mode, and its frozen parts into evaluation mode."""
        ...

    def prepare(self, batch: FaceBatch) -> P:
        """Compute the network's inputs and the targets of its losses; without gradient.

        Raises:
            FitDiverged: The coarse reconstruction of a face is not finite.
        """
        ...

    def predict(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        """Run the network as in training.

        Args:
            network: `self.network`, possibly wrapped for several processes.
            inputs: `Prepared.inputs`, possibly in another memory format.

        Returns:
            The argument of `losses`: float32 tensors, even under autocast.
        """
        ...

    def losses(self, prediction: Any, prepared: P, *, progress: float) -> list[LossTerm]:
        """Compute all losses of non-zero weight; differentiable.

        Args:
            prediction: Result of `predict`.
            prepared: The batch that was predicted.
            progress: Share of the run that is done, 0 to 1.

        Raises:
            FitDiverged: A predicted face cannot be rendered because it is not finite.
        """
        ...

    def evaluate(self, network: nn.Module, faces: FaceBatch) -> list[Metric]:
        """Measure a network on faces.

        Args:
            network: The network in evaluation mode.
            faces: Faces that were not trained on, on the objective's device.
        """
        ...

    def visualize(self, network: nn.Module, faces: FaceBatch) -> UInt8[np.ndarray, "H W 3"]:
        """Draw a contact sheet of faces and their reconstructions; arguments as for `evaluate`."""
        ...
