"""What `mien reconstruct` writes: the choice of --formats, and one mesh file instead of a folder."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands)

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mien.cli.options import wrong_usage
from mien.cli.terminal import printable, stderr
from mien.errors import ConfigError, FaceDoubtful
from mien.io.result_files import (
    DEFAULT_FORMATS,
    FORMATS,
    MESH_ENDINGS,
    VIDEO_FILE,
    MeshOptions,
    is_mesh_file,
    parse_formats,
    parse_parts,
)

if TYPE_CHECKING:
    from mien.io.photo import Photo
    from mien.io.photo_arguments import RemotePhoto
    from mien.morphable import MorphableModel
    from mien.result import Reconstruction


class Units(str, enum.Enum):
    """The choices of --units."""

    M, CM, MM = "m", "cm", "mm"


def _formats(value: str | None) -> str | None:
    with wrong_usage("--formats"):
        return None if value is None else ",".join(parse_formats(value))


def _parts(value: str) -> str:
    with wrong_usage("--parts"):
        return ",".join(parse_parts(value))


FormatsOption = Annotated[
    str | None,
    typer.Option(
        "--formats",
        callback=_formats,
        metavar="NAMES",
        help=f"Files per face, with commas: {', '.join(FORMATS)}. Default: {', '.join(DEFAULT_FORMATS)}.",
    ),
]
PartsOption = Annotated[
    str,
    typer.Option(
        "--parts",
        callback=_parts,
        metavar="[face|head|face,head]",
        help="What meshes show: the face, the whole head, or one file of each. vrm is always the head.",
    ),
]
NeutralOption = Annotated[
    bool, typer.Option("--neutral", help="Meshes show the neutral face instead of the photo's expression.")
]
UnitsOption = Annotated[
    Units,
    typer.Option("--units", metavar="[m|cm|mm]", help="Unit of lengths in OBJ, PLY and USD. GLB and VRM have metres."),
]
CameraOption = Annotated[
    bool,
    typer.Option(
        "--embed-camera", help="Put the photo's camera into GLB and USD, and the face where the camera saw it."
    ),
]


def check_mesh_options(options: MeshOptions, out: Path, formats: str | Sequence[str]) -> None:
    """Check that options of meshes have an effect on what is written.

    Args:
        options: The options.
        out: The value of --out.
        formats: The formats of files in folders, see `all_formats`.

    Raises:
        typer.BadParameter: An option changes no file, or one file would have to hold two meshes.
    """
    single = is_mesh_file(out)
    chosen = (MESH_ENDINGS[out.suffix.lower()],) if single else parse_formats(formats)
    with wrong_usage():
        options.check_effect(chosen)
    if single and len(options.parts) > 1:
        raise typer.BadParameter(f"{out} is one file, but there are two parts; choose one.", param_hint="--parts")


_NOT_WRITTEN = frozenset(
    {".fbx", ".gltf", ".stl", ".dae", ".blend", ".usd", ".usda", ".usdc", ".png", ".jpg", ".jpeg", ".zip"}
)
"""Endings that people give to files; a folder of this name would be a surprise."""


class Turntable(str, enum.Enum):
    """Files of --turntable."""

    WEBP = "webp"
    MP4 = "mp4"


TurntableOption = Annotated[
    Turntable | None,
    typer.Option(
        "--turntable",
        metavar="[webp|mp4]",
        show_default=False,
        help="Also write the turning head per face: turntable.webp, or turntable.mp4 (needs the extra video).",
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
        _check_folder_name(out)
        return False
    if len(paths) > 1:
        raise typer.BadParameter(
            f"{out} is one file, but there are {len(paths)} photos; give a folder.", param_hint="--out"
        )
    for option in folder_options:
        raise typer.BadParameter(f"--out {out} is one file; leave {option} out, or give a folder.", param_hint=option)
    return True


def _check_folder_name(out: Path) -> None:
    """Check that --out can be a folder: a folder anna.fbx would surprise its user."""
    if out.suffix.lower() in _NOT_WRITTEN:
        raise typer.BadParameter(
            f"mien does not write {out.suffix} ({out}); use {', '.join(MESH_ENDINGS)}, or a folder.", param_hint="--out"
        )
    if out.is_file():
        raise typer.BadParameter(
            f"{out} is a file; give a folder, or a file that ends in {', '.join(MESH_ENDINGS)}.", param_hint="--out"
        )


def reconstruct_to_file(
    reconstruct: Callable[[Photo], list[Reconstruction]],
    photo: Photo,
    out: Path,
    *,
    model: MorphableModel,
    options: MeshOptions,
) -> None:
    """Write the mesh of the most prominent face of a photo.

    Args:
        reconstruct: Makes the faces, the most prominent first.
        photo: The photo.
        out: The file to write; its ending is the format.
        model: The model of the faces.
        options: How the mesh is written.

    Raises:
        MienError: There is no face, or a file cannot be read or written.
    """
    from mien.export import write_mesh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaceDoubtful)  # a line says it below
        face = reconstruct(photo)[0]
    if face.quality is not None and face.quality.flags:
        stderr().print(Text(printable(f"note: {face.quality.advice()}")), soft_wrap=True)
    write_mesh(face, model, out, options)
