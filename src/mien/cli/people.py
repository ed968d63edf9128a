"""`mien reconstruct` for several photos of one person: --same-person and --group-by."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mien.cli.options import wrong_usage
from mien.cli.progress import Report, Reporter
from mien.cli.terminal import sigterm_exits
from mien.scale.output_folder import open_output
from mien.scale.person_work import PersonWorker, people_of
from mien.scale.photo_work import PhotoSettings

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto


class GroupBy(str, enum.Enum):
    """The choices of --group-by."""

    FOLDER = "folder"


def check_one_way(same_person: bool, group_by: GroupBy | None, *, not_used: Sequence[str]) -> None:
    """Check the options of a joint reconstruction.

    Args:
        same_person: The value of --same-person.
        group_by: The value of --group-by.
        not_used: Other given options that a joint reconstruction does not use.

    Raises:
        typer.BadParameter: Both are given, or an option that is not used.
    """
    name = "--same-person" if same_person else "--group-by"
    if same_person and group_by is not None:
        raise typer.BadParameter("gives one person, --group-by several; leave one of them out", param_hint=f"'{name}'")
    if not_used:
        raise typer.BadParameter(f"does not use {', '.join(not_used)}; leave it out", param_hint=f"'{name}'")


def reconstruct_people(
    photos: Sequence[Path | RemotePhoto],
    settings: PhotoSettings,
    out: Path,
    *,
    by_folder: bool,
    report: Report,
    bar: bool,
) -> None:
    """Reconstruct people from several photos each, and print the results.

    Args:
        photos: All photos.
        settings: How.
        out: The folder of all results.
        by_folder: Whether each folder of photos is one person; otherwise all photos are.
        report: What goes to stdout.
        bar: Whether to show progress.

    Raises:
        typer.Exit: A photo or a person failed; code 1.
    """
    reporter = Reporter(out, photos, report=report, bar=bar)
    with reporter.showing(), sigterm_exits(), open_output(out) as output, wrong_usage():
        people = people_of(photos, out, by_folder=by_folder)
        worker = PersonWorker(settings, progress=reporter.stage)
        for person in people:
            reporter.begin(person.photos[0])
            for row in worker(person):
                output.table.add(row)
                reporter.done(row)
    if reporter.failed:
        raise typer.Exit(1)
