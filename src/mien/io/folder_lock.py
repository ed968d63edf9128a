"""A lock that keeps a second process out of a folder. The system ends the lock of a killed process."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mien.errors import OutputError
from mien.io.files import writing

LOCK_FILE = ".mien.lock"
HOLDER_FILE = ".mien.lock-holder"


@contextmanager
def locked_folder(folder: Path, *, advice: str = "choose another folder") -> Iterator[None]:
    """Lock a folder while the block runs; it is made if it is missing. The lock file stays.

    Args:
        folder: The folder.
        advice: What the user can do, the end of the error messages.

    Raises:
        OutputError: Another process has the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 (35 ms, and most commands write nothing)

    holder = folder / HOLDER_FILE
    with writing(folder, advice=advice):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise OutputError(f"{folder}: {_name(holder)} writes into it; wait until it ends, or {advice}") from None
        holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):  # the lock counts, not this file
            holder.unlink()
        lock.release()


def _name(holder: Path) -> str:
    try:
        return f"another run ({holder.read_text(encoding='utf-8')})"
    except (OSError, UnicodeDecodeError):
        return "another run"
