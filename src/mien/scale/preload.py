"""What the processes of one run share: torch, the face model and the networks, loaded once before they are forked.

On Linux, the processes of `mien.scale.processes` are forked by Python's fork server, which imports this module first
and works on no photo itself. A fork is safe there: the server has one thread and has not used any of torch's. Memory of
models and networks is shared until a process writes to it, which none does.
"""
# ruff: noqa: PLC0415 (torch is imported where the work is done)

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from mien.errors import ConfigError
from mien.io.reading import parse_json
from mien.scale.photo_work import PhotoSettings

if TYPE_CHECKING:
    from mien.pipeline import Reconstructor

_VARIABLE = "MIEN_PRELOAD"
"""Environment variable with the settings of the run; the fork server has no other input."""
_loaded: dict[str, Reconstructor] = {}
"""At most one reconstructor, by its settings."""


def worker_context(settings: PhotoSettings) -> BaseContext:
    """How processes start: from a fork server on Linux, else as new programs.

    GPUs do not survive a fork, and neither does Accelerate on macOS.

    Args:
        settings: Those of the run.
    """
    if sys.platform != "linux" or settings.device != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def settings_for_server(settings: PhotoSettings) -> Iterator[None]:
    """Tell a fork server that starts within this context what to load.

    Args:
        settings: Those of the run.
    """
    os.environ[_VARIABLE] = _key(settings)
    try:
        yield
    finally:
        del os.environ[_VARIABLE]


def take_reconstructor(settings: PhotoSettings) -> Reconstructor | None:
    """The reconstructor that was loaded before this process was forked; None if there is none with these settings.

    Args:
        settings: Those of the run.
    """
    return _loaded.pop(_key(settings), None)


def _key(settings: PhotoSettings) -> str:
    return json.dumps({"class": type(settings).__qualname__, **asdict(settings)})


def load(text: str) -> None:
    """Load what the settings need; a process without it loads it by itself, and says what is wrong.

    Args:
        text: The settings, as `settings_for_server` writes them.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for NumPy, which starts its threads when it is imported
    import torch

    torch.set_num_threads(1)
    import mien.export
    import mien.io.photo_arguments
    import mien.pipeline  # noqa: F401

    stored = parse_json(text, dict[str, Any], _VARIABLE, advice="unset it", error=ConfigError)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    if values.pop("class") == PhotoSettings.__qualname__:
        with suppress(Exception):
            _loaded[text] = PhotoSettings(**values).reconstructor()
    gc.collect()
    gc.freeze()  # the collector then writes to no shared page


if _VARIABLE in os.environ:
    load(os.environ.pop(_VARIABLE))
