"""Options of work on many machines: which photos, from where, to where, and what runs the processes."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands)

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli.options import wrong_usage
from mien.io.addresses import local_path
from mien.scale.addresses import AddressOutput, is_address, open_address
from mien.scale.output_folder import OutputFolder, open_output
from mien.scale.ray_engine import RaySettings

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto
    from mien.training.data.prepare import PhotoEntry


class Engine(str, enum.Enum):
    """The choices of --engine."""

    LOCAL, RAY = "local", "ray"


EngineOption = Annotated[
    Engine,
    typer.Option(
        metavar="[local|ray]",
        help="What runs the processes. ray: Ray, on this machine or a cluster; finished work is skipped.",
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Cluster of --engine ray, or auto. Default: start Ray on this machine."),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(help="List of photos instead of arguments: .csv with a column photo, or .jsonl with the key photo."),
]


def output_place(out: str, ray: RaySettings | None) -> Path | str:
    """The value of --out: a path, or an address that is not of this machine.

    Raises:
        typer.BadParameter: It is an address, and the engine is not Ray.
    """
    if not is_address(out):
        return local_path(out) or Path(out)
    if ray is None:
        raise typer.BadParameter(f"{out} is an address; add --engine ray, or give a folder", param_hint="'--out'")
    return out


def list_photos(photos: Sequence[str] | None, manifest: Path | None, out: Path | str) -> list[Path | RemotePhoto]:
    """The photos of the arguments or the manifest.

    Args:
        photos: The arguments.
        manifest: The value of --manifest.
        out: The place of the results, which is left out.

    Raises:
        typer.BadParameter: Both are given, or none.
        MienError: As `find_arguments` and `read_manifest`.
    """
    if bool(photos) == (manifest is not None):
        raise typer.BadParameter("give photos, or a list of them with --manifest", param_hint="'photos'")
    from mien.io.manifest import read_manifest
    from mien.io.photo_arguments import find_arguments

    if manifest is not None:
        with wrong_usage("--manifest"):
            return read_manifest(manifest)
    with wrong_usage("photos"):
        return find_arguments(photos or (), skip=out if isinstance(out, Path) else None)


def list_entries(
    folder: Path | None, manifest: Path | None, out: Path | str, *, table: Path | None
) -> list[PhotoEntry]:
    """The photos of a store, from a folder or a manifest.

    Args:
        folder: The folder.
        manifest: The value of --manifest; the names of its photos begin at its folder, if they are in it.
        out: The place of the store, which is left out.
        table: Identities and ages, see `mien.training.data.prepare.list_photos`.

    Raises:
        typer.BadParameter: Both are given, or none.
        MienError: As `list_photos` and `read_manifest`.
    """
    from mien.training.data.prepare import list_photos as photos_of
    from mien.training.data.prepare import photo_entries

    if folder is not None and manifest is None:
        return photos_of(folder.absolute(), table=table, skip=out if isinstance(out, Path) else None)
    photos = list_photos(None if folder is None else [str(folder)], manifest, out)
    root = Path() if manifest is None else manifest.parent.absolute()
    return photo_entries([(_address(photo), _name(photo, root)) for photo in photos], table=table)


def _address(photo: Path | RemotePhoto) -> str:
    return str(photo) if isinstance(photo, Path) else photo.address


def _name(photo: Path | RemotePhoto, root: Path) -> str:
    if isinstance(photo, Path) and photo.is_relative_to(root):
        return photo.relative_to(root).as_posix()
    return str(photo)


def ray_settings(engine: Engine, address: str | None, *, jobs: int | None, device: str = "cpu") -> RaySettings | None:
    """Where Ray runs; None for the local engine.

    Raises:
        typer.BadParameter: There is an address for the local engine, or the device is one of several GPUs.
    """
    if engine is Engine.RAY:
        if ":" in device:
            raise typer.BadParameter("each process of Ray sees one GPU; use --device cuda", param_hint="'--device'")
        return RaySettings(address, jobs, gpu=device != "cpu")
    if address is not None:
        raise typer.BadParameter("is only for --engine ray", param_hint="'--ray-address'")
    return None


def open_place(out: Path | str) -> AbstractContextManager[OutputFolder | AddressOutput]:
    """Open the place of the results."""
    return open_output(out) if isinstance(out, Path) else open_address(out)


def from_any_folder(
    out: Path | str, photos: Sequence[Path | RemotePhoto]
) -> tuple[Path | str, list[Path | RemotePhoto]]:
    """The place and the photos for processes of other folders: absolute paths, and the content of standard input."""
    place = out.absolute() if isinstance(out, Path) else out
    return place, [photo.absolute() if isinstance(photo, Path) else photo.read_here() for photo in photos]
