"""Photos of one person reconstructed together, against each photo alone, measured on the scans of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mien.errors import ConfigError, MienError
from mien.evaluation.paired import PairedDifference, paired_difference
from mien.evaluation.report import markdown_table
from mien.evaluation.scan_packs import ScanPack
from mien.evaluation.scan_predictions import predict_by_reconstruction, predict_together
from mien.evaluation.scan_report import Alignment, Inspector, ScanReport, ScanRow, scan_row, spread_names, write_run
from mien.io.files import write_whole
from mien.io.tables import write_table
from mien.pipeline import Reconstructor


@dataclass(frozen=True)
class PersonErrors:
    """Mean errors of one person, millimetres, over the photos that have both."""

    person: str
    """Name of the person."""
    photos: int
    """Number of these photos."""
    alone: float
    """Error of each photo reconstructed alone."""
    joint: float
    """Error of the photos reconstructed together."""

    @property
    def difference(self) -> float:
        """Joint minus alone: negative if the photos gain from each other."""
        return self.joint - self.alone


@dataclass(frozen=True, eq=False)
class JointScanReport:
    """Results of one run, on the same photos in both reports."""

    alone: ScanReport
    """Each photo reconstructed alone."""
    joint: ScanReport
    """The photos of each person reconstructed together."""
    photos: Mapping[str, tuple[str, ...]]
    """Names of the photos of each person."""

    def people(self, alignment: Alignment = "sim") -> list[PersonErrors]:
        """Mean errors per person; a person without a photo that has both is left out."""
        alone, joint = self.alone.measured(alignment), self.joint.measured(alignment)
        found = []
        for person, names in self.photos.items():
            both = [name for name in names if name in alone and name in joint]
            if both:
                means = (float(np.mean([part[name].overall.mean for name in both])) for part in (alone, joint))
                found.append(PersonErrors(person, len(both), *means))
        return found

    def difference(self, alignment: Alignment = "sim") -> PairedDifference | None:
        """Joint minus alone over the people; None if no person has both."""
        people = self.people(alignment)
        return paired_difference({p.person: p.joint for p in people}, {p.person: p.alone for p in people})

    def table(self) -> str:
        """The figures of both, and the mean errors per person, as Markdown tables."""
        parts = ["Each photo alone:", self.alone.table(), "The photos of each person together:", self.joint.table()]
        return "\n\n".join([*parts, self._people_table()])

    def _people_table(self) -> str:
        people, paired = self.people(), self.difference()
        rows = [[p.person, p.photos, f"{p.alone:.2f}", f"{p.joint:.2f}", f"{p.difference:+.2f}"] for p in people]
        if paired is not None:
            alone, joint = (float(np.mean([getattr(p, name) for p in people])) for name in ("alone", "joint"))
            interval = f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
            rows.append(["all", sum(p.photos for p in people), f"{alone:.2f}", f"{joint:.2f}", interval])
        return markdown_table(["person", "photos", "alone, mm", "together, mm", "difference, mm"], rows)

    def compare(self, base: Path) -> list[tuple[Alignment, str, PairedDifference]]:
        """Paired differences of the joint errors against another run, as `ScanReport.compare`."""
        return self.joint.compare(base)

    def write_csv(self, path: Path) -> None:
        """Write one row per person; OSError if that fails."""
        header = ["person", "photos", "alone_mm", "joint_mm", "difference_mm"]
        rows = [
            [p.person, p.photos, *(f"{value:.4f}" for value in (p.alone, p.joint, p.difference))] for p in self.people()
        ]
        write_whole(path, lambda partial: write_table(partial, [header, *rows]))

    def run(self) -> dict[str, Any]:
        """The run of the joint fits as JSON, with that of single photos as `alone` and the mean errors per person."""
        paired = self.difference()
        return {
            **self.joint.run(),
            "alone": self.alone.run(),
            "people": [asdict(person) for person in self.people()],
            "joint_minus_alone": None if paired is None else asdict(paired),
        }

    def write_run(self, path: Path) -> None:
        """Write `run` to a file, which `compare` reads; OSError if that fails."""
        write_run(self.run(), path)


def evaluate_joint_scans(
    pack: ScanPack,
    reconstructor: Reconstructor,
    *,
    metric: bool = False,
    regional: bool = False,
    limit: int | None = None,
    inspect_alone: Inspector | None = None,
    inspect_joint: Inspector | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> JointScanReport:
    """Measure the photos of each person alone and together against the scans of a data set.

    Photos that cannot be reconstructed or measured become rows with a reason; they raise no error.

    Args:
        pack: The data set, see `open_pack`; people with one photo are left out.
        reconstructor: Reconstructs the photos.
        metric: As in `evaluate_scans`.
        regional: As in `evaluate_scans`.
        limit: Maximum number of people, evenly spaced.
        inspect_alone: Called after each success with a single photo.
        inspect_joint: Called after each success with a joint reconstruction.
        progress: Called after each person with the number of people done and in total.

    Returns:
        Errors per photo and person.

    Raises:
        ConfigError: `limit` is below 1, or no person has two photos.
    """
    several = {person: names for person, names in pack.people().items() if len(names) > 1}
    if not several:
        raise ConfigError(f"{pack.folder} has no person with two photos; leave --joint out.")
    chosen = spread_names(tuple(several), limit)
    predict = predict_by_reconstruction(reconstructor)
    alone, joint = list[ScanRow](), list[ScanRow]()
    for done, person in enumerate(chosen, 1):
        for name in several[person]:
            alone.append(scan_row(pack, name, predict, metric=metric, regional=regional, inspect=inspect_alone))
        try:
            together = predict_together(reconstructor, [pack.scan(name) for name in several[person]])
        except MienError as error:
            joint += [ScanRow(name, None, None, f"{type(error).__name__}: {error}") for name in several[person]]
        else:
            for name in several[person]:
                joint.append(scan_row(pack, name, together, metric=metric, regional=regional, inspect=inspect_joint))
        if progress is not None:
            progress(done, len(chosen))
    of_alone, of_joint = (ScanReport(tuple(rows), pack.region_names, pooled=pack.pooled) for rows in (alone, joint))
    return JointScanReport(of_alone, of_joint, {person: several[person] for person in chosen})
