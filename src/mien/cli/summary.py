"""The table of `mien reconstruct` in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mien.cli.terminal import printable
from mien.scale.summary import SUMMARY_FILE, PhotoRow

_LONGEST_TABLE = 60
"""Maximum number of rows in the terminal; of a longer table only the failures are printed."""


def show_rows(console: Console, rows: list[PhotoRow], out: Path | str, *, skipped: int, only_failed: bool) -> None:
    """Print the table and the totals.

    Args:
        console: Where to.
        rows: The photos of this run.
        out: The folder or address of all results.
        skipped: How many of the rows are of an earlier run.
        only_failed: Whether to leave the other photos out of the table; a long table leaves them out in any case.
    """
    failed = [row for row in rows if row.reason]
    table = _table(failed[:_LONGEST_TABLE] if only_failed or len(rows) > _LONGEST_TABLE else rows)
    if table.row_count:
        console.print(table)
        console.print()
    count = sum(row.faces for row in rows)
    total = f"{plural(len(rows), 'photo')}, {plural(count, 'face')}, {len(failed)} failed"
    total += f", {skipped} done earlier" if skipped else ""
    console.print(Text(f"{total}; the table is in {printable(_below(out, SUMMARY_FILE))}"), soft_wrap=True)


def _table(rows: Sequence[PhotoRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("photo", overflow="fold")
    # Fixed widths, so that a narrow terminal wraps the texts instead of cutting them off.
    for name, width in (("faces", 5), ("seconds", 7), ("landmark error", 8), ("photometric error", 11)):
        table.add_column(name, justify="right", width=width)
    table.add_column("result", overflow="fold")
    for row in rows:
        result = Text(printable(row.reason), style="red") if row.reason else Text(printable(faces_of(row)))
        if row.flags:
            result += Text(f" ({printable(row.flags)})", style="yellow")
        table.add_row(
            Text(printable(Path(row.photo).name)),
            str(row.faces),
            f"{row.seconds:.1f}",
            "" if row.landmark_error is None else f"{100 * row.landmark_error:.1f} %",
            "" if row.photometric_error is None else f"{row.photometric_error:.3f}",
            result,
        )
    return table


def faces_of(row: PhotoRow) -> str:
    """The folders of a photo's faces."""
    first = _below(row.results, "face0")
    return first if row.faces == 1 else f"{first} … face{row.faces - 1}"


def _below(place: Path | str, name: str) -> str:
    """A file in a folder or at an address."""
    return f"{place}/{name}" if "://" in str(place) else str(Path(place) / name)


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
