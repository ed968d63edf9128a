"""The work on one result folder, of a photo or of a person: reconstruct, record what is whole, and make the rows.

`PhotoSettings` and a `ResultFolder` go to another process, and an `Outcome` comes back; all three can be pickled. A
`Worker` stays in its process, since it holds the face model and the networks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mien.errors import FaceDoubtful, FaceLeftOut, MienError
from mien.memory import typed_out_of_memory
from mien.scale.output_folder import PersonFolder, PhotoFolder, ResultFolder
from mien.scale.person_work import write_person
from mien.scale.photo_work import PhotoSettings, write_photo
from mien.scale.summary import PhotoRow

if TYPE_CHECKING:
    from mien.fitting import Progress
    from mien.pipeline import Reconstructor
    from mien.scale.addresses import AddressFolder


@dataclass(frozen=True)
class Outcome:
    """What became of a photo or a person."""

    rows: tuple[PhotoRow, ...]
    """The rows of the table, one per photo; the reason says what failed."""
    warnings: tuple[tuple[Warning, str, int], ...] = ()
    """Warnings for the user: the warning, the file and the line that gave it."""
    earlier: bool = False
    """Whether an earlier run made the results, and this one skipped them."""
    changed: str = ""
    """The options with which an earlier run made results that were replaced, see `changed_options`."""

    @property
    def row(self) -> PhotoRow:
        """The row of a single photo."""
        (row,) = self.rows
        return row

    def show_warnings(self) -> None:
        """Give the warnings again in this process, whose filters decide."""
        for message, filename, line in self.warnings:
            warnings.warn_explicit(message, type(message), filename, line)


class Worker:
    """Reconstructs photos and people one by one.

    Args:
        settings: How.
        reconstructor: That of the settings, if it is loaded already.
        progress: Is called with the stages of each photo or person, see `mien.fitting.Progress`.

    Raises:
        MienError: As `PhotoSettings.reconstructor`, or a head is asked for, and the face model has none.
    """

    def __init__(
        self, settings: PhotoSettings, *, reconstructor: Reconstructor | None = None, progress: Progress | None = None
    ) -> None:
        self.settings, self._progress = settings, progress
        self._reconstructor = reconstructor or settings.reconstructor()
        settings.check_head(self._reconstructor.model)

    def __call__(self, folder: ResultFolder) -> Outcome:
        """Reconstruct into a folder; if it fails, the rows say why.

        Args:
            folder: The photos and where the files go.
        """
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore", FaceDoubtful)  # the row has the flags
            try:
                content = folder.content()
                rows = self._write(folder, lambda: folder.begin(content, self.settings.options))
                if not any(row.reason.startswith(FaceLeftOut.__name__) for row in rows):
                    folder.finish(rows, content, self.settings.options)
            except MienError as error:
                folder.forget()
                rows = failed_rows(folder, error, seconds=time.perf_counter() - start)
        return Outcome(rows, tuple((_warning(found), found.filename, found.lineno) for found in caught))

    @typed_out_of_memory
    def _write(self, folder: ResultFolder, begin: Callable[[], None]) -> tuple[PhotoRow, ...]:
        if isinstance(folder, PersonFolder):
            return write_person(folder, self.settings, self._reconstructor, begin=begin, progress=self._progress)
        assert isinstance(folder, PhotoFolder)
        return (write_photo(folder, self.settings, self._reconstructor, begin=begin, progress=self._progress),)


def failed_rows(folder: ResultFolder | AddressFolder, error: MienError, *, seconds: float) -> tuple[PhotoRow, ...]:
    """The rows of a photo or person that failed.

    Args:
        folder: The photos.
        error: Why.
        seconds: The time it took.
    """
    photos = [photo for photo, _ in folder.places] if isinstance(folder, ResultFolder) else [folder.photo]
    each = seconds / len(photos)
    # A row already names its photo.
    reasons = [f"{type(error).__name__}: {str(error).removeprefix(f'{photo}: ')}" for photo in photos]
    return tuple(PhotoRow(str(p), 0, each, None, None, "", reason) for p, reason in zip(photos, reasons, strict=True))


def _warning(found: warnings.WarningMessage) -> Warning:
    return found.message if isinstance(found.message, Warning) else found.category(found.message)
