"""Decode a photo of any supported format to upright 8-bit sRGB, after its size is checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from mien.errors import ImageError
from mien.io.boxes import read_main_picture
from mien.io.color import ColorSpace, check_range, full_scale, scale_to_8_bits, to_srgb
from mien.io.exif import color_space, exif_from_bytes, exif_of, exif_of_tiff, focal_px, orientation
from mien.io.formats import AVIF, HEIF, RAW, TIFF, format_of, open_image
from mien.io.raw import develop
from mien.io.source import BinaryFile
from mien.io.tiff import pillow_is_right, read_page, read_samples
from mien.typing import UInt8

MIN_SIDE = 32
"""Smallest side in pixels; the smallest face that the detector finds has 30."""
MAX_REDUCTION_PIXELS = 4
"""A JPEG may have this many times the limit; it is then decoded at a smaller size. Decoding a progressive one takes
memory for all its coefficients: at most 1.5 GB at the default limit."""

_STRIP_PIXELS = 1 << 18
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, 3),
}
"""Views of an upright picture in the order of the stored pixels, by EXIF's number of the turn."""
_MAX_PNG_CHUNKS = 1000  # before the pixels


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """A decoded photo."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """sRGB, upright."""
    focal_px: float | None
    """Focal length in pixels, from EXIF."""
    reduction: int = 1
    """Factor by which the stored picture is larger."""


@dataclass(frozen=True, eq=False)
class _Picture:
    """A decoded picture and what is known about it."""

    image: Image.Image
    """As stored."""
    full_size: tuple[int, int]
    """Its size before it was reduced."""
    exif: Image.Exif
    """What its EXIF says."""
    orientation: int = 1
    """EXIF's number of the turn that is still to be made."""
    icc: bytes | None = None
    """Its colour profile."""
    space: ColorSpace | None = None
    """Its colour space, if the file names one otherwise."""
    bits: int = 16
    """Number of bits that 16-bit integers use."""
    white_is_zero: bool = False
    """Whether a grey picture of more than 8 bits is a negative."""


def decode_photo(file: BinaryFile, path: Path, *, max_pixels: int) -> DecodedPhoto:
    """Decode a photo.

    Args:
        file: The photo.
        path: Its name in messages.
        max_pixels: Largest number of pixels that is decoded.

    Raises:
        ImageError: The format or size is refused. Damaged files raise errors of any type.
    """
    image_format = format_of(file, path)
    if image_format == RAW:
        image = develop(file, path, lambda size: _check_size(size, path=path, max_pixels=max_pixels))
        picture = _Picture(image, image.size, exif_of_tiff(file))
    elif image_format == TIFF:
        picture = _decode_tiff(file, path, max_pixels)
    else:
        picture = _decode_usual(file, image_format, path, max_pixels)
    reduction = round(max(picture.full_size) / max(picture.image.size))
    focal = focal_px(picture.exif, picture.full_size)
    return DecodedPhoto(_upright_srgb(picture, path), None if focal is None else focal / reduction, reduction)


def too_large_message(path: Path, size: str, max_pixels: int) -> str:
    """Say that a photo is too large, and what to do.

    Args:
        path: Its name.
        size: Its size, in words.
        max_pixels: The limit.
    """
    side = math.isqrt(max_pixels)
    return (
        f"{path}: {size}, more than the limit of {max_pixels / 1e6:g} megapixels; resize it first, for example to at "
        f"most {side} x {side} pixels, or raise the limit: --max-megapixels, in Python max_pixels"
    )


def _decode_usual(file: BinaryFile, image_format: str, path: Path, max_pixels: int) -> _Picture:
    with open_image(file, image_format) as image:
        full_size = image.size
        if image_format == "JPEG":
            _reduce(image, max_pixels)
        # Of a JPEG that is reduced, the size of the file is limited too.
        limit = max_pixels if image.size == full_size else max_pixels * MAX_REDUCTION_PIXELS
        _check_size(full_size, path=path, max_pixels=max_pixels, limit=limit)
        _check_frames(image, path)
        space, turn = _what_decoders_forget(file, image_format)
        check_range(space, path)
        image.load()
        exif = exif_of(image)
        icc = image.info.get("icc_profile")
        if space is not None and image_format == "PNG":
            icc = None  # the PNG specification gives cICP priority
        return _Picture(
            image, full_size, exif, orientation(exif) if turn is None else turn, icc, space or color_space(exif)
        )


