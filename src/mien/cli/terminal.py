"""Text, tables and JSON on stdout; progress and errors on stderr."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """Escape control characters, line breaks and invalid Unicode, which file names may contain."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain_table() -> Table:
    """A table of names and values without borders."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def stdout() -> Console:
    """The console for results."""
    return Console(highlight=False)


def stderr() -> Console:
    """The console for progress and errors."""
    return Console(stderr=True, highlight=False)


def print_values(*rows: tuple[str, str]) -> None:
    """Print names and values as a table."""
    table = plain_table()
    for name, value in rows:
        table.add_row(Text(name), Text(printable(value)))
    stdout().print(table)


def print_json(content: Mapping[str, object]) -> None:
    """Print one JSON object. Dataclasses become objects, paths strings, and numbers that are not finite null."""
    typer.echo(json.dumps(_plain(content), indent=2, allow_nan=False))


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit with the code 143 while the block runs, so that nothing stays half done.

    A handler of the application stays, and other threads than the first can have none.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def activity(name: str, *, quiet: bool = False) -> AbstractContextManager[object]:
    """Show on stderr what is being done; nothing where stderr is not a terminal."""
    console = stderr()
    return nullcontext() if quiet or not console.is_terminal else console.status(name)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{60 * task.speed:.1f} per minute", style="cyan")


def counting_columns() -> list[ProgressColumn]:
    """Columns of a progress bar: the bar, the count, the rate and the time left."""
    return [BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()]


def progress_bar(console: Console, count: int) -> Progress:
    """A bar with the rate and the time left; nothing for one photo, or where the console is not a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        *counting_columns(),
        console=console,
        transient=True,
        disable=count < 2 or not console.is_terminal,
        speed_estimate_period=600,  # photos take seconds each
    )
