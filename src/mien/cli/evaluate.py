"""The command `mien evaluate scans`. As in `cli.app`, each command imports what it needs."""
# ruff: noqa: PLC0415 (imports inside commands), PLR0917 (options are named by typer, not by position)

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli.options import (
    DeviceOption,
    EncoderOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SeedOption,
    wrong_usage,
)
from mien.cli.terminal import print_json, progress_bar, stderr
from mien.errors import ConfigError
from mien.io.files import writing

if TYPE_CHECKING:
    import numpy as np

    from mien.evaluation.joint_scans import JointScanReport
    from mien.evaluation.scan_packs import ScanPack
    from mien.evaluation.scan_predictions import Predictor
    from mien.evaluation.scan_report import ScanReport
    from mien.evaluation.scans import FaceScan, PredictedFace, ScanErrors
    from mien.pipeline import Reconstructor
    from mien.typing import UInt8


class Method(str, enum.Enum):
    """The choices of --mode."""

    FIT, NET, AUTO, MEAN = "fit", "net", "auto", "mean"


class Unit(str, enum.Enum):
    """The choices of --unit."""

    MM, CM, M = "mm", "cm", "m"


def evaluate_scans(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="Data set of photos with scans: mien's layout, NoW, REALY or 300W-LP."
        ),
    ],
    *,
    mode: Annotated[
        Method | None,
        typer.Option(
            metavar="[auto|fit|net|mean]",
            help="auto, fit, net, and the default: as mien reconstruct. mean: the mean face, without the photo.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of predicted meshes to measure, instead of a mode of mien."
        ),
    ] = None,
    unit: Annotated[Unit | None, typer.Option(help="Unit of the predicted meshes.")] = None,
    landmarks: Annotated[
        str | None, typer.Option(help="Vertices at the 7 landmarks of the predicted meshes: i0,i1,…,i6.")
    ] = None,
    metric: Annotated[bool, typer.Option("--metric", help="Also measure without scale.")] = False,
    regional: Annotated[bool, typer.Option("--regional", help="Also align and measure each region alone.")] = False,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint",
            help="Also reconstruct the photos of each person together, and compare. --limit counts people; --csv has a "
            "row per person; --run, --base and --write are about the joint results.",
        ),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON of another run to compare with, photo by photo."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of photos, evenly spaced.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="CSV file to write: one row per photo.")] = None,
    run: Annotated[Path | None, typer.Option(help="JSON file to write: the whole run, for --base.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG file to write: photo, overlay, error map and profile per photo.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Folder to write: the predictions, as the data set's own tool reads them.")
    ] = None,
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    encoder: EncoderOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure predicted faces against scans of real people and print a Markdown table, in millimetres."""
    from mien.evaluation.joint_scans import evaluate_joint_scans as evaluate_joint
    from mien.evaluation.scan_packs import open_pack
    from mien.evaluation.scan_report import evaluate_scans as evaluate
    from mien.evaluation.yaw_landmarks import holds_mat_landmarks

    if holds_mat_landmarks(folder):
        with wrong_usage():
            if joint:
                raise ConfigError("--joint needs scans; leave it out for photos with .mat files.")
            reconstructor = _reconstructor(mode, model, device, seed, encoder)
        _evaluate_yaw(folder, reconstructor, limit=limit, as_json=as_json, quiet=quiet)
        return
    pack = open_pack(folder)
    recorder = _Recorder(pack.layout, write, pictures=sheet is not None)
    measure: Callable[..., ScanReport | JointScanReport]
    with wrong_usage():
        if predictions is None and (unit is not None or landmarks is not None):
            raise ConfigError("--unit and --landmarks describe --predictions; give its folder, or leave them out.")
        if joint:
            if predictions is not None or mode is Method.MEAN:
                raise ConfigError("--joint reconstructs the photos; leave --predictions and --mode mean out.")
            reconstructor = _reconstructor(mode, model, device, seed, encoder)
            alone, together = partial(recorder.picture, kind=" alone"), partial(recorder, kind=" together")
            measure = partial(evaluate_joint, pack, reconstructor, inspect_alone=alone, inspect_joint=together)
        elif predictions is not None:
            measure = partial(evaluate, pack, _from_files(pack, predictions, unit, landmarks), inspect=recorder)
        else:
            measure = partial(evaluate, pack, _from_mode(mode, model, device, seed, encoder), inspect=recorder)
    with progress_bar(stderr(), 0 if quiet else 2) as progress:
        task = progress.add_task("people" if joint else "photos", total=None)
        report = measure(
            metric=metric,
            regional=regional,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _write_files(report, recorder, table=table, run=run, sheet=sheet)
    _print_report(report, base, as_json=as_json)


def _from_files(pack: ScanPack, folder: Path, unit: Unit | None, landmarks: str | None) -> Predictor:
    from mien.evaluation.scan_predictions import PredictionFiles

    try:
        vertices = None if landmarks is None else tuple(int(part) for part in landmarks.split(","))
    except ValueError:
        raise ConfigError(f"--landmarks {landmarks!r} is not a list of vertex numbers; use i0,i1,…,i6.") from None
    return PredictionFiles(folder, None if unit is None else unit.value, vertices).predictor(pack)


def _from_mode(mode: Method | None, model: str, device: str, seed: int, encoder: str | None) -> Predictor:
    from mien.evaluation.scan_predictions import predict_by_reconstruction, predict_mean_face
    from mien.morphable import load_model

    if mode is Method.MEAN:
        return predict_mean_face(load_model(model))
    return predict_by_reconstruction(_reconstructor(mode, model, device, seed, encoder))


def _reconstructor(mode: Method | None, model: str, device: str, seed: int, encoder: str | None) -> Reconstructor:
    from mien.networks import DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    if mode is Method.MEAN:
        raise ConfigError("--mode mean needs scans; for photos with .mat files use fit, net or auto.")
    return Reconstructor(
        model=model,
        device=device,
        detail=False,
        seed=seed,
        mode=None if mode is None else mode.value,
        encoder=encoder or DEFAULT_ENCODER,
    )


def _evaluate_yaw(folder: Path, reconstructor: Reconstructor, *, limit: int | None, as_json: bool, quiet: bool) -> None:
    from mien.evaluation.yaw_landmarks import YAW_BINS, evaluate_yaw

    with progress_bar(stderr(), 0 if quiet else 2) as progress:
        task = progress.add_task("photos", total=None)
        report = evaluate_yaw(
            folder,
            reconstructor,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        groups = [{"yaw_deg": limits, "nme68": report.nme(*limits)} for limits in YAW_BINS]
        print_json({"groups": groups, "mean": report.mean, "photos": report.rows})
    else:
        print(report.table())


class _Recorder:
    """Writes the prediction of each photo, and keeps its pictures for the sheet."""

    def __init__(self, layout: str, folder: Path | None, *, pictures: bool) -> None:
        self.layout, self.folder, self.pictures = layout, folder, pictures
        self.panels: list[list[UInt8[np.ndarray, "h w 3"]]] = []
        self.labels: list[str] = []

    def __call__(self, scan: FaceScan, face: PredictedFace, errors: ScanErrors, *, kind: str = "") -> None:
        from mien.evaluation.scan_predictions import write_prediction

        if self.folder is not None:
            with writing(self.folder):
                write_prediction(face, self.folder, scan.name, layout=self.layout)
        self.picture(scan, face, errors, kind=kind)

    def picture(self, scan: FaceScan, face: PredictedFace, errors: ScanErrors, *, kind: str = "") -> None:
        from mien.export.scan_sheet import ScanPicture, scan_panels
        from mien.io.photo import read_photo

        if not self.pictures:
            return
        self.labels.append(f"{scan.name}{kind}: median {errors.overall.median:.2f}, mean {errors.overall.mean:.2f} mm")
        picture = ScanPicture(
            None if scan.photo is None else read_photo(scan.photo).pixels,
            face.pixels,
            face.surface.transformed(errors.similarity),
            scan.surface,
            scan.points,
            errors.distances,
            scan.landmarks7,
        )
        self.panels.append(scan_panels(picture))


def _write_files(
    report: ScanReport | JointScanReport,
    recorder: _Recorder,
    *,
    table: Path | None,
    run: Path | None,
    sheet: Path | None,
) -> None:
    from mien.export.scan_sheet import save_scan_sheet

    for path, write in ((table, report.write_csv), (run, report.write_run)):
        if path is not None:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
    if sheet is not None and recorder.panels:
        with writing(sheet):
            sheet.parent.mkdir(parents=True, exist_ok=True)
            save_scan_sheet(recorder.panels, recorder.labels, sheet)


def _print_report(report: ScanReport | JointScanReport, base: Path | None, *, as_json: bool) -> None:
    differences = [] if base is None else report.compare(base)
    if as_json:
        paired = [{"alignment": kind, "statistic": name, **asdict(found)} for kind, name, found in differences]
        print_json({**report.run(), "paired": paired})
        return
    print(report.table())
    for kind, name, found in differences:
        label = "similarity" if kind == "sim" else kind
        print(
            f"{label}, {name}: {found.difference:+.3f} mm [{found.low:+.3f}, {found.high:+.3f}] against {base}, "
            f"better on {100 * found.better:.0f} % of {found.photos}"
        )
