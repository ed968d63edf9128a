"""Reads numeric arrays of MATLAB MAT-files: level 5 (versions 5 to 7), and version 7.3, which is HDF5.

SciPy's reader is not used because it also builds objects, functions and cells, and allocates whatever size a header
states. Format: "MAT-File Format", The MathWorks. A variable is a miMATRIX element of flags, dimensions, name and
column-major data; it may be compressed with zlib. Variables that are not numeric arrays are skipped.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.reading import Budget
from mien.morphable.formats.hdf5 import read_hdf5

_HEADER = 128
_VERSION_5, _VERSION_HDF5 = 0x0100, 0x0200
_MI_MATRIX, _MI_COMPRESSED = 14, 15
_DATA_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_CLASS_TYPES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_COMPLEX_FLAG = 0x08
_OPAQUE = 17
"""Class of MATLAB's own objects (strings, tables), whose headers have no dimensions."""
_MOST_VARIABLES = 1000
_CHUNK = 1 << 20


def read_mat(path: Path, names: frozenset[str]) -> dict[str, np.ndarray]:
    """Read those of the named numeric variables that the file holds.

    Args:
        path: The MAT-file.
        names: Names of variables.

    Returns:
        Arrays by name, in MATLAB's column-major order; uncompressed ones are views of the file's bytes.

    Raises:
        FormatError: The file is damaged.
        BackendUnavailable: A file of version 7.3 needs h5py, which is not installed.
    """
    budget = Budget(path)
    with path.open("rb") as file:
        order, version = _byte_order_and_version(file.read(_HEADER), path)
    if version == _VERSION_HDF5:
        # HDF5 and MATLAB count axes in opposite order.
        return {name: array.T for name, array in read_hdf5(path, tuple(sorted(names))).items()}
    # Read, not mapped: if another process shortened a mapped file, a signal would end this process.
    content = np.fromfile(path, np.uint8)
    found: dict[str, np.ndarray] = {}
    place = _HEADER
    for _ in range(_MOST_VARIABLES):
        if place == len(content):
            return found
        kind, start, length, place = _element(content, place, order, path)
        if kind == _MI_COMPRESSED:
            kind, body = _unpacked(content[start : start + length], order, budget)
        else:
            body = content[start : start + length]
        if kind == _MI_MATRIX:
            found.update(_matrix(body, order, names, path))
    raise FormatError(f"{path}: more than {_MOST_VARIABLES} variables; expected a face model")


def _byte_order_and_version(header: bytes, path: Path) -> tuple[str, int]:
    if len(header) == _HEADER and header[126:128] in (b"IM", b"MI"):
        order = "<" if header[126:128] == b"IM" else ">"
        (version,) = struct.unpack(order + "H", header[124:126])
        if version in (_VERSION_5, _VERSION_HDF5):
            return order, version
    raise FormatError(f"{path}: not a MAT-file of level 5 or 7.3; expected its header of {_HEADER} bytes")


def _element(content: np.ndarray, place: int, order: str, path: Path) -> tuple[int, int, int, int]:
    """Type, start and length of the element at byte `place`, and the start of the next one."""
    if place + 8 > len(content):
        raise FormatError(f"{path}: ends inside the tag at byte {place}; expected 8 bytes")
    kind, length = struct.unpack(order + "II", content[place : place + 8].tobytes())
    if kind >> 16:  # a small element: length and type share four bytes, the data are in the other four
        kind, length, start, after = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        if length > 4:
            raise FormatError(f"{path}: small element of {length} bytes at byte {place}; expected at most 4")
    else:
        start = place + 8
        # Compressed elements are not padded; all others are, to multiples of eight bytes.
        after = start + (length if kind == _MI_COMPRESSED else length + -length % 8)
    if start + length > len(content):
        raise FormatError(f"{path}: element of {length} bytes at byte {place}; the file ends after {len(content)}")
    return kind, start, length, min(after, len(content))


