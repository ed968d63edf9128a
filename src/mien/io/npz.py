"""NumPy's .npz and .npy: read from untrusted files (no pickle, sizes are checked before unpacking); fast writing."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.deflate import crc32, deflate
from mien.io.reading import Budget, file_size, unreadable

_MOST_MEMBERS = 500
_LONGEST_HEADER = 4096
_CHUNK = 1 << 18
"""Bytes unpacked at a time; zipfile holds four copies of them."""
_HEADER = re.compile(
    rb"\{'descr': '([<>|](?:b1|[iu][1248]|f[248]|U[1-9][0-9]{0,4}))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,12}, ?){0,8}[0-9]{0,12})\), ?\}[ \n]*"
)
"""Accepts booleans, numbers and text, but no objects."""
_ZIP_VERSION, _ZIP_DATE = 20, 33
"""Version 2.0 of the format has deflate; 33 is 1 January 1980, so that equal arrays make equal files."""
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)


class NpzReader:
    """The arrays of an .npz file, each read on request; every failure is a FormatError.

    Args:
        path: The file.
        max_bytes: Limit of all arrays together in memory; by default it follows from the size of the file.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self.path, self._budget = path, Budget(path, max_bytes)
        with self._guarded("the archive"):
            self._zip = zipfile.ZipFile(path)
        members = self._zip.infolist()
        if len(members) > _MOST_MEMBERS:
            raise FormatError(f"{path}: {len(members)} members; expected at most {_MOST_MEMBERS}")
        self._members = {m.filename.removesuffix(".npy"): m for m in members}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> frozenset[str]:
        """Names of the arrays."""
        return frozenset(self._members)

    def array(self, name: str) -> np.ndarray:
        """One array of numbers or text, in the file's type."""
        with self._open(name) as (stream, size):
            self._budget.take(size, name)
            return _read_npy(stream, size, name, self.path)

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Shape and type of one array, from its header."""
        with self._open(name) as (stream, _):
            shape, _, dtype, _ = npy_header(stream, name, self.path)
            return shape, dtype

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[io.BufferedIOBase, int]]:
        if name not in self._members:
            raise FormatError(f"{self.path}: lacks the array {name!r}; expected it beside {sorted(self._members)[:20]}")
        member = self._members[name]
        if member.compress_type not in _PACKINGS:
            raise FormatError(f"{self.path}: {name} is packed by method {member.compress_type}; expected zip's deflate")
        with self._guarded(name), self._zip.open(member) as stream:
            yield stream, member.file_size  # pyright: ignore[reportReturnType]

    def text(self, name: str, default: str) -> str:
        """One text, or the default if the file has no such array."""
        return _as_text(self.array(name), name, self.path) if name in self else default

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            raise FormatError(f"{self.path}: {what} is damaged ({error}); expected an .npz of plain arrays") from error


def write_npz(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write what `np.savez_compressed` writes, in a tenth of its time: zipfile can only use zlib.

    Args:
        arrays: The arrays by name, each below 4 GiB.
        path: The file.

    Raises:
        OSError: The file cannot be written.
    """
    directory = b""
    with path.open("wb") as file:
        for key, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            plain, name = content.getvalue(), f"{key}.npy".encode()
            packed = deflate(plain, raw=True)
            # Fields that a member's header shares with its entry in the directory: APPNOTE.TXT 6.3, 4.3.7, 4.3.12.
            shared = struct.pack(
                "<HHHHHIIIHH",
                *(_ZIP_VERSION, 0, zipfile.ZIP_DEFLATED, 0, _ZIP_DATE),
                *(crc32(plain), len(packed), len(plain), len(name), 0),
            )
            entry = struct.pack("<HHHII", 0, 0, 0, 0, file.tell())
            directory += b"PK\x01\x02" + struct.pack("<H", _ZIP_VERSION) + shared + entry + name
            file.write(b"PK\x03\x04" + shared + name + packed)
        end = struct.pack("<HHHHIIH", 0, 0, len(arrays), len(arrays), len(directory), file.tell(), 0)
        file.write(directory + b"PK\x05\x06" + end)


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file; FormatError for a damaged file and for objects."""
    size = file_size(path)
    try:
        with path.open("rb") as stream:
            return _read_npy(stream, size, "the array", path)
    except OSError as error:
        raise FormatError(unreadable(path, error)) from error


def parse_npy(content: bytes, name: str, where: Path | str) -> np.ndarray:
    """The array of the content of an .npy file; FormatError for anything else."""
    return _read_npy(io.BytesIO(content), len(content), name, where)


def _read_npy(stream: io.BufferedIOBase, size: int, name: str, path: Path | str) -> np.ndarray:
    shape, fortran, dtype, header_size = npy_header(stream, name, path)
    count = math.prod(shape)
    if header_size + count * dtype.itemsize != size:
        raise FormatError(f"{path}: {name} is {shape} of {dtype}, but has {size - header_size} bytes")
    array = np.empty(count, dtype)
    view = array.view(np.uint8) if array.size else np.empty(0, np.uint8)
    filled = 0
    while filled < len(view):
        part = stream.read(min(len(view) - filled, _CHUNK))
        if not part:
            raise FormatError(f"{path}: {name} ends after {filled} of {len(view)} bytes")
        view[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    stream.read(1)  # at the end zipfile compares the checksum
    return array.reshape(shape, order="F" if fortran else "C")


def npy_header(
    stream: io.BufferedIOBase, name: str, path: Path | str
) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, Fortran order, type and header size of an .npy file.

    NumPy's own function passes the header to Python's parser; a regular expression is enough for three fields.

    Raises:
        FormatError: The type is neither numbers nor text, or the header is damaged.
    """
    prefix = stream.read(8)
    if prefix not in (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
        raise FormatError(f"{path}: {name} begins with {prefix!r}; expected .npy of version 1.0 or 2.0")
    width = 2 if prefix[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    header = stream.read(min(length, _LONGEST_HEADER + 1))
    found = _HEADER.fullmatch(header)
    if found is None or len(header) != length:
        raise FormatError(f"{path}: {name} has the header {header[:80]!r}; expected a plain array of numbers or text")
    code, fortran, sides = (group.decode("ascii") for group in found.groups())
    shape = tuple(int(side) for side in sides.split(",") if side.strip())
    return shape, fortran == "True", np.dtype(code), 8 + width + length


def _as_text(array: np.ndarray, name: str, path: Path) -> str:
    if array.shape != () or array.dtype.kind != "U":
        raise FormatError(f"{path}: {name} is {array.dtype} {array.shape}; expected one text")
    return str(array[()])


def names_of(array: np.ndarray, name: str, path: Path) -> tuple[str, ...]:
    """A list of texts; FormatError for any other array."""
    if array.ndim != 1 or array.dtype.kind != "U":
        raise FormatError(f"{path}: {name} is {array.dtype} {array.shape}; expected a list of names")
    return tuple(str(value) for value in array)


def numbers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return the array if it holds numbers; FormatError for text."""
    if array.dtype.kind not in "iuf":
        raise FormatError(f"{path}: {name} is of type {array.dtype}; expected numbers")
    return array


def indices(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Convert whole numbers to int64; FormatError for fractions, NaN and text."""
    array = numbers(array, name, path)
    if array.dtype.kind == "f" and not bool((array == np.floor(array)).all() and np.abs(array).max(initial=0) < 2**31):
        raise FormatError(f"{path}: {name} holds values that are not whole numbers; expected indices")
    if array.dtype.kind == "u" and array.max(initial=0) >= 2**31:
        raise FormatError(f"{path}: {name} holds {array.max()}; expected indices below 2^31")
    return array.astype(np.int64)
