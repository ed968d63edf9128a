"""The table of `mien reconstruct`: one row per photo, in summary.csv and in the terminal."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mien.cli.terminal import printable
from mien.errors import OutputError

SUMMARY_FILE = "summary.csv"
_LONGEST_TABLE = 60
"""Maximum number of rows in the terminal; of a longer table only the failures are printed."""


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


@contextmanager
def summary_file(out: Path) -> Iterator[Callable[[PhotoRow], None]]:
    """Open OUT/summary.csv before the work starts, so that a place that cannot be written is an early error.

    Yields:
        A function that appends a row.

    Raises:
        OutputError: The folder or the file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A file name need not be valid Unicode, but the table must be.
        stream = (out / SUMMARY_FILE).open("w", encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another place with -o") from error
    with stream:
        writer = csv.writer(stream)
        names = [field.name for field in fields(PhotoRow)]

        def write(values: Sequence[object]) -> None:
            try:
                writer.writerow(values)
                stream.flush()
            except OSError as error:
                # Closing writes the rest of the buffer, which fails again, but the file is closed.
                with suppress(OSError):
                    stream.close()
                raise OutputError(
                    f"{out / SUMMARY_FILE}: cannot be written ({error.strerror}); free some space or choose another "
                    "place with -o"
                ) from error

        def write_row(row: PhotoRow) -> None:
            values = [getattr(row, name) for name in names]
            write([f"{value:.5g}" if isinstance(value, float) else value for value in values])

        write(names)
        yield write_row


def show_rows(console: Console, rows: list[PhotoRow], out: Path) -> None:
    """Print the table and the totals."""
    failed = [row for row in rows if row.reason]
    table = _table(rows if len(rows) <= _LONGEST_TABLE else failed[:_LONGEST_TABLE])
    if table.row_count:
        console.print(table)
        console.print()
    count = sum(row.faces for row in rows)
    total = f"{_plural(len(rows), 'photo')}, {_plural(count, 'face')}, {len(failed)} failed"
    console.print(Text(f"{total}; the table is in {printable(str(out / SUMMARY_FILE))}"), soft_wrap=True)


def _table(rows: Sequence[PhotoRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("photo", overflow="fold")
    # Fixed widths, so that a narrow terminal wraps the texts instead of cutting them off.
    for name, width in (("faces", 5), ("seconds", 7), ("landmark error", 8), ("photometric error", 11)):
        table.add_column(name, justify="right", width=width)
    table.add_column("result", overflow="fold")
    for row in rows:
        result = Text(printable(row.reason), style="red") if row.reason else Text(printable(_faces_of(row)))
        table.add_row(
            Text(printable(Path(row.photo).name)),
            str(row.faces),
            f"{row.seconds:.1f}",
            "" if row.landmark_error is None else f"{100 * row.landmark_error:.1f} %",
            "" if row.photometric_error is None else f"{row.photometric_error:.3f}",
            result,
        )
    return table


def _faces_of(row: PhotoRow) -> str:
    first = str(Path(row.results) / "face0")
    return first if row.faces == 1 else f"{first} … face{row.faces - 1}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