def _unpacked(packed: np.ndarray, order: str, budget: Budget) -> tuple[int, np.ndarray]:
    """Unpack the element inside a compressed one, at most to the size in its tag."""
    stream = zlib.decompressobj()
    try:
        tag = stream.decompress(packed[:_CHUNK].tobytes(), 8)
        if len(tag) < 8:
            raise FormatError(f"{budget.path}: compressed element without a tag; expected 8 bytes")
        kind, length = struct.unpack(order + "II", tag)
        budget.take(length, "a compressed variable")
        body = bytearray(length)
        filled, place, rest = 0, _CHUNK, stream.unconsumed_tail
        while filled < length:
            part = stream.decompress(rest, min(length - filled, 8 * _CHUNK))
            body[filled : filled + len(part)] = part
            filled += len(part)
            rest = stream.unconsumed_tail
            if not rest and not part:
                if place >= len(packed) or stream.eof:
                    raise FormatError(f"{budget.path}: compressed variable ends after {filled} of {length} bytes")
                rest = packed[place : place + _CHUNK].tobytes()
                place += _CHUNK
    except zlib.error as error:
        raise FormatError(f"{budget.path}: damaged compression ({error}); expected a zlib stream") from error
    return kind, np.frombuffer(body, np.uint8)


@dataclass(frozen=True)
class _ArrayHeader:
    kind: int
    shape: tuple[int, ...]
    name: str


def _matrix(body: np.ndarray, order: str, names: frozenset[str], path: Path) -> dict[str, np.ndarray]:
    place, parts = 0, []
    for _ in range(3):
        kind, start, length, place = _element(body, place, order, path)
        parts.append((kind, body[start : start + length].tobytes()))
    if parts[0][0] == 6 and len(parts[0][1]) == 8 and parts[0][1][0 if order == "<" else 3] == _OPAQUE:
        return {}
    header = _array_header(parts, order, path)
    if header.name not in names:
        return {}
    if header.kind not in _CLASS_TYPES:
        raise FormatError(f"{path}: {header.name} is not a real numeric array (MATLAB class {header.kind})")
    kind, start, length, _ = _element(body, place, order, path)
    if kind not in _DATA_TYPES:
        raise FormatError(f"{path}: {header.name} has data type {kind}; expected a number type")
    stored = np.dtype(order + _DATA_TYPES[kind])
    count = 1
    for side in header.shape:
        count *= side
    if count * stored.itemsize != length or (count == 0 and len(header.shape) > 2):
        raise FormatError(f"{path}: {header.name} is {header.shape}, but has {length} bytes of {stored}")
    values = body[start : start + length].view(stored).reshape(header.shape, order="F")
    # MATLAB stores whole numbers in the smallest type that holds them, whatever the array's class.
    wanted = np.dtype(_CLASS_TYPES[header.kind])
    return {header.name: values if stored == wanted else values.astype(wanted, order="F")}


def _array_header(parts: list[tuple[int, bytes]], order: str, path: Path) -> _ArrayHeader:
    (flags_kind, flags), (dims_kind, dims), (name_kind, name) = parts
    right_types = flags_kind == 6 and dims_kind == 5 and name_kind == 1
    if not right_types or len(flags) != 8 or not 8 <= len(dims) <= 128 or len(dims) % 4:
        raise FormatError(f"{path}: array header of types {[kind for kind, _ in parts]}; expected [6, 5, 1]")
    (word,) = struct.unpack(order + "I", flags[:4])
    shape = struct.unpack(order + f"{len(dims) // 4}i", dims)
    if min(shape) < 0:
        raise FormatError(f"{path}: array of shape {shape}; expected no negative side")
    is_complex = (word >> 8) & _COMPLEX_FLAG
    return _ArrayHeader(0 if is_complex else word & 0xFF, shape, name.decode("latin-1"))


def write_mat(path: Path, variables: dict[str, np.ndarray]) -> None:
    """Write float32 and float64 matrices, uncompressed, little-endian; raises OSError."""
    chunks = [b"MATLAB 5.0 MAT-file, written by mien".ljust(124), struct.pack("<H", 0x0100), b"IM"]
    for name, array in variables.items():
        single = array.dtype == np.float32
        data = np.asarray(array, "<f4" if single else "<f8").tobytes(order="F")
        body = [
            _packed(6, struct.pack("<II", 7 if single else 6, 0)),
            _packed(5, struct.pack(f"<{array.ndim}i", *array.shape)),
            _packed(1, name.encode("ascii")),
            _packed(7 if single else 9, data),
        ]
        chunks.append(_packed(_MI_MATRIX, b"".join(body)))
    path.write_bytes(b"".join(chunks))


def _packed(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)
