"""How the command line behaves before and around the work: help, wrong values, interrupts, pipes, JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer

import mien.cli.reconstruct
import mien.pipeline
from mien.cli import app as cli
from mien.cli import options
from mien.errors import NoFaceFound
from mien.io.result_files import FORMATS
from mien.morphable import save_model
from tests.test_photo_arguments import picture
from tests.tiny_face import tiny_model

COMMANDS = (
    "reconstruct", "transfer", "doctor", "model info", "model convert", "model list", "model phenotype",
    "evaluate landmarks", "data prepare", "data samples", "data synthesize", "data skins", "train coarse",
    "train detail", "train recipe", "report coarse", "report detail",
)  # fmt: skip


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("command", ("", "model", *COMMANDS))
def test_each_command_has_help_under_both_names(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = []
    for name in ("-h", "--help"):
        assert run(*command.split(), name) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "Usage" in shown[0]


def test_help_is_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run("reconstruct", "-h")
    shown = capsys.readouterr().out
    assert "…" not in shown  # a word too long for its column is cut off
    assert all(name in shown for name in FORMATS)


def test_help_shows_choices_and_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run("reconstruct", "-h")
    shown = capsys.readouterr().out
    for expected in (
        "[auto|fit|net]", "[fit|net]", "[cpu|cuda]", "[224|512|1024]", "[default: cpu]",
        "[default: 224]", "[default: out]",
    ):  # fmt: skip
        assert expected in shown


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("photo.jpg",), "photo.jpg is not a command; use `mien reconstruct photo.jpg`"),
        (("reconstruct", "photo.jpg", "-o", "anna.fbx"), "mien does not write .fbx (anna.fbx); use .glb, .obj"),
        (("reconstruct", "photo.jpg", "-o", "notes.txt"), "notes.txt is a file; give a folder"),
        (("reconstruct", "photo.jpg", "--formats", "json", "--parts", "head"), "parts='head' has no effect"),
        (("reconstruct", "photo.jpg", "--mode", "fast"), "'--mode': 'fast' is not one of 'fit', 'net', 'auto'"),
        (("track", "photo.jpg"), "photo.jpg is a photo; use `mien reconstruct photo.jpg`"),
    ],
)
def test_mistakes_of_newcomers_are_told_with_what_to_do(
    arguments: tuple[str, ...],
    advice: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert run(*arguments) == 2
    assert advice in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "photo.jpg"]


def test_every_option_of_reconstruct_is_shown_in_a_known_group() -> None:
    command = typer.main.get_command(cli.app).commands["reconstruct"]  # pyright: ignore[reportAttributeAccessIssue]
    names = [name for group in mien.cli.reconstruct.PANELS.values() for name in group.split()]
    first = {"photos", "out", "formats", "parts", "quiet", "json_lines", "help"}
    assert {parameter.name for parameter in command.params} - first == set(names)


@pytest.mark.parametrize("name", ["-V", "--version"])
def test_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name) == 0
    assert capsys.readouterr().out == f"mien {mien.__version__}\n"


def test_resolutions_are_the_reconstructors() -> None:
    from mien.pipeline.reconstructor import RESOLUTIONS, TEXTURE_SIZES

    assert options.RESOLUTIONS == RESOLUTIONS
    assert options.TEXTURE_SIZES == TEXTURE_SIZES


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("reconstruct a.jpg --device foo", "--device foo cpu cuda"),
        ("reconstruct a.jpg --device mps", "--device mps cpu"),
        ("reconstruct a.jpg --resolution 300", "--resolution 300 224 512 1024"),
        ("reconstruct a.jpg --texture-size 300", "--texture-size 300 256 512 1024 2048"),
        ("reconstruct a.jpg --scalp wig", "--scalp wig hair skin"),
        ("reconstruct a.jpg --focal-px -3", "--focal-px -3 positive"),
        ("reconstruct a.jpg --focal-px nan", "--focal-px nan positive"),
        ("reconstruct a.jpg --max-megapixels inf", "--max-megapixels inf"),
        ("reconstruct a.jpg --focal-px inf", "--focal-px inf positive"),
        ("reconstruct a.jpg --principal-point 3 nan", "--principal-point 3 nan finite"),
        ("reconstruct a.jpg --principal-point 3 x", "--principal-point valid"),
        ("reconstruct a.jpg --seed -1", "--seed -1 0"),
        (f"reconstruct a.jpg --seed {10**30}", "--seed 10000 2^63"),
        ("reconstruct a.jpg --seed x", "--seed integer"),
        ("reconstruct a.jpg --max-faces 0", "--max-faces 1"),
        ("reconstruct a.jpg --mode foo", "--mode foo fit net auto"),
        ("reconstruct a.jpg --detail-mode auto", "--detail-mode auto fit net"),
        ("reconstruct a.jpg --model nix", "--model nix mien-face"),
        ("reconstruct a.jpg --model flame", "--model https://flame.is.tue.mpg.de"),
        ("reconstruct a.jpg --model nix.safetensors", "--model nix.safetensors no such file"),
        ("reconstruct a.jpg --encoder nix.safetensors", "--encoder nix.safetensors no such file"),
        ("reconstruct a.jpg --detail-network nix", "--detail-network nix no such file"),
        ("reconstruct a.jpg --mode net --refine-focal", "refine_focal mode='net' choose mode fit"),
        ("reconstruct *.nix", "photos *.nix matches no file"),
        ("reconstruct nix://a.jpg", "photos nix://a.jpg https://"),
        ("reconstruct", "photos"),
        ("reconstruct a.jpg --nix", "--nix"),
        ("nix", "nix"),
        ("transfer nix --to mien-face -o x", "reconstruction nix does not exist"),
        ("transfer . --to nix -o x", "--to nix mien-face"),
        ("transfer . --to mien-face", "--out"),
        ("model info nix", "name nix mien-face"),
        ("model info --picture mean.nix", "--picture mean.nix .png"),
        ("model convert nix -o x.safetensors", "source nix does not exist"),
        ("model convert . -o x.npz", "--out x.npz .safetensors"),
        ("model convert . -o x.safetensors --landmarks nix", "--landmarks nix"),
        ("model phenotype nix -o x", "file nix does not exist"),
        ("model phenotype --set age -o x", "--set age age=0.7"),
        ("model phenotype --set nix=1 -o x", "--set nix gender age"),
        ("model phenotype --set age=3 -o x", "--set age=3.0 from 0.1667 to 1"),
        ("evaluate landmarks nix", "folder nix does not exist"),
        ("evaluate landmarks . --limit 0", "--limit 1"),
        ("data prepare nix -o x", "photos nix does not exist"),
        ("data prepare . -o x --split-by nix", "--split-by nix identity random"),
        ("data prepare . -o x --table nix", "--table nix"),
        ("data prepare . -o x --processes 0", "--processes 1"),
        ("data samples --skins nix", "--skins nix"),
        ("data synthesize -o x --jitter nan", "--jitter"),
        ("train coarse --config nix", "--config nix does not exist"),
        ("train coarse --set loop.stepps=3", "--set loop.steps"),
        ("train coarse --set loop", "--set loop section.key=value"),
        ("train detail --coarse nix", "--coarse nix no such file"),
        ("train recipe nix", "recipe nix does not exist"),
        ("report coarse nix", "run nix does not exist"),
        ("report detail nix", "run nix does not exist"),
    ],
)
def test_wrong_values_are_one_line_and_exit_with_two(
    arguments: str,
    parts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIEN_MODELS", str(tmp_path))
    assert run(*arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    for part in parts.split():
        assert part.lower() in shown.err.lower()
    assert not (tmp_path / "x").exists()


def test_a_mistake_in_a_file_of_settings_is_no_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text("[loop]\nstepps = 3\n")
    assert run("train", "coarse", "--config", tmp_path / "a.toml", "--set", "loop.steps=3") == 1
    assert "did you mean 'loop.steps'" in capsys.readouterr().err


def test_a_missing_photo_is_no_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mien.pipeline, "Reconstructor", _FindsNoFace)
    assert run("reconstruct", tmp_path / "nix.jpg", "-o", tmp_path / "out") == 1
    assert "no such file" in _rows(tmp_path / "out")[0]["reason"]


class _FindsNoFace:
    def __init__(self, **settings: Any) -> None:
        self.model = tiny_model()

    def __call__(self, photo: object, **settings: Any) -> list[object]:
        raise NoFaceFound("no face was found")


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_photos_from_standard_input_and_patterns_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mien.pipeline, "Reconstructor", _FindsNoFace)
    monkeypatch.setattr(mien.cli.reconstruct, "core_count", lambda: 1)  # other processes have no fakes
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture())))
    (tmp_path / "b.png").write_bytes(b"no photo")
    (tmp_path / "a.png").write_bytes(picture())
    assert run("reconstruct", "-", tmp_path / "?.png", "http://127.0.0.1:1/c.png", "-o", tmp_path / "out") == 1
    rows = {row["photo"]: row["reason"] for row in _rows(tmp_path / "out")}
    assert rows.pop("http://127.0.0.1:1/c.png").startswith("ImageError: cannot be read (ClientConnectorError")
    assert rows.pop(str(tmp_path / "b.png")).startswith("ImageError: holds text, not a picture")
    assert rows == {
        "standard input": "NoFaceFound: no face was found",
        str(tmp_path / "a.png"): "NoFaceFound: no face was found",
    }


def test_json_of_doctor_and_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("doctor", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["passed", "checks", "assets"]
    assert {"subject": "python", "state": sys.version.split()[0], "passed": True} in shown["checks"]
    assert list(shown["assets"][0]) == ["name", "bytes", "licence", "problem"]
    path = tmp_path / "tiny.safetensors"
    save_model(tiny_model(), path)
    monkeypatch.setattr("mien.morphable.load_model", lambda name: tiny_model())
    assert run("model", "info", path, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["coefficients"] == {"identity": 4, "expression": 3, "albedo": 2}
    assert (shown["model"], shown["vertices"], shown["triangles"], shown["joints"]) == ("tiny", 30, 40, 0)
    assert shown["expressions"] == ["jawOpen", "mouthSmileLeft", "tongueOut"]


def test_json_of_landmark_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mien import evaluation
    from mien.evaluation.landmarks import LandmarkErrors, LandmarkReport, LandmarkRow

    rows = (
        LandmarkRow("a.jpg", "set", LandmarkErrors(0.05, 0.04), None),
        LandmarkRow("b.jpg", "set", None, None, "no face"),
    )
    monkeypatch.setattr(
        evaluation, "evaluate_landmarks", lambda folder, **settings: LandmarkReport(rows, with_model=False)
    )
    assert run("evaluate", "landmarks", tmp_path, "--perception-only", "--json", "--quiet") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["photos"][0]["raw"] == {"nme68": 0.05, "nme51": 0.04}
    assert shown["photos"][1] == {"file": "b.jpg", "group": "set", "raw": None, "model": None, "reason": "no face"}
    assert (shown["summaries"][0]["photos"], shown["summaries"][0]["found"]) == (2, 1)


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    from mien.cli.terminal import print_json

    print_json({"a": float("nan"), "b": (float("inf"), Path("x"))})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, "x"]}


def _start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mien.cli", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)


@pytest.mark.parametrize("arguments", ["-h", "model list"])
def test_a_reader_that_stops_early_gets_no_traceback(arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = _start(*arguments.split(), stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = _start("--version", stdout=full)
        assert process.communicate()[1].startswith("error: standard output cannot be written (No space left on device)")
    assert process.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the list of child processes is Linux's")
def test_ctrl_c_ends_all_processes_without_a_traceback(tmp_path: Path) -> None:
    command = f"data synthesize --faces 100000 --size 32 --processes 2 -o {tmp_path / 'store'}"
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = _start(*command.split(), stdout=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        while len(workers := children.read_text().split()) < 3:  # two workers and Python's resource tracker
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)  # the workers import torch; they get the signal first, as they may in a terminal
        for worker in workers:
            os.kill(int(worker), signal.SIGINT)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=40)[1] == ""
        # Python ends itself by the signal if the interrupt passed through code that a library compiled.
        assert process.returncode in {130, -signal.SIGINT}
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers[1:])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_completion_knows_commands_and_choices() -> None:
    environment = os.environ | {
        "_MIEN_COMPLETE": "complete_bash",
        "COMP_WORDS": "mien reconstruct --mo",
        "COMP_CWORD": "2",
    }
    code = "import sys; sys.argv[0] = 'mien'; from mien.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    ).stdout
    assert {"--mode", "--model"} <= set(shown.split())
