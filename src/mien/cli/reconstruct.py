"""The command `mien reconstruct`."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the command), PLR0917 (options are named by typer)

from __future__ import annotations

import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
    GlbMorphs,
    GlbOption,
    Mode,
    ModelOption,
    ModeOption,
    SeedOption,
)
from mien.cli.summary import PhotoRow, show_rows, summary_file
from mien.cli.terminal import printable, progress_bar, stdout
from mien.errors import FaceLeftOut, MienError
from mien.io.result_files import DEFAULT_FORMATS, is_result

if TYPE_CHECKING:
    from mien.pipeline import Reconstructor


def reconstruct(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
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
    resolution: Annotated[int, typer.Option(help="Side of the detail maps in texels: 224, 512 or 1024.")] = 224,
    focal_px: Annotated[
        float | None, typer.Option(help="Focal length in pixels. Default: from EXIF, or a field of view of 30°.")
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(min=1, help="Maximum size of a photo in megapixels. Larger JPEGs are reduced.")
    ] = 64,
    refine_focal: Annotated[bool, typer.Option("--refine-focal", help="Let the fit change the focal length.")] = False,
    mode: ModeOption = Mode.FIT,
    encoder: EncoderOption = None,
    detail_mode: DetailModeOption = None,
    detail_network: DetailNetworkOption = None,
    glb: GlbOption = GlbMorphs.SPARSE,
) -> None:
    """Reconstruct the faces of photos: OUT/PHOTO/face0/face.glb and more, and OUT/summary.csv.

    If OUT ends in .glb, .obj or .ply, it becomes the mesh of the photo's most prominent face, and nothing else is
    written.

    If a photo fails, the others are still reconstructed, and the exit code is 1.
    """
    from mien.io.photo import find_photos, output_stems
    from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    paths = find_photos(photos, skip=out)
    console = stdout()
    to_file = one_mesh_file(out, paths, formats)
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
    if to_file:
        with console.status(f"reconstructing {printable(paths[0].name)}"):
            reconstruct_to_file(make_reconstructor(), paths[0], out, focal_px=focal_px, glb=glb.value)
        return
    with summary_file(out) as write_row:
        with console.status("loading the model"):
            reconstructor = make_reconstructor()
        rows = []
        with progress_bar(console, len(paths)) as progress:
            task = progress.add_task("", total=len(paths))
            for path, stem in zip(paths, output_stems(paths), strict=True):
                progress.update(task, description=printable(path.name))
                row = _reconstruct_one(
                    reconstructor,
                    path,
                    out / stem,
                    focal_px=focal_px,
                    max_megapixels=max_megapixels,
                    formats=formats,
                    glb=glb.value,
                )
                rows.append(row)
                write_row(rows[-1])
                progress.advance(task)
    show_rows(console, rows, out)
    if any(row.reason for row in rows):
        raise typer.Exit(1)


def _reconstruct_one(
    reconstructor: Reconstructor,
    path: Path,
    folder: Path,
    *,
    focal_px: float | None,
    max_megapixels: float,
    formats: str | None,
    glb: str,
) -> PhotoRow:
    from mien.export import write_reconstruction
    from mien.io.photo import read_photo

    start = time.perf_counter()
    try:
        photo = read_photo(path, max_pixels=round(max_megapixels * 1e6))
        with _left_out_faces() as left_out:
            faces = reconstructor(photo, focal_px=focal_px)
        for index, face in enumerate(faces):
            write_reconstruction(
                face, reconstructor.model, photo, folder / f"face{index}", formats or DEFAULT_FORMATS, morphs=glb
            )
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
    for old in folder.glob("face*"):
        numbered = re.fullmatch(r"face(\d+)", old.name)
        if numbered and int(numbered[1]) >= count and is_result(old):
            shutil.rmtree(old, ignore_errors=True)
