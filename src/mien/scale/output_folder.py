"""The folder of all results: its lock, its table, and which folder below it belongs to which photo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mien.io.folder_lock import HOLDER_FILE, LOCK_FILE, locked_folder
from mien.scale.run_record import Options, RunRecord, changed_options, file_sha256, read_record
from mien.scale.summary import SUMMARY_FILE, PhotoRow, SummaryTable, absolute_path, photo_key

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto

# "..jpg" and "...jpg" have stems that are paths out of the output folder.
_RESERVED_NAMES = frozenset({SUMMARY_FILE, LOCK_FILE, HOLDER_FILE, ".", ".."})


@contextmanager
def open_output(out: Path) -> Iterator[OutputFolder]:
    """Open the folder of all results; it is made if it is missing. At the end the table is written.

    Args:
        out: The folder.

    Raises:
        OutputError: The folder cannot be written, another run writes into it, or its summary.csv is not mien's.
    """
    with locked_folder(out, advice="choose another place with -o"):
        output = OutputFolder(out)
        output.table.write()  # a place that cannot be written is an error before the work starts
        try:
            yield output
        finally:
            output.table.write()


@dataclass(frozen=True)
class PhotoFolder:
    """The folder of one photo."""

    path: Path
    """Where its faces go."""
    photo: Path | RemotePhoto
    """The photo."""

    def earlier(self, options: Options) -> tuple[PhotoRow | None, str]:
        """Find the result of an earlier run.

        Args:
            options: The options of this run.

        Returns:
            The row if the photo is done, with the same options and content, else None; and the options that changed.
        """
        record = read_record(self.path)
        if record is None or record.row is None:
            return None, ""
        changed = changed_options(record.options, options)
        whole = all((self.path / f"face{index}").is_dir() for index in range(record.row.faces))
        content = file_sha256(self.photo)
        if changed or not whole or not content or content != record.photo_sha256:
            return None, changed
        return replace(record.row, photo=str(self.photo), results=str(self.path)), ""

    def begin(self, photo_sha256: str, options: Options) -> None:
        """Record that the folder belongs to this photo and is not whole.

        Raises:
            OutputError: The folder cannot be written.
        """
        RunRecord(absolute_path(str(self.photo)), photo_sha256, options, None).write(self.path)

    def finish(self, row: PhotoRow, photo_sha256: str, options: Options) -> None:
        """Record that all faces are written.

        Raises:
            OutputError: The folder cannot be written.
        """
        RunRecord(absolute_path(str(self.photo)), photo_sha256, options, row.absolute()).write(self.path)

    def forget(self) -> None:
        """Record that the photo is not done: results of an earlier run stay, and the next run retries the photo.

        Raises:
            OutputError: The folder cannot be written.
        """
        record = read_record(self.path)
        if record is not None and record.row is not None:
            replace(record, row=None).write(self.path)


class OutputFolder:
    """The folder of all results, locked. Get it from `open_output`.

    Args:
        path: The folder, which exists.

    Raises:
        OutputError: Its summary.csv is not a table of mien.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = SummaryTable(path)
        self._taken = {name.casefold() for name in _RESERVED_NAMES}
        self._existing: dict[str, list[str]] = {}
        for name in sorted(entry.name for entry in path.iterdir()):
            for stem in {name, re.sub(r"-\d+$", "", name)}:
                self._existing.setdefault(stem.casefold(), []).append(name)

    def folder_of(self, photo: Path | RemotePhoto) -> PhotoFolder:
        """Choose the folder of a photo: that of an earlier run, or the first free one of STEM, STEM-2, STEM-3 …

        Names that differ only in case count as equal, since they are one folder on Windows and macOS.

        Args:
            photo: The photo; each photo is given once.

        Raises:
            FormatError: A run.json cannot be read.
        """
        key, owned_by_others = photo_key(str(photo)), set[str]()
        for name in self._existing.get(photo.stem.casefold(), ()):
            if name.casefold() in self._taken:
                continue
            owner = self._owner(self.path / name)
            if owner == key:
                return self._take(photo, name)
            if owner is not None:
                owned_by_others.add(name.casefold())
        name, number = photo.stem, 1
        while name.casefold() in self._taken | owned_by_others:
            number += 1
            name = f"{photo.stem}-{number}"
        return self._take(photo, name)

    def _take(self, photo: Path | RemotePhoto, name: str) -> PhotoFolder:
        self._taken.add(name.casefold())
        self.table.reserve(str(photo))
        return PhotoFolder(self.path / name, photo)

    def _owner(self, folder: Path) -> str | None:
        """The key of the photo that a folder belongs to; mien 0.2 left it in the table alone."""
        record = read_record(folder)
        return self.table.owner(folder) if record is None else photo_key(record.photo)
