"""The command `mien`: one function per subcommand.

Heavy packages are imported inside the commands, so that `mien --help` is fast.
"""
# ruff: noqa: PLC0415 (imports inside commands, see above), PLR0917 (options are named by typer, not by
# position)

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from mien import __version__
from mien.cli.models import model_app
from mien.cli.options import DeviceOption, EncoderOption, Mode, ModelOption, ModeOption, SeedOption
from mien.cli.reconstruct import reconstruct
from mien.cli.terminal import plain_table, printable, progress_bar, stderr, stdout
from mien.cli.training import data_app, report_app, train_app
from mien.errors import MienError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Reconstruct 3D human faces from photos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluate_app = typer.Typer(help="Measure errors on annotated photos.", no_args_is_help=True)
app.command()(reconstruct)
app.add_typer(model_app, name="model")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(report_app, name="report")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A MienError becomes one line on stderr and exit code 1.

    Args:
        arguments: The arguments after the command's name; those of the process by default.
    """
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
    with progress_bar(stderr(), 2) as progress:
        task = progress.add_task("photos", total=None)
        report = evaluation.evaluate_landmarks(
            folder,
            reconstructor=reconstructor,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(report.table())
