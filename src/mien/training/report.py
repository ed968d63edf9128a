"""`mien report`: the paper's figures on test faces (2: encoder; 4 and 5: detail network), loss curves, test losses."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from mien.errors import FormatError
from mien.evaluation.report import markdown_table
from mien.io.reading import read_csv
from mien.training.contact_sheets import coarse_sheet
from mien.training.data.batch import FaceBatch
from mien.training.monitor import METRICS_FILE
from mien.training.objective import LossTerm, Metric, Objective, P
from mien.training.run import load_detail_run, load_run, make_coarse_objective, make_detail_objective
from mien.training.sources import held_out_detail_faces, held_out_faces

FIGURE_FACES = 8
DETAIL_FIGURES = {
    "figure4.png": ("photo", "augmented", "texture offset", "displacement"),
    "figure5.png": ("photo", "base", "augmented", "base geometry", "with displacement"),
}
"""Columns of the paper's figures: the maps, and what they change."""
NOT_LOSSES = ("learning_rate", "images_per_second", "data_wait_share", "gradient_norm")
CURVE_COLUMNS, CURVE_INCHES = 3, (4.2, 2.8)
SMOOTHED_OVER = 10
"""Number of logged steps that each point of a curve averages."""


@dataclass(frozen=True)
class NetworkReport:
    """Losses and metrics of a trained network on test faces."""

    losses: tuple[LossTerm, ...]
    metrics: tuple[Metric, ...]
    faces: int
    """Number of test faces."""

    def text(self) -> str:
        """The tables as Markdown."""
        losses = markdown_table(
            ["test loss", "weight", "value"],
            [[term.name, f"{term.weight:g}", f"{float(term.value):.5f}"] for term in self.losses],
        )
        metrics = markdown_table(
            ["metric", "value", "unit"], [[m.name, f"{m.value:.3f}", m.unit] for m in self.metrics]
        )
        return f"{self.faces} test faces\n\n{losses}\n\n{metrics}\n"


def report_coarse(run: Path, *, store: str | None, out: Path) -> NetworkReport:
    """Write figure2.png, curves.png and report.md for a finished run of `mien train coarse`.

    Args:
        run: Folder of the run.
        store: Store of photos whose test split is used; None takes synthetic faces alone.
        out: Folder for the files.

    Raises:
        FormatError: The folder holds no finished run.
    """
    finished = load_run(run)
    faces = held_out_faces(finished.config, finished.model, store=store, split="test")
    # A report measures one refinement step, as validation does.
    config = replace(finished.config, encoder=replace(finished.config.encoder, refine_steps=1))
    objective = make_coarse_objective(config, finished.encoder, finished.model)
    report = _report(objective, finished.encoder, faces, losses_of=faces)
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        coefficients = finished.encoder.encode(faces.images, faces.camera, landmarks468_px=faces.detected_px)
    sheet = coarse_sheet(finished.model, faces, coefficients, faces=FIGURE_FACES)
    Image.fromarray(sheet).save(out / "figure2.png")
    (out / "report.md").write_text(report.text(), encoding="utf-8")
    draw_curves(run / METRICS_FILE, out / "curves.png")
    return report


def report_detail(run: Path, *, store: str | None, out: Path) -> NetworkReport:
    """Write figure4.png, figure5.png, curves.png and report.md for a finished run of `mien train detail`.

    The coarse reconstruction below the maps is that of the training; arguments and errors are those of `report_coarse`.
    """
    finished = load_detail_run(run)
    objective = make_detail_objective(finished.config, finished.network, finished.encoder, finished.model)
    faces = held_out_detail_faces(finished.config, finished.model, store=store, split="test")
    report = _report(objective, finished.network, faces, losses_of=faces.first(FIGURE_FACES))
    out.mkdir(parents=True, exist_ok=True)
    for name, labels in DETAIL_FIGURES.items():
        Image.fromarray(objective.sheet(finished.network, faces, labels=labels)).save(out / name)
    (out / "report.md").write_text(report.text(), encoding="utf-8")
    draw_curves(run / METRICS_FILE, out / "curves.png")
    return report


def _report(objective: Objective[P], network: nn.Module, faces: FaceBatch, *, losses_of: FaceBatch) -> NetworkReport:
    """Metrics of all faces, and the losses of some of them."""
    with torch.no_grad():
        prepared = objective.prepare(losses_of)
        terms = objective.losses(objective.predict(network, prepared.inputs), prepared, progress=1.0)
    return NetworkReport(tuple(terms), tuple(objective.evaluate(network, faces)), len(losses_of.images))


def draw_curves(metrics: Path, out: Path) -> None:
    """Plot one curve per loss of a run.

    Args:
        metrics: The run's metrics.csv.
        out: PNG file to write.

    Raises:
        FormatError: The table is missing or damaged.
    """
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (its import takes half a second)

    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    names, cells = read_csv(metrics, advice="give the metrics.csv of a run")
    try:
        # A kill may have cut the last row.
        for row in (dict(zip(names, row, strict=True)) for row in cells if len(row) == len(names)):
            if row["name"] not in NOT_LOSSES:
                curves[row["name"]].append((int(row["step"]), float(row["value"])))
    except (KeyError, ValueError) as error:
        raise FormatError(f"{metrics} is not the table of a run: {error}") from error
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
