"""Work in processes: each call named, failures at once, a killed process told of."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from mien.errors import FormatError, OutputError
from mien.training.data.workers import each_done

CALLS = 60


def work(folder: Path, number: int, how: str) -> None:
    """Leave a file that tells the number of threads, or fail in some way."""
    if how == "fail":
        raise FormatError("this one cannot be made")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    (folder / str(number)).write_text(str(torch.get_num_threads()))


@pytest.mark.parametrize("processes", [1, 2])
def test_each_call_has_one_thread_and_is_named_when_it_is_done(tmp_path: Path, processes: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in each_done(work, {k: (tmp_path, k, "well") for k in range(4)}, processes=processes):
            assert (tmp_path / str(name)).read_text() == "1"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_failure_nothing_is_begun(tmp_path: Path, processes: int) -> None:
    calls = {k: (tmp_path, k, "well" if k else "fail") for k in range(CALLS)}
    with pytest.raises(FormatError, match="cannot be made"):
        list(each_done(work, calls, processes=processes))
    assert len(list(tmp_path.iterdir())) < CALLS / 10


def test_a_killed_process_is_a_typed_error(tmp_path: Path) -> None:
    calls = {k: (tmp_path, k, "die" if k else "well") for k in range(CALLS)}
    with pytest.raises(OutputError, match="fewer --processes"):
        list(each_done(work, calls, processes=2))
