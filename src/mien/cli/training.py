"""The commands `mien data`, `mien train` and `mien report`. As in `cli.app`, each command imports what it needs."""
# ruff: noqa: PLC0415 (imports inside commands), PLR0917 (options are named by typer, not by position)

from __future__ import annotations

import enum
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mien.cli.engine import (
    Engine,
    EngineOption,
    ManifestOption,
    RayAddressOption,
    list_entries,
    output_place,
    ray_settings,
)
from mien.cli.options import ModelOption, ProcessesOption, QuietOption, SeedOption, finite, network_file, wrong_usage
from mien.errors import BackendUnavailable, CheckpointDoubtful, ConfigError, RenamedSetting
from mien.io.files import write_whole, writing

data_app = typer.Typer(help="Prepare photos and synthesize faces for training.", no_args_is_help=True)
train_app = typer.Typer(help="Train the networks.", no_args_is_help=True)
report_app = typer.Typer(help="Show what a trained network does.", no_args_is_help=True)

SkinsOption = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="File of `mien data skins`.")]
T = TypeVar("T")


class SplitBy(str, enum.Enum):
    """The choices of --split-by."""

    IDENTITY, RANDOM = "identity", "random"


StoreOption = Annotated[
    str | None, typer.Option("--data", help="Store of `mien data prepare`: a folder, or s3://… and the like.")
]


@data_app.command("prepare")
def prepare_photos(
    photos: Annotated[
        Path | None,
        typer.Argument(
            exists=True, file_okay=False, help="Folder of photos, searched to any depth.", show_default=False
        ),
    ] = None,
    *,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="PLACE", help="Folder of the store. With --engine ray also an address."),
    ],
    manifest: ManifestOption = None,
    table: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="CSV with columns file and identity. Default: names of files and folders."
        ),
    ] = None,
    split_by: Annotated[
        SplitBy, typer.Option(metavar="[identity|random]", help="Unit of the split: a person, or a photo at random.")
    ] = SplitBy.IDENTITY,
    seed: SeedOption = 0,
    drop_flagged: Annotated[
        bool, typer.Option("--drop-flagged", help="Leave out blurred, covered, dark and profile faces.")
    ] = False,
    processes: ProcessesOption = None,
    engine: EngineOption = Engine.LOCAL,
    ray_address: RayAddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Detect, align and pack the faces of photos. Run it again to continue an interrupted run."""
    from mien.scale.prepare_on_ray import prepare_on_ray
    from mien.training.data.prepare import PreparationReport, PreparationSettings, prepare

    ray = ray_settings(engine, ray_address, jobs=processes)
    place = output_place(out, ray)
    entries = list_entries(photos, manifest, place, table=table)
    settings = PreparationSettings(split_by=split_by.value, seed=seed, drop_flagged=drop_flagged)
    make: Callable[..., PreparationReport] = prepare if ray is None else functools.partial(prepare_on_ray, ray=ray)
    with _progress("photos", quiet=quiet) as update:
        report = make(entries, place, settings=settings, processes=processes or os.cpu_count() or 1, progress=update)
    print(report.text(), end="")
    print(f"The store is {out}; look at {out.rstrip('/')}/contact_sheet.png.")


@data_app.command("fit")
def fit_photos(
    store: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Store of `mien data prepare`.")],
    *,
    model: ModelOption = "mien-face",
    processes: ProcessesOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fit the faces of a store, as ground truth for an encoder (data.fits). Run it again to continue."""
    from mien.training.data.fits import fit_store

    with _progress("photos", quiet=quiet) as update:
        fits = fit_store(store, model=model, processes=processes or os.cpu_count() or 1, progress=update)
    print(f"{len(fits)} fits in {store}; train on them with --set data.fits=true.")


@data_app.command("people")
def check_people_of_store(
    store: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Store of `mien data prepare`.")],
    *,
    quiet: QuietOption = False,
) -> None:
    """Check whether the faces of each person in a store look like one person; STORE/people.csv lists the others."""
    from mien.training.data.people import PEOPLE_FILE, check_people

    with _progress("people", quiet=quiet) as update:
        found = check_people(store, progress=update)
    print(
        f"{found.people} people, {found.single} of them with one face. Faces unlike the others of their person: "
        f"{len(found.unlike)}, listed in {store / PEOPLE_FILE}"
    )


