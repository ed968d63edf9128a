"""Several processes train one network as one process would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mien.morphable import load_model
from mien.training.checkpoint import checkpoints
from mien.training.initial_networks import make_encoder
from mien.training.run import train_coarse
from tests.training.loop_runs import (
    config_of,
    environment,
    last_tensors,
    run_command,
    values_of,
)


def test_two_processes_train_as_one(model_file: Path, tmp_path: Path) -> None:
    """With frozen batch statistics, since these depend on how a batch is divided."""
    changes = ["loop.steps=3", "encoder.batchnorm=frozen", "optimizer.ema_decay=0.0", "encoder.points=true"]
    one, two = tmp_path / "one", tmp_path / "two"
    train_coarse(config_of(model_file, *changes), store=None, run=one, resume=False)
    prefix = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = run_command(model_file, two, changes, prefix=prefix)
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    single, shared, start = last_tensors(one), last_tensors(two), make_start(model_file)

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(a[name] - b[name]).flatten() for name in start]).norm())

    assert distance(single, start) > 0.1
    # Adam divides by the gradient's size, so rounding can change the sign of a step with a tiny gradient.
    assert distance(shared, single) < 0.01 * distance(single, start)
    # Metrics of the whole batch agree too.
    assert values_of(two, "gradient_norm") == pytest.approx(values_of(one, "gradient_norm"), rel=1e-3)


DAMAGED = """
import torch
from mien.cli import main
from mien.training.data.source import FaceSource

make_batch = FaceSource.batch


def damaged(self, step, part):
    batch = make_batch(self, step, part)
    if (step, part.rank) == (2, 1):
        batch.gt_px[1, 5, 0] = torch.nan
    return batch


FaceSource.batch = damaged
main()
"""


def test_two_processes_stop_together_where_one_meets_a_nan(model_file: Path, tmp_path: Path) -> None:
    script, run = tmp_path / "damaged.py", tmp_path / "run"
    script.write_text(DAMAGED, encoding="utf-8")
    command = run_command(model_file, run, ["loop.steps=4", "loop.checkpoint_every=100"])
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    command = [sys.executable, *launched, *command[command.index("train") :]]
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "step 2: the loss 'points' is not finite; faces: synthetic-0-11." in " ".join(done.stderr.split())
    noted = json.loads((run / "diverged.json").read_text(encoding="utf-8"))
    assert noted == {"step": 2, "terms": ["points"], "faces": ["synthetic-0-11"]}
    assert checkpoints(run)[-1].name == "step-00000002"


def make_start(model_file: Path) -> dict[str, torch.Tensor]:
    config = config_of(model_file, "encoder.points=true")
    torch.manual_seed(config.loop.seed)
    network = make_encoder(config.encoder, load_model(model_file))
    return {f"network.{k}": v for k, v in network.state_dict().items() if v.is_floating_point()}


def test_a_run_leaves_the_process_group_that_it_joined(model_file: Path, tmp_path: Path) -> None:
    """Gloo aborts a process that exits with the threads of a group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    train_coarse(config_of(model_file, "loop.steps=1"), store=None, run=tmp_path / "run", resume=False)
    assert not torch.distributed.is_initialized()
