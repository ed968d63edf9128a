"""The loop: it learns, resumes exactly, survives a kill, stops on a NaN, and gives the same in two processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from mien.errors import (
    CheckpointDoubtful,
    ConfigError,
    FitDiverged,
    ModelMismatch,
    OutputError,
    RenamedSetting,
    TrainingDiverged,
)
from mien.io.folder_lock import LOCK_FILE, locked_folder
from mien.morphable import MorphableModel, load_model
from mien.training.checkpoint import checkpoints
from mien.training.coarse import CoarseObjective
from mien.training.config import CoarseConfig, LoopSettings
from mien.training.config_file import dump, load_config
from mien.training.data.batch import FaceBatch
from mien.training.data.source import FaceSource, Shard
from mien.training.initial_networks import make_encoder
from mien.training.loop import RunSettings, _agreed_precision
from mien.training.monitor import _append
from mien.training.precision import chosen_precision
from mien.training.report import report_coarse
from mien.training.run import load_run, train_coarse
from mien.training.run_record import RunInputs, recorded_precision
from mien.training.sources import make_source
from mien.training.synthetic.store import SyntheticStorePlan, write_synthetic_store
from tests.tiny import tiny_model
from tests.training.tiny_data import undo_last_checkpoint, write_model, write_store

SUPERVISED = ("loss.points=8.0", "loss.vertices=1.0", "loss.pose=1.0", "loss.photometric=0.0", "loss.identity=0.0")
SMALL = (
    "encoder.weights=random", "encoder.image_size=32", "encoder.frozen_blocks=0", "data.synthetic_share=1.0",
    "data.synthetic_faces=16", "loop.batch_size=4", "loop.workers=0", "loop.log_every=1", "loop.threads=1",
    "optimizer.warmup=2", "optimizer.ema_decay=0.5", *SUPERVISED,
)  # fmt: skip


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tiny_model(), tmp_path_factory.mktemp("model") / "tiny.safetensors")


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


@pytest.mark.parametrize("method", ["adam", "muon"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(model_file: Path, tmp_path: Path, method: str) -> None:
    config = config_of(
        model_file,
        "loop.steps=6",
        "loop.checkpoint_every=3",
        "encoder.dropout=0.2",
        "encoder.points=true",
        "encoder.refiner=true",
        f"optimizer.method={method}",
    )
    train_coarse(config, store=None, run=tmp_path / "whole", resume=False)
    train_coarse(config, store=None, run=tmp_path / "cut", resume=False)
    undo_last_checkpoint(tmp_path / "cut")
    train_coarse(config, store=None, run=tmp_path / "cut", resume=True)
    assert_same_state(last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "cut"))
    for name in ("loss", "gradient_norm"):
        assert values_of(tmp_path / "whole", name) == values_of(tmp_path / "cut", name)


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


def run_command(model_file: Path, run: Path, changes: Sequence[str], *, prefix: Sequence[str] = ()) -> list[str]:
    settings = [f'model="{model_file}"', *SMALL, *changes]
    options = [word for change in settings for word in ("--set", change)]
    return [sys.executable, *(prefix or ["-m"]), "mien.cli", "train", "coarse", "-o", str(run), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


def test_a_killed_run_continues_from_its_last_checkpoint(model_file: Path, tmp_path: Path) -> None:
    changes = ["loop.steps=12", "loop.checkpoint_every=2"]
    run = tmp_path / "run"
    command = run_command(model_file, run, changes)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 200
        while not checkpoints(run) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    left = checkpoints(run)
    assert left
    subprocess.run([*command, "--resume"], env=environment(), check=True, capture_output=True, timeout=300)
    train_coarse(config_of(model_file, *changes), store=None, run=tmp_path / "whole", resume=False)
    assert_same_state(last_tensors(tmp_path / "whole"), last_tensors(run))


WATCHED = ("loop.steps=5", "loop.checkpoint_every=2", "loop.validate_every=2", "loop.sheet_every=2")


@pytest.fixture(scope="module")
def whole_run(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    train_coarse(config_of(model_file, *WATCHED), store=None, run=run, resume=False)
    return run


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_state(last_tensors(one), last_tensors(other))
    assert (one / "validation.csv").read_text() == (other / "validation.csv").read_text()
    for sheet in (one / "sheets").iterdir():
        assert sheet.read_bytes() == (other / "sheets" / sheet.name).read_bytes()
    assert len(list((other / "sheets").iterdir())) == 3


@pytest.mark.parametrize("cut", [("evaluate", 4), ("visualize", 5)])
def test_a_kill_after_a_checkpoint_does_not_cost_its_validation(
    model_file: Path, tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[str, int]
) -> None:
    (lost, step), run, config = cut, tmp_path / "run", config_of(model_file, *WATCHED)

    def killed(*_: object) -> None:
        if checkpoints(run)[-1].name == f"step-{step:08d}":
            raise KeyboardInterrupt  # the run's folder is as after a kill
        return work(*_)

    work = getattr(CoarseObjective, lost)
    with monkeypatch.context() as patch:
        patch.setattr(CoarseObjective, lost, killed)
        with pytest.raises(KeyboardInterrupt):
            train_coarse(config, store=None, run=run, resume=False)
    train_coarse(config, store=None, run=run, resume=True)
    assert_same_run(whole_run, run)


@pytest.mark.parametrize("during", ["batch", "evaluate"])
def test_sigterm_saves_the_state_and_ends_the_run(
    model_file: Path, tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    run, config = tmp_path / "run", config_of(model_file, *WATCHED, "loop.checkpoint_every=100")
    owner = FaceSource if during == "batch" else CoarseObjective
    work, calls = getattr(owner, during), []

    def signalled(*arguments: object) -> object:
        calls.append(during)
        if len(calls) == (4 if during == "batch" else 2):
            signal.raise_signal(signal.SIGTERM)
            assert during == "batch", "validation goes on after the signal"
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, during, signalled)
        with pytest.raises(SystemExit) as stopped:
            train_coarse(config, store=None, run=run, resume=False)
    assert stopped.value.code == 143
    assert [path.name for path in checkpoints(run)] == ["step-00000004"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train_coarse(config_of(model_file, *WATCHED), store=None, run=run, resume=True)
    assert_same_run(whole_run, run)


def test_a_process_that_gets_sigterm_ends_in_seconds(model_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = run_command(model_file, run, ["loop.steps=100000", "loop.checkpoint_every=100000", "loop.workers=1"])
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 200
        while not (run / "metrics.csv").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.terminate()
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    (saved,) = checkpoints(run)
    assert f"stopped by SIGTERM after step {int(saved.name[5:])}" in printed


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


def test_a_run_leaves_the_process_group_that_it_joined(model_file: Path, tmp_path: Path) -> None:
    """Gloo aborts a process that exits with the threads of a group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    train_coarse(config_of(model_file, "loop.steps=1"), store=None, run=tmp_path / "run", resume=False)
    assert not torch.distributed.is_initialized()


