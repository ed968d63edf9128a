"""`mien report`: the paper's figures on test faces (2 of the base, 4 and 5 of the augmented branch), curves, losses."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from mien.errors import FormatError
from mien.evaluation.report import markdown_table
from mien.training.contact_sheets import coarse_sheet
from mien.training.data.batch import FaceBatch
from mien.training.monitor import METRICS_FILE
from mien.training.objective import LossTerm, Metric, Objective, P
from mien.training.run import (
    held_out_detail_faces,
    held_out_faces,
    load_detail_run,
    load_run,
    make_detail_objective,
    make_objective,
)

FIGURE_FACES = 8
DETAIL_FIGURES = {
    "figure4.png": ("photo", "augmented", "texture offset", "displacement"),
    "figure5.png": ("photo", "base", "augmented", "base geometry", "with displacement"),
}
"""The paper's: what the maps are, and what they change."""
NOT_LOSSES = ("learning_rate", "images_per_second", "data_wait_share", "gradient_norm")
CURVE_COLUMNS, CURVE_INCHES = 3, (4.2, 2.8)
SMOOTHED_OVER = 10
"""Logged steps that one point of a curve is averaged over."""


@dataclass(frozen=True)
class BranchReport:
    """What a trained branch does on faces that it has not seen."""

    losses: tuple[LossTerm, ...]
    figures: tuple[Metric, ...]
    faces: int

    def text(self) -> str:
        """The tables as Markdown."""
        losses = markdown_table(
            ["test loss", "weight", "value"],
            [[term.name, f"{term.weight:g}", f"{float(term.value):.5f}"] for term in self.losses],
        )
        figures = markdown_table(
            ["figure", "value", "unit"], [[f.name, f"{f.value:.3f}", f.unit] for f in self.figures]
        )
        return f"{self.faces} test faces\n\n{losses}\n\n{figures}\n"


def report_base(run: Path, *, store: str | None, out: Path) -> BranchReport:
    """Write figure2.png, curves.png and report.md into `out`; FormatError for a run that is not finished."""
    finished = load_run(run)
    faces = held_out_faces(finished.config, finished.model, store=store, split="test")
    objective = make_objective(finished.config, finished.encoder, finished.model, store=store)
    objective.validation = faces
    report = _measure(objective, finished.encoder, faces)
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        coefficients = finished.encoder.encode(faces.images, faces.camera, landmarks468_px=faces.detected_px)
    sheet = coarse_sheet(finished.model, faces, coefficients, faces=FIGURE_FACES)
    Image.fromarray(sheet).save(out / "figure2.png")
    (out / "report.md").write_text(report.text(), encoding="utf-8")
    draw_curves(run / METRICS_FILE, out / "curves.png")
    return report


def report_detail(run: Path, *, store: str | None, out: Path) -> BranchReport:
    """Write figure4.png, figure5.png, curves.png and report.md into `out`; FormatError for a run that is not finished.

    The base under the maps is the one that the run was trained over.
    """
    finished = load_detail_run(run)
    objective = make_detail_objective(finished.config, finished.network, finished.encoder, finished.model, store=store)
    objective.validation = held_out_detail_faces(finished.config, finished.model, store=store, split="test")
    report = _measure(objective, finished.network, objective.validation.first(FIGURE_FACES))
    out.mkdir(parents=True, exist_ok=True)
    for name, labels in DETAIL_FIGURES.items():
        Image.fromarray(objective.sheet(finished.network, labels=labels)).save(out / name)
    (out / "report.md").write_text(report.text(), encoding="utf-8")
    draw_curves(run / METRICS_FILE, out / "curves.png")
    return report


def _measure(objective: Objective[P], network: nn.Module, faces: FaceBatch) -> BranchReport:
    with torch.no_grad():
        prepared = objective.prepare(faces)
        terms = objective.losses(network(*prepared.inputs), prepared, progress=1.0)
    return BranchReport(tuple(terms), tuple(objective.evaluate(network)), len(faces.images))


def draw_curves(metrics: Path, out: Path) -> None:
    """One small curve for each loss of a run's metrics.csv; FormatError where the table is missing or damaged."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (half a second that only this needs)

    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["name"] not in NOT_LOSSES:
                    curves[row["name"]].append((int(row["step"]), float(row["value"])))
    except (OSError, KeyError, ValueError) as error:
        raise FormatError(f"{metrics} is not a table of a run: {error}") from error
    rows = -(-len(curves) // CURVE_COLUMNS)
    canvas = Canvas(figsize=(CURVE_COLUMNS * CURVE_INCHES[0], rows * CURVE_INCHES[1]), layout="constrained")
    axes = canvas.subplots(rows, CURVE_COLUMNS, squeeze=False).flatten()
    for axis, (name, points) in zip(axes, curves.items(), strict=False):
        steps, values = zip(*points, strict=True)
        window = min(SMOOTHED_OVER, len(values))
        smooth = torch.tensor(values)[None, None].double()
        smooth = torch.nn.functional.avg_pool1d(smooth, window, stride=1)[0, 0]
        axis.plot(steps, values, color="#c9c4bb", linewidth=0.8)
        axis.plot(steps[window - 1 :], smooth.tolist(), color="#33506b", linewidth=1.4)
        axis.set_title(name, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    canvas.supxlabel("step", fontsize=10)
    canvas.savefig(out, dpi=110)
