"""The table of `mien reconstruct`: one row per photo, in summary.csv."""

from __future__ import annotations

import functools
import os
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from mien.errors import OutputError
from mien.io.files import write_whole, writing
from mien.io.reading import read_csv
from mien.io.source import real_path
from mien.io.tables import read_cell, write_table

SUMMARY_FILE = "summary.csv"
_PAUSE = 20
"""Least time between two writings of the table, in durations of the last one: of 100,000 rows it takes seconds."""


@dataclass(frozen=True)
class PhotoRow:
    """One photo's row in the table and in summary.csv; the errors are means over its faces."""

    photo: str
    """Path of the photo."""
    faces: int
    """Number of faces that were written."""
    seconds: float
    """From reading the photo to writing the last file."""
    landmark_error: float | None
    """None if the photo failed."""
    photometric_error: float | None
    """None if the photo failed."""
    results: str
    """Folder of the photo's faces."""
    reason: str
    """What failed; empty if all faces were written."""
    flags: str = ""
    """What makes the results less certain, as short words, see `mien.quality`; empty for good photos."""

    def absolute(self) -> PhotoRow:
        """The row with absolute paths, for files."""
        return replace(
            self, photo=absolute_path(self.photo), results=absolute_path(self.results) if self.results else ""
        )


_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://|standard input$", re.IGNORECASE)
"""How `RemotePhoto` names itself."""
_COLUMNS = [field.name for field in fields(PhotoRow)]
_OLD_COLUMNS = _COLUMNS[:-1]
"""Columns of mien 0.2."""


def photo_key(photo: str | os.PathLike[str]) -> str:
    """The path by which a photo is recognised in a later run: absolute, and spelled as in summary.csv."""
    return _escaped(os.path.normcase(absolute_path(photo)))


class SummaryTable:
    """OUT/summary.csv. Rows of earlier runs stay; the new row of a photo replaces its old one.

    The file is replaced as a whole, so that a killed process leaves a whole table.

    Args:
        out: The folder of all results, which exists.

    Raises:
        OutputError: There is a summary.csv that is not a table of mien.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / SUMMARY_FILE
        self._rows = {photo_key(row["photo"]): row for row in _read_table(self.path)}
        self._owners = {photo_key(row["results"]): key for key, row in self._rows.items() if row["results"]}
        self._positions = {key: position for position, key in enumerate(self._rows)}
        self._next_write = 0.0

    def reserve(self, photo: str) -> None:
        """Give a photo the next place in the table, unless it has one. Rows may come in any order."""
        self._positions.setdefault(photo_key(photo), len(self._positions))

    def owner(self, folder: Path) -> str | None:
        """The `photo_key` of the photo whose results were in a folder when the table was opened."""
        return self._owners.get(photo_key(folder))

    def has(self, row: PhotoRow) -> bool:
        """Whether the table has exactly this row."""
        return self._rows.get(photo_key(row.photo)) == _values(row)

    def add(self, row: PhotoRow) -> None:
        """Add or replace the row of a photo, and write the table if that was not done a moment ago.

        Raises:
            OutputError: The table cannot be written.
        """
        self.reserve(row.photo)
        self._rows[photo_key(row.photo)] = _values(row)
        if time.monotonic() >= self._next_write:
            self.write()

    def write(self) -> None:
        """Write the table.

        Raises:
            OutputError: The table cannot be written; the old one stays.
        """
        start = time.monotonic()
        with writing(self.path, advice="free some space or choose another place with -o"):
            write_whole(self.path, self._save)
        end = time.monotonic()
        self._next_write = end + _PAUSE * (end - start)

    def _save(self, path: Path) -> None:
        rows = [self._rows[key] for key in sorted(self._rows, key=self._positions.__getitem__)]
        write_table(path, [_COLUMNS, *([row[name] for name in _COLUMNS] for row in rows)])


def _values(row: PhotoRow) -> dict[str, str]:
    """The row as texts."""
    return {
        name: f"{value:.5g}" if isinstance(value, float) else "" if value is None else _escaped(str(value))
        for name, value in asdict(row.absolute()).items()
    }


def _read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table; an empty list if there is none."""
    advice = "move it away, or choose another place with -o"
    if not path.exists():
        return []
    names, rows = read_csv(path, advice=advice, error=OutputError)
    if names and names not in (_COLUMNS, _OLD_COLUMNS):
        raise OutputError(f"{path}: is not a table of mien, its columns are {', '.join(names)}; {advice}")
    # mien 0.2 appended to the file; if it was killed, the last row may be incomplete. That photo was not done.
    whole = (row for row in rows if len(row) == len(names))
    return [{"flags": "", **dict(zip(names, map(read_cell, row), strict=True))} for row in whole]


def absolute_path(path: str | os.PathLike[str]) -> str:
    """The absolute path, without symbolic links in its folders; a link keeps its own name, and a URL stays."""
    if _REMOTE.match(str(path)):
        return str(path)
    path = Path(path).absolute()
    return str(_resolved(path.parent) / path.name)


@functools.lru_cache(maxsize=1024)
def _resolved(folder: Path) -> Path:
    return real_path(folder)


def _escaped(text: str) -> str:
    """A file name need not be valid Unicode, but the table must be."""
    return text.encode("utf-8", "backslashreplace").decode()
