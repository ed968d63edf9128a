"""Checkpoints that survive a kill at any moment: safetensors and JSON, written to another place and then renamed.

    RUN/checkpoints/step-00000200/tensors.safetensors    network.*, average.*, optimizer.NAME.*
    RUN/checkpoints/step-00000200/state.json             step, face model, format

Batches, learning rate and random numbers are functions of the step (`source`, `loop`), so this is all that an exact
continuation needs.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.io.files import writing_folder
from mien.io.reading import read_json
from mien.io.tensors import read_tensors
from mien.morphable.revisions import is_made_for
from mien.networks.weights_file import current_names
from mien.typing import Tensor

FORMAT = "mien-checkpoint-1"
FOLDER, TENSORS_FILE, STATE_FILE = "checkpoints", "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class _Header:
    """The content of state.json."""

    format: str
    step: int
    model_hash: str

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ConfigError(f"step={self.step} is negative")


@dataclass(frozen=True)
class TrainState:
    """Everything that changes during a run."""

    network: nn.Module
    average: AveragedModel | None
    """Moving average of the weights; None if the run has none."""
    optimizer: Optimizer


def save_checkpoint(run: Path, state: TrainState, *, step: int, model_hash: str, keep: int) -> Path:
    """Write a checkpoint and remove older ones.

    Args:
        run: Folder of the run.
        state: State to save.
        step: Number of steps taken, with which the run continues.
        model_hash: Fingerprint of the face model.
        keep: Number of checkpoints to keep, the newest ones.

    Returns:
        The checkpoint's folder.

    Raises:
        OutputError: The checkpoint cannot be written.
    """
    target = run / FOLDER / f"step-{step:08d}"
    if not target.exists():
        with writing_folder(target, advice="free some space") as partial:
            save_file(_tensors(state), partial / TENSORS_FILE)
            header = {"format": FORMAT, "step": step, "model_hash": model_hash}
            (partial / STATE_FILE).write_text(json.dumps(header), encoding="utf-8")
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def load_checkpoint(path: Path, state: TrainState, *, model_hash: str) -> int:
    """Load network, average and optimiser in place.

    Args:
        path: Folder of the checkpoint; those of mien 0.1 are read too.
        state: State to fill.
        model_hash: Fingerprint of the face model in use.

    Returns:
        The step to continue with.

    Raises:
        FormatError: The checkpoint is damaged or belongs to another network.
        ModelMismatch: The checkpoint belongs to another face model.
    """
    try:
        header = read_json(path / STATE_FILE, _Header, advice="remove this checkpoint")
        _, tensors = read_tensors(path / TENSORS_FILE, advice="remove this checkpoint")
        if header.format != FORMAT:
            raise FormatError(f"{path} has format {header.format!r}; this version of mien reads {FORMAT!r}.")
        if not is_made_for(header.model_hash, model_hash):
            raise ModelMismatch(
                f"{path} was trained with another face model (hash {header.model_hash[:12]}, now "
                f"{model_hash[:12]}); resume with that model, or start a new run."
            )
        tensors = current_names(tensors)
        state.network.load_state_dict(_below(tensors, "network."))
        if state.average is not None:
            state.average.load_state_dict(_below(tensors, "average."))
        _load_optimizer(state, _below(tensors, "optimizer."))
        return header.step
    except RuntimeError as error:
        raise FormatError(f"{path} is damaged or belongs to another network: {error}") from error


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for name, parameter in state.network.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def _load_optimizer(state: TrainState, tensors: dict[str, Tensor]) -> None:
    for name, parameter in state.network.named_parameters():
        moments = _below(tensors, f"{name}.")
        # Adam's step counts stay on the CPU; the moments belong on the device of their parameter.
        moved = {k: v.to(parameter.device) if v.ndim else v for k, v in moments.items() if "." not in k}
        if moved:
            state.optimizer.state[parameter] = moved


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
