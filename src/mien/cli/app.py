"""The command `mien`: one function per subcommand.

Heavy packages are imported inside the commands, so that `mien --help` is fast.
"""
# ruff: noqa: PLC0415 (imports inside commands, see above), PLR0917 (options are named by typer, not by
# position)

from __future__ import annotations

import enum
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mien import __version__
from mien.cli.models import model_app
from mien.cli.options import ModelOption
from mien.cli.summary import PhotoRow, show_rows, summary_file
from mien.cli.terminal import plain_table, printable, stderr, stdout
from mien.cli.training import data_app, report_app, train_app
from mien.errors import FaceLeftOut, MienError

if TYPE_CHECKING:
    from mien.pipeline import Reconstructor

app = typer.Typer(
    help="Reconstruct 3D human faces from photos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluate_app = typer.Typer(help="Measure errors on annotated photos.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(report_app, name="report")


class Mode(str, enum.Enum):
    """The choices of --mode."""

    FIT, NET, AUTO = "fit", "net", "auto"


class DetailMode(str, enum.Enum):
    """The choices of --detail-mode."""

    FIT, NET = "fit", "net"


DeviceOption = Annotated[str, typer.Option(help="Device: cpu or cuda.")]
DetailOption = Annotated[
    bool, typer.Option("--detail/--no-detail", help="Whether to make maps of wrinkles and skin colour.")
]
SeedOption = Annotated[int, typer.Option(help="Seed; equal seeds give equal results.")]
ModeOption = Annotated[
    Mode,
    typer.Option(help="fit: optimise. net: use the encoder alone. auto: optimise from the encoder's prediction."),
]
EncoderOption = Annotated[
    str | None, typer.Option("--encoder", help="Encoder file of modes net and auto. Default: the packaged one.")
]
DetailModeOption = Annotated[
    DetailMode | None,
    typer.Option(
        "--detail-mode", help="fit: optimise the maps. net: use the detail network. Default: fit in mode fit, else net."
    ),
]
DetailNetworkOption = Annotated[
    str | None, typer.Option(help="Detail network file of --detail-mode net. Default: the packaged one.")
]
SPIN_COUNT = 4000
"""Iterations of GNU OpenMP's waiting loop, about 10 microseconds. The default of 300,000 is a millisecond, and each of
the fit's many small operations waits as long if another program uses a core. With one of two cores in use, a
reconstruction took 340 s; now it takes 18 s. With both cores free it takes 8.4 s either way (9.3 s with 2,000
iterations)."""


def _share_processors(environment: MutableMapping[str, str]) -> None:
    """Let torch's threads sleep earlier when they wait for each other. Call it before torch is imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A MienError becomes one line on stderr and exit code 1.

    Args:
        arguments: The arguments after the command's name; those of the process by default.
    """
    _share_processors(os.environ)
    try:
        app(args=None if arguments is None else list(arguments))
    except MienError as error:
        stderr().print(Text("error: ", style="bold red") + Text(printable(str(error))), soft_wrap=True)
        sys.exit(1)


def _show_version(requested: bool) -> bool:
    if requested:
        print(f"mien {__version__}")
        raise typer.Exit
    return requested


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reconstruct 3D human faces from photos."""


@app.command()
def reconstruct(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("out"),
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    detail: DetailOption = True,
    max_faces: Annotated[int | None, typer.Option(min=1, help="Maximum number of faces per photo.")] = None,
    seed: SeedOption = 0,
    resolution: Annotated[int, typer.Option(help="Side of the detail maps in texels: 224, 512 or 1024.")] = 224,
    focal_px: Annotated[
        float | None, typer.Option(help="Focal length in pixels. Default: from EXIF, or a field of view of 30°.")
    ] = None,
    refine_focal: Annotated[bool, typer.Option("--refine-focal", help="Let the fit change the focal length.")] = False,
    mode: ModeOption = Mode.FIT,
    encoder: EncoderOption = None,
    detail_mode: DetailModeOption = None,
    detail_network: DetailNetworkOption = None,
) -> None:
    """Reconstruct the faces of photos: OUT/PHOTO/face0/face.glb and more, and OUT/summary.csv.

    If a photo fails, the others are still reconstructed, and the exit code is 1.
    """
    from mien.io.photo import find_photos, output_stems
    from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    paths = find_photos(photos, skip=out)
    console = stdout()
    with summary_file(out) as write_row:
        with console.status("loading the model"):
            reconstructor = Reconstructor(
                model=model,
                device=device,
                detail=detail,
                resolution=resolution,
                seed=seed,
                max_faces=max_faces,
                refine_focal=refine_focal,
                mode=mode.value,
                encoder=encoder or DEFAULT_ENCODER,
                detail_mode=None if detail_mode is None else detail_mode.value,
                detail_network=detail_network or DEFAULT_DETAIL,
            )
        rows = []
        with _progress(console, len(paths)) as progress:
            task = progress.add_task("", total=len(paths))
            for path, stem in zip(paths, output_stems(paths), strict=True):
                progress.update(task, description=printable(path.name))
                rows.append(_reconstruct_one(reconstructor, path, out / stem, focal_px=focal_px))
                write_row(rows[-1])
                progress.advance(task)
    show_rows(console, rows, out)
    if any(row.reason for row in rows):
        raise typer.Exit(1)


@app.command()
def transfer(
    reconstruction: Annotated[Path, typer.Argument(help="Result folder of `mien reconstruct`.")],
    *,
    to: Annotated[str, typer.Option(help="Target model: a converted file, or a name: flame, bfm, ict.")],
    model: ModelOption = "mien-face",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of mesh.obj and coefficients.json.")],
) -> None:
    """Transfer a reconstructed face to the mesh of another model, and print the errors."""
    from mien.morphable import load_model
    from mien.morphable.registry import converted_model_path
    from mien.registration import transfer as transfer_face
    from mien.registration.transfer_files import write_transfer
    from mien.result import Reconstruction

    console = stdout()
    with console.status("registering"):
        target = load_model(converted_model_path(to))
        transferred = transfer_face(Reconstruction.load(reconstruction), load_model(model), target)
    write_transfer(transferred, out)
    table = plain_table()
    error = transferred.surface_error
    for subject, state in (
        ("mesh", f"{len(transferred.vertices)} vertices of {target.name}"),
        ("landmark error", f"{1000 * transferred.landmark_error_m:.2f} mm, mean of 51"),
        (
            "surface error",
            f"{1000 * error.mean:.2f} mm mean, {1000 * error.median:.2f} median, {1000 * error.p90:.2f} p90",
        ),
        ("written to", str(out)),
    ):
        table.add_row(Text(subject), Text(printable(state)))
    console.print(table)


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, native code, packaged files and their licences."""
    from mien.cli.doctor import diagnose

    diagnosis = diagnose()
    console = stdout()
    table = plain_table()
    for check in diagnosis.checks:
        table.add_row(Text(check.subject), Text(check.state, style="" if check.passed else "red"))
    console.print(table)
    assets = Table("asset", "size", "state", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    assets.add_column("licence", overflow="fold")
    for asset in diagnosis.assets:
        size = Text(f"{asset.record.bytes / 1e6:.1f} MB")
        state = Text("damaged", style="red") if asset.problem else Text("ok", style="green")
        assets.add_row(Text(asset.record.name), size, state, Text(asset.record.licence))
    console.print()
    console.print(assets)
    for asset in diagnosis.assets:
        if asset.problem:
            console.print(Text(f"\n{asset.problem}", style="red"), soft_wrap=True)
    if not diagnosis.passed:
        raise typer.Exit(1)


@evaluate_app.command("landmarks")
def evaluate_landmarks(
    folder: Annotated[Path, typer.Argument(help="Folder of photos with 68 annotated landmarks each.")],
    *,
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    perception_only: Annotated[
        bool, typer.Option("--perception-only", help="Measure the detected landmarks, not those of the model.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of photos per set.")] = None,
    seed: SeedOption = 0,
    mode: ModeOption = Mode.FIT,
    encoder: EncoderOption = None,
) -> None:
    """Measure landmark errors on annotated photos and print a Markdown table."""
    from mien import evaluation
    from mien.networks import DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    reconstructor = None
    if not perception_only:
        reconstructor = Reconstructor(
            model=model,
            device=device,
            detail=False,
            seed=seed,
            mode=mode.value,
            encoder=encoder or DEFAULT_ENCODER,
        )
    with _progress(stderr(), 2) as progress:
        task = progress.add_task("photos", total=None)
        report = evaluation.evaluate_landmarks(
            folder,
            reconstructor=reconstructor,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(report.table())


def _reconstruct_one(reconstructor: Reconstructor, path: Path, folder: Path, *, focal_px: float | None) -> PhotoRow:
    from mien.export import write_reconstruction
    from mien.io.photo import read_photo

    start = time.perf_counter()
    try:
        photo = read_photo(path)
        with _left_out_faces() as left_out:
            faces = reconstructor(photo, focal_px=focal_px)
        for index, face in enumerate(faces):
            write_reconstruction(face, reconstructor.model, photo, folder / f"face{index}")
        _remove_stale_faces(folder, len(faces))
    except (MienError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        # The row already names the photo.
        reason = f"{type(error).__name__}: {reason.removeprefix(f'{path}: ')}"
        return PhotoRow(str(path), 0, time.perf_counter() - start, None, None, "", reason)
    return PhotoRow(
        photo=str(path),
        faces=len(faces),
        seconds=time.perf_counter() - start,
        landmark_error=sum(face.landmark_error for face in faces) / len(faces),
        photometric_error=sum(face.photometric_error for face in faces) / len(faces),
        results=str(folder),
        reason="; ".join(f"{FaceLeftOut.__name__}: {message}" for message in left_out),
    )


@contextmanager
def _left_out_faces() -> Iterator[list[str]]:
    """Collect the messages of FaceLeftOut; other warnings are shown as usual."""
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
    """Remove the faces of an earlier run that found more; only folders that hold a reconstruction are removed."""
    from mien.io.result_folder import ARRAYS_FILE

    for old in folder.glob("face*"):
        numbered = re.fullmatch(r"face(\d+)", old.name)
        if numbered and int(numbered[1]) >= count and (old / ARRAYS_FILE).is_file():
            shutil.rmtree(old, ignore_errors=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{60 * task.speed:.1f} per minute", style="cyan")


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