@data_app.command("samples")
def write_synthetic_samples(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the images.")] = Path("out/synth"),
    count: Annotated[int, typer.Option(min=1, help="Number of faces.")] = 48,
    size: Annotated[int, typer.Option(min=32, help="Side of an image, pixels.")] = 224,
    seed: SeedOption = 0,
    skins: SkinsOption = None,
    detail: Annotated[
        bool, typer.Option("--detail", help="Add wrinkles and skin blemishes, and show their maps below each face.")
    ] = False,
    map_size: Annotated[int, typer.Option(min=32, help="Side of the maps with --detail, texels.")] = 224,
    model: ModelOption = "mien-face",
) -> None:
    """Write some synthetic faces as training uses them: a sheet, single images, and ground truth as an npz file."""
    from mien.morphable import load_model
    from mien.training.synthetic.detailed_faces import DetailedFaces
    from mien.training.synthetic.faces import SyntheticFaces
    from mien.training.synthetic.population import SkinBank
    from mien.training.synthetic.samples import write_samples

    loaded = load_model(model)
    bank = None if skins is None else SkinBank.load(skins, loaded)
    if detail:
        faces = DetailedFaces(loaded, size=size, map_size=map_size, seed=seed, skins=bank)
    else:
        faces = SyntheticFaces(loaded, size=size, seed=seed, skins=bank)
    with writing(out):
        sheet = write_samples(faces, out, count=count)
    print(f"{count} faces in {out}; look at {sheet}.")


@data_app.command("synthesize")
def write_store_of_synthetic_faces(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
    faces: Annotated[int, typer.Option(min=1, help="Number of faces.")] = 50_000,
    size: Annotated[int, typer.Option(min=32, help="Side of the crops, pixels.")] = 128,
    seed: SeedOption = 0,
    jitter: Annotated[
        float,
        typer.Option(
            min=0.0, max=10.0, callback=finite, help="Factor on the random shift and size of the crops, as data.jitter."
        ),
    ] = 1.0,
    skins: SkinsOption = None,
    processes: ProcessesOption = None,
    quiet: QuietOption = False,
    model: ModelOption = "mien-face",
) -> None:
    """Write a store of synthetic faces for training runs. Run it again to continue, or to add faces."""
    from mien.training.synthetic.store import SyntheticStorePlan, write_synthetic_store

    plan = SyntheticStorePlan(faces, size=size, seed=seed, jitter=jitter, model=model, skins=str(skins or ""))
    with _progress("faces", quiet=quiet) as update:
        sheet = write_synthetic_store(plan, out, processes=processes or os.cpu_count() or 1, progress=update)
    print(f"{faces} faces in {out}; look at {sheet}, and train on them with --set data.synthetic={out}.")


