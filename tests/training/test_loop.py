"""The loop: it learns, reports, chooses its precision, and stops where it cannot go on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from mien.errors import (
    ConfigError,
    FitDiverged,
    OutputError,
    TrainingDiverged,
)
from mien.io.folder_lock import LOCK_FILE, locked_folder
from mien.morphable import MorphableModel, load_model
from mien.training.checkpoint import checkpoints
from mien.training.coarse import CoarseObjective
from mien.training.config import LoopSettings
from mien.training.config_file import dump
from mien.training.data.batch import FaceBatch
from mien.training.data.source import FaceSource, Shard
from mien.training.loop import RunSettings, _agreed_precision
from mien.training.monitor import _append
from mien.training.precision import chosen_precision
from mien.training.report import report_coarse
from mien.training.run import load_run, train_coarse
from mien.training.run_record import RunInputs, recorded_precision
from mien.training.sources import make_source
from mien.training.synthetic.store import SyntheticStorePlan, write_synthetic_store
from tests.training.loop_runs import (
    assert_same_state,
    config_of,
    last_tensors,
    values_of,
)
from tests.training.tiny_data import write_store


def test_a_tiny_training_learns_and_reports(model_file: Path, tmp_path: Path) -> None:
    """End to end with photos, all losses of eq. 7, validation, sheets, the encoder and its report."""
    store = write_store(load_model(model_file), tmp_path / "store", splits={"train": 4, "validation": 2, "test": 2})
    run = tmp_path / "run"
    config = config_of(
        model_file, "data.synthetic_share=0.5", "data.augment=false", "data.synthetic_faces=4", "loop.steps=40",
        "loss.photometric=1.0", "loss.identity=20.0", "loss.render_from=0.9", "loss.render_size=48",
        "encoder.weights=package", "optimizer.learning_rate=2e-3", "loop.sheet_every=20",
    )  # fmt: skip
    encoder = train_coarse(config, store=str(store), run=run, resume=False)
    losses = values_of(run, "points")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert len(values_of(run, "identity")) == len(values_of(run, "photometric")) == 4  # the last tenth
    assert 0 <= values_of(run, "data_wait_share")[-1] < 1
    assert sorted(p.name for p in (run / "sheets").iterdir()) == ["step-00000020.png", "step-00000040.png"]
    assert list((run / "tensorboard").iterdir())
    assert encoder is not None
    assert encoder.stat().st_size < 9e6  # half precision
    report = report_coarse(run, store=str(store), out=tmp_path / "report")
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"figure2.png", "curves.png", "report.md"}
    assert "identity" in report.text()
    settings = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(settings.replace('device = "cpu"', 'device = "cuda"'), encoding="utf-8")
    assert load_run(run).config.loop.device == "cpu"  # a report needs no GPU
    with pytest.raises(ConfigError, match="--resume"):
        train_coarse(config, store=str(store), run=run, resume=False)


def test_a_run_takes_its_faces_from_a_synthetic_store(model_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "drawn"
    write_synthetic_store(SyntheticStorePlan(5, size=32, model=str(model_file)), store, processes=1)
    changes = ("data.synthetic_faces=0", f'data.synthetic="{store}"', "loop.steps=2", "encoder.points=true")
    train_coarse(config_of(model_file, *changes), store=None, run=tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    source = make_source(config_of(model_file, *changes), load_model(model_file), store=None)
    assert set(source.batch(0, Shard()).names) < {f"stored-0-{k}" for k in range(5)}
    train_coarse(config_of(model_file, *changes), store=None, run=tmp_path / "run", resume=True)
    write_synthetic_store(SyntheticStorePlan(6, size=32, model=str(model_file)), store, processes=1)
    with pytest.raises(ConfigError, match=r"of: synthetic \([0-9a-f]{12} now, [0-9a-f]{12} in inputs\.json\)"):
        train_coarse(config_of(model_file, *changes), store=None, run=tmp_path / "run", resume=True)


def test_two_runs_into_one_folder_are_refused(model_file: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run"), pytest.raises(OutputError, match=r"run: another run \(process .*; wait"):
        train_coarse(config_of(model_file, "loop.steps=1"), store=None, run=tmp_path / "run", resume=False)


def test_a_network_that_cannot_be_written_is_a_typed_error(model_file: Path, tmp_path: Path) -> None:
    config, run = config_of(model_file, "loop.steps=1"), tmp_path / "run"
    (run / "encoder.safetensors").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"encoder\.safetensors: cannot be written"):
        train_coarse(config, store=None, run=run, resume=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of file sizes")
def test_rows_that_do_not_fit_on_the_disk_are_taken_back(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "metrics.csv"
    _append(path, ["step", "name"], [[1, "loss"]])
    content, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            _append(path, ["step", "name"], [[2, "loss"]] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == content


def test_a_nan_stops_the_run_and_keeps_the_last_good_state(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch = FaceSource.batch

    def damaged(self: FaceSource, step: int, part: Shard) -> FaceBatch:
        batch = make_batch(self, step, part)
        if step == 2:
            batch.gt_px[1, 5, 0] = torch.nan
        return batch

    config = config_of(model_file, "loop.steps=5", "loop.checkpoint_every=100")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(FaceSource, "batch", damaged)
        with pytest.raises(TrainingDiverged, match=r"step 2: the loss 'points' is not finite; faces: synthetic-0-9\."):
            train_coarse(config, store=None, run=run, resume=False)
    noted = json.loads((run / "diverged.json").read_text(encoding="utf-8"))
    assert noted == {"step": 2, "terms": ["points"], "faces": ["synthetic-0-9"]}
    assert checkpoints(run)[-1].name == "step-00000002"
    train_coarse(config, store=None, run=run, resume=True)
    train_coarse(config, store=None, run=tmp_path / "whole", resume=False)
    assert_same_state(last_tensors(run), last_tensors(tmp_path / "whole"))


def test_a_prediction_that_cannot_be_rendered_stops_the_run(model_file: Path, tmp_path: Path) -> None:
    config = config_of(
        model_file, "loop.steps=4", "loss.photometric=1.0", "optimizer.learning_rate=1e18", "optimizer.warmup=0"
    )
    with pytest.raises(
        TrainingDiverged, match=r"step 1: the network's prediction is not finite; faces: synthetic-0-4, "
    ):
        train_coarse(config, store=None, run=tmp_path / "run", resume=False)
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000001"
    assert json.loads((tmp_path / "run" / "diverged.json").read_text(encoding="utf-8"))["terms"] == []


def test_half_precision_and_worker_processes_give_nearly_the_same(model_file: Path, tmp_path: Path) -> None:
    # With random weights and fixed statistics nearly all features are 0, in any precision.
    changes = (
        "loop.steps=2", "encoder.batchnorm=frozen", "encoder.weights=package", "encoder.points=true",
        "encoder.refiner=true", "optimizer.method=muon",
    )  # fmt: skip
    train_coarse(config_of(model_file, *changes), store=None, run=tmp_path / "full", resume=False)
    half = config_of(model_file, *changes, "loop.precision=bf16-mixed", "loop.workers=1")
    train_coarse(half, store=None, run=tmp_path / "half", resume=False)
    full, found = values_of(tmp_path / "full", "loss"), values_of(tmp_path / "half", "loss")
    assert found == pytest.approx(full, rel=0.02)
    assert found != full
    assert all(t.dtype != torch.bfloat16 for t in last_tensors(tmp_path / "half").values())


@pytest.mark.parametrize(("bf16_seconds", "chosen"), [(1.0, "bf16-mixed"), (3.0, "32-true")])
def test_auto_precision_is_bf16_where_it_is_faster(
    bf16_seconds: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: bf16_seconds, torch.float32: 2.0}
    monkeypatch.setattr("mien.training.precision._product_seconds", seconds.__getitem__)
    assert chosen_precision(LoopSettings(precision="auto")) == chosen
    assert chosen_precision(LoopSettings(precision="32-true")) == "32-true"


def test_a_run_keeps_the_precision_of_its_first_process(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(model_file, "loop.steps=1", "loop.precision=auto")
    run, fabric = tmp_path / "run", Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    train_coarse(config, store=None, run=run, resume=False)
    started = recorded_precision(run)
    other = "32-true" if started == "bf16-mixed" else "bf16-mixed"
    monkeypatch.setattr("mien.training.loop.chosen_precision", lambda _loop: other)
    settings = RunSettings(run, dump(config), RunInputs(), "", config.optimizer, config.loop, resume=True)
    assert _agreed_precision(fabric, settings) == started
    assert _agreed_precision(fabric, replace(settings, resume=False)) == other
    monkeypatch.setattr(fabric, "broadcast", lambda _own: "as the first one says")
    assert _agreed_precision(fabric, settings) == "as the first one says"


def test_a_full_disk_is_a_typed_error_and_leaves_a_run_that_can_begin(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_from: Path, _to: Path) -> None:
        raise OSError(28, "No space left on device")

    run, config = tmp_path / "run", config_of(model_file, "loop.steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match=r"No space left on device\); free some space"):
            train_coarse(config, store=None, run=run, resume=False)
    assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    with monkeypatch.context() as patch:
        patch.setattr("mien.training.monitor._append", lambda *_: full(run, run))
        with pytest.raises(OutputError, match="continue with --resume"):
            train_coarse(config, store=None, run=run, resume=False)
    (run / "metrics.csv").touch()  # as a full disk leaves it
    train_coarse(config, store=None, run=run, resume=True)
    assert values_of(run, "loss")


def test_a_fit_that_diverges_before_the_network_stops_the_run(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_self: CoarseObjective, _batch: FaceBatch) -> None:
        raise FitDiverged("a fit")

    monkeypatch.setattr(CoarseObjective, "prepare", lost)
    with pytest.raises(TrainingDiverged, match="step 0: the network's input is not finite; faces: synth"):
        train_coarse(config_of(model_file, "loop.steps=1"), store=None, run=tmp_path / "run", resume=False)
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000000"


def test_a_run_without_losses_is_refused(model_file: Path, tmp_path: Path, tiny: MorphableModel) -> None:
    nothing = [f"loss.{name}=0.0" for name in ("landmark", "points", "vertices", "pose", "identity_prior",
               "expression_prior", "albedo_prior", "lighting_prior")]  # fmt: skip
    with pytest.raises(ConfigError, match="every loss has weight 0"):
        train_coarse(config_of(model_file, *nothing), store=None, run=tmp_path / "run", resume=False)
