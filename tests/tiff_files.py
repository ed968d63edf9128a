"""Write small TIFFs byte by byte, also in layouts that Pillow neither writes nor reads."""

from __future__ import annotations

import struct
import zlib

import numpy as np

Entry = tuple[int, bytes]
"""Type of a value as in TIFF 6.0, and its bytes."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 10: 8}


class TiffWriter:
    """Packs values in one order of the bytes, "<" or ">"."""

    def __init__(self, order: str = "<") -> None:
        self.order = order

    def short(self, *values: int) -> Entry:
        return 3, struct.pack(f"{self.order}{len(values)}H", *values)

    def long(self, *values: int) -> Entry:
        return 4, struct.pack(f"{self.order}{len(values)}I", *values)

    def rationals(self, *values: float, kind: int = 5) -> Entry:
        return kind, b"".join(struct.pack(f"{self.order}ii", round(value * 10000), 10000) for value in values)

    def header(self, first: int) -> bytes:
        return (b"II" if self.order == "<" else b"MM") + struct.pack(f"{self.order}HI", 42, first)

    def directory(self, entries: dict[int, Entry], at: int, following: int = 0) -> bytes:
        """A directory that stands at `at`, with its long values behind it."""
        table, data = struct.pack(f"{self.order}H", len(entries)), b""
        behind = at + 2 + 12 * len(entries) + 4
        for tag, (kind, value) in sorted(entries.items()):
            table += struct.pack(f"{self.order}HHI", tag, kind, len(value) // _SIZES[kind])
            if len(value) <= 4:
                table += value.ljust(4, b"\0")
            else:
                table += struct.pack(f"{self.order}I", behind + len(data))
                data += value + bytes(len(value) % 2)
        return table + struct.pack(f"{self.order}I", following) + data


def tiff_bytes(
    pixels: np.ndarray,
    *,
    planar: bool = False,
    deflate: bool = False,
    order: str = "<",
    rows: int = 25,
    white_is_zero: bool = False,
    more: dict[int, Entry] | None = None,
) -> bytes:
    """A TIFF of grey or RGB with or without alpha, of the type of its pixels, H × W or H × W × S, in strips."""
    writer = TiffWriter(order)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, samples = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    planes = np.moveaxis(pixels, -1, 0)[..., None] if planar else pixels[None]
    planes = planes.astype(pixels.dtype.newbyteorder(order))
    strips = [plane[start : start + rows].tobytes() for plane in planes for start in range(0, height, rows)]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    offsets = [8 + sum(map(len, strips[:k])) for k in range(len(strips))]
    entries = {
        256: writer.long(width), 257: writer.long(height), 258: writer.short(*[8 * pixels.itemsize] * samples),
        259: writer.short(8 if deflate else 1), 262: writer.short(2 if samples > 2 else 1 - white_is_zero),
        273: writer.long(*offsets), 277: writer.short(samples), 278: writer.long(rows),
        279: writer.long(*map(len, strips)), 284: writer.short(2 if planar else 1),
        339: writer.short(*[kind] * samples),
    }  # fmt: skip
    if samples in {2, 4}:
        entries[338] = writer.short(2)
    at = 8 + sum(map(len, strips))
    return writer.header(at) + b"".join(strips) + writer.directory(entries | (more or {}), at)
