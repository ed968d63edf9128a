"""What `mien reconstruct` prints while it works.

stdout: a table at the end; before it, unless stdout and stderr are a terminal, one line per photo as it is done. Or one
JSON object per photo. stderr: errors as they happen, and a progress bar if it is a terminal.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.text import Text

from mien.cli.summary import faces_of, plural, show_rows
from mien.cli.terminal import counting_columns, printable, stderr, stdout
from mien.scale.output_folder import ResultFolder
from mien.scale.summary import PhotoRow

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto

_STAGES = {
    "perception": "finding faces",
    "network": "encoder",
    "landmarks": "fitting landmarks",
    "light and albedo": "fitting light",
    "photometric": "fitting colours",
    "maps": "maps and texture",
}
"""Names of the stages of `Reconstructor` for users."""


class Report(enum.Enum):
    """What goes to stdout."""

    TABLE = "table"
    JSON = "json"
    NOTHING = "nothing"


class Reporter:
    """Prints the progress and the results of one run.

    Args:
        out: The folder or address of all results.
        photos: The photos, in the order of the table.
        report: What goes to stdout.
        bar: Whether to show a progress bar, if stderr is a terminal and stdout is not one with JSON.
    """

    def __init__(self, out: Path | str, photos: Sequence[Path | RemotePhoto], *, report: Report, bar: bool) -> None:
        self._out, self._report, count = out, report, len(photos)
        self._order = {str(photo): position for position, photo in enumerate(photos)}
        self._stdout, self._stderr = stdout(), stderr()
        in_the_way = report is Report.JSON and self._stdout.is_terminal
        self._bar = _photo_bar(self._stderr, count, shown=bar and not in_the_way)
        self._task = self._bar.add_task("loading the model", total=count, stage="")
        self._lines = report is Report.TABLE and not (self._stdout.is_terminal and self._stderr.is_terminal)
        self._count, self._skipped, self._noted = count, 0, set[str]()
        self.rows: list[PhotoRow] = []

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show the bar while the body runs; after it the table, and after Ctrl-C or SIGTERM how to go on.

        Raises:
            KeyboardInterrupt: The user pressed Ctrl-C.
            SystemExit: The process got SIGTERM.
        """
        try:
            with self._bar:
                yield
        except (KeyboardInterrupt, SystemExit):
            done = f"stopped after {len(self.rows)} of {plural(self._count, 'photo')}"
            self._print_error(f"{done}; their results are kept. Add --resume to the same command to continue.")
            raise
        if self._report is Report.TABLE:
            only_failed = not self._stdout.is_terminal
            rows = sorted(self.rows, key=lambda row: self._order[row.photo])
            show_rows(self._stdout, rows, self._out, skipped=self._skipped, only_failed=only_failed)

    @property
    def failed(self) -> bool:
        """Whether a photo or a face failed."""
        return any(row.reason for row in self.rows)

    def begin(self, folder: ResultFolder) -> None:
        """A photo or a person begins."""
        self._bar.update(self._task, description=printable(folder.name), stage="")

    def stage(self, name: str, share: float) -> None:
        """A stage of the photo begins or continues; see `mien.fitting.Progress`."""
        percent = f" {100 * share:.0f} %" if share > 0 else ""
        self._bar.update(self._task, stage=f"{_STAGES.get(name, name)}{percent}")

    def note(self, text: str) -> None:
        """Print a note on stderr, each text once."""
        if text not in self._noted:
            self._noted.add(text)
            self._print_error(text)

    def done(self, row: PhotoRow) -> None:
        """A photo was reconstructed, or failed."""
        self.rows.append(row)
        self._bar.advance(self._task)
        name = printable(row.photo)
        if row.reason:
            self._print_error(f"{name}: {printable(row.reason)}", error=True)
        if self._lines and row.faces:
            text = f"{name}: {plural(row.faces, 'face')} in {row.seconds:.1f} s, {printable(faces_of(row))}"
            if row.landmark_error is not None:
                text += f", landmark error {100 * row.landmark_error:.1f} %"
            text += f", {printable(row.flags)}" if row.flags else ""
            self._stdout.print(Text(text), soft_wrap=True)
        self._print_json(row, "done" if not row.reason else "incomplete" if row.faces else "failed")

    def skipped(self, row: PhotoRow) -> None:
        """A photo was done by an earlier run."""
        self.rows.append(row)
        self._skipped += 1
        self._bar.update(self._task, total=self._count - self._skipped)  # the rate is that of the others
        self._print_json(row, "skipped")

    def _print_json(self, row: PhotoRow, status: str) -> None:
        if self._report is Report.JSON:
            values = {"status": status, **asdict(row.absolute())}
            finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
            print(json.dumps(finite), flush=True)

    def _print_error(self, text: str, *, error: bool = False) -> None:
        prefix = Text("error: ", style="bold red") if error else Text()
        self._bar.console.print(prefix + Text(text), soft_wrap=True)


def _photo_bar(console: Console, count: int, *, shown: bool) -> Progress:
    """The bar of all photos with the stage of the current one; for one photo its stage alone."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        *(counting_columns() if count > 1 else ()),
        TextColumn("{task.fields[stage]}", markup=False),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
        redirect_stdout=False,  # what is printed on stdout must not move to stderr
        speed_estimate_period=600,  # photos take seconds each
    )
