"""Reads the part of cereal's binary archive that eos uses: little-endian numbers, vectors, Eigen matrices.

Layout from the headers of eos and cereal (facts, no code): a class with a version writes it once as uint32 before its
first object; `std::vector` and `std::string` a uint64 length; Eigen matrices int32 rows, int32 columns and their data
column-major; `std::optional` a byte that is 1 for nothing; `std::variant` an int32 index.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.reading import file_size


class CerealStream:
    """A cursor over an archive; every read is checked against the remaining bytes."""

    def __init__(self, path: Path) -> None:
        file_size(path)
        self.path = path
        self._content = np.fromfile(path, np.uint8)
        self._place = 0

    @property
    def at_end(self) -> bool:
        """Whether all bytes were read."""
        return self._place == len(self._content)

    def _take(self, count: int, what: str) -> np.ndarray:
        if count < 0 or count > len(self._content) - self._place:
            raise FormatError(
                f"{self.path}: {what} at byte {self._place} needs {count} bytes; "
                f"the file has {len(self._content) - self._place} left"
            )
        start, self._place = self._place, self._place + count
        return self._content[start : self._place]

    def _number(self, code: str, what: str) -> int:
        return struct.unpack("<" + code, self._take(struct.calcsize(code), what).tobytes())[0]

    def version(self) -> int:
        """The version of the class that follows."""
        return self._number("I", "a class version")

    def variant(self) -> int:
        """Index of the variant's alternative that follows."""
        return self._number("i", "a variant's index")

    def present(self, what: str) -> bool:
        """Whether an optional value follows."""
        flag = self._number("B", what)
        if flag > 1:
            raise FormatError(f"{self.path}: {what} is marked {flag}; expected 0 or 1")
        return flag == 0

    def length(self, what: str) -> int:
        """Number of elements of the vector that follows."""
        return self._number("Q", f"the length of {what}")

    def integer(self, what: str) -> int:
        """One int32."""
        return self._number("i", what)

    def matrix(self, what: str) -> np.ndarray:
        """An Eigen matrix of float32, stored column by column."""
        rows, columns = self.integer(f"rows of {what}"), self.integer(f"columns of {what}")
        if rows < 0 or columns < 0:
            raise FormatError(f"{self.path}: {what} is {rows} x {columns}; expected no negative side")
        return self._take(4 * rows * columns, what).view("<f4").reshape((rows, columns), order="F")

    def rows(self, what: str, kind: str, columns: int) -> np.ndarray:
        """A vector of fixed-size arrays, as (N, columns)."""
        count = self.length(what)
        return self._take(count * columns * np.dtype(kind).itemsize, what).view(kind).reshape(-1, columns)

    def text(self, what: str) -> str:
        """A string."""
        return self._take(self.length(what), what).tobytes().decode("utf-8", "replace")
