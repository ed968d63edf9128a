"""Files that are whole or not there, and a typed error where one cannot be written."""

from __future__ import annotations

import os
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
