"""Tell raw photos from other TIFFs, and read those that Pillow reads wrongly or not at all.

These have samples of more than 8 bits in unusual layouts. Sources: TIFF 6.0, TIFF/EP, Adobe's DNG 1.7.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from mien.errors import ImageError
from mien.io.color import full_scale, scale_to_8_bits
from mien.io.source import BinaryFile

# Tags and their values.
_SUBFILE_TYPE, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 254, 262, 330, 50706
_SENSOR_PHOTOMETRICS = {32803, 34892}  # colour filter array, linear raw
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 256, 257, 258, 259, 277, 284, 339
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_SIZES, _EXTRA_SAMPLES, _ICC = 273, 278, 279, 338, 34675
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_KINDS = {1: "u", 2: "i", 3: "f"}
_REDUCED = 1  # bit of the subfile type
_MAX_DIRECTORIES = 32  # camera files have up to 8
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}


def is_raw(file: BinaryFile) -> bool:
    """Whether a TIFF holds a camera's raw data; its first page is then a thumbnail.

    Args:
        file: The TIFF.
    """
    return any(
        tags.get(_PHOTOMETRIC) in _SENSOR_PHOTOMETRICS or _DNG_VERSION in tags
        for tags in _directories(file, below=True)
    )


@dataclass(frozen=True, eq=False)
class TiffPage:
    """The first full-size page of a TIFF."""

    number: int
    """Number of the page, from 0, as Pillow counts."""
    directory: ImageFileDirectory_v2
    """Its tags."""
    size: tuple[int, int]
    """Width and height in pixels, before its orientation is applied."""
    bits: int
    """Bits per sample."""
    kind: str
    """Type of the samples: "u", "i" or "f"."""
    samples: int
    """Samples per pixel."""
    planar: bool
    """Whether each channel is stored for itself."""
    big_endian: bool
    """Order of the bytes."""

    @property
    def white_is_zero(self) -> bool:
        """Whether small values are bright."""
        return self.directory.get(_PHOTOMETRIC) == _WHITE_IS_ZERO

    @property
    def icc(self) -> bytes | None:
        """The colour profile."""
        profile = self.directory.get(_ICC)
        return profile if isinstance(profile, bytes) else None


def read_page(file: BinaryFile, path: Path) -> TiffPage:
    """Find the photo in a TIFF: the first page that is not a reduced copy of another.

    Args:
        file: The TIFF.
        path: Its name in messages.

    Raises:
        ImageError: The TIFF is damaged, or has reduced copies only.
    """
    file.seek(0)
    start = file.read(4)
    if start == b"MM\0+":  # Pillow's parser reads its header wrongly
        raise ImageError(f"{path}: a big-endian BigTIFF is not supported; save it as a usual TIFF or as PNG")
    first_level = _directories(file, below=False)  # as Pillow counts pages
    full = [(number, tags) for number, tags in enumerate(first_level) if not int(tags.get(_SUBFILE_TYPE, 0)) & _REDUCED]
    if not first_level:
        raise ImageError(f"{path}: damaged or cut off (no readable directory); copy it again")
    if not full:
        raise ImageError(f"{path}: a TIFF with a small preview only; export the photo as JPEG or PNG")
    number, tags = full[0]
    return TiffPage(
        number=number,
        directory=tags,
        size=(int(tags[_WIDTH]), int(tags[_HEIGHT])),
        bits=max(_as_tuple(tags.get(_BITS, 1))),
        kind=_KINDS.get(_as_tuple(tags.get(_SAMPLE_FORMAT, 1))[0], "u"),
        samples=int(tags.get(_SAMPLES, 1)),
        planar=tags.get(_PLANAR) == 2 and int(tags.get(_SAMPLES, 1)) > 1,
        big_endian=start[:1] == b"M",
    )


def pillow_is_right(page: TiffPage) -> bool:
    """Whether Pillow reads the samples of a page correctly (version 13, compared with tifffile over all layouts)."""
    raw = page.directory.get(_COMPRESSION, 1) == 1
    if page.kind == "u" and page.bits <= 16:
        # Without compression, it reads planes of 16 bits as if they had 8.
        return page.bits <= 8 or not (page.planar and raw)
    # It has one mode for 32-bit integers, with a sign, and swaps bytes that libtiff has swapped already.
    return page.samples == 1 and page.bits == 32 and page.kind != "u" and (raw or not page.big_endian)


def read_samples(file: BinaryFile, page: TiffPage, path: Path) -> Image.Image:
    """Read a page of grey or RGB samples of 16 to 64 bits, uncompressed, in strips.

    Args:
        file: The TIFF.
        page: What `read_page` returned.
        path: Name in messages.

    Returns:
        A picture of 8 bits per channel.

    Raises:
        ImageError: The page has another layout, or its strips are cut off.
    """
    tags, (width, height) = page.directory, page.size
    channels = _CHANNELS.get(tags.get(_PHOTOMETRIC, -1), 0)
    supported = page.bits in {16, 32, 64} and (page.kind == "f" or page.bits == 32 or page.kind == "u")
    if not (channels and supported and page.samples >= channels and tags.get(_COMPRESSION, 1) == 1):
        raise ImageError(_layout_message(page, path))
    if _STRIP_OFFSETS not in tags or _STRIP_SIZES not in tags:
        raise ImageError(_layout_message(page, path))
    dtype = np.dtype(f"{'>' if page.big_endian else '<'}{page.kind}{page.bits // 8}")
    planes = page.samples if page.planar else 1
    shape = (planes, height, width, page.samples // planes)
    data = _strips(file, page, math.prod(shape) * dtype.itemsize, planes)
    if len(data) < math.prod(shape) * dtype.itemsize:
        raise ImageError(f"{path}: damaged or cut off (strips are missing); copy it again, or save it again")
    values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)
    values = values[..., 0].transpose(1, 2, 0) if page.planar else values[0]
    kept = channels + (page.samples > channels and _as_tuple(tags.get(_EXTRA_SAMPLES, 0))[0] in {1, 2})
    values = values[..., :kept]
    scaled = scale_to_8_bits(values, full_scale([values], path))
    if page.white_is_zero:
        scaled[..., 0] = 255 - scaled[..., 0]
    return Image.fromarray(scaled[..., 0] if kept == 1 else scaled)


def _directories(file: BinaryFile, *, below: bool) -> list[ImageFileDirectory_v2]:
    """The directories of a TIFF before the first damaged one, without the pictures; `below`: also the nested ones."""
    file.seek(0)
    header = file.read(8)
    if b"+" in header[2:4]:  # BigTIFF
        header += file.read(8)
    found: list[ImageFileDirectory_v2] = []
    try:
        waiting = [ImageFileDirectory_v2(header).next]
        seen = {0}
        while waiting and len(found) < _MAX_DIRECTORIES:
            offset = waiting.pop(0)
            if offset in seen:
                continue
            seen.add(offset)
            file.seek(offset)
            tags = ImageFileDirectory_v2(header)
            tags.load(cast(io.BytesIO, file))
            found.append(tags)
            nested = _as_tuple(tags.get(_SUB_IFDS, ())) if below else ()
            waiting += [*nested, tags.next]
    except Exception:
        return found  # the parser raises many kinds of errors
    return found


def _strips(file: BinaryFile, page: TiffPage, size: int, planes: int) -> bytes:
    """The content of all strips, each of the length that its rows need."""
    tags, (_, height) = page.directory, page.size
    offsets, sizes = _as_tuple(tags[_STRIP_OFFSETS]), _as_tuple(tags[_STRIP_SIZES])
    rows = min(int(tags.get(_ROWS_PER_STRIP, height)), height) or height
    per_plane = -(-height // rows)
    row_bytes = size // (planes * height)
    parts = []
    for index, (offset, length) in enumerate(zip(offsets, sizes, strict=False)):
        needed = min(rows, height - index % per_plane * rows) * row_bytes
        if index >= planes * per_plane or length < needed:
            break
        file.seek(offset)
        parts.append(file.read(needed))
    return b"".join(parts)


def _as_tuple(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(value),)  # pyright: ignore[reportArgumentType]


def _layout_message(page: TiffPage, path: Path) -> str:
    kind = {"u": "integer", "i": "signed integer", "f": "floating-point"}[page.kind]
    compressed = "" if page.directory.get(_COMPRESSION, 1) == 1 else ", compressed"
    planar = ", in separate planes" if page.planar else ""
    return (
        f"{path}: a TIFF of {page.samples} × {page.bits}-bit {kind} samples{compressed}{planar} is not supported; "
        "save it with 8 or 16 bits per channel, interleaved"
    )
