"""Checkpoints that survive a kill at any moment: safetensors and JSON, written to another place and then renamed.

    RUN/checkpoints/step-00000200/tensors.safetensors    network.*, average.*, optimizer.NAME.*
    RUN/checkpoints/step-00000200/state.json             step, face model, format, SHA-256 of both files
    RUN/saved.json                                       step of the newest checkpoint, to notice that it is gone

Batches, learning rate and random numbers are functions of the step (`source`, `loop`), so this is all that an exact
continuation needs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mien.errors import CheckpointDoubtful, FormatError, ModelMismatch
from mien.io.files import write_text, writing, writing_folder
from mien.io.reading import read_json
from mien.io.tensors import open_tensors, read_tensors
from mien.morphable.revisions import is_made_for
from mien.networks.weights_file import current_names
from mien.typing import Tensor

FORMAT, UNCHECKED_FORMAT = "mien-checkpoint-2", "mien-checkpoint-1"
"""Today's format, and that of mien 0.1 and 0.2, which has no hashes."""
FOLDER, TENSORS_FILE, STATE_FILE, SAVED_FILE = "checkpoints", "tensors.safetensors", "state.json", "saved.json"
_ADVICE = "restore it from a backup"


@dataclass(frozen=True)
class _Saved:
    """The content of saved.json."""

    step: int


@dataclass(frozen=True)
class TrainState:
    """Everything that changes during a run."""

    network: nn.Module
    average: AveragedModel | None
    """Moving average of the weights; None if the run has none."""
    optimizer: Optimizer


def save_checkpoint(run: Path, state: TrainState, *, step: int, model_hash: str, keep: int) -> Path:
    """Write a checkpoint and remove older ones.

    Checkpoints of later steps are removed too: the run has continued from an earlier one because they are damaged.

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
    for old in checkpoints(run):
        if old.name > target.name or (old == target and _damage(old)):
            with writing(old, advice="remove it"):
                shutil.rmtree(old)
    if not target.exists():
        with writing_folder(target, advice="free some space") as partial:
            save_file(_tensors(state), partial / TENSORS_FILE)
            header: dict[str, object] = {"format": FORMAT, "step": step, "model_hash": model_hash}
            hashes = {TENSORS_FILE: _file_hash(partial / TENSORS_FILE), STATE_FILE: _header_hash(header)}
            (partial / STATE_FILE).write_text(json.dumps({**header, "sha256": hashes}), encoding="utf-8")
        with writing(run / SAVED_FILE, advice="free some space"):
            write_text(run / SAVED_FILE, json.dumps({"step": step}))
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; a kill leaves none half-written, but a disk may damage them."""
    return sorted((run / FOLDER).glob("step-*"))


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint from which a run continues: the newest one that is whole; None if none was saved yet.

    Args:
        run: Folder of the run.

    Raises:
        FormatError: Checkpoints were saved, but all of them are damaged or gone.

    Warns:
        CheckpointDoubtful: Newer checkpoints are damaged or gone, or the run is of mien 0.2 or earlier, whose
            checkpoints have no hashes.
    """
    found, saved = checkpoints(run), _saved_step(run)
    damage: dict[Path, str] = {}
    for path in reversed(found):
        problem = _damage(path)
        if not problem:
            _report_skipped(path, damage, saved)
            return path
        damage[path] = problem
    if damage or saved is not None:
        reasons = "; ".join(damage.values()) or f"{run / FOLDER} is empty, {run / SAVED_FILE} names one"
        raise FormatError(
            f"{run} has no whole checkpoint ({reasons}); restore one from a backup, or start a new run in another "
            "folder."
        )
    return None


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
    problem = _damage(path)
    if problem:
        raise FormatError(f"{problem}; restore it from a backup, or start a new run in another folder.")
    try:
        header = _read_header(path)
        if not is_made_for(header["model_hash"], model_hash):
            raise ModelMismatch(
                f"{path} was trained with another face model (hash {header['model_hash'][:12]}, now "
                f"{model_hash[:12]}); resume with that model, or start a new run."
            )
        tensors = current_names(read_tensors(path / TENSORS_FILE, advice=_ADVICE)[1])
        state.network.load_state_dict(_below(tensors, "network."))
        if state.average is not None:
            state.average.load_state_dict(_below(tensors, "average."))
        _load_optimizer(state, _below(tensors, "optimizer."))
        return header["step"]
    except (ValueError, KeyError, RuntimeError) as error:
        raise FormatError(f"{path} is damaged or belongs to another network: {error}") from error


def _damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if it is whole."""
    try:
        header = _read_header(path)
        if header["format"] == UNCHECKED_FORMAT:
            with open_tensors(path / TENSORS_FILE, advice=_ADVICE):  # compares the sizes in it with the file's
                return ""
        hashes = header.pop("sha256")
        for name, actual in ((STATE_FILE, _header_hash(header)), (TENSORS_FILE, _file_hash(path / TENSORS_FILE))):
            if hashes[name] != actual:
                return f"{path / name} is damaged (its SHA-256 differs from that in {STATE_FILE})"
    except (FormatError, OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} is damaged ({error})"
    return ""


def _read_header(path: Path) -> dict[str, Any]:
    """state.json, with its format, step and model hash checked."""
    header = read_json(path / STATE_FILE, dict[str, Any], advice=_ADVICE)
    if not isinstance(header.get("model_hash"), str):
        raise ValueError(f"{STATE_FILE} lacks model_hash")
    if header["format"] not in (FORMAT, UNCHECKED_FORMAT):
        raise ValueError(f"format {header['format']!r}; this version of mien reads {FORMAT!r}")
    if type(header["step"]) is not int or path.name != f"step-{header['step']:08d}":
        raise ValueError(f"the step in {STATE_FILE} is {header['step']!r}, that of the folder is {path.name!r}")
    return header


def _header_hash(header: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _saved_step(run: Path) -> int | None:
    """Step of the newest checkpoint that was saved; None without a record."""
    path = run / SAVED_FILE
    if not path.exists():
        return None
    return read_json(path, _Saved, advice="remove it if the newest checkpoint is there").step


def _report_skipped(chosen: Path, damage: dict[Path, str], saved: int | None) -> None:
    """Warn about damaged and missing checkpoints, and about those without hashes."""
    reasons = list(damage.values())
    if saved is not None and not damage and f"step-{saved:08d}" > chosen.name:
        reasons.append(f"the newest checkpoint, step-{saved:08d}, is gone")
    if reasons:
        message = f"{'; '.join(reasons)}; training continues from {chosen.name}."
        warnings.warn(CheckpointDoubtful(message), stacklevel=3)
    if _read_header(chosen)["format"] == UNCHECKED_FORMAT:
        message = f"{chosen} is of an earlier version without hashes, so damaged weights would not be noticed."
        warnings.warn(CheckpointDoubtful(message), stacklevel=3)


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
        # Adam's step counts stay on the CPU; the moments belong on the device of their parameter, in its memory layout:
        # torch 2.13's fused AdamW takes their values in the order of memory, whatever their strides are.
        moved = {k: torch.empty_like(parameter).copy_(v) if v.ndim else v for k, v in moments.items() if "." not in k}
        if moved:
            state.optimizer.state[parameter] = moved


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