def test_another_model_or_configuration_is_refused(model_file: Path, tmp_path: Path) -> None:
    config = config_of(model_file, "loop.steps=1")
    train_coarse(config, store=None, run=tmp_path / "run", resume=False)
    other = write_model(tiny_model(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"another configuration, see .*: model cannot change on resume"):
        train_coarse(replace(config, model=str(other)), store=None, run=tmp_path / "run", resume=True)
    other.replace(model_file.with_name("swapped.safetensors"))
    moved = replace(config, model=str(model_file.with_name("swapped.safetensors")))
    (tmp_path / "run" / "config.toml").unlink()
    with pytest.raises(ModelMismatch, match="another face model"):
        train_coarse(moved, store=None, run=tmp_path / "run", resume=True)


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


def test_length_and_rate_may_change_on_resume(model_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = config_of(model_file, "loop.steps=2")
    train_coarse(started, store=None, run=run, resume=False)
    longer = config_of(model_file, "loop.steps=3", "optimizer.learning_rate=1e-4")
    train_coarse(longer, store=None, run=run, resume=True)
    assert checkpoints(run)[-1].name == "step-00000003"
    assert values_of(run, "learning_rate")[-1] < 1e-4
    assert load_run(run).config.loop.steps == 3
    for _ in range(2):  # notes stay
        train_coarse(longer, store=None, run=run, resume=True)
        notes = [line for line in (run / "config.toml").read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
        assert notes == [
            "# until step-00000002: loop.steps = 2",
            f"# until step-00000002: optimizer.learning_rate = {started.optimizer.learning_rate}",
        ]
    (run / "inputs.json").unlink()
    with pytest.raises(ConfigError, match=r"inputs\.json: no such file"):
        train_coarse(longer, store=None, run=run, resume=True)


def test_a_run_of_version_0_1_is_resumed(model_file: Path, tmp_path: Path) -> None:
    """Its configuration, inputs.json and tensors have the old names."""
    changes = ("encoder.points=true", "encoder.refiner=true", "loop.checkpoint_every=1")
    run, whole = tmp_path / "run", tmp_path / "whole"
    train_coarse(config_of(model_file, *changes, "loop.steps=1"), store=None, run=run, resume=False)
    config = run / "config.toml"
    text = config.read_text(encoding="utf-8")
    for name, old in (("refiner = ", "look = "), ("refine_steps", "looks"), ("photometric", "pixel")):
        assert name in text
        text = text.replace(name, old)
    config.write_text(text, encoding="utf-8")
    inputs = (run / "inputs.json").read_text(encoding="utf-8").replace('"synthetic"', '"drawn"')
    (run / "inputs.json").write_text(inputs, encoding="utf-8")
    tensors = last_tensors(run)
    names = {".refiner.": ".look.", ".map_layer.": ".seen.", ".state_layer.": ".told.", ".hidden_layer.": ".second."}
    for new, old in names.items():
        assert any(new in name for name in tensors)
        tensors = {
            name.replace(new, old) if ".refiner." in name or ".look." in name else name: v
            for name, v in tensors.items()
        }
    save_file(tensors, checkpoints(run)[-1] / "tensors.safetensors")
    header = json.loads((checkpoints(run)[-1] / "state.json").read_text(encoding="utf-8"))
    header = {"format": "mien-checkpoint-1", "step": header["step"], "model_hash": header["model_hash"]}
    (checkpoints(run)[-1] / "state.json").write_text(json.dumps(header), encoding="utf-8")
    (run / "saved.json").unlink()
    longer = config_of(model_file, *changes, "loop.steps=2")
    with pytest.warns(RenamedSetting), pytest.warns(CheckpointDoubtful, match="of an earlier version without hashes"):
        train_coarse(longer, store=None, run=run, resume=True)
    train_coarse(config_of(model_file, *changes, "loop.steps=1"), store=None, run=whole, resume=False)
    train_coarse(longer, store=None, run=whole, resume=True)
    assert_same_state(last_tensors(whole), last_tensors(run))


def test_another_store_of_photos_is_refused(model_file: Path, tmp_path: Path) -> None:
    model, run = load_model(model_file), tmp_path / "run"
    one = write_store(model, tmp_path / "one", splits={"train": 2, "validation": 2})
    other = write_store(model, tmp_path / "other", splits={"train": 3, "validation": 2})
    config = config_of(model_file, "data.synthetic_share=0.5", "data.augment=false", "loop.steps=1")
    train_coarse(config, store=str(one), run=run, resume=False)
    with pytest.raises(ConfigError, match=r"other contents of: photos \("):
        train_coarse(config, store=str(other), run=run, resume=True)


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
