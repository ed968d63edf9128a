"""Threads that wait for each other, and processes that start: what must be set before torch is loaded.

Torch's wheels for Linux contain GNU OpenMP, whose threads wait in a busy loop before they sleep. It reads the length of
that loop from the environment when torch is loaded; nothing changes it later. So this module imports no torch.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from mien.errors import ForkedAfterImport, TorchImportedFirst

if TYPE_CHECKING:
    import torch

SPIN_COUNT = 4000
"""Iterations of GNU OpenMP's waiting loop, about 10 microseconds. The default of 300,000 is a millisecond, and each of
the fit's many small operations waits as long if another program uses a core. With one of two cores in use, a
reconstruction took 340 s; now it takes 18 s. With both cores free it takes 8.4 s either way (9.3 s with 2,000
iterations)."""

_USERS_CHOICE = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_LOADED_FILES = Path("/proc/self/maps")  # on Linux, where torch's wheels contain GNU OpenMP

_imported_in = os.getpid()
_too_late = False
"""Whether torch was loaded before the variable was set."""


def share_processors(environment: MutableMapping[str, str]) -> None:
    """Let torch's threads sleep earlier when they wait for each other, unless the user has chosen how they wait.

    Does nothing where torch's wheels contain another OpenMP library.

    Args:
        environment: The environment variables of this process; GOMP_SPINCOUNT is added.
    """
    global _too_late  # noqa: PLW0603  (a fact about the process, as the environment is)
    if sys.platform == "linux" and not any(name in environment for name in _USERS_CHOICE):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
        _too_late = "torch" in sys.modules


@contextlib.contextmanager
def interrupt_delayed() -> Iterator[None]:
    """Delay Ctrl-C while processes start. It reaches them too, and while they import they would print a traceback.

    They inherit the mask. Windows has none; there only the time before their own code begins is not covered.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # where it starts with the first process, it removes the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def warn_about_threads(device: torch.device) -> None:
    """Warn, once per process, if torch's threads wait in a long busy loop, or for ever.

    The loop is long since torch was imported before mien; in a forked process, threads wait for those of its parent
    that do not exist in it.

    There is no warning where nothing is lost: on a GPU, with one thread, or with another OpenMP library than GNU's, as
    on macOS, on Windows and in conda.

    Args:
        device: Where the computation takes place.
    """
    forked = os.getpid() != _imported_in
    if not (_too_late or forked) or device.type != "cpu" or sys.modules["torch"].get_num_threads() == 1:
        return
    if _gnu_openmp():
        if _too_late:
            _warn()
        if forked:
            _warn_forked()


@functools.cache  # once per process
def _warn() -> None:
    warnings.warn(
        "torch was imported before mien, so its threads wait for each other in a long busy loop. While other programs "
        f"use the processor, this multiplies the processor time. Import mien before torch, or set "
        f"GOMP_SPINCOUNT={SPIN_COUNT} before Python starts.",
        TorchImportedFirst,
        stacklevel=4,
    )


@functools.cache
def _warn_forked() -> None:
    warnings.warn(
        "this process was forked after mien was imported. If torch has computed before, its threads do not exist here, "
        "and this process waits for them for ever. Start processes with spawn: "
        'multiprocessing.get_context("spawn"); or call torch.set_num_threads(1) in each forked process.',
        ForkedAfterImport,
        stacklevel=4,
    )


def _gnu_openmp() -> bool:
    try:
        return "libgomp" in _LOADED_FILES.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
