"""The folder of all results: its lock, its table, and which folder below it belongs to which photo or person."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mien.io.folder_lock import HOLDER_FILE, LOCK_FILE, locked_folder
from mien.scale.run_record import RUN_FILE, Options, RunRecord, changed_options, file_sha256, read_record
from mien.scale.summary import SUMMARY_FILE, PhotoRow, SummaryTable, absolute_path, photo_key

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto

PERSON_NAME = "person"
"""Folder of the person whose photos are not in a folder of their own."""
PERSON_FACE = "face0"
"""Folder of the person's own files."""
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
class ResultFolder(ABC):
    """The folder of one photo or one person: what is reconstructed and recorded as a whole."""

    path: Path
    """Where the files go."""

    @property
    @abstractmethod
    def places(self) -> Sequence[tuple[Path | RemotePhoto, Path]]:
        """The photos, and the folder for the faces of each."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What users know it by."""

    @abstractmethod
    def content(self) -> str:
        """A hash of the content of the photos; empty if a photo cannot be read or has no reliable version."""

    @abstractmethod
    def record(self, content: str, options: Options, rows: tuple[PhotoRow, ...] | None) -> RunRecord:
        """The record of the folder.

        Args:
            content: What `content` returned before the photos were read.
            options: The options of this run.
            rows: The rows of the photos if all files are written, else None.
        """

    @abstractmethod
    def read_here(self) -> ResultFolder:
        """Read standard input now, because another process has another one."""

    def is_whole(self, rows: Sequence[PhotoRow]) -> bool:
        """Whether the faces of an earlier run are there.

        Args:
            rows: The rows of the photos in that run; a damaged record has others.
        """
        if len(rows) != len(self.places):
            return False
        faces = ((folder, row.faces) for (_, folder), row in zip(self.places, rows, strict=True))
        return all((folder / f"face{index}").is_dir() for folder, count in faces for index in range(count))

    def earlier(self, options: Options) -> tuple[tuple[PhotoRow, ...] | None, str]:
        """Find the result of an earlier run.

        Args:
            options: The options of this run.

        Returns:
            The rows if all is done, with the same options and content, else None; and the options that changed.
        """
        record = read_record(self.path)
        if record is None or record.rows is None:
            return None, ""
        changed, content = changed_options(record.options, options), self.content()
        if changed or not content or content != record.photo_sha256 or not self.is_whole(record.rows):
            return None, changed
        return tuple(
            replace(row, photo=str(photo), results=str(folder) if row.results else "")
            for (photo, folder), row in zip(self.places, record.rows, strict=True)
        ), ""

    def begin(self, content: str, options: Options) -> None:
        """Record what the folder belongs to, and that it is not whole.

        Raises:
            OutputError: The folder cannot be written.
        """
        self.record(content, options, None).write(self.path)

    def finish(self, rows: Sequence[PhotoRow], content: str, options: Options) -> None:
        """Record that all files are written.

        Raises:
            OutputError: The folder cannot be written.
        """
        self.record(content, options, tuple(row.absolute() for row in rows)).write(self.path)

    def forget(self) -> None:
        """Record that the work is not done: results of an earlier run stay, and the next run tries again.

        Raises:
            OutputError: The folder cannot be written.
        """
        record = read_record(self.path)
        if record is not None and record.rows is not None:
            replace(record, rows=None).write(self.path)


@dataclass(frozen=True)
class PhotoFolder(ResultFolder):
    """The folder of one photo."""

    photo: Path | RemotePhoto
    """The photo."""

    @property
    def places(self) -> Sequence[tuple[Path | RemotePhoto, Path]]:
        """The photo, and the folder itself."""
        return ((self.photo, self.path),)

    @property
    def name(self) -> str:
        """The file name of the photo."""
        return self.photo.name

    def content(self) -> str:
        """What `file_sha256` returns for the photo."""
        return file_sha256(self.photo)

    def record(self, content: str, options: Options, rows: tuple[PhotoRow, ...] | None) -> RunRecord:
        """The record of the photo."""
        return RunRecord(absolute_path(str(self.photo)), content, options, rows)

    def read_here(self) -> PhotoFolder:
        """Read standard input now, because another process has another one."""
        return self if isinstance(self.photo, Path) else replace(self, photo=self.photo.read_here())


