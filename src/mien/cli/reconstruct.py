"""The command `mien reconstruct`."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the command), PLR0917 (options are named by typer)

from __future__ import annotations

import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    ResolutionOption,
    SeedOption,
    wrong_usage,
)
from mien.cli.summary import PhotoRow, show_rows, summary_file
from mien.cli.terminal import printable, progress_bar, stdout
from mien.errors import FaceLeftOut, MienError

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto
    from mien.pipeline import Reconstructor


def reconstruct(
    photos: Annotated[
        list[str],
        typer.Argument(
            help='Photos, folders, patterns such as "*.jpg", URLs, or - for standard input.', show_default=False
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("out"),
    model: ModelOption = "mien-face",
    device: DeviceOption = "cpu",
    detail: DetailOption = True,
    max_faces: Annotated[int | None, typer.Option(min=1, help="Maximum number of faces per photo.")] = None,
    seed: SeedOption = 0,
    resolution: ResolutionOption = 224,
    focal_px: FocalOption = None,
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

    If a photo fails, the others are still reconstructed, and the exit code is 1.
    """
    from mien.io.photo import output_stems
    from mien.io.photo_arguments import find_arguments
    from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
    from mien.pipeline import Reconstructor

    with wrong_usage("photos"):
        paths = find_arguments(photos, skip=out)
    console = stdout()
    with summary_file(out) as write_row:
        with console.status("loading the model"), wrong_usage():
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
        with progress_bar(console, len(paths)) as progress:
            task = progress.add_task("", total=len(paths))
            names = [path if isinstance(path, Path) else path.path for path in paths]
            for path, name, stem in zip(paths, names, output_stems(names), strict=True):
                progress.update(task, description=printable(name.name))
                row = _reconstruct_one(
                    reconstructor,
                    path,
                    out / stem,
                    focal_px=focal_px,
                    max_megapixels=max_megapixels,
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
    path: Path | RemotePhoto,
    folder: Path,
    *,
    focal_px: float | None,
    max_megapixels: float,
    glb: str,
) -> PhotoRow:
    from mien.export import write_reconstruction
    from mien.io.photo_arguments import read_argument

    start = time.perf_counter()
    try:
        photo = read_argument(path, max_pixels=round(max_megapixels * 1e6))
        with _left_out_faces() as left_out:
            faces = reconstructor(photo, focal_px=focal_px)
        for index, face in enumerate(faces):
            write_reconstruction(face, reconstructor.model, photo, folder / f"face{index}", morphs=glb)
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
