"""The command `mien`: one function per subcommand.

Heavy packages are imported inside the commands, so that `mien --help` is fast.
"""
# ruff: noqa: PLC0415 (imports inside commands, see above), PLR0917 (options are named by typer, not by
# position)

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer
from rich.table import Table
from rich.text import Text

from mien import __version__
from mien.cli.evaluate import evaluate_scans
from mien.cli.models import model_app
from mien.cli.options import (
    DeviceOption,
    EncoderOption,
    JsonOption,
    ModelOption,
    ModeOption,
    QuietOption,
    SeedOption,
    model_path,
    wrong_usage,
)
from mien.cli.reconstruct import GroupedOptions, reconstruct
from mien.cli.studio import studio, view
from mien.cli.terminal import (
    activity,
    plain_table,
    print_json,
    print_values,
    printable,
    progress_bar,
    stderr,
    stdout,
)
from mien.cli.track import track
from mien.cli.training import data_app, report_app, train_app
from mien.errors import MienError
from mien.memory import typed_out_of_memory

if TYPE_CHECKING:
    from mien.cli.doctor import Diagnosis

app = typer.Typer(
    help="Reconstruct 3D human faces from photos.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
evaluate_app = typer.Typer(help="Measure errors on annotated photos.", no_args_is_help=True)
app.command(cls=GroupedOptions)(reconstruct)
app.command()(studio)
app.command()(view)
app.command()(track)
evaluate_app.command("scans")(evaluate_scans)
app.add_typer(model_app, name="model")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(report_app, name="report")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exit codes: 0 if all went well, 1 after an error or where a photo failed, 2 for wrong usage, 130 after Ctrl-C. An
    error is one line on stderr, without a traceback.

    Args:
        arguments: The arguments after the command's name; those of the process by default.
    """
    try:
        code = typed_out_of_memory(app)(args=None if arguments is None else list(arguments), standalone_mode=False)
    except _UsageError as error:
        _fail_usage(error.format_message(), "mien" if error.ctx is None else error.ctx.command_path)
    except MienError as error:
        _fail(str(error), code=1)
    except OSError as error:  # others are a MienError
        _fail(f"standard output cannot be written ({error.strerror or error}); write it to another place.", code=1)
    except typer.Abort:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


# The base class of all errors of usage, which typer does not export; it has the attributes that are used here.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def _fail_usage(message: str, command: str) -> NoReturn:
    """Print an error of usage as one line, without typer's frame, and where to find help."""
    if not message:
        sys.exit(2)  # a command without arguments: typer has printed its help
    text = " ".join(message.split()).removesuffix(".").replace(": Value error, ", ": ")
    unknown = re.match(r"No such command '(.+?)'", text)
    if unknown and Path(unknown[1]).exists():
        text, command = f"{unknown[1]} is not a command; use `mien reconstruct {unknown[1]}`", "mien reconstruct"
    _fail(f"{text}; see `{command} -h`", code=2)


def _fail(message: str, *, code: int) -> NoReturn:
    stderr().print(Text("error: ", style="bold red") + Text(printable(message)), soft_wrap=True)
    sys.exit(code)


def _show_version(requested: bool) -> bool:
    if requested:
        typer.echo(f"mien {__version__}")
        raise typer.Exit
    return requested


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reconstruct 3D human faces from photos."""


@app.command()
def transfer(
    reconstruction: Annotated[Path, typer.Argument(exists=True, help="Result folder of `mien reconstruct`.")],
    *,
    to: Annotated[
        str, typer.Option(callback=model_path, help="Target model: a converted file, or a name: flame, bfm, ict.")
    ],
    model: ModelOption = "mien-face",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of face.glb, mesh.obj, shapes.npz and more.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Transfer a reconstructed face to the mesh of another model, with its texture and blendshapes."""
    from mien.morphable import load_model
    from mien.registration import transfer as transfer_face
    from mien.registration.transfer_files import transfer_content, write_transfer
    from mien.result import Reconstruction

    with activity("registering", quiet=quiet):
        target = load_model(to)
        transferred = transfer_face(Reconstruction.load(reconstruction), load_model(model), target)
    with activity("writing", quiet=quiet):
        write_transfer(transferred, out)
    if as_json:
        print_json({**transfer_content(transferred), "results": str(out)})
        return
    error = transferred.surface_error
    print_values(
        ("mesh", f"{len(transferred.vertices)} vertices of {target.name}"),
        ("landmark error", f"{1000 * transferred.landmark_error_m:.2f} mm, mean of 51"),
        (
            "surface error",
            f"{1000 * error.mean:.2f} mm mean, {1000 * error.median:.2f} median, {1000 * error.p90:.2f} p90",
        ),
        ("written to", str(out)),
    )


@app.command()
def doctor(*, as_json: JsonOption = False) -> None:
    """Check this installation: versions, device, native code, packaged files and their licences."""
    from mien.cli.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.content())
    else:
        _show(diagnosis)
    if not diagnosis.passed:
        raise typer.Exit(1)


def _show(diagnosis: Diagnosis) -> None:
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


@evaluate_app.command("landmarks")
def evaluate_landmarks(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of photos with 68 annotated landmarks each.")
    ],
    *,
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    perception_only: Annotated[
        bool, typer.Option("--perception-only", help="Measure the detected landmarks, not those of the model.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of photos per set.")] = None,
    seed: SeedOption = 0,
    mode: ModeOption = None,
    encoder: EncoderOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure landmark errors on annotated photos and print a Markdown table."""
    from mien import evaluation
    from mien.networks import DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    reconstructor = None
    if not perception_only:
        with wrong_usage():
            reconstructor = Reconstructor(
                model=model,
                device=device,
                detail=False,
                seed=seed,
                mode=None if mode is None else mode.value,
                encoder=encoder or DEFAULT_ENCODER,
            )
    with progress_bar(stderr(), 0 if quiet else 2) as progress:
        task = progress.add_task("photos", total=None)
        report = evaluation.evaluate_landmarks(
            folder,
            reconstructor=reconstructor,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        print_json({"summaries": report.summaries(), "photos": report.rows})
    else:
        print(report.table())
