"""Calls in processes: each is reported, errors stop the rest, a killed process is a typed error."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from mien.errors import FormatError, OutputError
from mien.training.data.workers import run_calls

CALLS = 60


def work(folder: Path, number: int, how: str) -> None:
    """Write a file with the number of threads, or fail."""
    if how == "fail":
        raise FormatError("this one cannot be made")
    if how == "hang":
        time.sleep(1000)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    (folder / str(number)).write_text(str(torch.get_num_threads()))


@pytest.mark.parametrize("processes", [1, 2])
def test_each_call_has_one_thread_and_is_reported_when_finished(tmp_path: Path, processes: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in run_calls(work, {k: (tmp_path, k, "well") for k in range(4)}, processes=processes):
            assert (tmp_path / str(name)).read_text() == "1"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_no_call_starts_after_a_failure(tmp_path: Path, processes: int) -> None:
    calls = {k: (tmp_path, k, "well" if k else "fail") for k in range(CALLS)}
    with pytest.raises(FormatError, match="cannot be made"):
        list(run_calls(work, calls, processes=processes))
    assert len(list(tmp_path.iterdir())) < CALLS / 10


def test_a_killed_process_is_a_typed_error(tmp_path: Path) -> None:
    calls = {k: (tmp_path, k, "die" if k else "well") for k in range(CALLS)}
    with pytest.raises(OutputError, match="fewer --processes"):
        list(run_calls(work, calls, processes=2))


def test_a_hung_process_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.training.data.workers.LONGEST_WAIT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(OutputError, match=r"no worker process finished its work in .* minutes; finished work is kept"):
        list(run_calls(work, {k: (tmp_path, k, "hang") for k in range(4)}, processes=2))
    assert time.monotonic() - start < 100
