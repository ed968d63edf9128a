"""Files that are whole or not there, and a typed error where one cannot be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from mien.errors import OutputError

PARTIAL = ".partial"
T = TypeVar("T")


@contextmanager
def writing(place: Path, *, advice: str = "free some space, or choose another place") -> Iterator[None]:
    """Turn what a full disk or a forbidden folder raises into OutputError with this advice."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{place}: cannot be written ({reason}); {advice}.") from error


def write_whole(path: Path, save: Callable[[Path], T]) -> T:
    """Let `save` write a file beside, then rename it, and return what `save` does.

    Whatever stops that, `path` is as it was or whole.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        result = save(partial)
        with partial.open("rb+") as file:  # Windows flushes what is open for writing
            os.fsync(file.fileno())
        partial.replace(path)
        return result
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path, names: str) -> None:
    """Remove what killed processes left half written of the files of a folder that match a pattern."""
    for left in folder.glob(f"{names}.*{PARTIAL}"):
        left.unlink(missing_ok=True)


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Collect files in a hidden folder beside `folder` and move them there once all are written.

    Whatever goes wrong, the hidden folder is removed and `folder` is as it was; files of the same names are
    replaced whole. An OSError inside becomes an `OutputError`.
    """
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    created = [parent for parent in folder.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        _move_into_place(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            _remove_if_empty(parent)
        if isinstance(error, OSError):
            raise OutputError(
                f"{folder}: cannot be written ({error.strerror or error}); "
                "free some space or choose another place with write permission"
            ) from error
        raise


def _move_into_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.replace(folder)
        return
    for file in sorted(partial.iterdir()):
        file.replace(folder / file.name)
    partial.rmdir()


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # not empty or never made; either way it is not ours to clear
