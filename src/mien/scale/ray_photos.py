"""Reconstructs photos and people on Ray. Those whose results are whole are skipped, so a run can always be repeated."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial

from mien.errors import MienError, WorkerDied
from mien.scale.addresses import AddressFolder
from mien.scale.output_folder import ResultFolder
from mien.scale.photo_work import PhotoSettings
from mien.scale.ray_engine import RaySettings, run_on_ray
from mien.scale.worker import Outcome, Worker, failed_rows


def reconstruct_on_ray(
    folders: Iterable[ResultFolder | AddressFolder], settings: PhotoSettings, *, ray: RaySettings
) -> Generator[Outcome, None, None]:
    """Reconstruct photos or people on Ray, in processes with one thread each.

    The files are those of one process with one thread, to the last bit. Paths must be absolute, and on a cluster they
    are those of a file system that all machines share.

    Args:
        folders: The photos or people, and where their files go.
        settings: How.
        ray: Where.

    Yields:
        The outcome of each, in the order in which they finish. If two processes died at one, the reason in its rows
        begins with WorkerDied.

    Raises:
        MienError: As `run_on_ray`, or the settings are wrong.
    """
    calls = {folder: (folder,) for folder in folders}
    with closing(run_on_ray(partial(PhotoResumer, settings), calls, settings=ray)) as outcomes:
        for folder, outcome in outcomes:
            if isinstance(outcome, WorkerDied):
                yield Outcome(failed_rows(folder, outcome, seconds=0.0))
            else:
                yield outcome


class PhotoResumer:
    """Reconstructs photos and people one by one, except those that are done.

    Args:
        settings: How.

    Raises:
        MienError: As `PhotoSettings.reconstructor`.
    """

    def __init__(self, settings: PhotoSettings) -> None:
        self._settings, self._work = settings, Worker(settings)

    def __call__(self, folder: ResultFolder | AddressFolder) -> Outcome:
        """Reconstruct into a folder unless it is done; if it fails, the rows say why.

        Args:
            folder: The photos and where the files go.
        """
        try:
            return self._resume(folder) if isinstance(folder, ResultFolder) else self._at_address(folder)
        except MienError as error:  # a place that cannot be written, or a damaged run.json
            return Outcome(failed_rows(folder, error, seconds=0.0))

    def _at_address(self, folder: AddressFolder) -> Outcome:
        with folder.here() as here:
            outcome = self._resume(here)
            if not outcome.earlier:
                folder.publish(here)
        rows = tuple(replace(row, results=folder.address if row.results else "") for row in outcome.rows)
        return replace(outcome, rows=rows)

    def _resume(self, folder: ResultFolder) -> Outcome:
        rows, changed = folder.earlier(self._settings.options)
        if rows is not None:
            return Outcome(rows, earlier=True)
        outcome = self._work(folder)
        return replace(outcome, changed=changed)
