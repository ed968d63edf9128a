"""The atomic writers: whole files and folders, their permissions, and what a failure leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mien.errors import OutputError
from mien.io.files import write_text, write_whole, writing, writing_folder
from mien.morphable import save_model
from mien.networks import FaceEncoder, save_encoder
from mien.training.checkpoint import TENSORS_FILE, TrainState, save_checkpoint
from tests.tiny import tiny_model


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_safetensors_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    network = torch.nn.Linear(2, 2)
    trained = TrainState(network, None, torch.optim.Adam(network.parameters()))
    encoder = FaceEncoder("efficientnet_lite0", tiny_model(), image_size=64)
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "plain.safetensors", lambda partial: save_file({"a": torch.ones(2)}, partial))
        save_model(tiny_model(), tmp_path / "model.safetensors")
        save_encoder(encoder, tmp_path / "encoder.safetensors", notes={})
        checkpoint = save_checkpoint(tmp_path, trained, step=1, model_hash="", keep=1)
    finally:
        os.umask(before)
    for name in ("plain.safetensors", "model.safetensors", "encoder.safetensors"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name
    assert mode(checkpoint / TENSORS_FILE) == 0o666 & ~umask


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_write_whole_returns_what_save_returns(tmp_path: Path) -> None:
    assert write_whole(tmp_path / "a.txt", lambda partial: partial.write_text("four")) == 4


def test_an_error_of_safetensors_in_a_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"run: cannot be written .*; free some space\."):  # noqa: SIM117
        with writing_folder(tmp_path / "run", advice="free some space") as partial:
            save_file({"a": torch.ones(2)}, partial / "nowhere" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the names of open files are read from /proc")
def test_files_and_their_names_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(Path(f"/proc/self/fd/{number}").readlink()))
    with writing_folder(tmp_path / "run") as stage:
        (stage / "a").touch()
        (stage / "b").touch()
    write_text(tmp_path / "c", "")
    monkeypatch.setattr(os, "fsync", sync)
    names = [path.relative_to(tmp_path).name for path in flushed]
    assert sorted(names[:2]) == ["a", "b"]
    assert names[2:] == ["", "c", ""]  # "" is the folder with the new name


HOLD = """
import os, sys
from pathlib import Path
from mien.io.files import writing_folder

os.getpid = lambda: 1  # as in a container
with writing_folder(Path(sys.argv[1])) as stage:
    (stage / "a").write_text("whole")
    print(stage.name, flush=True)
    sys.stdin.readline()
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that is writing a folder until it reads a line, and the name of its hidden folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_killed_writer_leaves_a_hidden_folder_that_the_next_writer_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    killed, stage = hold(tmp_path / "face0")
    live, live_stage = hold(tmp_path / "face1")
    assert stage != live_stage
    with killed:
        killed.kill()
    assert (tmp_path / stage / "a").exists()
    (tmp_path / ".hidden").mkdir()
    write_text(tmp_path / "b", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"b", ".hidden", live_stage, f"{live_stage}.lock"}
    with writing_folder(tmp_path / "face0") as again:
        (again / "a").touch()
    with live:
        live.communicate("\n")
    assert live.returncode == 0
    assert (tmp_path / "face1" / "a").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"b", ".hidden", "face0", "face1"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of file sizes")
def test_a_file_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for save in (
            lambda path: save_file({"a": torch.ones(1000)}, path),
            lambda path: path.write_bytes(bytes(4000)),
            lambda path: np.savez(path, a=np.ones(1000)),
        ):
            with pytest.raises(OutputError, match="cannot be written"), writing(tmp_path):
                write_whole(tmp_path / "a.npz", save)
            with pytest.raises(OutputError, match="cannot be written"), writing_folder(tmp_path / "run") as stage:
                save(stage / "a.npz")
            assert list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
