from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mien import assets
from mien.cli.options import DetailMode, Mode
from tests.command import run
from tests.tiny_face import tiny_model


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_model_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mien.morphable.load_model", lambda name: tiny_model())
    assert run("model", "info") == 0
    shown = capsys.readouterr().out
    assert "30 vertices, 40 triangles" in shown
    assert "4 identity, 3 expression, 2 albedo" in shown
    assert "jawOpen, mouthSmileLeft, tongueOut" in shown


def test_doctor_lists_assets_and_finds_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.safetensors").write_bytes(b"")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    row = '{{"name": "{}.safetensors", "bytes": 0, "sha256": "{}", "licence": "CC0-1.0", "source": "-"}}'
    manifest = tmp_path / "manifest.json"
    manifest.write_text(f"[{row.format('good', empty)}]")
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    monkeypatch.setattr(assets, "MANIFEST", manifest)
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    for word in ("python", "torch", "photos", "WebP, TIFF", "native rasterizer", "good.safetensors", "CC0-1.0", "ok"):
        assert word in shown
    manifest.write_text(f"[{row.format('bad', empty)}]")
    assert run("doctor") == 1
    assert "is damaged" in capsys.readouterr().out


def test_evaluate_landmarks_prints_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mien import evaluation

    asked: dict[str, Any] = {}

    class Report:
        def table(self) -> str:
            return "| set | NME |"

    def fake_evaluate(folder: Path, **settings: Any) -> Report:
        asked.update(settings, folder=folder)
        settings["progress"](1, 1)
        return Report()

    monkeypatch.setattr(evaluation, "evaluate_landmarks", fake_evaluate)
    assert run("evaluate", "landmarks", tmp_path, "--perception-only", "--limit", "5") == 0
    assert capsys.readouterr().out == "| set | NME |\n"
    assert (asked["folder"], asked["reconstructor"], asked["limit"]) == (tmp_path, None, 5)


def test_the_command_line_itself_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from mien.cli import app as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "reconstruct" in finished.stdout


def test_modes_are_choices_and_the_same_as_the_reconstructors(capsys: pytest.CaptureFixture[str]) -> None:
    from mien.pipeline.modes import DETAIL_MODES, MODES

    assert tuple(mode.value for mode in Mode) == MODES
    assert tuple(mode.value for mode in DetailMode) == DETAIL_MODES
    assert run("reconstruct", "a.jpg", "--mode", "guess") == 2
    assert "guess" in capsys.readouterr().err


def test_wrong_usage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reconstruct") == 2
    assert run("reconstruct", "a.jpg", "--max-faces", "0") == 2
    assert "max-faces" in capsys.readouterr().err
