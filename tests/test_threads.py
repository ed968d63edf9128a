"""Torch's threads share the processor, and mien warns where it came too late to arrange this."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mien import threads
from mien.errors import TorchImportedFirst

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "PYTHONWARNINGS")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only there torch's wheels contain GNU OpenMP")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that imported torch first, with two threads; the file lists what it has loaded."""
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 0 08:01 7 /torch/lib/libgomp-98b21ff3.so.1\n", encoding="utf-8")
    monkeypatch.setattr(threads, "_LOADED_FILES", maps)
    monkeypatch.setattr(threads, "_too_late", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads._warn.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "linux")
        threads.share_processors({})
    yield maps
    threads._warn.cache_clear()


def reported(device: str = "cpu") -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads.warn_about_threads(torch.device(device))
    assert all(warning.category is TorchImportedFirst for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.usefixtures("late")
def test_a_late_import_is_reported_once_with_advice() -> None:
    (message,) = reported()
    assert message.startswith("torch was imported before mien")
    assert message.endswith("Import mien before torch, or set GOMP_SPINCOUNT=4000 before Python starts.")
    assert reported() == []


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}])
def test_the_users_choice_is_kept_and_not_reported(
    late: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str]
) -> None:
    monkeypatch.setattr(threads, "_too_late", False)
    environment = dict(chosen)
    threads.share_processors(environment)
    assert environment == chosen
    assert reported() == []


def test_nothing_is_reported_where_nothing_is_lost(late: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reported("cuda") == []
    text = late.read_text(encoding="utf-8")
    late.write_text(text.replace("libgomp-98b21ff3.so.1", "libomp.so"), encoding="utf-8")
    assert reported() == []
    late.unlink()  # not Linux
    assert reported() == []
    late.write_text(text, encoding="utf-8")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert reported() == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert len(reported()) == 1


def new_process(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program where nothing has chosen how threads wait or how many there are."""
    environment = {key: value for key, value in os.environ.items() if key not in CHOICES} | variables
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@linux_only
@pytest.mark.parametrize("call", ["mien.Reconstructor('no-such-model')", "mien.fit(None, targets)"])
def test_reconstructor_and_fit_report_it_at_the_line_that_calls_them(call: str) -> None:
    program = f"""
        import warnings
        from types import SimpleNamespace
        import torch
        import mien
        torch.set_num_threads(2)
        targets = SimpleNamespace(crops=torch.zeros(1))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try: {call}
            except Exception: pass  # there is no such model, and there are no targets
        print([(w.category.__name__, w.filename) for w in caught])
    """
    gnu = "libgomp" in Path("/proc/self/maps").read_text(encoding="utf-8")
    expected = [("TorchImportedFirst", "<string>")] if gnu else []
    assert new_process(program).stdout.strip() == str(expected)


@linux_only
def test_torch_reads_the_count_that_mien_sets() -> None:
    """GNU OpenMP prints its settings when it is loaded: the whole chain, without a measurement of time."""
    printed = new_process("import mien; mien.Camera", OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_SPINCOUNT" not in printed:
        pytest.skip("this torch does not use GNU OpenMP")
    assert "GOMP_SPINCOUNT = '4000'" in printed


FORKED = """
import multiprocessing, sys, warnings
import mien, torch

def compute(_):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.set_num_threads(int(sys.argv[2]))
        mien.threads.warn_about_threads(torch.device("cpu"))
    return [warning.category.__name__ for warning in caught]

if __name__ == "__main__":
    torch.set_num_threads(2)
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map(compute, [0])[0])
"""


@linux_only
@pytest.mark.parametrize(
    ("how", "count", "expected"),
    [("fork", 2, ["ForkedAfterImport"]), ("fork", 1, []), ("spawn", 2, [])],
)
def test_a_fork_after_the_import_is_reported(tmp_path: Path, how: str, count: int, expected: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(FORKED, encoding="utf-8")
    command = [sys.executable, str(script), how, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == str(expected)
