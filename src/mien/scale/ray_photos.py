"""Reconstructs photos on Ray. Photos whose results are whole are skipped, so a run can always be repeated."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial

from mien.errors import MienError, WorkerDied
from mien.scale.addresses import AddressFolder
from mien.scale.output_folder import PhotoFolder
from mien.scale.photo_work import PhotoOutcome, PhotoSettings, PhotoWorker, failed_row
from mien.scale.ray_engine import RaySettings, run_on_ray


def reconstruct_on_ray(
    folders: Iterable[PhotoFolder | AddressFolder], settings: PhotoSettings, *, ray: RaySettings
) -> Generator[PhotoOutcome, None, None]:
    """Reconstruct photos on Ray, in processes with one thread each.

    The files are those of one process with one thread, to the last bit. Paths must be absolute, and on a cluster they
    are those of a file system that all machines share.

    Args:
        folders: The photos and where their files go.
        settings: How.
        ray: Where.

    Yields:
        The outcome of each photo, in the order in which they finish. If two processes died at a photo, the reason in
        its row begins with WorkerDied.

    Raises:
        MienError: As `run_on_ray`, or the settings are wrong.
    """
    calls = {folder: (folder,) for folder in folders}
    with closing(run_on_ray(partial(PhotoResumer, settings), calls, settings=ray)) as outcomes:
        for folder, outcome in outcomes:
            if isinstance(outcome, WorkerDied):
                yield PhotoOutcome(failed_row(folder, outcome, seconds=0.0))
            else:
                yield outcome


class PhotoResumer:
    """Reconstructs photos one by one, except those that are done.

    Args:
        settings: How.

    Raises:
        MienError: As `PhotoSettings.reconstructor`.
    """

    def __init__(self, settings: PhotoSettings) -> None:
        self._settings, self._work = settings, PhotoWorker(settings)

    def __call__(self, folder: PhotoFolder | AddressFolder) -> PhotoOutcome:
        """Reconstruct a photo into its folder unless it is done; if it fails, the row says why.

        Args:
            folder: The photo and where its files go.
        """
        try:
            return self._resume(folder) if isinstance(folder, PhotoFolder) else self._at_address(folder)
        except MienError as error:  # a place that cannot be written, or a damaged run.json
            return PhotoOutcome(failed_row(folder, error, seconds=0.0))

    def _at_address(self, folder: AddressFolder) -> PhotoOutcome:
        with folder.here() as here:
            outcome = self._resume(here)
            if not outcome.earlier:
                folder.publish(here)
        results = folder.address if outcome.row.results else ""
        return replace(outcome, row=replace(outcome.row, results=results))

    def _resume(self, folder: PhotoFolder) -> PhotoOutcome:
        row, changed = folder.earlier(self._settings.options)
        if row is not None:
            return PhotoOutcome(row, earlier=True)
        outcome = self._work(folder)
        return replace(outcome, changed=changed)
