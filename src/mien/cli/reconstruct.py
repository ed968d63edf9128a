"""The command `mien reconstruct`."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the command), PLR0917 (options are named by typer)

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mien.cli.engine import (
    Engine,
    EngineOption,
    ManifestOption,
    RayAddressOption,
    from_any_folder,
    list_photos,
    open_place,
    output_place,
    ray_settings,
)
from mien.cli.formats import (
    CameraOption,
    FormatsOption,
    NeutralOption,
    PartsOption,
    TurntableOption,
    Units,
    UnitsOption,
    all_formats,
    check_mesh_options,
    one_mesh_file,
    reconstruct_to_file,
)
from mien.cli.options import (
    DetailModeOption,
    DetailNetworkOption,
    DetailOption,
    DeviceOption,
    EncoderOption,
    FocalOption,
    GlbMorphs,
    GlbOption,
    ModelOption,
    ModeOption,
    PrincipalPointOption,
    QuietOption,
    ResolutionOption,
    Scalp,
    ScalpOption,
    SeedOption,
    TextureSizeOption,
    finite,
    wrong_usage,
)
from mien.cli.people import GroupBy, check_one_way, person_folders
from mien.cli.progress import Report, Reporter
from mien.cli.terminal import activity, printable, sigterm_exits
from mien.io.result_files import FACE
from mien.scale.addresses import AddressFolder
from mien.scale.output_folder import ResultFolder
from mien.scale.photo_work import PhotoSettings
from mien.scale.processes import core_count, reconstruct_here, reconstruct_in_processes
from mien.scale.ray_photos import reconstruct_on_ray
from mien.scale.run_record import Options
from mien.scale.summary import SummaryTable
from mien.scale.worker import Outcome

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto


class GroupedOptions(TyperCommand):
    """Shows the options of `mien reconstruct` in groups; the few that most people need come first."""

    def __init__(self, *arguments: Any, params: list[Any], **keywords: Any) -> None:
        panels = {name: panel for panel, names in PANELS.items() for name in names.split()}
        for parameter in params:
            if parameter.name in panels:
                parameter.rich_help_panel = panels[parameter.name]
        super().__init__(*arguments, params=params, **keywords)


PANELS = {
    "Meshes and pictures": "neutral units embed_camera turntable glb scalp texture_size resolution",
    "Camera": "focal_px principal_point refine_focal",
    "Reconstruction": "mode model encoder device detail detail_mode detail_network max_faces max_megapixels seed",
    "Many photos": "manifest same_person group_by resume jobs engine ray_address",
}
"""Names of the parameters in each group."""


def reconstruct(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help='Photos, folders, patterns such as "*.jpg", URLs, or - for standard input.', show_default=False
        ),
    ] = None,
    *,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="PLACE",
            help="Folder of the results, or FILE.glb, .obj, .ply, .usdz or .vrm for one face. With --engine ray also "
            "an address.",
        ),
    ] = "out",
    manifest: ManifestOption = None,
    formats: FormatsOption = None,
    parts: PartsOption = FACE,
    neutral: NeutralOption = False,
    units: UnitsOption = Units.M,
    embed_camera: CameraOption = False,
    turntable: TurntableOption = None,
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    detail: DetailOption = True,
    max_faces: Annotated[int | None, typer.Option(min=1, help="Maximum number of faces per photo.")] = None,
    seed: SeedOption = 0,
    resolution: ResolutionOption = 224,
    texture_size: TextureSizeOption = None,
    focal_px: FocalOption = None,
    principal_point: PrincipalPointOption = None,
    max_megapixels: Annotated[
        float,
        typer.Option(min=1, callback=finite, help="Maximum size of a photo in megapixels. Larger JPEGs are reduced."),
    ] = 64,
    refine_focal: Annotated[bool, typer.Option("--refine-focal", help="Let the fit change the focal length.")] = False,
    mode: ModeOption = None,
    encoder: EncoderOption = None,
    detail_mode: DetailModeOption = None,
    detail_network: DetailNetworkOption = None,
    glb: GlbOption = GlbMorphs.SPARSE,
    scalp: ScalpOption = Scalp.HAIR,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes, with one thread each. Default: one per core; for one photo, --same-person or a "
            "GPU, one process with all threads.",
            show_default=False,
        ),
    ] = None,
    engine: EngineOption = Engine.LOCAL,
    ray_address: RayAddressOption = None,
    same_person: Annotated[
        bool, typer.Option("--same-person", help="All photos show one person: one face from all of them.")
    ] = False,
    group_by: Annotated[
        GroupBy | None,
        typer.Option(
            "--group-by",
            metavar="[folder]",
            help="folder: the photos of each folder show one person, one face per folder.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip photos, or people, that an earlier run finished with the same options."),
    ] = False,
    quiet: QuietOption = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON object per photo, and no table.")] = False,
) -> None:
    """Reconstruct the faces of photos: OUT/PHOTO/face0/face.glb and more, and OUT/summary.csv.

    With --same-person or --group-by folder, the photos of a person give one face, in OUT/PERSON/face0.

    If OUT ends in .glb, .obj, .ply, .usdz or .vrm, only the mesh of the photo's most prominent face is written.

    If a photo fails, the others are still reconstructed, and the exit code is 1. Results of earlier runs stay.
    """
    ray = ray_settings(engine, ray_address, jobs=jobs, device=device)
    place = output_place(out, ray)
    paths = list_photos(photos, manifest, place)
    if ray is not None:
        place, paths = from_any_folder(place, paths)
    given = {
        "--formats": formats,
        "--turntable": turntable,
        "--json": json_lines,
        "--resume": resume,
        "--engine": ray,
        "--jobs": jobs,
    }
    to_file = one_mesh_file(Path(out), paths, folder_options=[option for option, value in given.items() if value])
    settings = PhotoSettings(
        model=model,
        device=device,
        detail=detail,
        resolution=resolution,
        texture_size=texture_size,
        seed=seed,
        max_faces=1 if to_file else max_faces,
        refine_focal=refine_focal,
        mode=None if mode is None else mode.value,
        encoder=encoder,
        detail_mode=None if detail_mode is None else detail_mode.value,
        detail_network=detail_network,
        focal_px=focal_px,
        principal_point_px=principal_point,
        max_pixels=round(max_megapixels * 1e6),
        formats=all_formats(formats, turntable),
        parts=parts,
        neutral=neutral,
        units=units.value,
        embed_camera=embed_camera,
        glb=glb.value,
        scalp=scalp.value,
    )
    check_mesh_options(settings.mesh_options, Path(out), settings.formats)
    report = Report.JSON if json_lines else Report.NOTHING if quiet else Report.TABLE
    together = same_person or group_by is not None
    if together:
        check_one_way(same_person, group_by, place, to_file=to_file, max_faces=max_faces)
    if to_file:
        _to_file(paths[0], settings, Path(out), quiet=quiet)
        return
    reporter = Reporter(place, paths, report=report, bar=not quiet)
    with reporter.showing(), sigterm_exits(), open_place(place) as output:
        if together:
            folders = person_folders(paths, output, by_folder=group_by is not None)
            several = len(folders) > 1
        else:
            folders, several = map(output.folder_of, paths), len(paths) > 1
        if jobs is None and several and device == "cpu":
            jobs = core_count()
        if ray is not None:
            outcomes = reconstruct_on_ray(folders, settings, ray=ray)
        else:
            waiting = _waiting(folders, settings, output.table, reporter, resume=resume)
            if jobs is None or jobs == 1:
                outcomes = reconstruct_here(waiting, settings, threads=jobs, progress=reporter.stage)
            else:
                outcomes = reconstruct_in_processes(waiting, settings, jobs=jobs)
        with closing(outcomes), wrong_usage():
            for outcome in outcomes:
                _report(outcome, output.table, reporter)
    if reporter.failed:
        raise typer.Exit(1)


def _to_file(path: Path | RemotePhoto, settings: PhotoSettings, out: Path, *, quiet: bool) -> None:
    from mien.io.photo_arguments import read_argument

    with activity(f"reconstructing {printable(path.name)}", quiet=quiet), wrong_usage():
        reconstructor = settings.reconstructor()
        reconstruct_photo = partial(
            reconstructor, focal_px=settings.focal_px, principal_point_px=settings.principal_point_px
        )
        photo = read_argument(path, max_pixels=settings.max_pixels)
        reconstruct_to_file(reconstruct_photo, photo, out, model=reconstructor.model, options=settings.mesh_options)
    if not quiet:
        typer.echo(printable(f"{path}: the most prominent face is in {out}"))


def _redone(changed: str) -> str:
    return f"photos that were done with other options are reconstructed again: {changed}"


def _report(outcome: Outcome, table: SummaryTable, reporter: Reporter) -> None:
    outcome.show_warnings()
    if outcome.changed:
        reporter.note(_redone(outcome.changed))
    for row in outcome.rows:
        table.add(row)
        (reporter.skipped if outcome.earlier else reporter.done)(row)


def _waiting(
    folders: Iterable[ResultFolder | AddressFolder],
    settings: PhotoSettings,
    table: SummaryTable,
    reporter: Reporter,
    *,
    resume: bool,
) -> Iterator[ResultFolder]:
    """The photos or people that are not done, each when its turn comes."""
    for folder in folders:
        assert isinstance(folder, ResultFolder)  # addresses are for Ray alone
        if not (resume and _skip(folder, settings.options, table, reporter)):
            reporter.begin(folder)
            yield folder


def _skip(folder: ResultFolder, options: Options, table: SummaryTable, reporter: Reporter) -> bool:
    """Skip what an earlier run finished; rows that a killed run did not write are added to the table."""
    rows, changed = folder.earlier(options)
    if changed:
        reporter.note(_redone(changed))
    for row in rows or ():
        if not table.has(row):
            table.add(row)
        reporter.skipped(row)
    return rows is not None
