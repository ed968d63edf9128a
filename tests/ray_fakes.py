"""Fakes that Ray's processes load in tests: a reconstructor that takes no time, and photos that kill their process."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from mien.io.photo import Photo
from mien.result import Reconstruction
from mien.scale.photo_work import PhotoSettings
from tests.command import FakeReconstructor

KILLS, KILLS_ONCE, SLOW = 50, 51, 52
"""Brightness of the top-left pixel of photos that kill their process, always or once, and of one that takes long."""


def die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def die_once(mark: Path) -> None:
    """Die unless there is a file, and make the file."""
    if not mark.exists():
        mark.touch()
        die()


class DangerousReconstructor(FakeReconstructor):
    """A `FakeReconstructor` for the photos above."""

    def __call__(self, photo: Photo, **options: Any) -> list[Reconstruction]:
        code = int(photo.pixels[0, 0, 0])
        if code == KILLS:
            die()
        if code == KILLS_ONCE:
            die_once(photo.path.with_suffix(".died"))
        if code == SLOW:
            time.sleep(2)
        if code in {KILLS_ONCE, SLOW}:
            photo.pixels[0, 0] = 1
        return super().__call__(photo, **options)


@dataclass(frozen=True)
class DangerousSettings(PhotoSettings):
    """Settings whose reconstructor is a fake."""

    def reconstructor(self) -> Any:
        return DangerousReconstructor()


class KillingFiles(fsspec.AbstractFileSystem):
    """Files whose reader dies."""

    def open(self, *_: Any, **__: Any) -> Any:
        die()


class KillingAddress(str):
    """An address of such files, which each process learns that the address is sent to."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return _register, (str(self),)


def _register(address: str) -> str:
    fsspec.register_implementation("kills", KillingFiles, clobber=True)
    return address


def make_doubler(mark: Path) -> Callable[[int], int]:
    """The function of a process: doubles, dies at 13, once at 7, and refuses negative numbers."""

    def double(number: int) -> int:
        if number == 13:
            die()
        if number == 7:
            die_once(mark)
        if number < 0:
            raise ValueError(f"{number} is negative")
        time.sleep(0.02)
        return 2 * number

    return double


def make_nothing() -> Callable[[int], int]:
    """The start of a process that dies."""
    die()
    return make_doubler(Path())


class MissingThere:
    """What a process without this module finds when a function is sent to it."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return importlib.import_module, ("not_installed_there",)
