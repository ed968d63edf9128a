"""The table of the error ladder, from errors per photo and row that a folder keeps."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mien.errors import ConfigError
from mien.evaluation.paired import PairedDifference, paired_difference
from mien.evaluation.report import markdown_table
from mien.evaluation.scans import ScanErrors
from mien.io.files import write_text

STATISTICS = ("median", "mean", "p90")


@dataclass(frozen=True)
class RowResult:
    """One row of the ladder; errors are means over the photos, millimetres."""

    name: str
    """Name of the row."""
    base: str
    """Row that this one is compared with."""
    photos: int
    """Number of photos with a result."""
    errors: Mapping[str, float]
    """Median, mean and p90, then the mean per region."""
    difference: PairedDifference | None
    """Of the mean error, this row minus `base`; None for the base itself, or if it was not measured."""


@dataclass(frozen=True)
class ErrorStore:
    """Errors per photo and row, one file per photo; a folder holds those of one state of the code.

    Raises:
        ConfigError: The folder holds errors of other code.
    """

    folder: Path
    """The folder."""
    code: str
    """Digest of the code, see `code_digest`."""
    _photos: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mark_code(self.folder, self.code)
        (self.folder / "photos").mkdir(parents=True, exist_ok=True)

    def rows_of(self, photo: str) -> dict[str, dict[str, float]]:
        """Errors of a photo by the names of the rows."""
        if photo not in self._photos:
            path = self._path(photo)
            self._photos[photo] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return self._photos[photo]

    def add(self, photo: str, row: str, errors: ScanErrors) -> None:
        """Keep the errors of one row; OSError if the file cannot be written."""
        values = {name: getattr(errors.overall, name) for name in STATISTICS}
        values |= {region.name: region.errors.mean for region in errors.regions}
        self.rows_of(photo)[row] = values
        write_text(self._path(photo), json.dumps(self.rows_of(photo), indent=1, allow_nan=False) + "\n")

    def result(self, row: str, *, base: str, photos: Sequence[str]) -> RowResult | None:
        """Means of a row over some photos, compared with another row; None if no photo has it."""
        own, other = (self._values(name, photos) for name in (row, base))
        if not own:
            return None
        names = dict.fromkeys(name for values in own.values() for name in values)
        errors = {name: float(np.mean([v[name] for v in own.values() if name in v])) for name in names}
        means, base_means = ({photo: v["mean"] for photo, v in values.items()} for values in (own, other))
        difference = None if row == base else paired_difference(means, base_means)
        return RowResult(row, base, len(own), errors, difference)

    def _values(self, row: str, photos: Sequence[str]) -> dict[str, dict[str, float]]:
        return {photo: self.rows_of(photo)[row] for photo in photos if row in self.rows_of(photo)}

    def _path(self, photo: str) -> Path:
        return self.folder / "photos" / f"{photo}.json"


def mark_code(folder: Path, code: str) -> None:
    """Note which code made the results of a folder, or check it.

    Args:
        folder: The folder; it is created.
        code: Digest of the code, see `code_digest`.

    Raises:
        ConfigError: The folder holds results of other code.
    """
    mark = folder / "code.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() != code:
        raise ConfigError(f"{folder} holds errors of other code; delete it or give another folder (-o).")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, code + "\n")


def code_digest(folders: Sequence[Path]) -> str:
    """SHA-256 of all files below some folders but caches: which code and which weights made a result."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def ladder_table(rows: Sequence[RowResult], regions: Sequence[str]) -> str:
    """The ladder as a Markdown table, millimetres."""
    header = ["row", "photos", "median", "mean", "p90", "difference, 95 % interval", *regions]
    cells = []
    for row in rows:
        shown = [f"{row.errors[name]:.2f}" if name in row.errors else "" for name in (*STATISTICS, *regions)]
        cells.append([row.name, row.photos, *shown[:3], _difference(row), *shown[3:]])
    return markdown_table(header, cells)


def _difference(row: RowResult) -> str:
    d = row.difference
    return "" if d is None else f"{d.difference:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"


def write_ladder_csv(rows: Sequence[RowResult], regions: Sequence[str], path: Path) -> None:
    """Write the ladder as CSV; OSError if that fails."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{name}_mm" for name in (*STATISTICS, *regions)]
    writer.writerow(["row", "photos", *columns, "compared_with", "difference_mm", "low_mm", "high_mm"])
    for row in rows:
        values = [f"{row.errors[name]:.4f}" if name in row.errors else "" for name in (*STATISTICS, *regions)]
        d = row.difference
        compared = [""] * 4 if d is None else [row.base, f"{d.difference:.4f}", f"{d.low:.4f}", f"{d.high:.4f}"]
        writer.writerow([row.name, row.photos, *values, *compared])
    write_text(path, buffer.getvalue())
