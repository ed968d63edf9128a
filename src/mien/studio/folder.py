"""The folder of a running server, for photos and results; it is removed at the end."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mien.errors import OutputError
from mien.io.folder_lock import LOCK_FILE, locked_folder

_PREFIX = "mien-studio-"
_NEW_S = 10.0
"""A folder that changed later than this is left alone: its server may be about to take its lock."""


@contextmanager
def server_folder() -> Iterator[Path]:
    """Make a temporary folder, which is removed after the block, and remove those of servers that were killed.

    Yields:
        The folder. Its lock tells other servers that this one is alive.
    """
    _remove_folders_of_dead_servers()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, locked_folder(Path(name)):
        yield Path(name)


def _remove_folders_of_dead_servers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OutputError, FileNotFoundError):  # it is in use, or another server removes it at this moment
            if _may_be_dead(folder):
                with locked_folder(folder):
                    pass
                shutil.rmtree(folder, ignore_errors=True)


def _may_be_dead(folder: Path) -> bool:
    """Whether it is a folder of this user's servers, and old enough."""
    known = folder.lstat()
    own = not hasattr(os, "geteuid") or known.st_uid == os.geteuid()
    old = time.time() - known.st_mtime > _NEW_S
    return own and old and stat.S_ISDIR(known.st_mode) and (folder / LOCK_FILE).is_file()
