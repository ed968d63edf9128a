"""The atomic writers: whole files and folders, their permissions, and what a failure leaves."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mien.errors import OutputError
from mien.io.files import remove_partial_folders, write_text, write_whole, writing_folder
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


def test_files_are_flushed_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    for flush, expected in ((False, 0), (True, 2)):
        with writing_folder(tmp_path / f"run{flush}", flush=flush) as partial:
            (partial / "a").touch()
            (partial / "b").touch()
        assert len(flushed) == expected


def test_folders_of_killed_processes_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in (".step-2.partial-7", "step-1", ".other.partial-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_partial_folders(tmp_path, "step-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial-7", "step-1"]
