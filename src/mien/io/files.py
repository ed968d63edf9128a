"""Atomic output: a file or folder is there in full or not at all, and a failure is an `OutputError`."""

from __future__ import annotations

import os
import shutil
import stat
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
    """Write a file atomically: `save` writes a temporary file beside it, which is flushed and renamed.

    If anything fails, `path` is unchanged. The file gets the permissions that the umask gives new files; safetensors
    0.8 would leave it readable for its owner alone.

    Args:
        path: The file to write or replace.
        save: Writes the content to the path that it is given.

    Returns:
        What `save` returns.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        mode = _new_file_mode(partial)
        result = save(partial)
        _finish(partial, mode)
        partial.replace(path)
        return result
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, see `write_whole`."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path, names: str) -> None:
    """Remove the temporary files of killed processes.

    Args:
        folder: Where `write_whole` wrote.
        names: Glob pattern of the names of the finished files.
    """
    for left in folder.glob(f"{names}.*{PARTIAL}"):
        left.unlink(missing_ok=True)


@contextmanager
def writing_folder(
    folder: Path,
    *,
    flush: bool = False,
    advice: str = "free some space or choose another place with write permission",
) -> Iterator[Path]:
    """Write a folder atomically: yield a hidden folder beside it, whose files move there at the end of the block.

    If anything fails, the hidden folder is removed and `folder` is unchanged. Files of the same names are replaced,
    other files in `folder` stay.

    Args:
        folder: The folder to make or to add to; missing parents are made.
        flush: Flush the files to the disk before they move, so that a power cut leaves no empty file.
        advice: What the user can do, the end of the error message.

    Raises:
        OutputError: The block or the move raised OSError or SafetensorError.
    """
    partial = folder.parent / f".{folder.name}{PARTIAL}-{os.getpid()}"
    created = [parent for parent in folder.parents if not parent.exists()]
    with writing(folder, advice=advice):
        try:
            partial.mkdir(parents=True)
            mode = _new_file_mode(partial / PARTIAL)
            yield partial
            for file in partial.iterdir():
                _finish(file, mode, flush=flush)
            _move_into_place(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in created:
                _remove_if_empty(parent)
            raise


def remove_partial_folders(folder: Path, names: str) -> None:
    """Remove the hidden folders of killed processes.

    Args:
        folder: The parent of the folders that `writing_folder` made.
        names: Glob pattern of the names of the finished folders.
    """
    for left in folder.glob(f".{names}{PARTIAL}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _new_file_mode(path: Path) -> int:
    """Permissions of a new file; asking for the umask itself would change it for other threads."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode


def _finish(file: Path, mode: int, *, flush: bool = True) -> None:
    file.chmod(mode)
    if flush:
        with file.open("rb+") as stream:  # Windows flushes only files that are open for writing
            os.fsync(stream.fileno())


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
        return  # not empty, or not made by us
