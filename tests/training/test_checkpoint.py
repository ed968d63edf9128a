"""Checkpoints: every damage is noticed, the newest whole one is used, and a run never starts again in silence."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mien.errors import CheckpointDoubtful, FormatError, ModelMismatch
from mien.training.checkpoint import (
    SAVED_FILE,
    STATE_FILE,
    TENSORS_FILE,
    TrainState,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def state_of(value: float) -> TrainState:
    network = nn.Linear(3, 2)
    nn.init.constant_(network.weight, value)
    nn.init.constant_(network.bias, value)
    return TrainState(network, None, torch.optim.SGD(network.parameters(), lr=0.1))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 4, 6):
        save(tmp_path, step)
    return tmp_path


def save(run: Path, step: int, *, keep: int = 3) -> Path:
    return save_checkpoint(run, state_of(step), step=step, model_hash="m", keep=keep)


def loaded(path: Path) -> tuple[int, float]:
    state = state_of(-1.0)
    step = load_checkpoint(path, state, model_hash="m")
    return step, float(state.network.state_dict()["weight"][0, 0])


def test_the_newest_checkpoint_is_used(run: Path) -> None:
    newest = newest_checkpoint(run)
    assert newest is not None
    assert loaded(newest) == (6, 6.0)
    with pytest.raises(ModelMismatch):
        load_checkpoint(newest, state_of(0.0), model_hash="other")
    assert newest_checkpoint(run / "nothing") is None


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE])
def test_each_flipped_byte_is_noticed(run: Path, name: str) -> None:
    file, rng = checkpoints(run)[-1] / name, random.Random(0)
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            newest = newest_checkpoint(run)
        assert newest == checkpoints(run)[-2]
        assert [w.category for w in caught] == [CheckpointDoubtful]
        with pytest.raises(FormatError, match="damaged"):
            load_checkpoint(file.parent, state_of(0.0), model_hash="m")


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(run: Path) -> None:
    damaged = checkpoints(run)[-1]
    (damaged / TENSORS_FILE).write_bytes((damaged / TENSORS_FILE).read_bytes()[:-5])
    with pytest.warns(
        CheckpointDoubtful, match=r"step-00000006.* is damaged .*; training continues from step-00000004\."
    ):
        newest = newest_checkpoint(run)
    assert newest is not None
    assert loaded(newest) == (4, 4.0)
    save(run, 5, keep=1)  # the damaged one of a later step must not count as the newest
    assert [path.name for path in checkpoints(run)] == ["step-00000005"]
    (checkpoints(run)[-1] / TENSORS_FILE).write_bytes(b"")
    assert loaded(save(run, 5)) == (5, 5.0)  # one of the same step is replaced


def test_a_wrong_step_is_noticed(run: Path) -> None:
    """In state.json, with a matching hash or without, and in the name of the folder."""
    newest = checkpoints(run)[-1]
    newest.rename(newest.with_name("step-00000009"))
    with pytest.warns(CheckpointDoubtful, match=r"the step in state\.json is 6, that of the folder is 'step-00000009'"):
        assert newest_checkpoint(run) == checkpoints(run)[-2]
    shutil.rmtree(checkpoints(run)[-1])
    header = {"format": "mien-checkpoint-1", "step": 4.0, "model_hash": "m"}
    (checkpoints(run)[-1] / STATE_FILE).write_text(json.dumps(header), encoding="utf-8")
    with pytest.warns(CheckpointDoubtful, match=r"the step in state\.json is 4\.0"):
        assert newest_checkpoint(run) == checkpoints(run)[0]


def test_lost_checkpoints_are_noticed(run: Path) -> None:
    shutil.rmtree(checkpoints(run)[-1])
    with pytest.warns(CheckpointDoubtful, match=r"step-00000006, is gone; training continues from step-00000004\."):
        newest_checkpoint(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FormatError, match=r"has no whole checkpoint .*restore one from a backup"):
        newest_checkpoint(run)
    (run / SAVED_FILE).write_text("[]", encoding="utf-8")
    with pytest.raises(FormatError, match=r"saved\.json: damaged"):
        newest_checkpoint(run)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(run: Path) -> None:
    (run / SAVED_FILE).unlink()
    for path in checkpoints(run):
        (path / STATE_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"has no whole checkpoint \(.*step-00000006 is damaged.*step-00000002 is dam"
    ):
        newest_checkpoint(run)


def test_checkpoints_without_hashes_are_read_with_a_warning(run: Path) -> None:
    newest = checkpoints(run)[-1]
    header = {"format": "mien-checkpoint-1", "step": 6, "model_hash": "m"}
    (newest / STATE_FILE).write_text(json.dumps(header), encoding="utf-8")
    with pytest.warns(CheckpointDoubtful, match="earlier version without hashes"):
        assert newest_checkpoint(run) == newest
    assert loaded(newest) == (6, 6.0)
    (newest / TENSORS_FILE).write_bytes((newest / TENSORS_FILE).read_bytes()[:-1])
    with pytest.warns(CheckpointDoubtful, match="training continues from step-00000004"):
        newest_checkpoint(run)
