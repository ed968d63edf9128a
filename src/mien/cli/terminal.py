"""How the commands of `mien` write into a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def printable(text: str) -> str:
    """One line without control characters or broken Unicode, whatever a file is called."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain_table() -> Table:
    """A table of subjects and states without borders."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def stdout() -> Console:
    """For results."""
    return Console(highlight=False)


def stderr() -> Console:
    """For what must not mix with results."""
    return Console(stderr=True, highlight=False)
