"""Archives of arrays that lie, and models in them whose parts do not fit."""

from __future__ import annotations

import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats.generic import read_generic
from tests.formats import files
from tests.formats.files import FACE, V


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.array("mien-npz-9")}, "mien-npz-9"),
        ({"format": np.array(1)}, "expected one text"),
        ({"length_unit_m": np.array(1.0)}, "unit is not the one"),
        ({"length_unit_m": np.array(-1.0)}, "one positive number"),
        ({"length_unit_m": np.array([1.0, 2.0])}, "one positive number"),
        ({"length_unit_m": None}, "lacks the array"),
        ({"mean": np.where(np.arange(3 * V).reshape(V, 3) == 7, np.nan, FACE.mean)}, "mean holds values"),
        ({"mean": np.zeros((2, 3))}, "2 vertices"),
        ({"mean": FACE.mean.astype(np.str_)}, "expected numbers"),
        ({"mean": FACE.mean[:, :2] * 1e3}, "mean has shape"),
        ({"mean": FACE.mean[0]}, "expected 2 dimensions"),
        ({"triangles": FACE.triangles + 20}, "triangles refers to"),
        ({"triangles": FACE.triangles[:0]}, "0 triangles"),
        ({"triangles": FACE.triangles + 0.5}, "not whole numbers"),
        ({"triangles": FACE.triangles.astype(np.uint64) + 2**40}, "below 2"),
        ({"triangles": np.full((4, 3), np.nan)}, "not whole numbers"),
        ({"identity_basis": np.zeros((1001, V, 3), np.float16)}, "at most 1000"),
        ({"identity_basis": np.zeros((3, V - 1, 3))}, "identity_basis has shape"),
        ({"expression_names": np.array(["one"])}, "1 expression names"),
        ({"expression_names": np.array([1, 2])}, "list of names"),
        ({"expression_kind": np.array("mood")}, "mood"),
        ({"landmarks68": np.arange(5)}, "68 vertices"),
        ({"landmarks68": np.full(68, V)}, "landmarks refers to"),
        ({"mirror": np.full(V, V)}, "mirror refers to"),
        ({"uv": np.zeros((V, 3))}, "uv has shape"),
        ({"mask_skin": np.full(V, np.inf)}, "mask_skin holds"),
        ({"contour_candidates": np.full((17, 2), -2)}, "contour_candidates refers to"),
    ],
)
def test_inconsistent_generic_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_generic(files.write_generic(tmp_path / "a.npz", **change))


def test_objects_in_an_npz_are_never_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    attack = np.array(files.Runs(subprocess.call, ["touch", str(proof)]), dtype=object)
    np.savez(tmp_path / "a.npz", **files.generic_arrays(mean=attack))
    with pytest.raises(FormatError, match="plain array"):
        read_generic(tmp_path / "a.npz")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (99, 3, 2), }", "has 2376 bytes"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }", "has the header"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 999999999999), }", "bytes"),
        (b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (99, 3), }", "has the header"),
        (b"__import__('os').system('true')", "has the header"),
        (b"x" * 5000, "has the header"),
    ],
)
def test_false_array_headers_are_refused(tmp_path: Path, header: bytes, message: str) -> None:
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(V * 3 * 8)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in files.generic_arrays().items():
            content = member if name == "mean" else files.npy_bytes(np.asarray(array))
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(FormatError, match=message):
        read_generic(tmp_path / "a.npz")


def test_npz_with_unknown_compression_or_too_many_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("format.npy", files.npy_bytes(np.array("mien-npz-1")))
    with pytest.raises(FormatError, match="packed by method 12"):
        read_generic(path)
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(501):
            archive.writestr(f"{k}.npy", b"")
    with pytest.raises(FormatError, match="501 members"):
        read_generic(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("format.npy", b"not numpy")
    with pytest.raises(FormatError, match="begins with"):
        read_generic(path)
