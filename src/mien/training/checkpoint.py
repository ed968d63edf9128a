"""Checkpoints that survive a kill at any instant: safetensors and JSON, written aside and renamed when whole.

    RUN/checkpoints/step-00000200/tensors.safetensors    network.*, average.*, optimizer.NAME.*
    RUN/checkpoints/step-00000200/state.json             step, face model, format

Batches, learning rate and random numbers are functions of the step (`source`, `loop`), so nothing else is needed to
go on exactly.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mien.errors import FormatError, ModelMismatch
from mien.io.files import remove_partial_folders, writing_folder
from mien.networks.weights_file import current_names
from mien.typing import Tensor

FORMAT = "mien-checkpoint-1"
FOLDER, TENSORS_FILE, STATE_FILE = "checkpoints", "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class TrainState:
    """Everything that changes in the course of a run."""

    network: nn.Module
    average: AveragedModel | None
    optimizer: Optimizer


def save_checkpoint(run: Path, trained: TrainState, *, step: int, model_hash: str, keep: int) -> Path:
    """Write the state before a step and remove all but the newest `keep`; OutputError where it cannot be written."""
    target = run / FOLDER / f"step-{step:08d}"
    remove_partial_folders(run / FOLDER, "step-*")
    if not target.exists():
        with writing_folder(target, flush=True, advice="free some space") as partial:
            save_file(_tensors(trained), partial / TENSORS_FILE)
            state = {"format": FORMAT, "step": step, "model_hash": model_hash}
            (partial / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def load_checkpoint(path: Path, trained: TrainState, *, model_hash: str) -> int:
    """Fill network, average and optimizer, and return the step to go on with.

    FormatError for a damaged checkpoint, ModelMismatch for one that was trained with another face model.
    """
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(path / TENSORS_FILE)
        if state["format"] != FORMAT:
            raise FormatError(f"{path} says format {state['format']!r}; this version of mien reads {FORMAT!r}.")
        if state["model_hash"] != model_hash:
            raise ModelMismatch(
                f"{path} was trained with another face model (hash {state['model_hash'][:12]}, now {model_hash[:12]}); "
                "resume with that model, or start anew."
            )
        tensors = current_names(tensors)
        trained.network.load_state_dict(_below(tensors, "network."))
        if trained.average is not None:
            trained.average.load_state_dict(_below(tensors, "average."))
        _load_optimizer(trained, _below(tensors, "optimizer."))
        return int(state["step"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{path} is no whole checkpoint of this network: {error}") from error


def _tensors(trained: TrainState) -> dict[str, Tensor]:
    tensors = {f"network.{k}": v for k, v in trained.network.state_dict().items()}
    if trained.average is not None:
        tensors |= {f"average.{k}": v for k, v in trained.average.state_dict().items()}
    for name, parameter in trained.network.named_parameters():
        for key, value in trained.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def _load_optimizer(trained: TrainState, tensors: dict[str, Tensor]) -> None:
    for name, parameter in trained.network.named_parameters():
        state = _below(tensors, f"{name}.")
        # Adam counts steps on the CPU; the moments live with their parameters.
        moved = {k: v.to(parameter.device) if v.ndim else v for k, v in state.items() if "." not in k}
        if moved:
            trained.optimizer.state[parameter] = moved


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
