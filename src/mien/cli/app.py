"""The command `mien`: one function per verb, and how results are shown in a terminal.

Everything heavy is imported inside the commands, so that `mien --help` answers at once.
"""
# ruff: noqa: PLC0415 (imports inside commands, see above), PLR0917 (options are named by typer, not by
# position)

from __future__ import annotations

import csv
import importlib.metadata
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mien.cli.models import model_app
from mien.cli.options import ModelOption
from mien.cli.terminal import plain_table as _plain_table
from mien.cli.terminal import printable as _printable
from mien.cli.terminal import stderr as _stderr
from mien.cli.terminal import stdout as _stdout
from mien.cli.training import data_app, report_app, train_app
from mien.errors import FaceLeftOut, MienError, OutputError

if TYPE_CHECKING:
    from mien.pipeline import Reconstructor

SUMMARY_FILE = "summary.csv"
# A longer table scrolls away unread; beyond it only the failures are shown, and the file holds everything.
_LONGEST_TABLE = 60

app = typer.Typer(
    help="One photograph in, a 3D human face out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluate_app = typer.Typer(help="Measure against annotated data.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(report_app, name="report")

DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")]
DetailOption = Annotated[bool, typer.Option("--detail/--no-detail", help="Fit wrinkles and skin colour as maps.")]
SeedOption = Annotated[int, typer.Option(help="Equal seeds give equal results.")]
ModeOption = Annotated[
    str, typer.Option(help="fit: optimise; net: the trained network alone; auto: optimise from the network's guess.")
]
EncoderOption = Annotated[str, typer.Option("--encoder", help="The network of the modes net and auto.")]
DetailModeOption = Annotated[
    str | None,
    typer.Option("--detail-mode", help="fit: optimise the maps; net: the trained U-Net. Default: as --mode."),
]
PACKAGED_DETAIL = "detail-unet.safetensors"
PACKAGED_ENCODER = "encoder-lite0.safetensors"
SPIN_COUNT = 4000
"""Turns of GNU OpenMP's waiting loop, some 10 microseconds. Its own 300,000 are a millisecond, which each of the fit's
many small operations waits as soon as another program holds a core: with one of two cores taken a reconstruction took
340 s, and takes 18; with both free 8.4 s either way (9.3 s with 2,000 turns)."""


def _share_processors(environment: MutableMapping[str, str]) -> None:
    """Let torch's threads sleep soon where they wait for each other; to be said before torch is imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what mien raises on purpose ends as one line and exit code 1."""
    _share_processors(os.environ)
    try:
        app(args=None if arguments is None else list(arguments))
    except MienError as error:
        _stderr().print(Text("error: ", style="bold red") + Text(_printable(str(error))), soft_wrap=True)
        sys.exit(1)


def _show_version(asked: bool) -> bool:
    if asked:
        print(f"mien {importlib.metadata.version('mien')}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """One photograph in, a 3D human face out."""


@app.command()
def reconstruct(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    detail: DetailOption = True,
    max_faces: Annotated[int | None, typer.Option(min=1, help="At most so many faces a photo.")] = None,
    seed: SeedOption = 0,
    resolution: Annotated[int, typer.Option(help="Side of the detail maps: 224, 512 or 1024.")] = 224,
    focal_px: Annotated[
        float | None, typer.Option(help="Focal length in pixels; default: EXIF, else 30° of view.")
    ] = None,
    refine_focal: Annotated[bool, typer.Option("--refine-focal", help="Let the fit adjust the focal length.")] = False,
    mode: ModeOption = "fit",
    encoder: EncoderOption = PACKAGED_ENCODER,
    detail_mode: DetailModeOption = None,
    detail_network: Annotated[str, typer.Option(help="The network of --detail-mode net.")] = PACKAGED_DETAIL,
) -> None:
    """Turn the faces of photos into 3D: OUT/PHOTO/face0/face.glb and more, and OUT/summary.csv.

    The exit code is 1 if any photo failed; the others are done all the same.
    """
    from mien.io.photo import find_photos, output_stems
    from mien.pipeline import Reconstructor

    paths = find_photos(photos, skip=out)
    console = _stdout()
    with _summary_file(out) as write_row:
        with console.status("loading the model"):
            reconstructor = Reconstructor(
                model=model,
                device=device,
                detail=detail,
                resolution=resolution,
                seed=seed,
                max_faces=max_faces,
                refine_focal=refine_focal,
                mode=mode,
                encoder=encoder,
                detail_mode=detail_mode,
                detail_network=detail_network,
            )
        rows = []
        with _progress(console, len(paths)) as progress:
            task = progress.add_task("", total=len(paths))
            for path, stem in zip(paths, output_stems(paths), strict=True):
                progress.update(task, description=_printable(path.name))
                rows.append(_reconstruct_one(reconstructor, path, out / stem, focal_px=focal_px))
                write_row(rows[-1])
                progress.advance(task)
    _show_rows(console, rows, out)
    if any(row.reason for row in rows):
        raise typer.Exit(1)


@app.command()
def transfer(
    reconstruction: Annotated[Path, typer.Argument(help="Result folder of `mien reconstruct`.")],
    *,
    to: Annotated[str, typer.Option(help="Converted model, e.g. flame.safetensors, or a family: flame, bfm, ict.")],
    model: ModelOption = "mien-face",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for mesh.obj and coefficients.json.")],
) -> None:
    """Carry a reconstructed face over to another model's topology, and say how well it fits."""
    from mien.morphable import load_model
    from mien.morphable.registry import converted_model_path
    from mien.registration import transfer as carry_over
    from mien.registration.transfer_files import write_transfer
    from mien.result import Reconstruction

    console = _stdout()
    with console.status("registering"):
        target = load_model(converted_model_path(to))
        carried = carry_over(Reconstruction.load(reconstruction), load_model(model), target)
    write_transfer(carried, out)
    table = _plain_table()
    error = carried.surface_error
    for subject, state in (
        ("mesh", f"{len(carried.vertices)} vertices of {target.name}"),
        ("landmark error", f"{1000 * carried.landmark_error_m:.2f} mm, mean of 51"),
        (
            "surface error",
            f"{1000 * error.mean:.2f} mm mean, {1000 * error.median:.2f} median, {1000 * error.p90:.2f} p90",
        ),
        ("written to", str(out)),
    ):
        table.add_row(Text(subject), Text(_printable(state)))
    console.print(table)


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, native code, packaged assets and their licences."""
    from mien.cli.doctor import examine

    examination = examine()
    console = _stdout()
    table = _plain_table()
    for finding in examination.findings:
        table.add_row(Text(finding.subject), Text(finding.state, style="" if finding.healthy else "red"))
    console.print(table)
    assets = Table("asset", "size", "state", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    assets.add_column("licence", overflow="fold")
    for asset in examination.assets:
        size = Text(f"{asset.record.bytes / 1e6:.1f} MB")
        state = Text("damaged", style="red") if asset.problem else Text("whole", style="green")
        assets.add_row(Text(asset.record.name), size, state, Text(asset.record.licence))
    console.print()
    console.print(assets)
    for asset in examination.assets:
        if asset.problem:
            console.print(Text(f"\n{asset.problem}", style="red"), soft_wrap=True)
    if not examination.healthy:
        raise typer.Exit(1)


@evaluate_app.command("landmarks")
def evaluate_landmarks(
    folder: Annotated[Path, typer.Argument(help="Folder of photos with 68 annotated points each.")],
    *,
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    perception_only: Annotated[
        bool, typer.Option("--perception-only", help="Measure the found landmarks, not the fitted model's.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many photos of each set.")] = None,
    seed: SeedOption = 0,
    mode: ModeOption = "fit",
    encoder: EncoderOption = PACKAGED_ENCODER,
) -> None:
    """Measure landmark errors on annotated photos and print them as a Markdown table."""
    from mien import evaluation
    from mien.pipeline import Reconstructor

    reconstructor = None
    if not perception_only:
        reconstructor = Reconstructor(model=model, device=device, detail=False, seed=seed, mode=mode, encoder=encoder)
    with _progress(_stderr(), 2) as progress:
        task = progress.add_task("photos", total=None)
        report = evaluation.evaluate_landmarks(
            folder,
            reconstructor=reconstructor,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(report.table())


@dataclass(frozen=True)
class PhotoRow:
    """One photo's line in the table and in summary.csv; the errors are means over its faces."""

    photo: str
    faces: int
    seconds: float
    landmark_error: float | None
    photometric_error: float | None
    results: str
    reason: str
    """Empty where every face was done."""


def _reconstruct_one(reconstructor: Reconstructor, path: Path, folder: Path, *, focal_px: float | None) -> PhotoRow:
    from mien.export import write_reconstruction
    from mien.io.photo import read_photo

    start = time.perf_counter()
    try:
        photo = read_photo(path)
        with _noting_left_out() as left_out:
            faces = reconstructor(photo, focal_px=focal_px)
        for index, face in enumerate(faces):
            write_reconstruction(face, reconstructor.model, photo, folder / f"face{index}")
        _remove_stale_faces(folder, len(faces))
    except (MienError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        # The row names the photo already.
        reason = f"{type(error).__name__}: {reason.removeprefix(f'{path}: ')}"
        return PhotoRow(str(path), 0, time.perf_counter() - start, None, None, "", reason)
    return PhotoRow(
        photo=str(path),
        faces=len(faces),
        seconds=time.perf_counter() - start,
        landmark_error=sum(face.landmark_error for face in faces) / len(faces),
        photometric_error=sum(face.photometric_error for face in faces) / len(faces),
        results=str(folder),
        reason="; ".join(f"{FaceLeftOut.__name__}: {said}" for said in left_out),
    )


@contextmanager
def _noting_left_out() -> Iterator[list[str]]:
    """What is said of faces that are left out; other warnings are shown as ever."""
    left_out: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FaceLeftOut)
            yield left_out
    finally:
        for warning in caught:
            if issubclass(warning.category, FaceLeftOut):
                left_out.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _remove_stale_faces(folder: Path, count: int) -> None:
    """Faces of an earlier run with more of them; only folders that hold a reconstruction are touched."""
    from mien.io.result_folder import ARRAYS_FILE

    for old in folder.glob("face*"):
        numbered = re.fullmatch(r"face(\d+)", old.name)
        if numbered and int(numbered[1]) >= count and (old / ARRAYS_FILE).is_file():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _summary_file(out: Path) -> Iterator[Any]:
    """A function that appends a row to OUT/summary.csv; an unwritable place is found before any work is
    done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        # File names need not be valid Unicode, the table has to be.
        stream = (out / SUMMARY_FILE).open("w", encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another place with -o") from error
    with stream:
        writer = csv.writer(stream)
        names = [field.name for field in fields(PhotoRow)]

        def write(values: Sequence[object]) -> None:
            try:
                writer.writerow(values)
                stream.flush()
            except OSError as error:
                # Closing writes what is left over, which fails as well, but closes.
                with suppress(OSError):
                    stream.close()
                raise OutputError(
                    f"{out / SUMMARY_FILE}: cannot be written ({error.strerror}); free some space or choose another "
                    "place with -o"
                ) from error

        def write_row(row: PhotoRow) -> None:
            values = [getattr(row, name) for name in names]
            write([f"{value:.5g}" if isinstance(value, float) else value for value in values])

        write(names)
        yield write_row


def _show_rows(console: Console, rows: list[PhotoRow], out: Path) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("photo", overflow="fold")
    # Fixed, so that a narrow terminal folds the texts and never cuts them off.
    for name, width in (("faces", 5), ("seconds", 7), ("landmark error", 8), ("photometric error", 11)):
        table.add_column(name, justify="right", width=width)
    table.add_column("result", overflow="fold")
    failed = [row for row in rows if row.reason]
    for row in rows if len(rows) <= _LONGEST_TABLE else failed[:_LONGEST_TABLE]:
        last = Text(_printable(row.reason), style="red") if row.reason else Text(_printable(_faces_of(row)))
        table.add_row(
            Text(_printable(Path(row.photo).name)),
            str(row.faces),
            f"{row.seconds:.1f}",
            "" if row.landmark_error is None else f"{100 * row.landmark_error:.1f} %",
            "" if row.photometric_error is None else f"{row.photometric_error:.3f}",
            last,
        )
    if table.row_count:
        console.print(table)
        console.print()
    count = sum(row.faces for row in rows)
    total = f"{_plural(len(rows), 'photo')}, {_plural(count, 'face')}, {len(failed)} failed"
    console.print(Text(f"{total}; the table is in {_printable(str(out / SUMMARY_FILE))}"), soft_wrap=True)


def _faces_of(row: PhotoRow) -> str:
    first = str(Path(row.results) / "face0")
    return first if row.faces == 1 else f"{first} … face{row.faces - 1}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{60 * task.speed:.1f} a minute", style="cyan")


def _progress(console: Console, count: int) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=count < 2 or not console.is_terminal,
        speed_estimate_period=600,  # photos take seconds each
    )
