"""Read photos as upright 8-bit sRGB, with the focal length from EXIF.

The files are not trusted: only listed formats are opened, the size is checked before a pixel is decoded, and every
failure of a decoder becomes an `ImageError` that names the file and says what to do.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mien.errors import ImageError, PhotoReduced
from mien.io.decoding import DecodedPhoto, decode_photo, too_large_message
from mien.io.formats import RAW_SUFFIXES, REFUSED_SUFFIXES, SUFFIXES
from mien.io.result_files import is_face_folder
from mien.io.source import BinaryFile, PhotoSource, open_photo, real_path
from mien.lighting import LUMA
from mien.typing import UInt8

MAX_PIXELS = 64_000_000
"""Default limit of the size of a photo; 64 megapixels take 192 MB as RGB. docs/security.md has the memory that
decoding takes."""

WELL_EXPOSED = 0.9
"""Brightness, of 1, of the brightest hundredth of a well-exposed photo."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """sRGB, upright according to EXIF, transparent pixels on white."""
    focal_px: float | None
    """Focal length in pixels, from EXIF; None if EXIF has none or a wrong one."""
    path: Path
    """The file that was read, or the name that `read_photo` was given."""
    reduction: int = 1
    """Factor by which width and height of the file are larger; more than 1 for a JPEG above the limit of pixels."""


def read_photo(
    source: PhotoSource, *, name: str | os.PathLike[str] | None = None, max_pixels: int = MAX_PIXELS
) -> Photo:
    """Read one photo as upright 8-bit sRGB.

    Formats are JPEG, PNG, WebP, TIFF (the first full-size page), BMP, HEIC and AVIF, and cameras' raw photos with
    `mien[raw]`. Grey, palette, CMYK, 16-bit, floating-point and transparent pictures are converted. Colour profiles
    and named colour spaces are applied; a damaged profile is ignored, as viewers do. Of several pictures in a file, the
    main one is read.

    Args:
        source: A path, the content of a file as bytes, or a binary file that is open for reading. An open file is read
            from its start and stays open. A pipe is read to its end, up to 1 GiB.
        name: Name of the photo in messages and in the result; by default the path, or the name of the open file.
        max_pixels: Largest number of pixels that is decoded. A JPEG of up to four times as many is decoded at a half,
            a quarter or an eighth of its width and height.

    Returns:
        The pixels, and the focal length from EXIF.

    Raises:
        ImageError: The file is missing, damaged, an animation or of another format, has more than `max_pixels` pixels,
            or has a side of less than 32.

    Warns:
        PhotoReduced: The photo is a JPEG of more than `max_pixels` pixels.

    Example:
        >>> photo = mien.read_photo("photo.jpg")
        >>> photo.pixels.shape, photo.focal_px
        >>> photo = mien.read_photo(sys.stdin.buffer, name="upload.jpg")
    """
    with open_photo(source, name) as (file, path):
        found = _decode(file, path, max_pixels)
    if found.reduction > 1:
        height, width = found.pixels.shape[:2]
        message = (
            f"{path}: more than {max_pixels / 1e6:g} megapixels, decoded at 1/{found.reduction} of its size, "
            f"{width} × {height}; to use all pixels, raise the limit: --max-megapixels, in Python max_pixels"
        )
        warnings.warn(PhotoReduced(message), stacklevel=2)
    return Photo(found.pixels, found.focal_px, path, found.reduction)


def _decode(file: BinaryFile, path: Path, max_pixels: int) -> DecodedPhoto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about unusual EXIF blocks
        try:
            return decode_photo(file, path, max_pixels=max_pixels)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            count = next(iter(re.findall(r"\d+", str(error))), "far too many")
            raise ImageError(too_large_message(path, f"{count} pixels", max_pixels)) from None
        except MemoryError:
            raise ImageError(f"{path}: not enough memory to decode it; resize the photo first") from None
        except Exception as error:
            # Decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged data.
            raise ImageError(
                f"{path}: damaged or cut off ({error}); copy it again, or save it again from a viewer"
            ) from error


def exposure_of(pixels: UInt8[np.ndarray, "H W 3"]) -> float:
    """Measure the brightness of a photo.

    Args:
        pixels: sRGB.

    Returns:
        99th percentile of the luma over that of a well-exposed photo, limited to [0.1, 1.1].
    """
    stride = max(min(pixels.shape[:2]) // 256, 1)
    luminance = pixels[::stride, ::stride].astype(np.float32) @ np.array(LUMA, np.float32) / 255
    return float(np.clip(np.percentile(luminance, 99) / WELL_EXPOSED, 0.1, 1.1))


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
