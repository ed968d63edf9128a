"""The work on one person: reconstruct the face from several photos, write the files, and make the rows of the table."""
# ruff: noqa: PLC0415 (torch is imported where the work is done)

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mien.errors import ConfigError, MienError, PhotoLeftOut
from mien.io.result_files import parse_formats
from mien.memory import typed_out_of_memory
from mien.scale.output_folder import PhotoFolder
from mien.scale.photo_work import PhotoSettings, failed_row, flag_words
from mien.scale.run_record import read_record
from mien.scale.summary import PhotoRow

if TYPE_CHECKING:
    from mien.fitting import Progress
    from mien.io.photo_arguments import RemotePhoto
    from mien.pipeline import Reconstructor
    from mien.result import PersonReconstruction

PERSON_NAME = "person"
"""Folder of the person whose photos are not in a folder of their own."""
_PERSON_FACE = "face0"
"""Folder of the person's own files."""


@dataclass(frozen=True)
class PersonFolder:
    """The photos of one person, and where the files go."""

    path: Path
    """Folder of the person: `face0` has the person's files, and a folder per photo those of the photo."""
    photos: tuple[Path | RemotePhoto, ...]
    """The photos."""

    def photo_folders(self) -> list[Path]:
        """A folder for each photo, named after it."""
        taken, folders = {_PERSON_FACE}, list[Path]()
        for photo in self.photos:
            name, number = photo.stem, 1
            while name.casefold() in taken:
                number += 1
                name = f"{photo.stem}-{number}"
            taken.add(name.casefold())
            folders.append(self.path / name)
        return folders


def people_of(photos: Sequence[Path | RemotePhoto], out: Path, *, by_folder: bool) -> list[PersonFolder]:
    """Group photos by person.

    Args:
        photos: All photos.
        out: The folder of all results.
        by_folder: Whether each folder of photos is one person; otherwise all photos are.

    Returns:
        The people, in the order of their first photos. People whose folders have the same name get numbers.

    Raises:
        ConfigError: A photo is not in a folder, or the place of a person has results of a photo.
    """
    groups: dict[str, list[Path | RemotePhoto]] = {}
    for photo in photos:
        if by_folder and not isinstance(photo, Path):
            raise ConfigError(f"{photo} is in no folder; give folders of files, or choose --same-person.")
        key = str(photo.absolute().parent) if by_folder and isinstance(photo, Path) else PERSON_NAME
        groups.setdefault(key, []).append(photo)
    people, taken = [], set[str]()
    for key, members in groups.items():
        stem = Path(key).name or PERSON_NAME
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        if read_record(out / name) is not None:
            raise ConfigError(f"{out / name} holds the results of a single photo; choose another place with -o.")
        people.append(PersonFolder(out / name, tuple(members)))
    return people


class PersonWorker:
    """Reconstructs people one after the other.

    Args:
        settings: How.
        progress: Is called with the stages of each person, see `mien.fitting.Progress`.

    Raises:
        MienError: As `PhotoSettings.reconstructor`, or a head is asked for, and the face model has none.
    """

    def __init__(self, settings: PhotoSettings, *, progress: Progress | None = None) -> None:
        # The overlays show whether the person fits each photo.
        self.settings = replace(settings, formats=parse_formats([*parse_formats(settings.formats), "overlay"]))
        self._progress = progress
        self._reconstructor: Reconstructor = settings.reconstructor()
        settings.check_head(self._reconstructor.model)

    def __call__(self, person: PersonFolder) -> list[PhotoRow]:
        """Reconstruct a person into the folder; the rows say what failed.

        Args:
            person: The photos, and where the files go.

        Returns:
            A row per photo.
        """
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PhotoLeftOut)  # the rows have the reasons
            try:
                found = self._reconstruct(person)
            except MienError as error:
                seconds = (time.perf_counter() - start) / len(person.photos)
                return [failed_row(PhotoFolder(person.path, photo), error, seconds=seconds) for photo in person.photos]
        seconds = (time.perf_counter() - start) / len(person.photos)
        return list(_rows(person, found, seconds=seconds))

    @typed_out_of_memory
    def _reconstruct(self, person: PersonFolder) -> PersonReconstruction:
        from mien.io.photo_arguments import read_argument

        settings = self.settings
        found = self._reconstructor.joint(
            # A photo of the net or of standard input cannot be read twice; it is small beside the results.
            [photo if isinstance(photo, Path) else read_argument(photo, max_pixels=settings.max_pixels)
             for photo in person.photos],
            focal_px=settings.focal_px,
            principal_point_px=settings.principal_point_px,
            max_pixels=settings.max_pixels,
            progress=self._progress,
        )  # fmt: skip
        places = [(found.reference, person.path / _PERSON_FACE)]
        places += [(k, folder / _PERSON_FACE) for k, folder in enumerate(person.photo_folders())]
        for done, (number, folder) in enumerate(places):
            if self._progress is not None:
                self._progress("writing", done / len(places))
            face = found.faces[number]
            if face is not None:
                photo = read_argument(person.photos[number], max_pixels=settings.max_pixels)
                settings.write(face, photo, folder, model=self._reconstructor.model)
        return found


def _rows(person: PersonFolder, found: PersonReconstruction, *, seconds: float) -> Iterator[PhotoRow]:
    for photo, folder, face, reason in zip(
        person.photos, person.photo_folders(), found.faces, found.reasons, strict=True
    ):
        yield PhotoRow(
            photo=str(photo),
            faces=int(face is not None),
            seconds=seconds,
            landmark_error=None if face is None else face.landmark_error,
            photometric_error=None if face is None else face.photometric_error,
            results="" if face is None else str(folder),
            reason=f"{PhotoLeftOut.__name__}: {reason.removeprefix(f'{photo}: ')}" if reason else "",
            flags="" if face is None else flag_words([face]),
        )
