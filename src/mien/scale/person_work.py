"""The work on one person: reconstruct the face from several photos, write the files, and make the rows of the table."""
# ruff: noqa: PLC0415 (torch is imported where the work is done)

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mien.errors import ConfigError, ImageError, PhotoLeftOut
from mien.io.result_files import is_result, parse_formats
from mien.scale.output_folder import PERSON_FACE, PERSON_NAME, PersonFolder
from mien.scale.photo_work import PhotoSettings, flag_words
from mien.scale.summary import PhotoRow, absolute_path

if TYPE_CHECKING:
    from mien.fitting import Progress
    from mien.io.photo import Photo
    from mien.io.photo_arguments import RemotePhoto
    from mien.pipeline import Reconstructor


def people_of(photos: Sequence[Path | RemotePhoto], *, by_folder: bool) -> dict[str, list[Path | RemotePhoto]]:
    """Group photos by person.

    Args:
        photos: All photos.
        by_folder: Whether each folder of photos is one person; otherwise all photos are.

    Returns:
        The photos by `owner` of `PersonFolder`, in the order of the first photos.

    Raises:
        ConfigError: A photo is not in a folder.
    """
    if not by_folder:
        return {PERSON_NAME: list(photos)}
    people: dict[str, list[Path | RemotePhoto]] = {}
    for photo in photos:
        if not isinstance(photo, Path):
            raise ConfigError(f"{photo} is in no folder; give folders of files, or choose --same-person.")
        people.setdefault(str(Path(absolute_path(photo)).parent), []).append(photo)
    return people


def write_person(
    folder: PersonFolder,
    settings: PhotoSettings,
    reconstructor: Reconstructor,
    *,
    begin: Callable[[], None],
    progress: Progress | None,
) -> tuple[PhotoRow, ...]:
    """Reconstruct a person from several photos into the folder.

    Args:
        folder: The photos, and where the files go.
        settings: How.
        reconstructor: That of the settings.
        begin: Is called before the first file is written.
        progress: Is called with the stages of the person, see `mien.fitting.Progress`.

    Returns:
        The row of each photo; the reason says why a photo was left out.

    Raises:
        MienError: The person failed.
    """
    from mien.io.photo import read_photo

    start = time.perf_counter()
    # The overlays show whether the person fits each photo.
    settings = replace(settings, formats=parse_formats([*parse_formats(settings.formats), "overlay"]))
    sources, reasons = _sources(folder.photos, max_pixels=settings.max_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhotoLeftOut)  # the rows have the reasons
        found = reconstructor.joint_one_by_one(
            list(sources.values()),
            focal_px=settings.focal_px,
            principal_point_px=settings.principal_point_px,
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    begin()
    numbers, places = tuple(sources), folder.places
    reasons |= dict(zip(numbers, found.reasons, strict=True))
    rows = [_left_out(photo, reasons[number]) for number, photo in enumerate(folder.photos)]
    written = set[Path]()
    for index, face in found.faces:
        number = numbers[index]
        source, place = sources[number], places[number][1]
        pixels = read_photo(source, max_pixels=settings.max_pixels) if isinstance(source, Path) else source
        if index == found.reference:
            settings.write(face, pixels, folder.face, model=reconstructor.model)
        settings.write(face, pixels, place / PERSON_FACE, model=reconstructor.model)
        written.add(place / PERSON_FACE)
        rows[number] = replace(
            rows[number],
            faces=1,
            landmark_error=face.landmark_error,
            photometric_error=face.photometric_error,
            results=str(place),
            flags=flag_words([face]),
        )
    _remove_stale_photos(folder.path, written)
    seconds = (time.perf_counter() - start) / len(rows)
    return tuple(replace(row, seconds=seconds) for row in rows)


def _sources(
    photos: Sequence[Path | RemotePhoto], *, max_pixels: int
) -> tuple[dict[int, Path | Photo], dict[int, str]]:
    """The photos by their numbers, and why the others cannot be read.

    Files are read when they are needed. A photo of the net or of standard input cannot be read twice; it is small
    beside the results.
    """
    opened = {number: _opened(photo, max_pixels=max_pixels) for number, photo in enumerate(photos)}
    sources = {number: source for number, source in opened.items() if not isinstance(source, ImageError)}
    errors = {number: source for number, source in opened.items() if isinstance(source, ImageError)}
    if not sources:
        raise errors[0]
    return sources, {number: str(error) for number, error in errors.items()}


def _opened(photo: Path | RemotePhoto, *, max_pixels: int) -> Path | Photo | ImageError:
    from mien.io.photo_arguments import read_argument

    if isinstance(photo, Path):
        return photo
    try:
        return read_argument(photo, max_pixels=max_pixels)
    except ImageError as error:
        return error


def _left_out(photo: Path | RemotePhoto, reason: str) -> PhotoRow:
    """The row of a photo before its face is written."""
    text = f"{PhotoLeftOut.__name__}: {reason.removeprefix(f'{photo}: ')}" if reason else ""
    return PhotoRow(str(photo), 0, 0.0, None, None, "", text)


def _remove_stale_photos(folder: Path, written: AbstractSet[Path]) -> None:
    """Remove the faces of photos of an earlier run; only folders that hold a reconstruction are removed."""
    for old in folder.glob(f"*/{PERSON_FACE}"):
        if old not in written and is_result(old):
            shutil.rmtree(old, ignore_errors=True)
            with suppress(OSError):  # the user has put something there
                old.parent.rmdir()
