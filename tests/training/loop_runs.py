"""Tiny runs of `mien train coarse` for the tests of the loop, and what they leave in their folders."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from mien.training.checkpoint import checkpoints
from mien.training.config import CoarseConfig
from mien.training.config_file import load_config

SUPERVISED = ("loss.points=8.0", "loss.vertices=1.0", "loss.pose=1.0", "loss.photometric=0.0", "loss.identity=0.0")
SMALL = (
    "encoder.weights=random", "encoder.image_size=32", "encoder.frozen_blocks=0", "data.synthetic_share=1.0",
    "data.synthetic_faces=16", "loop.batch_size=4", "loop.workers=0", "loop.log_every=1", "loop.threads=1",
    "optimizer.warmup=2", "optimizer.ema_decay=0.5", *SUPERVISED,
)  # fmt: skip


def config_of(model_file: Path, *changes: str) -> CoarseConfig:
    return load_config(CoarseConfig, None, changes=[f'model="{model_file}"', *SMALL, *changes])


def values_of(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / "tensors.safetensors")


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different[:5]


def run_command(model_file: Path, run: Path, changes: Sequence[str], *, prefix: Sequence[str] = ()) -> list[str]:
    settings = [f'model="{model_file}"', *SMALL, *changes]
    options = [word for change in settings for word in ("--set", change)]
    return [sys.executable, *(prefix or ["-m"]), "mien.cli", "train", "coarse", "-o", str(run), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
