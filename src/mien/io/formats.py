"""Recognise the format of a photo by its first bytes, and open it; other formats are refused with advice."""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from PIL import Image, ImageFile, features

from mien.errors import ImageError
from mien.io.source import BinaryFile
from mien.io.tiff import is_raw

RAW, HEIF, AVIF, TIFF = "RAW", "HEIF", "AVIF", "TIFF"
_INSTALL = {HEIF: "pip install pillow-heif", AVIF: "pip install --upgrade pillow", RAW: "pip install 'mien[raw]'"}
_TITLES = {HEIF: "HEIC", AVIF: "AVIF", RAW: "raw"}

_START_BYTES = 64
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,  # BigTIFF
    b"MM\0+": TIFF,
    b"IIRO": RAW,  # Olympus
    b"IIRS": RAW,
    b"MMOR": RAW,
    b"IIU\0": RAW,  # Panasonic and Leica
    b"FUJIFILMCCD-RAW": RAW,
    b"FOVb": RAW,  # Sigma
    b"II\x1a\0\0\0HEAPCCDR": RAW,  # Canon CRW
    b"\0MRM": RAW,  # Minolta
}
_REFUSED_STARTS = {
    b"GIF8": "GIF is not supported; save one frame as PNG or JPEG",
    b"%PDF": "a PDF, not a photo; export the picture as JPEG or PNG",
    b"\xff\x0a": "JPEG XL is not supported; save it as JPEG or PNG, for example with djxl",
    b"\0\0\0\x0cJXL ": "JPEG XL is not supported; save it as JPEG or PNG, for example with djxl",
    b"\0\0\0\x0cjP  ": "JPEG 2000 is not supported; save it as JPEG or PNG",
}


def format_of(file: BinaryFile, path: Path) -> str:
    """Recognise the format of a photo by its content.

    Args:
        file: The photo.
        path: Its name in messages.

    Returns:
        Pillow's name of the format, or `RAW`.

    Raises:
        ImageError: The format is not supported, or a package that reads it is missing.
    """
    file.seek(0)
    start = file.read(_START_BYTES)
    for known, advice in _REFUSED_STARTS.items():
        if start.startswith(known):
            raise ImageError(f"{path}: {advice}")
    found = next((name for known, name in _STARTS.items() if start.startswith(known)), None)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        found = "WEBP"
    if start[4:8] == b"ftyp":
        found = _box_format(start, path)
    if found == TIFF and (start[8:10] == b"CR" or is_raw(file)):
        found = RAW
    if found is None:
        text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
        what = "holds text, not a picture" if text else "not a picture in a known format"
        raise ImageError(f"{path}: {what}; supported are {', '.join(readable_formats())}")
    _check_readable(found, path)
    return found


def readable_formats() -> list[str]:
    """List the formats that can be read in this installation."""
    return ["JPEG", "PNG", "WebP", "TIFF", "BMP", *(_TITLES[name] for name in _INSTALL if _is_readable(name))]


def unreadable_formats() -> list[str]:
    """List the formats that need another package, each with the command that installs it."""
    return [f"{_TITLES[name]} ({command})" for name, command in _INSTALL.items() if not _is_readable(name)]


def open_image(file: BinaryFile, image_format: str) -> ImageFile.ImageFile:
    """Open a picture without decoding it, whatever its size: the caller checks that.

    Args:
        file: The picture.
        image_format: What `format_of` returned, except `RAW`.
    """
    file.seek(0)
    if image_format == HEIF:
        from pillow_heif import HeifImageFile  # noqa: PLC0415 (not everywhere installed)

        return HeifImageFile(file)
    Image.preinit()  # JPEG, PNG and BMP; the modules of all formats take a tenth of a second
    if image_format not in Image.OPEN:
        Image.init()
    # Image.open has a limit of its own, 179 megapixels, that only a variable for the whole process changes.
    factory = cast(Callable[[BinaryFile, str], ImageFile.ImageFile], Image.OPEN[image_format][0])
    return factory(file, "")


def _box_format(start: bytes, path: Path) -> str:
    """The format of a file of boxes, ISO 14496-12, by its brands."""
    size = min(max(struct.unpack(">I", start[:4])[0], 12), len(start))
    brands = {start[8:12], *(start[k : k + 4] for k in range(16, size - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    if start[8:12] == b"crx ":
        return RAW  # Canon CR3
    if brands & {b"mif1", b"msf1"} or any(brand[:3] in {b"hei", b"hev"} for brand in brands):
        return HEIF
    raise ImageError(f"{path}: a video is not supported; export one frame as JPEG or PNG")


def _is_readable(name: str) -> bool:
    if name == AVIF:
        return "avif" in features.modules and bool(features.check("avif"))
    package = {HEIF: "pillow_heif", RAW: "rawpy"}.get(name)
    return package is None or find_spec(package) is not None


def _check_readable(name: str, path: Path) -> None:
    if not _is_readable(name):
        title = "a raw photo" if name == RAW else f"{_TITLES[name]} photos"
        raise ImageError(
            f"{path}: {title} cannot be read in this installation; export it as JPEG or PNG, or run: {_INSTALL[name]}"
        )
