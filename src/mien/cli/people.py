"""`mien reconstruct` for several photos of one person: --same-person and --group-by."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mien.cli.options import wrong_usage
from mien.scale.addresses import AddressOutput
from mien.scale.output_folder import OutputFolder, PersonFolder
from mien.scale.person_work import people_of

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto


class GroupBy(str, enum.Enum):
    """The choices of --group-by."""

    FOLDER = "folder"


def check_one_way(
    same_person: bool, group_by: GroupBy | None, out: Path | str, *, to_file: bool, max_faces: int | None
) -> None:
    """Check the options of a joint reconstruction.

    Args:
        same_person: The value of --same-person.
        group_by: The value of --group-by.
        out: The value of --out.
        to_file: Whether it is one mesh file.
        max_faces: The value of --max-faces.

    Raises:
        typer.BadParameter: Both are given, `out` is no folder, or --max-faces is given.
    """
    name = "--same-person" if same_person else "--group-by"
    if same_person and group_by is not None:
        raise typer.BadParameter("gives one person, --group-by several; leave one of them out", param_hint=f"'{name}'")
    if to_file:
        raise typer.BadParameter(f"{out} is a file; give a folder for the results of a person", param_hint="'--out'")
    if not isinstance(out, Path):
        advice = f"{out} is an address; {name} writes folders: give one that all machines see, and copy it there"
        raise typer.BadParameter(advice, param_hint="'--out'")
    if max_faces is not None:
        raise typer.BadParameter("does not use --max-faces; leave it out", param_hint=f"'{name}'")


def person_folders(
    photos: Sequence[Path | RemotePhoto], output: OutputFolder | AddressOutput, *, by_folder: bool
) -> list[PersonFolder]:
    """The people of a run, and where the files of each go.

    Args:
        photos: All photos.
        output: The folder of all results.
        by_folder: Whether each folder of photos is one person; otherwise all photos are.

    Raises:
        typer.BadParameter: A photo is in no folder.
        FormatError: A run.json cannot be read.
    """
    assert isinstance(output, OutputFolder)  # see check_one_way
    with wrong_usage("--group-by"):
        people = people_of(photos, by_folder=by_folder)
    return [output.folder_of_person(owner, members) for owner, members in people.items()]
