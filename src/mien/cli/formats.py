"""What `mien reconstruct` writes: the choice of --formats, and one mesh file instead of a folder."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands)

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.errors import ConfigError
from mien.io.result_files import DEFAULT_FORMATS, FORMAT_FILES, VIDEO_FILE, is_mesh_file, parse_formats

if TYPE_CHECKING:
    from mien.io.photo import Photo
    from mien.io.photo_arguments import RemotePhoto
    from mien.morphable import MorphableModel
    from mien.result import Reconstruction


def _checked(formats: str | None) -> str | None:
    try:
        return None if formats is None else ",".join(parse_formats(formats))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


FormatsOption = Annotated[
    str | None,
    typer.Option(
        "--formats",
        callback=_checked,
        metavar="NAMES",
        help=f"Files per face, with commas: {', '.join(FORMAT_FILES)}. Default: {', '.join(DEFAULT_FORMATS)}.",
    ),
]


class Turntable(str, enum.Enum):
    """Files of --turntable."""

    WEBP = "webp"
    MP4 = "mp4"


TurntableOption = Annotated[
    Turntable | None,
    typer.Option(
        "--turntable",
        show_default=False,
        help="Also write the turning head per face: turntable.webp, or turntable.mp4 (needs mien[video]).",
    ),
]
_TURNTABLE_FORMATS = {Turntable.WEBP: "turntable", Turntable.MP4: "video"}


def all_formats(formats: str | None, turntable: Turntable | None) -> tuple[str, ...]:
    """The formats of --formats and --turntable together.

    Args:
        formats: The value of --formats.
        turntable: The value of --turntable.

    Raises:
        typer.BadParameter: A video is wanted, and PyAV is not installed.
    """
    from mien.io.animation import check_animation

    chosen = parse_formats(formats or DEFAULT_FORMATS)
    if turntable is not None:
        chosen = parse_formats([*chosen, _TURNTABLE_FORMATS[turntable]])
    if "video" in chosen:
        try:
            check_animation(Path(VIDEO_FILE))
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error
    return chosen


def one_mesh_file(out: Path, paths: Sequence[Path | RemotePhoto], *, folder_options: Sequence[str]) -> bool:
    """Whether --out names one mesh file instead of a folder.

    Args:
        out: The value of --out.
        paths: The photos.
        folder_options: The given options that need a folder.

    Raises:
        typer.BadParameter: One file cannot hold the results, or an option needs a folder.
    """
    if not is_mesh_file(out):
        return False
    if len(paths) > 1:
        raise typer.BadParameter(
            f"{out} is one file, but there are {len(paths)} photos; give a folder.", param_hint="--out"
        )
    for option in folder_options:
        raise typer.BadParameter(f"--out {out} is one file; leave {option} out, or give a folder.", param_hint=option)
    return True


def reconstruct_to_file(
    reconstruct: Callable[[Photo], list[Reconstruction]], photo: Photo, out: Path, *, model: MorphableModel, glb: str
) -> None:
    """Write the mesh of the most prominent face of a photo.

    Args:
        reconstruct: Makes the faces, the most prominent first.
        photo: The photo.
        out: The file to write; its ending is the format.
        model: The model of the faces.
        glb: How a GLB stores its morph targets.

    Raises:
        MienError: There is no face, or a file cannot be read or written.
    """
    from mien.export import write_mesh

    write_mesh(reconstruct(photo)[0], model, out, morphs=glb)
