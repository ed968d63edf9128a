"""Read photos as upright 8-bit sRGB, with the focal length from EXIF.

The files are not trusted: only listed formats are opened, the size is checked before a pixel is decoded, and every
failure of a decoder becomes an `ImageError` that names the file and says what to do.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mien.errors import ImageError, PhotoReduced
from mien.io.decoding import DecodedPhoto, decode_photo, too_large_message
from mien.io.photo_files import MAX_PIXELS
from mien.io.source import BinaryFile, PhotoSource, open_photo
from mien.lighting import LUMA
from mien.typing import UInt8

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
