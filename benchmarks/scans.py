"""The error ladder on real scans: what each part of the fit brings, and what true knowledge would bring.

    python benchmarks/scans.py --data ../shared/data [--rows "fit,true points"] [--limit 19] [-o out/scans]
    python benchmarks/scans.py --data ../shared/data --points

Rows are measured as by `mien evaluate scans`, at a third of its points, and compared with another row on the same
photos, most with the shipped fit. OUT keeps the errors of every photo, so that an interrupted run goes on; after a
change of the code, it has to be a new folder. `--points` prints the errors of detected points instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import mien  # (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from scan_cases import OFF, TRUE_DEPTH_SIGMA, TRUE_POINT_SIGMA, Case, Tools
from scan_ladder import ErrorStore, RowResult, code_digest, ladder_table, write_ladder_csv
from scan_points import PointErrors, RegionPointErrors, closest_regions, point_errors, summarize_points

from mien.errors import ConfigError, MienError
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.evaluation.scan_packs import PACK_REGIONS, OwnScans
from mien.evaluation.scan_predictions import predict_by_reconstruction, predict_mean_face
from mien.evaluation.scan_report import spread_names
from mien.evaluation.scans import PredictedFace
from mien.fitting import FitSettings

SHIPPED = FitSettings()
FIT, POINTS_ONLY = "fit", "landmarks and depth"


@dataclass(frozen=True)
class Row:
    """One row of the ladder."""

    name: str
    """Name in the table."""
    predict: Callable[[Case], PredictedFace]
    """Predicts the face of a photo."""
    base: str = FIT
    """Row that this one is compared with."""


def _changed(**changes: float) -> Callable[[Case], PredictedFace]:
    """The fit with other settings."""
    return lambda case: case.fitted(replace(SHIPPED, **changes))


def _with_truth(*, points: bool = False, depth: bool = False) -> Callable[[Case], PredictedFace]:
    """The fit with true points, true depths or both."""
    settings = SHIPPED
    if points:
        settings = replace(settings, landmark_sigma=TRUE_POINT_SIGMA, lid_sigma=OFF)
    if depth:
        settings = replace(settings, depth_sigma=TRUE_DEPTH_SIGMA)
    return lambda case: case.fitted(settings, case.true_targets(points=points, depth=depth))


def _prior(factor: float) -> Callable[[Case], PredictedFace]:
    """The fit with other standard deviations of the shape."""
    return _changed(identity_sigma=factor * SHIPPED.identity_sigma, expression_sigma=factor * SHIPPED.expression_sigma)


ROWS = (
    Row("mean face", lambda case: predict_mean_face(case.tools.model)(case.scan)),
    Row("net", lambda case: predict_by_reconstruction(case.tools.net)(case.scan)),
    Row(FIT, lambda case: case.fitted()),
    Row("auto", lambda case: predict_by_reconstruction(case.tools.auto)(case.scan)),
    Row("fit without colours", _changed(pixel_sigma=OFF)),
    Row("fit without contour", _changed(contour_sigma=OFF)),
    Row("fit without recognition", _changed(recognition_weight=0.0)),
    Row("fit without depth", _changed(depth_sigma=OFF)),
    Row("fit without lids", _changed(lid_sigma=OFF)),
    Row("landmarks", _changed(depth_sigma=OFF, photometric_steps=0)),
    Row(POINTS_ONLY, _changed(photometric_steps=0)),
    Row("prior sigmas × 0.5", _prior(0.5)),
    Row("prior sigmas × 2", _prior(2.0)),
    Row("true points", _with_truth(points=True)),
    Row("true depth", _with_truth(depth=True)),
    Row("true points and depth", _with_truth(points=True, depth=True)),
    Row("true focal length", Case.known_focal),
    Row("true expression", Case.known_expression),
    Row("landmarks and depth, true rotation", Case.known_pose, POINTS_ONLY),
    Row("model on the scan", Case.model_limit),
)


def chosen_rows(names: str | None) -> list[Row]:
    """The rows with the given names, separated by commas, and the rows that they are compared with.

    Raises:
        ConfigError: A name is unknown.
    """
    if names is None:
        return list(ROWS)
    wanted = {name.strip() for name in names.split(",")}
    unknown = wanted - {row.name for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        raise ConfigError(f"--rows {', '.join(sorted(unknown))} is unknown; choose among: {known}.")
    wanted |= {row.base for row in ROWS if row.name in wanted}
    return [row for row in ROWS if row.name in wanted]


@cache
def _tools() -> Tools:
    """Model and networks of this process."""
    return Tools()


def measure_photo(folder: Path, photo: str, row_names: Sequence[str], store: ErrorStore) -> list[str]:
    """Measure the rows that the store does not have yet for one photo; returns what failed."""
    torch.set_num_threads(1)
    missing = [row for row in ROWS if row.name in row_names and row.name not in store.rows_of(photo)]
    if not missing:
        return []
    case = Case(_tools(), OwnScans.open(folder).scan(photo))
    failed = []
    for row in missing:
        try:
            store.add(photo, row.name, case.score(row.predict(case)))
        except MienError as error:  # noqa: PERF203 (a fit takes a second)
            failed.append(f"- {photo}, {row.name}: {type(error).__name__}: {error}")
    return failed


def measure(folder: Path, photos: Sequence[str], rows: Sequence[Row], store: ErrorStore, *, processes: int) -> None:
    """Measure all rows of all photos; failures are printed."""
    names, console = [row.name for row in rows], Console(stderr=True)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, Progress(console=console) as progress:
        tasks = [pool.submit(measure_photo, folder, photo, names, store) for photo in photos]
        for task in progress.track(as_completed(tasks), total=len(tasks), description="scans"):
            for line in task.result():
                console.print(line)


def measure_points(pack: OwnScans, names: Sequence[str], console: Console) -> list[PointErrors]:
    """Errors of the detected points of each photo."""
    tools, photos = Tools(), []
    with Progress(console=console) as progress:
        for name in progress.track(names, description="points"):
            case = Case(tools, pack.scan(name))
            photos.append(
                point_errors(
                    case.detected_px,
                    gt_px=case.truth.points_px,
                    gt_depth_px=case.truth.depths_px,
                    regions=closest_regions(case.scan, case.scan_points_mm),
                )
            )
    return photos


def print_points(photos: Sequence[PointErrors], rows: Sequence[RegionPointErrors]) -> None:
    """Print the table of the points and the mean turn."""
    header = ["points", "number", *(f"{axis} {kind}, %" for kind in ("systematic", "random") for axis in "xyz")]
    cells = [[r.region, r.points, *(f"{value:.2f}" for value in (*r.systematic, *r.random))] for r in rows]
    print(markdown_table(header, cells))
    turns = np.stack([photo.turn_deg for photo in photos])
    mean, spread = turns.mean(0), turns.std(0)
    axes = zip(("vertical", "horizontal"), mean, spread, strict=True)
    print("\nTurn of the depth: " + ", ".join(f"{m:+.1f}° ± {s:.1f}° about the {axis} axis" for axis, m, s in axes))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with scans_dev")
    parser.add_argument("--rows", help="names of rows, separated by commas; all if not given")
    parser.add_argument("--limit", type=int, help="maximum number of photos, evenly spaced")
    parser.add_argument("--points", action="store_true", help="errors of detected points instead of the ladder")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/scans"), help="folder of the results")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, environment = Console(stderr=True), Environment.current()
    pack = OwnScans.open(options.data / "scans_dev")
    names = spread_names(pack.names, options.limit)
    print(f"{environment}\n")
    if options.points:
        photos = measure_points(pack, names, console)
        errors = summarize_points(photos, PACK_REGIONS)
        print_points(photos, errors)
        write_json(options.out / "points.json", environment=environment, results=errors)
        return 0
    rows = chosen_rows(options.rows)
    store = ErrorStore(options.out, code_digest([Path(mien.__file__).parent, Path(__file__).parent]))
    measure(pack.folder, names, rows, store, processes=options.processes)
    store = ErrorStore(options.out, store.code)  # with what the processes wrote
    found = [store.result(row.name, base=row.base, photos=names) for row in rows]
    results: list[RowResult] = [result for result in found if result is not None]
    print(ladder_table(results, PACK_REGIONS))
    write_ladder_csv(results, PACK_REGIONS, options.out / "ladder.csv")
    write_json(options.out / "ladder.json", environment=environment, results=results)
    return 0 if all(result.photos == len(names) for result in results) and len(results) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
