"""HDF5 files that lie, and the process that reads them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats import hdf5
from mien.morphable.formats.bfm2017 import read_bfm2017
from tests.formats import files
from tests.formats.files import V


def test_a_damaged_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match="HDF5 library"):
        read_bfm2017(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(FormatError, match="HDF5 library"):
        read_bfm2017(path)


def test_inconsistent_hdf5_files_are_refused(tmp_path: Path) -> None:
    def links_out(file: h5py.File) -> None:
        del file["shape/model/mean"]
        file["shape/model/mean"] = h5py.ExternalLink("other.h5", "/x")

    def lies_elsewhere(file: h5py.File) -> None:
        del file["shape/model/mean"]
        file.create_dataset("shape/model/mean", (3 * V,), "<f4", external=[("raw.bin", 0, 12 * V)])

    def is_text(file: h5py.File) -> None:
        del file["shape/model/mean"]
        file["shape/model/mean"] = "text"

    def is_a_bomb(file: h5py.File) -> None:
        del file["shape/model/pcaBasis"]
        basis = file.create_dataset("shape/model/pcaBasis", (3 * V, 10_000_000), "<f4", chunks=(1, 1000), fillvalue=0)
        basis[0, 0] = 1

    def replaced(name: str, value: np.ndarray) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            del file[name]
            file[name] = value

        return change

    for change, message in (
        (lambda file: file.__delitem__("shape/representer/cells"), "lacks shape/representer/cells"),
        (lambda file: file.__delitem__("color/model/pcaBasis"), "color/model is incomplete"),
        (links_out, "a link to another place"),
        (lies_elsewhere, "stored in another file"),
        (is_text, "expected numbers"),
        (is_a_bomb, "claims"),
        (replaced("shape/model/pcaVariance", np.ones(2)), "pcaBasis is"),
        (replaced("shape/model/pcaVariance", np.array([1.0, -1.0, 1.0])), "no negative variance"),
        (replaced("shape/representer/cells", np.zeros((4, 4), int)), r"expected \(3, T\)"),
        (replaced("shape/model/mean", np.zeros((0,))), "pcaBasis is"),
    ):
        path = files.write_bfm2017(tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(FormatError, match=message):
            read_bfm2017(path)


def test_hdf5_parts_of_another_mesh_are_refused(tmp_path: Path) -> None:
    for part in ("expression", "color"):
        path = files.write_bfm2017(tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            for name, value in (("mean", np.zeros(9)), ("pcaBasis", np.zeros((9, 2))), ("pcaVariance", np.ones(2))):
                del file[f"{part}/model/{name}"]
                file[f"{part}/model/{name}"] = value
        with pytest.raises(FormatError, match=f"{part} has 3 vertices"):
            read_bfm2017(path)


def test_a_library_that_crashes_or_hangs_ends_as_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    crash = tmp_path / "crash.py"
    crash.write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr(hdf5, "_CHILD", crash)
    with pytest.raises(FormatError, match="-11"):
        read_bfm2017(path)
    crash.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(hdf5, "_TIMEOUT_S", 0.3)
    with pytest.raises(FormatError, match=r"not read within 0\.3 s"):
        read_bfm2017(path)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The child's program in this process, where coverage sees it; its memory limit would be ours."""
    from mien.morphable.formats import hdf5_child

    monkeypatch.setattr(hdf5_child, "_limit_memory", lambda limit: None)
    return hdf5_child


def test_the_child_reports_the_arrays_it_copied(tmp_path: Path, child: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    child.main([str(path), str(tmp_path), "100000", "shape/model/mean", "shape/model/none", "shape/model"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [{"name": "shape/model/mean", "type": "<f4", "shape": [3 * V]}]
    assert (tmp_path / "shape.model.mean.raw").stat().st_size == 12 * V


@pytest.mark.parametrize("packed", [False, True])
def test_the_child_transposes_matrices(
    tmp_path: Path, child: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    matrix = np.arange(1400 * 3, dtype="<f4").reshape(1400, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a/basis", data=matrix, **({"compression": "gzip"} if packed else {}))
        file["empty"], file["list"] = np.zeros((0, 5)), np.arange(3.0)
    monkeypatch.delattr(child.os, "posix_fallocate")  # as on systems that have none
    child.main([str(tmp_path / "a.h5"), str(tmp_path), "100000", "a/basis.T", "a/basis", "empty.T", "list.T"])
    message = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry.get("shape") for entry in message] == [[3, 1400], [1400, 3], [5, 0], None]
    assert "expected a matrix" in message[-1]["error"]
    # One file holds both: the second was written last.
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.basis.raw", "<f4").reshape(1400, 3), matrix)
    child.main([str(tmp_path / "a.h5"), str(tmp_path), "100000", "a/basis.T"])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.basis.raw", "<f4").reshape(3, 1400), matrix.T)


def test_the_child_reports_why_it_refuses_a_dataset(
    tmp_path: Path, child: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["text"] = "text"
        file["soft"] = h5py.SoftLink("/shape/model/mean")
        file.create_dataset("outside", (3,), "<f4", external=[("raw.bin", 0, 12)])
        file.create_dataset("wide", (1 << 62, 0), "<f4", maxshape=(None, None), chunks=(1, 1))
        file.create_dataset("deep", (100, 0, 100), "<f4", maxshape=(None,) * 3, chunks=(1, 1, 1))
    for name, limit, message in (
        ("shape/model/pcaBasis", "10", "claims"),
        ("text", "1000", "expected numbers"),
        ("soft", "1000", "link to another place"),
        ("outside", "1000", "stored in another file"),
        ("wide", "1000", "could hold"),
        ("deep", "1000", "could hold"),
    ):
        child.main([str(path), str(tmp_path), limit, name])
        assert message in json.loads(capsys.readouterr().out)["error"]
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    child.main([str(tmp_path / "bad.h5"), str(tmp_path), "1000", "x"])
    assert "HDF5 library error" in json.loads(capsys.readouterr().out)["error"]


def test_the_memory_limit_is_set_where_the_system_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mien.morphable.formats import hdf5_child

    limits_set = []
    fake = types.SimpleNamespace(
        RLIMIT_CORE=1, RLIMIT_AS=2, setrlimit=lambda kind, most: limits_set.append((kind, most))
    )
    monkeypatch.setitem(sys.modules, "resource", fake)
    hdf5_child._limit_memory(1000)
    assert limits_set[0] == (1, (0, 0))
    assert limits_set[1][0] == 2
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    hdf5_child._limit_memory(1000)
    assert len(limits_set) == 2


def test_scratch_space_falls_back_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hdf5._scratch(1 << 62) is None
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    assert hdf5._scratch(0) is None
