"""Atomic output: a file or folder is there in full or not at all, and a failure is an `OutputError`."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors import SafetensorError

from mien.errors import OutputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_STAGE, _LOCK = ".mien-partial-", ".lock"
"""Beginning of the name of a hidden folder, and ending of the name of its lock file."""
T = TypeVar("T")


@contextmanager
def writing(place: Path, *, advice: str = "free some space, or choose another place") -> Iterator[None]:
    """Turn the exceptions of a full disk or a read-only place into `OutputError`.

    Args:
        place: The file or folder that the message names.
        advice: What the user can do, the end of the message.

    Raises:
        OutputError: The block raised OSError or SafetensorError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{place}: cannot be written ({reason}); {advice}.") from error


def write_whole(path: Path, save: Callable[[Path], T]) -> T:
    """Write a file atomically: `save` writes it into a hidden folder beside it, then it is flushed and renamed.

    If anything fails, `path` is unchanged. The file gets the permissions that the umask gives new files; safetensors
    0.8 would leave it readable for its owner alone.

    Args:
        path: The file to write or replace.
        save: Writes the content to the path that it is given, which ends in the same name.

    Returns:
        What `save` returns.
    """
    with _staging(path.parent) as stage:
        mode = _new_file_mode(stage / path.name)
        result = save(stage / path.name)
        _finish(stage / path.name, mode)
        (stage / path.name).replace(path)
        _flush_folder(path.parent)
        return result


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, see `write_whole`."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def writing_folder(
    folder: Path, *, advice: str = "free some space or choose another place with write permission"
) -> Iterator[Path]:
    """Write a folder atomically: yield a hidden folder beside it, whose files move there at the end of the block.

    If anything fails, the hidden folder is removed and `folder` is unchanged. Files of the same names are replaced,
    other files in `folder` stay. Files are flushed before they move, so that a power cut leaves no empty file.

    Args:
        folder: The folder to make or to add to; missing parents are made.
        advice: What the user can do, the end of the error message.

    Raises:
        OutputError: The block or the move raised OSError or SafetensorError.
    """
    created = [parent for parent in folder.parents if not parent.exists()]
    with writing(folder, advice=advice):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _staging(folder.parent) as stage:
                mode = _new_file_mode(stage / "mode")
                yield stage
                for file in stage.iterdir():
                    _finish(file, mode)
                _move_into_place(stage, folder)
                _flush_folder(folder.parent)
        except BaseException:
            for parent in created:
                _remove_if_empty(parent)
            raise


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """Make a hidden folder in `parent` with a name of its own, and remove it at the end if it is still there.

    The folder has a lock as long as this process works in it. Process numbers could not tell a live process from a dead
    one: in a container every process may have the number 1.
    """
    _remove_abandoned(parent)
    stage, lock = _new_stage(parent)
    try:
        yield stage
    finally:
        _discard(stage, lock)


def _new_stage(parent: Path) -> tuple[Path, BaseFileLock]:
    from filelock import FileLock, Timeout  # noqa: PLC0415 (35 ms, and most commands write nothing)

    while True:
        stage = parent / f"{_STAGE}{secrets.token_hex(8)}"
        lock = FileLock(f"{stage}{_LOCK}", timeout=0)
        # Another process that cleans up may get the lock, or remove its file, before this one holds it.
        with suppress(Timeout):
            lock.acquire()
            if Path(lock.lock_file).exists():
                break
            lock.release()
    try:
        stage.mkdir()
    except BaseException:
        _discard(stage, lock)
        raise
    return stage, lock


def _remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders of killed processes, whose locks the system has ended."""
    from filelock import FileLock, Timeout  # noqa: PLC0415

    with os.scandir(parent) as entries:
        names = {entry.name.removesuffix(_LOCK) for entry in entries if entry.name.startswith(_STAGE)}
    for name in names:
        lock = FileLock(parent / f"{name}{_LOCK}", timeout=0)
        with suppress(Timeout, OSError):  # of a live process, or of another user
            lock.acquire()
            _discard(parent / name, lock)


def _discard(stage: Path, lock: BaseFileLock) -> None:
    """Remove a hidden folder and its lock, which this process holds."""
    file = Path(lock.lock_file)
    shutil.rmtree(stage, ignore_errors=True)
    with suppress(OSError):
        file.unlink()  # before the release, so that no other process takes the lock of a removed folder
    lock.release()
    with suppress(OSError):
        file.unlink()  # Windows cannot remove an open file


def _new_file_mode(path: Path) -> int:
    """Permissions of a new file; asking for the umask itself would change it for other threads."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode


def _finish(file: Path, mode: int) -> None:
    file.chmod(mode)
    with file.open("rb+") as stream:  # Windows flushes only files that are open for writing
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder; without it, a power cut can undo a rename."""
    if os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(stage: Path, folder: Path) -> None:
    if not folder.exists():
        stage.replace(folder)
        return
    for file in sorted(stage.iterdir()):
        file.replace(folder / file.name)
    _flush_folder(folder)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # not empty, or not made by us
