"""MAT-files of other kinds, and damaged ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats.mat5 import read_mat
from tests.formats import files
from tests.formats.files import mat_bytes


def test_invalid_mat_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    honest = mat_bytes({"x": np.arange(300.0)[None] + 0.5})
    many = honest[:128] + honest[128:] * 1001
    body = honest[128 + 8 :]
    for content, message in (
        (honest[:124] + struct.pack("<H", 0x0200) + honest[126:], "HDF5 library"),
        (b"x" * 200, "not a MAT-file"),
        (many, "more than 1000 variables"),
        (honest[:128] + struct.pack("<I", 5 << 16 | 1) + b"abcd", "small element"),
        (honest[:128] + struct.pack("<II", 14, len(body)) + files.element(5, b"12345678") + body[16:], "array header"),
        (honest[:128] + struct.pack("<II", 14, 1 << 30) + body, "the file ends"),
        (honest[:130], "ends inside the tag"),
        (honest.replace(struct.pack("<2i", 1, 300), struct.pack("<2i", 2, 300)), "but has"),
        (honest.replace(struct.pack("<2i", 1, 300), struct.pack("<2i", -1, 300)), "no negative side"),
        (honest.replace(struct.pack("<II", 9, 2400), struct.pack("<II", 17, 2400)), "expected a number type"),
        (honest.replace(struct.pack("<II", 6, 0), struct.pack("<II", 1, 0)), "not a real numeric array"),
        (honest.replace(struct.pack("<II", 6, 0), struct.pack("<II", 0x0806, 0)), "not a real numeric array"),
        (honest[:128] + struct.pack("<II", 15, 4) + b"junk", "damaged compression"),
        (honest[:128] + files.packed(b"1234"), "without a tag"),
        (honest[:128] + files.packed(struct.pack("<II", 14, 1000) + b"short"), "ends after 5 of 1000"),
        (honest[:128] + files.packed(struct.pack("<II", 14, 1 << 31) + b"short"), "claims"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message):
            read_mat(path, frozenset({"x"}))


def test_an_empty_mat_array_with_huge_sides_is_refused(tmp_path: Path) -> None:
    sides = struct.pack("<4i", 0, *(2**31 - 1,) * 3)
    body = b"".join(
        files.element(kind, data) for kind, data in ((6, struct.pack("<II", 6, 0)), (5, sides), (1, b"x"), (9, b""))
    )
    (tmp_path / "a.mat").write_bytes(mat_bytes({}) + struct.pack("<II", 14, len(body)) + body)
    with pytest.raises(FormatError, match="but has 0 bytes"):
        read_mat(tmp_path / "a.mat", frozenset({"x"}))
