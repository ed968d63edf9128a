"""The command `mien reconstruct`."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the command), PLR0917 (options are named by typer)

from __future__ import annotations

import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli.formats import FormatsOption, one_mesh_file, reconstruct_to_file
from mien.cli.options import (
    DetailModeOption,
    DetailNetworkOption,
    DetailOption,
    DeviceOption,
    EncoderOption,
    FocalOption,
    GlbMorphs,
    GlbOption,
    Mode,
    ModelOption,
    ModeOption,
    PrincipalPointOption,
    QuietOption,
    ResolutionOption,
    SeedOption,
    finite,
    wrong_usage,
)
from mien.cli.output_folder import PhotoFolder, open_output
from mien.cli.progress import Report, Reporter
from mien.cli.run_record import Options, file_sha256, result_options
from mien.cli.summary import PhotoRow, SummaryTable
from mien.cli.terminal import activity, printable
from mien.errors import FaceLeftOut, MienError
from mien.io.result_files import DEFAULT_FORMATS, is_result
from mien.memory import typed_out_of_memory

if TYPE_CHECKING:
    from mien.io.photo import Photo
    from mien.io.photo_arguments import RemotePhoto
    from mien.result import Reconstruction


def reconstruct(
    photos: Annotated[
        list[str],
        typer.Argument(
            help='Photos, folders, patterns such as "*.jpg", URLs, or - for standard input.', show_default=False
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results, or FILE.glb, .obj or .ply for one face.")
    ] = Path("out"),
    formats: FormatsOption = None,
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    detail: DetailOption = True,
    max_faces: Annotated[int | None, typer.Option(min=1, help="Maximum number of faces per photo.")] = None,
    seed: SeedOption = 0,
    resolution: ResolutionOption = 224,
    focal_px: FocalOption = None,
    principal_point: PrincipalPointOption = None,
    max_megapixels: Annotated[
        float,
        typer.Option(min=1, callback=finite, help="Maximum size of a photo in megapixels. Larger JPEGs are reduced."),
    ] = 64,
    refine_focal: Annotated[bool, typer.Option("--refine-focal", help="Let the fit change the focal length.")] = False,
    mode: ModeOption = Mode.FIT,
    encoder: EncoderOption = None,
    detail_mode: DetailModeOption = None,
    detail_network: DetailNetworkOption = None,
    glb: GlbOption = GlbMorphs.SPARSE,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip photos that an earlier run finished with the same options.")
    ] = False,
    quiet: QuietOption = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON object per photo, and no table.")] = False,
) -> None:
    """Reconstruct the faces of photos: OUT/PHOTO/face0/face.glb and more, and OUT/summary.csv.

    If OUT ends in .glb, .obj or .ply, only the mesh of the photo's most prominent face is written.

    If a photo fails, the others are still reconstructed, and the exit code is 1. Results of earlier runs stay.
    """
    parameters = dict(locals())  # all of them, so that a new option is not forgotten in run.json

    from mien.export import write_reconstruction
    from mien.io.photo_arguments import find_arguments, read_argument
    from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    with wrong_usage("photos"):
        paths = find_arguments(photos, skip=out)
    given = (("--formats", formats is not None), ("--json", json_lines), ("--resume", resume))
    to_file = one_mesh_file(out, paths, folder_options=[option for option, is_given in given if is_given])
    make_reconstructor = partial(
        Reconstructor,
        model=model,
        device=device,
        detail=detail,
        resolution=resolution,
        seed=seed,
        max_faces=1 if to_file else max_faces,
        refine_focal=refine_focal,
        mode=mode.value,
        encoder=encoder or DEFAULT_ENCODER,
        detail_mode=None if detail_mode is None else detail_mode.value,
        detail_network=detail_network or DEFAULT_DETAIL,
    )
    read = partial(read_argument, max_pixels=round(max_megapixels * 1e6))
    if to_file:
        with activity(f"reconstructing {printable(paths[0].name)}", quiet=quiet), wrong_usage():
            reconstructor = make_reconstructor()
            reconstruct_photo = partial(reconstructor, focal_px=focal_px, principal_point_px=principal_point)
            reconstruct_to_file(reconstruct_photo, read(paths[0]), out, model=reconstructor.model, glb=glb.value)
        return
    report = Report.JSON if json_lines else Report.NOTHING if quiet else Report.TABLE
    reporter = Reporter(out, len(paths), report=report, bar=not quiet)
    with reporter.showing(), open_output(out) as output:
        with wrong_usage():
            reconstructor = make_reconstructor()
        run = _Run(
            read=read,
            reconstruct=partial(
                reconstructor, focal_px=focal_px, principal_point_px=principal_point, progress=reporter.stage
            ),
            write=partial(
                write_reconstruction,
                model=reconstructor.model,
                formats=formats or DEFAULT_FORMATS,
                morphs=glb.value,
            ),
            options=result_options(parameters),
            reporter=reporter,
        )
        for path in paths:
            folder = output.folder_of(path)
            if not (resume and run.skip(folder, output.table)):
                run.process(folder, output.table)
    if reporter.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Run:
    """What the photos of one run share."""

    read: Callable[[Path | RemotePhoto], Photo]
    reconstruct: Callable[[Photo], list[Reconstruction]]
    write: Callable[..., None]
    """`write_reconstruction` with the options of the command."""
    options: Options
    reporter: Reporter

    def skip(self, folder: PhotoFolder, table: SummaryTable) -> bool:
        """Skip a photo that an earlier run finished; a row that a killed run did not write is added to the table."""
        row, changed = folder.earlier(self.options)
        if changed:
            self.reporter.note(f"photos that were done with other options are reconstructed again: {changed}")
        if row is None:
            return False
        if not table.has(row):
            table.add(row)
        self.reporter.skipped(row)
        return True

    def process(self, folder: PhotoFolder, table: SummaryTable) -> None:
        """Reconstruct a photo; if it fails, the table has the reason."""
        self.reporter.begin(folder.photo)
        row = self._reconstruct(folder)
        table.add(row)
        self.reporter.done(row)

    def _reconstruct(self, folder: PhotoFolder) -> PhotoRow:
        path, start = folder.photo, time.perf_counter()
        try:
            content = file_sha256(path)
            with _left_out_faces() as left_out:
                faces = self._write_faces(folder, content)
            row = PhotoRow(
                photo=str(path),
                faces=len(faces),
                seconds=time.perf_counter() - start,
                landmark_error=sum(face.landmark_error for face in faces) / len(faces),
                photometric_error=sum(face.photometric_error for face in faces) / len(faces),
                results=str(folder.path),
                reason="; ".join(f"{FaceLeftOut.__name__}: {message}" for message in left_out),
            )
            if not row.reason:
                folder.finish(row, content, self.options)
        except MienError as error:
            reason = str(error)
            # The row already names the photo.
            reason = f"{type(error).__name__}: {reason.removeprefix(f'{path}: ')}"
            folder.forget()
            return PhotoRow(str(path), 0, time.perf_counter() - start, None, None, "", reason)
        return row

    @typed_out_of_memory
    def _write_faces(self, folder: PhotoFolder, content: str) -> list[Reconstruction]:
        self.reporter.stage("reading", 0.0)
        photo = self.read(folder.photo)
        faces = self.reconstruct(photo)
        folder.begin(content, self.options)
        for index, face in enumerate(faces):
            self.reporter.stage("writing", index / len(faces))
            self.write(face, photo=photo, folder=folder.path / f"face{index}")
        _remove_stale_faces(folder.path, len(faces))
        return faces


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
    for old in folder.glob("face*"):
        numbered = re.fullmatch(r"face(\d+)", old.name)
        if numbered and int(numbered[1]) >= count and is_result(old):
            shutil.rmtree(old, ignore_errors=True)