@data_app.command("skins")
def collect_skin_colours(
    store: Annotated[str, typer.Argument(help="Store of `mien data prepare`.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("skins.safetensors"),
    model: ModelOption = "mien-face",
    quiet: QuietOption = False,
) -> None:
    """Collect the skin colours of a store's training faces, for synthetic faces to use (data.skins)."""
    from mien.morphable import load_model
    from mien.training.data.store import FaceStore
    from mien.training.synthetic.skins import collect_skins

    loaded = load_model(model)
    with _progress("faces", quiet=quiet) as update:
        bank = collect_skins(FaceStore(store, split="train"), loaded, progress=update)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, lambda partial: bank.save(partial, loaded))
    print(f"{len(bank.albedo)} skins in {out}")


def _keep_old_data_command(old: str, new: str, command: Callable[..., None]) -> None:
    """Register a command of `mien data` under its name in mien 0.1 too, with a warning."""

    @functools.wraps(command)
    def run_with_warning(**options: Any) -> None:
        _print_warning(f"`mien data {old}` is now called `mien data {new}`; version 0.3 will not know the old name.")
        command(**options)

    data_app.command(old, hidden=True)(run_with_warning)


_keep_old_data_command("synth", "samples", write_synthetic_samples)
_keep_old_data_command("draw", "synthesize", write_store_of_synthetic_faces)


ConfigOption = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="TOML file, e.g. from configs/.")]
RunOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
ChangesOption = Annotated[
    list[str] | None, typer.Option("--set", help="Setting as section.key=value; replaces the file's.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]
RunArgument = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the run.")]
ReportOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the report. Default: RUN/report.")]


@train_app.command("coarse")
def train_coarse_command(
    *,
    config: ConfigOption = None,
    data: StoreOption = None,
    out: RunOption = Path("runs/coarse"),
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train the encoder. Under torchrun every process takes its part of each batch."""
    from mien.training.config import CoarseConfig

    with _one_line_warnings():
        settings = _load_config(CoarseConfig, config, changes or [])
        with _training_packages():
            from mien.training.allocation import keep_freed_memory
            from mien.training.run import train_coarse
        keep_freed_memory()
        path = train_coarse(settings, store=data, run=out, resume=resume)
    if path is not None:
        print(f"The encoder is {path}; `mien report coarse {out}` shows its results.")


@train_app.command("base", hidden=True)
def train_base_command(
    *,
    config: ConfigOption = None,
    data: StoreOption = None,
    out: RunOption = Path("runs/base"),
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Old name of `mien train coarse`."""
    _print_warning("`mien train base` is now called `mien train coarse`; version 0.3 will not know the old name.")
    train_coarse_command(config=config, data=data, out=out, changes=changes, resume=resume)


@train_app.command("detail")
def train_detail_command(
    *,
    coarse: Annotated[
        str,
        typer.Option("--coarse", callback=network_file, help="Run of `mien train coarse`, or the file of an encoder."),
    ] = "encoder-lite0.safetensors",
    base: Annotated[
        str | None, typer.Option("--base", callback=network_file, hidden=True, help="Old name of --coarse.")
    ] = None,
    config: ConfigOption = None,
    data: StoreOption = None,
    out: RunOption = Path("runs/detail"),
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train the detail network (texture offset and displacement) over a frozen encoder."""
    from mien.training.config import DetailConfig

    if base is not None:
        _print_warning("--base is now called --coarse; version 0.3 will not know the old name.")
    with _one_line_warnings():
        settings = _load_config(DetailConfig, config, changes or [])
        with _training_packages():
            from mien.training.allocation import keep_freed_memory
            from mien.training.run import train_detail
        keep_freed_memory()
        path = train_detail(settings, encoder=base or coarse, store=data, run=out, resume=resume)
    if path is not None:
        print(f"The detail network is {path}; `mien report detail {out}` shows its results.")


@train_app.command("recipe")
def train_recipe_command(
    recipe: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="TOML file with stages, e.g. configs/packaged_encoder.toml."),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the stages and the result.")] = Path(
        "runs/packaged"
    ),
    data: StoreOption = None,
    stage: Annotated[str | None, typer.Option(help="Run this stage only; those before it must be finished.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes that synthesize faces. Default: one per core.")
    ] = None,
) -> None:
    """Run the stages of a recipe one after another. Run it again to continue after an interruption."""
    with _training_packages():
        from mien.training.allocation import keep_freed_memory
        from mien.training.recipe import load_recipe
        from mien.training.recipe_run import run_recipe
    with _one_line_warnings():
        keep_freed_memory()
        loaded = load_recipe(recipe)
        path = run_recipe(loaded, out, store=data, only=stage, processes=processes or os.cpu_count() or 1, report=print)
    if path is not None:
        print(f"The result is {path}.")


@report_app.command("coarse")
def report_coarse_command(
    run: RunArgument,
    *,
    data: StoreOption = None,
    out: ReportOption = None,
) -> None:
    """Write the paper's figure 2, loss curves and a table of test losses."""
    with _training_packages():
        from mien.training.report import report_coarse
    folder = out or run / "report"
    with writing(folder), _one_line_warnings():
        report = report_coarse(run, store=data, out=folder)
    print(report.text(), end="")
    print(f"The figures are in {folder}.")


@report_app.command("base", hidden=True)
def report_base_command(
    run: RunArgument,
    *,
    data: StoreOption = None,
    out: ReportOption = None,
) -> None:
    """Old name of `mien report coarse`."""
    _print_warning("`mien report base` is now called `mien report coarse`; version 0.3 will not know the old name.")
    report_coarse_command(run, data=data, out=out)


@report_app.command("detail")
def report_detail_command(
    run: RunArgument,
    *,
    data: StoreOption = None,
    out: ReportOption = None,
) -> None:
    """Write the paper's figures 4 and 5, loss curves and a table of test losses."""
    with _training_packages():
        from mien.training.report import report_detail
    folder = out or run / "report"
    with writing(folder), _one_line_warnings():
        report = report_detail(run, store=data, out=folder)
    print(report.text(), end="")
    print(f"The figures are in {folder}.")


def _load_config(kind: type[T], path: Path | None, changes: list[str]) -> T:
    """`load_config`; an error that only --set causes is wrong usage."""
    from mien.training.config_file import load_config

    try:
        return load_config(kind, path, changes=changes)
    except ConfigError:
        load_config(kind, path)  # raises what is wrong with the file itself
        with wrong_usage("--set"):
            raise


def _print_warning(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print mien's own warnings as one line on stderr, each once; other warnings stay as they are."""
    show, printed = warnings.showwarning, set[str]()

    def show_line(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if not issubclass(category, RenamedSetting | CheckpointDoubtful):
            show(message, category, *rest, **options)
        elif str(message) not in printed:
            printed.add(str(message))
            _print_warning(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", RenamedSetting)
        warnings.simplefilter("always", CheckpointDoubtful)
        warnings.showwarning = show_line
        yield


@contextmanager
def _training_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"training needs the package {error.name}; run pip install 'mien[train]'.") from error


@contextmanager
def _progress(name: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
