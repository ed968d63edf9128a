"""The training commands, from the terminal's side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mien.cli import app as cli
from tests.tiny import tiny_model
from tests.training.tiny_data import write_model


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code if isinstance(stopped.value.code, int) else 1


def test_samples_of_synthetic_faces_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tiny_model(), tmp_path / "tiny.safetensors")
    assert run("data", "samples", "-o", tmp_path / "out", "--count", 3, "--size", 32, "--model", model) == 0
    assert (tmp_path / "out" / "sheet.png").exists()
    assert "3 faces" in capsys.readouterr().out
    detail = ("--detail", "--map-size", 32, "--count", 2, "--size", 32, "--model", model)
    assert run("data", "samples", "-o", tmp_path / "detail", *detail) == 0
    with np.load(tmp_path / "detail" / "truth.npz") as gt:
        assert gt["displacement_m"].shape == (2, 1, 32, 32)


def test_synthetic_faces_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tiny_model(), tmp_path / "tiny.safetensors")
    options = ("--size", 32, "--model", model, "--processes", 1)
    assert run("data", "synthesize", "-o", tmp_path / "faces", "--faces", 2, *options) == 0
    assert f"--set data.synthetic={tmp_path / 'faces'}" in capsys.readouterr().out.replace("\n", "")
    assert run("data", "synthesize", "-o", tmp_path / "faces", "--faces", 2, "--seed", 1, *options) == 1
    assert "started with other settings" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["train", "coarse", "--set", "loop.stepps=3"], "did you mean 'loop.steps'", 2),
        (["train", "coarse", "--config", "bad.toml"], "bad.toml cannot be read", 1),
        (["report", "coarse", "."], "holds no finished run", 1),
        (["data", "prepare", ".", "-o", "store"], "no photos", 1),
        (["data", "skins", "no-such-store"], "is not a store", 1),
        (["data", "synthesize", "-o", "faces", "--skins", "bad.toml"], "bad.toml", 1),
        (
            ["train", "coarse", "--set", "data.synthetic_share=1", "--set", "data.synthetic=no-such-store"],
            "mien data",
            1,
        ),
        (
            ["train", "coarse", "--set", "data.synthetic=store", "--set", "data.synthetic_faces=9"],
            "has no effect with data.synthetic",
            2,
        ),
        (["train", "detail", "--set", "data.synthetic=store"], "for `mien train coarse` only", 2),
        (["train", "coarse", "--set", "data.synthetic_share=1", "--set", "loop.device=cuda"], "sees no CUDA device", 1),
        (["train", "recipe", "bad.toml"], "bad.toml cannot be read", 1),
    ],
)
def test_mistakes_end_as_one_line(  # noqa: PLR0917 (pytest fills them by name)
    arguments: list[str],
    message: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("=")
    assert run(*arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in " ".join(error.split())


def test_photos_are_needed_where_the_configuration_wants_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tiny_model(), tmp_path / "tiny.safetensors")
    changes = (f'model="{model}"', "encoder.weights=random", "encoder.image_size=32", "loss.identity=0.0")
    options = [word for change in changes for word in ("--set", change)]
    assert run("train", "coarse", "-o", tmp_path / "run", *options) == 1
    assert "give a store with --data" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("command", "new"),
    [
        ("train base --set loop.stepps=3", "train coarse"),
        ("report base .", "report coarse"),
        ("data synth --skins bad", "data samples"),
        ("data draw -o faces --skins bad", "data synthesize"),
    ],
)
def test_old_command_names_work_with_a_warning(
    command: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").touch()
    assert run(*command.split()) in {1, 2}
    lines = capsys.readouterr().err.splitlines()
    old = " ".join(command.split()[:2])
    assert lines[0].startswith(f"warning: `mien {old}` is now called `mien {new}`")
    assert lines[1].startswith("error: ")


def test_old_setting_names_are_printed_once_as_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "old.toml"
    config.write_text("[loss]\npixel = 1.0\n", encoding="utf-8")
    options = ("--config", config, "--set", "loss.pixel=0.0", "--set", "loop.steps=0", "-o", tmp_path / "run")
    assert run("train", "coarse", *options) == 2
    warned, error = capsys.readouterr().err.splitlines()[:2]
    assert warned.startswith("warning: setting 'loss.pixel' is now called 'loss.photometric'")
    assert error.startswith("error: Invalid value for '--set': loop.steps")