def _upright_srgb(picture: _Picture, path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels, converted and turned in strips: beside them, only the decoder's picture is in memory."""
    width, height = picture.image.size
    turned = picture.orientation in {5, 6, 7, 8}
    pixels = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored, row = _AS_STORED[picture.orientation](pixels), 0
    for strip in to_srgb(_strips_of_8_bits(picture, path), picture.space, icc=picture.icc):
        stored[row : row + len(strip)] = strip
        row += len(strip)
    return pixels


def _strips_of_8_bits(picture: _Picture, path: Path) -> Iterator[Image.Image]:
    if not _is_deep(picture.image):
        yield from _strips(picture.image)
        return
    full = full_scale((np.asarray(strip) for strip in _strips(picture.image)), path, bits=picture.bits)
    for strip in _strips(picture.image):
        grey = scale_to_8_bits(np.asarray(strip), full)
        yield Image.fromarray(255 - grey if picture.white_is_zero else grey)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _what_decoders_forget(file: BinaryFile, image_format: str) -> tuple[ColorSpace | None, int | None]:
    """The colour space named by numbers, and EXIF's orientation if the decoder drops it."""
    if image_format == "PNG":
        return _png_color_space(file), None
    if image_format not in {HEIF, AVIF}:
        return None, None
    main = read_main_picture(file)
    # Decoders make the file's own turns and drop EXIF's orientation, which should repeat them.
    return main.space, orientation(exif_from_bytes(main.exif)) if main.exif and not main.turned else None


def _decode_tiff(file: BinaryFile, path: Path, max_pixels: int) -> _Picture:
    page = read_page(file, path)
    _check_size(page.size, path=path, max_pixels=max_pixels)
    if not pillow_is_right(page):
        exif = exif_of_tiff(file)
        image = read_samples(file, page, path)
        return _Picture(image, image.size, exif, orientation(exif), page.icc, color_space(exif))
    with open_image(file, TIFF) as image:
        image.seek(page.number)
        image.load()  # Pillow turns a TIFF when it loads it
        exif = exif_of(image)
        icc = image.info.get("icc_profile")
        return _Picture(
            image,
            image.size,
            exif,
            orientation(exif),
            icc,
            color_space(exif),
            bits=min(page.bits, 16),
            white_is_zero=page.white_is_zero,
        )


def _is_deep(image: Image.Image) -> bool:
    """Whether it has more than 8 bits per channel, which Pillow has for one channel only."""
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def _reduce(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Let the decoder reduce a JPEG that is too large, by 2, 4 or 8 on each side."""
    width, height = image.size
    for factor in (2, 4, 8):
        if image.width * image.height <= max_pixels:
            return
        image.draft(None, (width // factor, height // factor))


def _check_size(size: tuple[int, int], *, path: Path, max_pixels: int, limit: int | None = None) -> None:
    width, height = size
    if width * height > (max_pixels if limit is None else limit):
        text = f"{width} x {height} pixels ({width * height / 1e6:.0f} megapixels)"
        raise ImageError(too_large_message(path, text, max_pixels))
    if min(size) < MIN_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels, too small; each side needs at least {MIN_SIDE}")


def _check_frames(image: ImageFile.ImageFile, path: Path) -> None:
    # After the picture itself, a phone's MPO holds previews and a HEIC the rest of a burst.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in {"MPO", HEIF}:
        raise ImageError(f"{path}: an animation of {frames} frames; save one frame as a picture")


def _png_color_space(file: BinaryFile) -> ColorSpace | None:
    """The chunk cICP, which Pillow does not read (PNG specification, third edition, 11.3.2.6)."""
    position = 8
    for _ in range(_MAX_PNG_CHUNKS):
        file.seek(position)
        start = file.read(10)
        if len(start) < 10:
            return None
        size, kind, primaries, transfer = struct.unpack(">I4sBB", start)
        if kind == b"cICP" and size == 4:
            return ColorSpace(primaries, transfer)
        if kind in {b"IDAT", b"IEND"}:
            return None
        position += 12 + size
    return None
