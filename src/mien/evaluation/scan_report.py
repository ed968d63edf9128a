"""Runs predictions over a data set of scans, and writes the table, the CSV and the JSON of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mien.errors import ConfigError, FormatError, MienError
from mien.evaluation.paired import PairedDifference, paired_difference
from mien.evaluation.report import markdown_table
from mien.evaluation.scan_packs import ScanPack
from mien.evaluation.scan_predictions import Predictor
from mien.evaluation.scans import ErrorSummary, FaceScan, PredictedFace, ScanErrors, score_face
from mien.io.files import write_text, write_whole
from mien.io.reading import read_json
from mien.io.tables import write_table

Alignment = Literal["sim", "metric"]
"""sim: rotation, translation and scale. metric: without scale."""
_ALIGNMENTS: tuple[tuple[Alignment, str], ...] = (("sim", "similarity"), ("metric", "metric"))
Inspector = Callable[[FaceScan, PredictedFace, ScanErrors], None]
_STATISTICS = ("median", "mean", "std", "p90")


@dataclass(frozen=True, eq=False)
class ScanRow:
    """The result of one photo."""

    name: str
    """Name of the photo."""
    sim: ScanErrors | None
    """Errors after alignment by a similarity; None if the photo failed."""
    metric: ScanErrors | None
    """Errors after a rigid alignment, if they were requested."""
    reason: str = ""
    """Why the photo failed."""

    def errors(self, alignment: Alignment) -> ScanErrors | None:
        """Errors of one kind of alignment."""
        return self.sim if alignment == "sim" else self.metric


@dataclass(frozen=True, eq=False)
class ScanReport:
    """Results of one run."""

    rows: tuple[ScanRow, ...]
    """One per photo."""
    region_names: tuple[str, ...]
    """Regions of the data set."""
    pooled: bool = False
    """Whether the table also has the figures of all points of all photos together."""

    @property
    def failed(self) -> list[ScanRow]:
        """Photos without a result."""
        return [row for row in self.rows if row.sim is None]

    def measured(self, alignment: Alignment) -> dict[str, ScanErrors]:
        """Errors per photo."""
        found = {row.name: row.errors(alignment) for row in self.rows}
        return {name: errors for name, errors in found.items() if errors is not None}

    def mean(self, alignment: Alignment, statistic: str) -> float:
        """Mean over the photos of a statistic per photo: median, mean, std or p90, in millimetres."""
        return _mean([getattr(errors.overall, statistic) for errors in self.measured(alignment).values()])

    def region_mean(self, alignment: Alignment, region: str, *, realigned: bool = False) -> float:
        """Mean over the photos of the mean error of one region; NaN if no photo has it."""
        found = [part for errors in self.measured(alignment).values() for part in errors.regions if part.name == region]
        parts = [part.realigned if realigned else part.errors for part in found]
        return _mean([part.mean for part in parts if part is not None])

    def table(self) -> str:
        """The figures as a Markdown table, and the photos that failed."""
        header = ["alignment, mm", "photos", *_STATISTICS, *self.region_names]
        rows: list[list[object]] = []
        for alignment, label in _ALIGNMENTS:
            if self.measured(alignment):
                rows += self._table_rows(alignment, label)
        return "\n".join([markdown_table(header, rows), *(f"{row.name} failed: {row.reason}" for row in self.failed)])

    def _table_rows(self, alignment: Alignment, label: str) -> list[list[object]]:
        measured = self.measured(alignment)
        overall = [f"{self.mean(alignment, statistic):.2f}" for statistic in _STATISTICS]
        regions = [_cell(self.region_mean(alignment, name)) for name in self.region_names]
        rows: list[list[object]] = [[label, len(measured), *overall, *regions]]
        alone = [self.region_mean(alignment, name, realigned=True) for name in self.region_names]
        if np.isfinite(alone).any():
            rows.append([f"{label}, each region alone", len(measured), *[""] * 4, *map(_cell, alone)])
        if self.pooled:
            pool = ErrorSummary.of(np.concatenate([errors.distances for errors in measured.values()]))
            values = [f"{getattr(pool, statistic):.2f}" for statistic in _STATISTICS]
            rows.append([f"{label}, all points", len(measured), *values, *[""] * len(self.region_names)])
        return rows

    def compare(self, base: Path) -> list[tuple[Alignment, str, PairedDifference]]:
        """Paired differences of the median and the mean against another run.

        Args:
            base: JSON of that run, as `write_run` writes it.

        Raises:
            FormatError: It is not such a file, or has no photo in common.
        """
        found: list[tuple[Alignment, str, PairedDifference]] = []
        for alignment, _ in _ALIGNMENTS:
            measured = self.measured(alignment)
            for statistic in ("median", "mean"):
                values = {name: float(getattr(errors.overall, statistic)) for name, errors in measured.items()}
                difference = paired_difference(values, _run_values(base, alignment, statistic))
                if difference is not None:
                    found.append((alignment, statistic, difference))
        if not found:
            raise FormatError(f"{base} has no photo in common with this run; give a run on the same photos.")
        return found

    def write_csv(self, path: Path) -> None:
        """Write one row per photo; OSError if that fails."""
        names = list(self.region_names)
        kinds: tuple[Alignment, ...] = ("sim", "metric") if self.measured("metric") else ("sim",)
        columns = ["photo", "reason"]
        for kind in kinds:
            columns += [f"{kind}_{name}_mm" for name in (*_STATISTICS, *names, *(f"{n}_alone" for n in names))]
            columns.append(f"{kind}_scale")
        rows: list[list[str]] = [columns]
        for row in self.rows:
            cells = [_csv_cells(row.errors(kind), names) for kind in kinds]
            rows.append([row.name, row.reason, *(cell for part in cells for cell in part)])
        write_whole(path, lambda partial: write_table(partial, rows))

    def run(self) -> dict[str, Any]:
        """The run as JSON: counts, means over the photos and the errors of every photo; millimetres.

        The names are those of the scorer of mien's layout, so that either reads the runs of the other.
        """
        photos: dict[str, Any] = {}
        for row in self.rows:
            kinds = (("sim", row.sim), ("metric", row.metric))
            found = {kind: _plain(errors) for kind, errors in kinds if errors is not None}
            photos[row.name] = found or {"fail": row.reason}
        means = {kind: self._means(kind) for kind, _ in _ALIGNMENTS}
        failures = {row.name: row.reason for row in self.failed}
        return {"n": len(self.rows), "failures": failures, **means, "per_photo": photos}

    def write_run(self, path: Path) -> None:
        """Write `run` to a file, which `compare` reads; OSError if that fails."""
        write_run(self.run(), path)

    def _means(self, alignment: Alignment) -> dict[str, Any] | None:
        measured = self.measured(alignment)
        if not measured:
            return None
        means: dict[str, Any] = {statistic: self.mean(alignment, statistic) for statistic in _STATISTICS}
        regions = {name: self.region_mean(alignment, name) for name in self.region_names}
        means["region"] = {name: {"mean": value} for name, value in regions.items() if np.isfinite(value)}
        return {"n": len(measured), **means}


def evaluate_scans(
    pack: ScanPack,
    predict: Predictor,
    *,
    metric: bool = False,
    regional: bool = False,
    limit: int | None = None,
    inspect: Inspector | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScanReport:
    """Measure predictions against the scans of a data set.

    Photos that cannot be predicted or measured become rows with a reason; they raise no error.

    Args:
        pack: The data set, see `open_pack`.
        predict: Predicts the face of each photo.
        metric: Also measure without scale, for predictions in millimetres.
        regional: Also align and measure each region alone; always so for REALY.
        limit: Maximum number of photos, evenly spaced.
        inspect: Called after each success, for example to make pictures.
        progress: Called after each photo with the number of photos done and in total.

    Returns:
        Errors per photo.

    Raises:
        ConfigError: `limit` is below 1.
    """
    names, rows = spread_names(pack.names, limit), list[ScanRow]()
    for name in names:
        rows.append(scan_row(pack, name, predict, metric=metric, regional=regional, inspect=inspect))
        if progress is not None:
            progress(len(rows), len(names))
    return ScanReport(tuple(rows), pack.region_names, pooled=pack.pooled)


def scan_row(
    pack: ScanPack, name: str, predict: Predictor, *, metric: bool, regional: bool, inspect: Inspector | None
) -> ScanRow:
    """Measure one photo, see `evaluate_scans`."""
    try:
        scan = pack.scan(name)
        face = predict(scan)
        sim = score_face(scan, face, regional=regional or pack.always_regional)
        row = ScanRow(name, sim, score_face(scan, face, rigid=True) if metric else None)
        if inspect is not None:
            inspect(scan, face, sim)
    except MienError as error:
        return ScanRow(name, None, None, f"{type(error).__name__}: {error}")
    return row


def spread_names(names: tuple[str, ...], limit: int | None) -> list[str]:
    """At most `limit` of the names, evenly spaced; ConfigError if `limit` is below 1."""
    if limit is None:
        return list(names)
    if limit < 1:
        raise ConfigError(f"limit={limit} is too small; use at least 1.")
    return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, min(limit, len(names))).round().astype(int))]


def write_run(run: Mapping[str, Any], path: Path) -> None:
    """Write a run as JSON; OSError if that fails."""
    write_text(path, json.dumps(run, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class _Run:
    """What `ScanReport.run` returns, as far as it is read."""

    per_photo: dict[str, dict[str, Any]]


def _run_values(path: Path, alignment: Alignment, statistic: str) -> dict[str, float]:
    """One statistic per photo of a run; photos without it are left out."""
    photos = read_json(path, _Run, advice="write one with --run").per_photo
    try:
        return {name: float(photos[name][alignment][statistic]) for name in photos if alignment in photos[name]}
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is not the JSON of a run ({error!r}); write one with --run.") from error


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _cell(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else ""


def _csv_cells(errors: ScanErrors | None, names: list[str]) -> list[str]:
    if errors is None:
        return [""] * (len(_STATISTICS) + 2 * len(names) + 1)
    parts = {part.name: part for part in errors.regions}
    overall = [f"{getattr(errors.overall, statistic):.4f}" for statistic in _STATISTICS]
    regions = [f"{parts[name].errors.mean:.4f}" if name in parts else "" for name in names]
    summaries = [parts[name].realigned if name in parts else None for name in names]
    alone = ["" if summary is None else f"{summary.mean:.4f}" for summary in summaries]
    return [*overall, *regions, *alone, f"{errors.scale:.5f}"]


def _plain(errors: ScanErrors) -> dict[str, Any]:
    content: dict[str, Any] = asdict(errors.overall)
    content["region"] = {part.name: asdict(part.errors) for part in errors.regions}
    alone = {part.name: asdict(part.realigned) for part in errors.regions if part.realigned is not None}
    if alone:
        content["regional"] = alone
    return {**content, "scale": errors.scale, "init_share": errors.start_matches, "icp_rms": errors.rms_mm}
