"""A run depends on no current folder: its record has absolute paths, and older ones are found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mien.morphable import MorphableModel, load_model
from mien.training.report import report_coarse
from mien.training.run import load_run, train_coarse
from mien.training.synthetic.population import SkinBank
from tests.tiny import tiny_model
from tests.training.loop_runs import config_of
from tests.training.tiny_data import write_model


def write_skins(path: Path, model: MorphableModel) -> None:
    SkinBank(torch.zeros(2, model.counts[2]), torch.zeros(2, len(model.mean), 3)).save(path, model)


def test_runs_with_relative_paths_depend_on_no_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of today records absolute paths; one with relative paths, as older ones, loads and continues too."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    model_file = write_model(tiny_model(), home / "tiny.safetensors")
    write_skins(home / "skins", load_model(model_file))
    monkeypatch.chdir(home)
    changes = ("model=tiny.safetensors", "data.skins=skins", "loop.steps=2")
    config = config_of(model_file, *changes)
    run = Path("runs", "coarse")
    train_coarse(config, store=None, run=run, resume=False)
    written = (run / "config.toml").read_text(encoding="utf-8")
    for path in ("skins", "tiny.safetensors"):
        assert json.dumps(str(home / path)) in written
    monkeypatch.chdir(elsewhere)
    for text in (written, written.replace(json.dumps(f"{home}{os.sep}")[1:-1], "")):
        (home / run / "config.toml").write_text(text, encoding="utf-8")
        assert load_run(home / run).config.data.skins == str(home / "skins")
        report_coarse(home / run, store=None, out=tmp_path / "report")
        train_coarse(load_run(home / run).config, store=None, run=home / run, resume=True)
    assert "# until" not in (home / run / "config.toml").read_text(encoding="utf-8")
