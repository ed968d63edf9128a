"""Read what decoders of HEIC and AVIF do not tell: whether the file turns its picture, its colour space and its EXIF.

Sources: ISO/IEC 14496-12 (boxes, items), ISO/IEC 23008-12 (HEIF).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mien.io.color import ColorSpace
from mien.io.source import BinaryFile

_MAX_META_BYTES = 16 << 20  # a phone's HEIC has 10 kB
_MAX_EXIF_BYTES = 1 << 20
_MAX_BOXES = 10_000


@dataclass(frozen=True)
class MainPicture:
    """What the file says about its main picture."""

    turned: bool = False
    """Whether it has a rotation or reflection, which decoders apply; EXIF's orientation then repeats it."""
    space: ColorSpace | None = None
    """Its colour space, if named by numbers."""
    exif: bytes | None = None
    """Its EXIF block, which starts with a TIFF header."""


def read_main_picture(file: BinaryFile) -> MainPicture:
    """Read the properties of the main picture.

    Args:
        file: A HEIC or AVIF file.

    Returns:
        The properties; the defaults if the file is damaged, which its decoder then reports.
    """
    try:
        meta = _meta_box(file)
        boxes = dict(_boxes(meta[4:]))
        main = _integer(boxes[b"pitm"][4:], 2 if boxes[b"pitm"][0] == 0 else 4)
        turned, space = False, None
        for kind, content in _properties(boxes[b"iprp"], main):
            turned = turned or kind in {b"irot", b"imir"}
            if kind == b"colr" and content[:4] == b"nclx":
                space = ColorSpace(*struct.unpack(">HH", content[4:8]))
        exif = _exif(file, boxes, main)
    except (KeyError, IndexError, ValueError, struct.error):
        return MainPicture()
    return MainPicture(turned, space, exif)


def _meta_box(file: BinaryFile) -> bytes:
    file.seek(0)
    position = 0
    for _ in range(_MAX_BOXES):
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", file.read(8))[0], 16
        if kind == b"meta":
            return file.read(min(size - header, _MAX_META_BYTES)) if size else file.read(_MAX_META_BYTES)
        if size < header:
            break
        position += size
        file.seek(position)
    raise ValueError


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    for _ in range(_MAX_BOXES):
        if position + 8 > len(content):
            return
        size, kind = struct.unpack(">I4s", content[position : position + 8])
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", content[position + 8 : position + 16])[0], 16
        size = size or len(content) - position
        if size < header:
            raise ValueError
        yield kind, content[position + header : position + size]
        position += size


def _properties(iprp: bytes, item: int) -> list[tuple[bytes, bytes]]:
    """The boxes that `ipma` associates with an item."""
    parts = list(_boxes(iprp))
    available = list(_boxes(next(content for kind, content in parts if kind == b"ipco")))
    numbers: list[int] = []
    for content in (content for kind, content in parts if kind == b"ipma"):
        reader = _Reader(content[8:])
        id_bytes, wide = (2 if content[0] == 0 else 4), content[3] & 1
        for _ in range(_integer(content[4:], 4)):
            owner = reader.integer(id_bytes)
            found = [reader.integer(2 if wide else 1) & (0x7FFF if wide else 0x7F) for _ in range(reader.integer(1))]
            numbers += found if owner == item else []
    return [available[number - 1] for number in numbers if 0 < number <= len(available)]


def _exif(file: BinaryFile, boxes: dict[bytes, bytes], main: int) -> bytes | None:
    describing = set(_describing(boxes.get(b"iref", b""), main))
    item = next((each for each in _item_ids(boxes.get(b"iinf", b""), b"Exif") if each in describing), None)
    place = None if item is None else _item_place(boxes[b"iloc"], item)
    if place is None or place[1] > _MAX_EXIF_BYTES:
        return None
    file.seek(place[0])
    content = file.read(place[1])
    start = 4 + _integer(content, 4)  # exif_tiff_header_offset
    return content[start:] or None


def _item_ids(iinf: bytes, wanted: bytes) -> Iterator[int]:
    if not iinf:
        return
    for _, entry in _boxes(iinf[6 if iinf[0] == 0 else 8 :]):
        id_bytes = 2 if entry[0] == 2 else 4
        if entry[0] >= 2 and entry[6 + id_bytes : 10 + id_bytes] == wanted:
            yield _integer(entry[4:], id_bytes)


def _describing(iref: bytes, item: int) -> Iterator[int]:
    """The items that hold metadata of an item."""
    id_bytes = 4 if iref[:1] == b"\1" else 2
    for kind, content in _boxes(iref[4:]):
        reader = _Reader(content)
        owner = reader.integer(id_bytes)
        if kind == b"cdsc" and item in [reader.integer(id_bytes) for _ in range(reader.integer(2))]:
            yield owner


def _item_place(iloc: bytes, item: int) -> tuple[int, int] | None:
    """Position and size in the file of an item of one piece."""
    version = iloc[0]
    offset_bytes, length_bytes, base_bytes = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4
    index_bytes = iloc[5] & 15 if version else 0
    reader = _Reader(iloc[6:])
    for _ in range(reader.integer(2 if version < 2 else 4)):
        owner = reader.integer(2 if version < 2 else 4)
        in_file = (reader.integer(2) & 15) == 0 if version else True
        reader.integer(2)
        base = reader.integer(base_bytes)
        pieces = []
        for _ in range(reader.integer(2)):
            reader.integer(index_bytes)
            pieces.append((base + reader.integer(offset_bytes), reader.integer(length_bytes)))
        if owner == item:
            return pieces[0] if in_file and len(pieces) == 1 else None
    return None


class _Reader:
    """Reads big-endian integers one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def integer(self, size: int) -> int:
        value = _integer(self._content[self._position :], size) if size else 0
        self._position += size
        return value


def _integer(content: bytes, size: int) -> int:
    if len(content) < size:
        raise ValueError
    return int.from_bytes(content[:size], "big")
