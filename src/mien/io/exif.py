"""What EXIF says about a photo: focal length, orientation, colour space. It is not trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import IO, cast

from PIL import Image

from mien.io.color import ADOBE_RGB, ColorSpace
from mien.io.source import BinaryFile

_FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
_MM_PER_RESOLUTION_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}
# Focal length over the longer image side: 0.2 is a 136° fisheye, 60 a 2,000 mm lens. Beyond that EXIF is wrong.
_FOCAL_RANGE = (0.2, 60.0)
# Rounding of sizes, in EXIF and when resizing, changes the logarithm of the aspect ratio by less than this.
_ASPECT_TOLERANCE = 0.01

_EXIF_IFD = 0x8769
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x920A, 0xA405
_FOCAL_PLANE_X_RESOLUTION, _FOCAL_PLANE_UNIT = 0xA20E, 0xA210
_PIXEL_X_DIMENSION, _PIXEL_Y_DIMENSION = 0xA002, 0xA003
_ORIENTATION, _COLOR_SPACE, _COLOR_SPACE_ADOBE_RGB = 0x0112, 0xA001, 2
_INTEROPERABILITY_IFD, _INTEROPERABILITY_INDEX = 0xA005, 1


def focal_px(exif: Image.Exif, size: tuple[int, int]) -> float | None:
    """Find the focal length in pixels.

    Args:
        exif: What the photo's EXIF says.
        size: Width and height of the whole photo in pixels, in any order.

    Returns:
        The focal length; None if EXIF has none or a wrong one.
    """
    focal = _focal_from_tags(_tags_of(exif, _EXIF_IFD), *size)
    if focal is None or not _FOCAL_RANGE[0] <= focal / max(size) <= _FOCAL_RANGE[1]:
        return None
    return focal


def orientation(exif: Image.Exif) -> int:
    """Find how the stored pixels are turned: 1, upright, to 8.

    Args:
        exif: What the photo's EXIF says.
    """
    value = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def color_space(exif: Image.Exif) -> ColorSpace | None:
    """Find the colour space of photos without a colour profile.

    Args:
        exif: What the photo's EXIF says.

    Returns:
        Adobe RGB, if the camera says so; otherwise None, which means sRGB.
    """
    # DCF 2.0 names Adobe RGB by the interoperability index alone; some programs write 2 as colour space.
    index = _tags_of(exif, _INTEROPERABILITY_IFD).get(_INTEROPERABILITY_INDEX)
    index = index.encode() if isinstance(index, str) else index
    dcf = isinstance(index, bytes) and index.rstrip(b"\0 ") == b"R03"
    return ADOBE_RGB if dcf or _tags_of(exif, _EXIF_IFD).get(_COLOR_SPACE) == _COLOR_SPACE_ADOBE_RGB else None


def exif_of(image: Image.Image) -> Image.Exif:
    """Read the EXIF of an opened picture; empty if it is damaged.

    Args:
        image: The picture.
    """
    try:
        return image.getexif()
    except Exception:
        return Image.Exif()  # the parser raises many kinds of errors


def exif_from_bytes(content: bytes) -> Image.Exif:
    """Read an EXIF block; empty if it is damaged.

    Args:
        content: The block, which starts with a TIFF header.
    """
    exif = Image.Exif()
    try:
        exif.load(content)
    except Exception:
        return Image.Exif()
    return exif


def exif_of_tiff(file: BinaryFile) -> Image.Exif:
    """Read the EXIF of a TIFF or of a raw photo that resembles one; empty if there is none.

    Args:
        file: The photo; it has to stay open as long as the result is used.
    """
    exif = Image.Exif()
    file.seek(0)
    try:
        exif.load_from_fp(cast(IO[bytes], file))
    except Exception:
        return Image.Exif()
    return exif


def _tags_of(exif: Image.Exif, directory: int) -> Mapping[int, object]:
    try:
        return exif.get_ifd(directory)
    except Exception:
        return {}


def _focal_from_tags(tags: Mapping[int, object], width: int, height: int) -> float | None:
    full_width, full_height = _number(tags.get(_PIXEL_X_DIMENSION)), _number(tags.get(_PIXEL_Y_DIMENSION))
    if full_width and full_height:
        aspect = full_width / full_height
        upright, turned = width / height / aspect, height / width / aspect
        if min(abs(math.log(upright)), abs(math.log(turned))) > _ASPECT_TOLERANCE:
            return None  # cropped later, so the focal length in pixels is unknown
    focal_35mm, focal_mm = _number(tags.get(_FOCAL_LENGTH_35MM)), _number(tags.get(_FOCAL_LENGTH))
    resolution = _number(tags.get(_FOCAL_PLANE_X_RESOLUTION))
    if focal_35mm:
        # CIPA DCG-001 defines the 35 mm equivalent by the diagonal, for every aspect ratio.
        return focal_35mm / _FULL_FRAME_DIAGONAL_MM * math.hypot(width, height)
    if focal_mm and resolution:
        unit = _MM_PER_RESOLUTION_UNIT.get(int(_number(tags.get(_FOCAL_PLANE_UNIT)) or 2), 25.4)
        resized = max(width, height) / max(full_width, full_height) if full_width and full_height else 1.0
        return focal_mm * resolution / unit * resized
    return None


def _number(value: object) -> float | None:
    """A positive finite number, or None: EXIF may hold fractions over zero, texts, tuples, and 0 for unknown."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
