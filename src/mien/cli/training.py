"""The commands of `mien` around training: data, train, report. As in `cli`, heavy imports wait for their command."""
# ruff: noqa: PLC0415 (imports inside commands), PLR0917 (options are named by typer, not by position)

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mien.cli.options import ModelOption
from mien.errors import BackendUnavailable
from mien.io.files import write_whole, writing

data_app = typer.Typer(help="Prepare and draw training data.", no_args_is_help=True)
train_app = typer.Typer(help="Train the networks.", no_args_is_help=True)
report_app = typer.Typer(help="Show what a trained network does.", no_args_is_help=True)

StoreOption = Annotated[
    str | None, typer.Option("--data", help="Store of `mien data prepare`: a folder, or s3://… and the like.")
]


@data_app.command("prepare")
def prepare_data(
    photos: Annotated[Path, typer.Argument(help="Folder of photos, searched to any depth.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
    table: Annotated[
        Path | None, typer.Option(help="CSV with columns file and identity; else names and folders tell.")
    ] = None,
    split_by: Annotated[str, typer.Option(help="identity or random.")] = "identity",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    drop_flagged: Annotated[
        bool, typer.Option("--drop-flagged", help="Leave out blurred, covered, dark and profile faces.")
    ] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
) -> None:
    """Find, align and pack the faces of photos. Run it again to go on where it was stopped."""
    from mien.training.data.prepare import PreparationSettings, photo_facts, prepare

    settings = PreparationSettings(split_by=split_by, seed=seed, drop_flagged=drop_flagged)
    facts = photo_facts(photos, table=table, skip=out)
    with _progress("photos") as update:
        report = prepare(facts, out, settings=settings, processes=processes or os.cpu_count() or 1, progress=update)
    print(report.text(), end="")
    print(f"The store is {out}; look at {out / 'contact_sheet.png'}.")


@data_app.command("synth")
def draw_data(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("out/synth"),
    count: Annotated[int, typer.Option(min=1, help="Number of faces.")] = 48,
    size: Annotated[int, typer.Option(min=32, help="Side of a picture, pixels.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal faces.")] = 0,
    skins: Annotated[Path | None, typer.Option(help="File of `mien data skins`.")] = None,
    detail: Annotated[bool, typer.Option("--detail", help="With wrinkles and marks, and their maps below.")] = False,
    map_size: Annotated[int, typer.Option(min=32, help="Side of the maps with --detail, texels.")] = 224,
    model: ModelOption = "mien-face",
) -> None:
    """Draw faces as training sees them: a sheet, the pictures, and their truth as truth.npz."""
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


@data_app.command("draw")
def draw_store_of_faces(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
    faces: Annotated[int, typer.Option(min=1, help="Number of faces.")] = 50_000,
    size: Annotated[int, typer.Option(min=32, help="Side of the crops, pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal faces.")] = 0,
    jitter: Annotated[float, typer.Option(min=0.0, help="As data.jitter of a training configuration.")] = 1.0,
    skins: Annotated[Path | None, typer.Option(help="File of `mien data skins`.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    model: ModelOption = "mien-face",
) -> None:
    """Draw faces with their truth for training runs (data.drawn). Run it again to go on where it was stopped."""
    from mien.training.synthetic.store import SyntheticStorePlan, write_synthetic_store

    plan = SyntheticStorePlan(faces, size=size, seed=seed, jitter=jitter, model=model, skins=str(skins or ""))
    with _progress("faces") as update:
        sheet = write_synthetic_store(plan, out, processes=processes or os.cpu_count() or 1, progress=update)
    print(f"{faces} faces in {out}; look at {sheet}, and train on them with --set data.drawn={out}.")


@data_app.command("skins")
def collect_skin_colours(
    store: Annotated[str, typer.Argument(help="Store of `mien data prepare`.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("skins.safetensors"),
    model: ModelOption = "mien-face",
) -> None:
    """Take the colours off a store's training faces, for drawn faces to wear (data.skins)."""
    from mien.morphable import load_model
    from mien.training.data.store import FaceStore
    from mien.training.synthetic.skins import collect_skins

    loaded = load_model(model)
    with _progress("faces") as update:
        bank = collect_skins(FaceStore(store, split="train"), loaded, progress=update)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, lambda partial: bank.save(partial, loaded))
    print(f"{len(bank.albedo)} skins in {out}")


@train_app.command("base")
def train_base_branch(
    *,
    config: Annotated[Path | None, typer.Option(help="TOML file; see configs/.")] = None,
    data: StoreOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/base"),
    changes: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train the encoder. Under torchrun every process takes its part of each batch."""
    from mien.training.config import BaseConfig, load_config

    settings = load_config(BaseConfig, config, changes=changes or [])
    with _training_packages():
        from mien.training.run import train_base
    path = train_base(settings, store=data, run=out, resume=resume)
    if path is not None:
        print(f"The encoder is {path}; `mien report base {out}` shows what it does.")


@train_app.command("detail")
def train_detail_branch(
    *,
    base: Annotated[
        str, typer.Option("--base", help="Run of `mien train base`, or an encoder's file; default: the packaged one.")
    ] = "encoder-lite0.safetensors",
    config: Annotated[Path | None, typer.Option(help="TOML file; see configs/.")] = None,
    data: StoreOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/detail"),
    changes: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train the U-Net for texture offset and displacement over a frozen encoder."""
    from mien.training.config import DetailConfig, load_config

    settings = load_config(DetailConfig, config, changes=changes or [])
    with _training_packages():
        from mien.training.run import train_detail
    path = train_detail(settings, base=base, store=data, run=out, resume=resume)
    if path is not None:
        print(f"The detail network is {path}; `mien report detail {out}` shows what it does.")


@report_app.command("base")
def report_base_branch(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    *,
    data: StoreOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/report.")] = None,
) -> None:
    """Write the paper's figure 2, loss curves and a table of test losses."""
    with _training_packages():
        from mien.training.report import report_base
    folder = out or run / "report"
    with writing(folder):
        report = report_base(run, store=data, out=folder)
    print(report.text(), end="")
    print(f"The pictures are in {folder}.")


@report_app.command("detail")
def report_detail_branch(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    *,
    data: StoreOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/report.")] = None,
) -> None:
    """Write the paper's figures 4 and 5, loss curves and a table of test losses."""
    with _training_packages():
        from mien.training.report import report_detail
    folder = out or run / "report"
    with writing(folder):
        report = report_detail(run, store=data, out=folder)
    print(report.text(), end="")
    print(f"The pictures are in {folder}.")


@contextmanager
def _training_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"training needs {error.name}: pip install 'mien[train]'") from error


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