@dataclass(frozen=True)
class PersonFolder(ResultFolder):
    """The folder of one person: `face0` has the person's files, and a folder per photo those of the photo."""

    owner: str
    """Absolute path of the folder of the photos; `PERSON_NAME` for photos that are not in one folder."""
    photos: tuple[Path | RemotePhoto, ...]
    """The photos."""

    @property
    def face(self) -> Path:
        """Where the person's own files go."""
        return self.path / PERSON_FACE

    @property
    def places(self) -> Sequence[tuple[Path | RemotePhoto, Path]]:
        """The photos, and a folder for each that is named after it."""
        taken, places = {PERSON_FACE, RUN_FILE, ".", ".."}, []
        for photo in self.photos:
            name = _free_name(photo.stem, taken)
            taken.add(name.casefold())
            places.append((photo, self.path / name))
        return places

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    def content(self) -> str:
        """A hash of the names and contents of all photos, in their order."""
        digest = hashlib.sha256()
        for photo in self.photos:
            content = file_sha256(photo)
            if not content:
                return ""
            digest.update(f"{content} {photo.name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def record(self, content: str, options: Options, rows: tuple[PhotoRow, ...] | None) -> RunRecord:
        """The record of the person."""
        return RunRecord(self.owner, content, options, rows, person=True)

    def read_here(self) -> PersonFolder:
        """Read standard input now, because another process has another one."""
        photos = tuple(photo if isinstance(photo, Path) else photo.read_here() for photo in self.photos)
        return replace(self, photos=photos)

    def is_whole(self, rows: Sequence[PhotoRow]) -> bool:
        """Whether the faces of an earlier run are there."""
        return self.face.is_dir() and super().is_whole(rows)


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
        self.table.reserve(str(photo))
        return PhotoFolder(self._place(photo.stem, photo_key(str(photo))), photo)

    def folder_of_person(self, owner: str, photos: Sequence[Path | RemotePhoto]) -> PersonFolder:
        """Choose the folder of a person as `folder_of` does; its name is that of the folder of the photos.

        Args:
            owner: As in `PersonFolder`; each is given once.
            photos: The photos of the person.

        Raises:
            FormatError: A run.json cannot be read.
        """
        for photo in photos:
            self.table.reserve(str(photo))
        name = Path(owner).name or PERSON_NAME
        return PersonFolder(self._place(name, _person_key(owner)), owner, tuple(photos))

    def _place(self, stem: str, key: str) -> Path:
        """The folder of an owner."""
        owned_by_others = set[str]()
        for name in self._existing.get(stem.casefold(), ()):
            if name.casefold() in self._taken:
                continue
            owner = self._owner(self.path / name)
            if owner == key:
                return self._take(name)
            if owner is not None:
                owned_by_others.add(name.casefold())
        return self._take(_free_name(stem, self._taken | owned_by_others))

    def _take(self, name: str) -> Path:
        self._taken.add(name.casefold())
        return self.path / name

    def _owner(self, folder: Path) -> str | None:
        """The key of the photo or person that a folder belongs to; mien 0.2 left it in the table alone."""
        record = read_record(folder)
        if record is None:
            return self.table.owner(folder)
        return _person_key(record.photo) if record.person else photo_key(record.photo)


def _person_key(owner: str) -> str:
    """What distinguishes people, also from photos."""
    return f"person {owner}"


def _free_name(stem: str, taken: AbstractSet[str]) -> str:
    """The first name of STEM, STEM-2, STEM-3 … that is free.

    Args:
        stem: The name.
        taken: Names in lower case that are not free.
    """
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
