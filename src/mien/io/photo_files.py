"""Which files are photos: found by their names alone, without the packages that decode them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mien.errors import ImageError
from mien.io.result_files import is_face_folder
from mien.io.source import real_path

MAX_PIXELS = 64_000_000
"""Default limit of the size of a photo; 64 megapixels take 192 MB as RGB. docs/security.md has the memory that
decoding takes."""

RAW_SUFFIXES = frozenset(
    (".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f")
)
"""Ends of the names of raw photos."""
SUFFIXES = RAW_SUFFIXES | frozenset(
    (".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".hif", ".avif")
)
"""Ends of the names of photos, raw ones included."""
# Folders are searched for these too, although they are refused: a message with advice is better than a missing photo.
REFUSED_SUFFIXES = frozenset({".gif", ".jxl"})


def find_photos(paths: Iterable[str | os.PathLike[str]], *, skip: str | os.PathLike[str] | None = None) -> list[Path]:
    """List the photos among files and folders, each once.

    Folders are searched to any depth, without hidden files and folders and without the pictures of results, and their
    photos sorted by path. Files are listed even if they are not photos, so that `read_photo` can report them. A raw
    photo in a folder is left out if the camera's JPEG or HEIC of the same name is beside it.

    Args:
        paths: Files and folders.
        skip: A folder to leave out, where the results go.

    Returns:
        The files.

    Raises:
        ImageError: A folder contains no photos.
    """
    skipped = real_path(skip) if skip is not None else None
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        below = _pictures_below(given, skipped) if given.is_dir() else [given]
        if not below:
            endings = " ".join(sorted(SUFFIXES - RAW_SUFFIXES))
            raise ImageError(f"{given}: no photos in this folder; photos end in {endings}, or are raw")
        for path in below:
            found.setdefault(real_path(path), path)
    return list(found.values())


def _holds_photos(folder: Path, skipped: Path | None) -> bool:
    return not (folder.name.startswith(".") or real_path(folder) == skipped or is_face_folder(folder))


def _pictures_below(folder: Path, skipped: Path | None) -> list[Path]:
    pictures = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _holds_photos(Path(parent) / name, skipped)]
        photos = [Path(parent) / name for name in names if not name.startswith(".")]
        photos = [path for path in photos if path.suffix.lower() in SUFFIXES | REFUSED_SUFFIXES]
        developed = {path.stem for path in photos if path.suffix.lower() in SUFFIXES - RAW_SUFFIXES}
        pictures += [path for path in photos if path.suffix.lower() not in RAW_SUFFIXES or path.stem not in developed]
    return sorted(pictures)
