"""A run that was stopped or killed continues as if nothing had happened, and only with its own inputs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from mien.errors import (
    CheckpointDoubtful,
    ConfigError,
    ModelMismatch,
    RenamedSetting,
)
from mien.morphable import load_model
from mien.training.checkpoint import checkpoints
from mien.training.coarse import CoarseObjective
from mien.training.data.source import FaceSource
from mien.training.run import load_run, train_coarse
from tests.tiny import tiny_model
from tests.training.loop_runs import (
    assert_same_state,
    config_of,
    environment,
    last_tensors,
    run_command,
    values_of,
)
from tests.training.tiny_data import undo_last_checkpoint, write_model, write_store


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
