"""Records of a run: CSV tables, TensorBoard, contact sheets, and a progress bar."""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from mien.io.files import write_whole, writing
from mien.io.reading import read_csv
from mien.training.objective import LossTerm, Metric
from mien.typing import UInt8

METRICS_FILE, VALIDATION_FILE, SHEETS = "metrics.csv", "validation.csv", "sheets"
METRICS_HEADER, VALIDATION_HEADER = ["step", "name", "value"], ["step", "name", "value", "unit"]
_STEP = re.compile("[0-9]{1,18}")
ADVICE = "free some space and continue with --resume"


class Monitor:
    """Writes the records of a run.

    Args:
        run: Folder of the run.
        first_step: Number of steps taken before; later rows of an interrupted run are removed.
        steps: Length of the run.
        active: Whether this process writes; only the first process does.

    Raises:
        OutputError: The folder cannot be written. All methods that write raise it too.
    """

    def __init__(self, run: Path, *, first_step: int, steps: int, active: bool) -> None:
        self.run, self.active, self.steps = run, active, steps
        self.started = self._mark = time.perf_counter()
        self._waited, self._faces = 0.0, 0
        if not active:
            return
        with writing(run, advice=ADVICE):
            run.mkdir(parents=True, exist_ok=True)
            _forget_from(run / METRICS_FILE, first_step, header=METRICS_HEADER)
            _forget_from(run / VALIDATION_FILE, first_step, header=VALIDATION_HEADER)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not Console(stderr=True).is_terminal,
            speed_estimate_period=300,
        )
        self.progress.start()
        self.task = self.progress.add_task("training", total=steps, completed=first_step)

    def add_wait(self, seconds: float, faces: int) -> None:
        """Add a step to the throughput.

        Args:
            seconds: Time that the step waited for its batch.
            faces: Number of faces in the batch, over all processes.
        """
        self._waited += seconds
        self._faces += faces

    def log(self, step: int, terms: Sequence[LossTerm], *, rate: float, gradient_norm: float) -> None:
        """Write losses, gradient norm and learning rate of a step, and the throughput since the last call."""
        now = time.perf_counter()
        seconds, faces, waited = now - self._mark, self._faces, self._waited
        self._mark, self._faces, self._waited = now, 0, 0.0
        if not self.active:
            return
        speed, share = faces / seconds, waited / seconds
        values = {
            "loss": float(sum(term.weight * float(term.value.detach()) for term in terms)),
            **{term.name: float(term.value.detach()) for term in terms},
            "gradient_norm": gradient_norm,
            "learning_rate": rate,
            "images_per_second": speed,
            "data_wait_share": share,
        }
        # The losses of a run may change (rendering starts late), the columns of a table may not: one row per value.
        rows = [[step, name, f"{value:.6g}"] for name, value in values.items()]
        with writing(self.run, advice=ADVICE):
            _append(self.run / METRICS_FILE, METRICS_HEADER, rows)
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        label = f"loss {values['loss']:.3f}, {speed:.1f} img/s, {100 * share:.0f} % waiting"
        self.progress.update(self.task, completed=step, description=label)

    def validated(self, step: int, metrics: Sequence[Metric]) -> None:
        """Write and print the metrics of a validation."""
        if not self.active:
            return
        rows = [[step, metric.name, f"{metric.value:.6g}", metric.unit] for metric in metrics]
        with writing(self.run, advice=ADVICE):
            _append(self.run / VALIDATION_FILE, VALIDATION_HEADER, rows)
            for metric in metrics:
                self.board.add_scalar(f"validation/{metric.name}", metric.value, step)
        text = ", ".join(f"{m.name} {m.value:.2f} {m.unit}" for m in metrics)
        self.note(f"step {step}: {text}")

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        if self.active:
            self.progress.console.print(text, highlight=False, markup=False)

    def has_validation(self, step: int) -> bool:
        """Whether the table has the metrics of a step."""
        return any(row[:1] == [str(step)] for row in _rows(self.run / VALIDATION_FILE))

    def has_sheet(self, step: int) -> bool:
        """Whether the contact sheet of a step is there."""
        return self._sheet_file(step).exists()

    def sheet(self, step: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write a contact sheet."""
        if not self.active:
            return
        with writing(self.run, advice=ADVICE):
            (self.run / SHEETS).mkdir(exist_ok=True)
            write_whole(self._sheet_file(step), Image.fromarray(image).save)
            self.board.add_image("sheet", image, step, dataformats="HWC")

    def _sheet_file(self, step: int) -> Path:
        return self.run / SHEETS / f"step-{step:08d}.png"

    def close(self) -> None:
        """Write everything that is still buffered."""
        if self.active:
            self.progress.stop()
            with writing(self.run, advice=ADVICE):
                self.board.close()


def _forget_from(path: Path, step: int, *, header: list[str]) -> None:
    """Remove the rows after the checkpoint that the run continues from."""
    if not path.exists():
        return
    # A kill may have cut the last line.
    rows = _rows(path)
    whole = [row for row in rows if len(row) == len(header) and _STEP.fullmatch(row[0]) and int(row[0]) <= step]

    def save(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *whole])

    write_whole(path, save)


def _rows(path: Path) -> list[list[str]]:
    """The rows below the header; none without a table."""
    if not path.exists():
        return []
    return read_csv(path, advice="move it away")[1]


def _append(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    """Add rows: all of them, or none if the disk is full."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows if before else [header, *rows])
    except BaseException:
        if path.exists():
            os.truncate(path, before)
        raise
