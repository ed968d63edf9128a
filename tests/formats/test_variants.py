"""The same models as other programs and other years write them: none of these differences may change what is read."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats import read_model
from mien.morphable.formats.bfm2009 import read_bfm2009
from mien.morphable.formats.bfm2017 import read_bfm2017
from mien.morphable.formats.deep3d import read_deep3d
from mien.morphable.formats.flame import read_flame
from mien.morphable.formats.ict import read_ict
from mien.morphable.formats.mat5 import read_mat
from mien.morphable.formats.pickles import read_pickled_arrays
from tests.formats import files
from tests.formats.files import FACE, V

CLOSE = {"rtol": 1e-5, "atol": 1e-7}


# FLAME


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["csc_matrix", "csr_matrix", "csc_array", "csr_array"])
def test_flame_2023_without_chumpy_and_with_current_scipy(tmp_path: Path, kind: str, protocol: int) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    arrays = files.flame_arrays()
    regressor = getattr(sparse, kind)(arrays["J_regressor"])
    content = arrays | {"J_regressor": regressor, "f": arrays["f"].astype(np.int64), "bs_type": "lrotmin"}
    content["kintree_table"] = np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]])
    content["posedirs"] = np.asfortranarray(arrays["posedirs"])
    path = tmp_path / "FLAME2023.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    model = read_flame(path)
    assert model.skinning is not None
    np.testing.assert_allclose(model.skinning.joint_regressor, arrays["J_regressor"], **CLOSE)
    np.testing.assert_allclose(model.skinning.pose_basis, arrays["posedirs"].transpose(2, 0, 1), **CLOSE)
    assert model.skinning.parents.tolist() == [-1, 0, 1, 1, 1]


class Select:
    """chumpy.reordering.Select, as far as a pickle shows it."""

    def __init__(self, a: files.Ch, idxs: np.ndarray, preferred_shape: tuple[int, ...] | None) -> None:
        self.a, self.idxs, self.preferred_shape = a, idxs, preferred_shape


files.PYTHON2_NAMES[Select] = "chumpy.reordering\nSelect"


def test_flame_with_components_selected_by_chumpy(tmp_path: Path) -> None:
    content = files.flame_content()
    whole = files.flame_arrays()["shapedirs"]
    places = np.arange(whole.size).reshape(whole.shape)[:, :, :301]
    content["shapedirs"] = Select(files.Ch(whole), places.ravel(), places.shape)
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(files.python2_pickle(content))
    model = read_flame(path)
    np.testing.assert_allclose(model.identity_basis[:4], FACE.basis(0, 4), **CLOSE)
    np.testing.assert_allclose(model.expression_basis, FACE.basis(4, 1), **CLOSE)


@pytest.mark.parametrize(
    ("places", "shape", "message"),
    [
        (np.array([0, 9]), (2,), "outside its 6 values"),
        (np.array([-1]), (1,), "outside"),
        (np.array([0.5]), (1,), "outside"),
        (np.array([0, 1]), (3,), "for the shape"),
        (np.array([0, 1]), (1.5,), "for the shape"),
        (np.array([0, 1]), [2], "for the shape"),
        (None, (2,), "without its parts"),
    ],
)
def test_an_inconsistent_selection_is_refused(
    tmp_path: Path, places: np.ndarray | None, shape: object, message: str
) -> None:
    path = tmp_path / "a.pkl"
    selection = Select(files.Ch(np.arange(6.0)), places, shape)  # pyright: ignore[reportArgumentType]
    path.write_bytes(files.python2_pickle({"x": selection}))
    with pytest.raises(FormatError, match=message):
        read_pickled_arrays(path)


def test_a_selection_without_a_shape_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(files.python2_pickle({"x": Select(files.Ch(np.arange(6.0)), np.array([1, 5]), None)}))
    assert read_pickled_arrays(path)["x"].tolist() == [1.0, 5.0]


def protocol_5_array(*, module: str = "numpy.core.numeric", order: bytes = b"C", count: int = 2) -> bytes:
    content = struct.pack("<2d", 3.0, 4.0)
    parts = [b"\x96" + struct.pack("<Q", 16) + content, b"cnumpy\ndtype\n(\x8c\x02f8\x89\x88tR"]
    parts += [b"K" + bytes([count]) + b"\x85", b"\x8c\x01" + order]
    return b"\x80\x05}\x8c\x01xc" + module.encode() + b"\n_frombuffer\n(" + b"".join(parts) + b"tRs."


def test_arrays_of_protocol_5_by_numpy_1(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(protocol_5_array())
    assert read_pickled_arrays(path)["x"].tolist() == [3.0, 4.0]
    for content in (protocol_5_array(order=b"A"), protocol_5_array(count=3)):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"without its bytes|but has 16 bytes"):
            read_pickled_arrays(path)


# MATLAB


@pytest.mark.parametrize("packed", [False, True])
def test_mat_files_that_scipy_writes(tmp_path: Path, packed: bool) -> None:
    """Deep3DFaceRecon's file was made by scipy.io.savemat."""
    scipy_io = pytest.importorskip("scipy.io")
    scaled = (FACE.directions * FACE.deviations[:, None]).astype(np.float32)
    content = {
        "meanshape": FACE.mean.reshape(1, -1) * 10,
        "meantex": (FACE.albedo.reshape(1, -1) * 255).astype(np.float32),
        "idBase": scaled[:3].T * 10,
        "exBase": (scaled[3:5].T * 10).astype(np.float64),
        "texBase": np.asfortranarray(scaled[5:7].T * 255),
        "tri": (FACE.triangles + 1).astype(np.uint16),
        "keypoints": (np.arange(68)[None] + 1).astype(np.uint8),
        "skinmask": (np.arange(V)[None] % 2).astype(bool),
        "note": "made by a test",
        "cells": np.array([[1, "two"]], dtype=object),
    }
    path = tmp_path / "BFM_model_front.mat"
    scipy_io.savemat(path, content, do_compression=packed)
    model = read_deep3d(path)
    np.testing.assert_allclose(model.identity_basis, FACE.basis(0, 3), **CLOSE)
    np.testing.assert_allclose(model.expression_basis, FACE.basis(3, 2), **CLOSE)
    np.testing.assert_array_equal(model.triangles, FACE.triangles)
    np.testing.assert_array_equal(model.masks["skin"], np.arange(V) % 2)


def test_matlab_objects_between_arrays_are_skipped(tmp_path: Path) -> None:
    """Strings and tables have a header without dimensions: flags, name, kind of object, class."""
    opaque = b"".join(
        files.element(kind, data)
        for kind, data in ((6, struct.pack("<II", 17, 0)), (1, b"notes"), (1, b"MCOS"), (1, b"string"))
    )
    whole = files.mat_bytes({"x": np.array([[1.5, 2.5]])})
    path = tmp_path / "a.mat"
    path.write_bytes(whole[:128] + struct.pack("<II", 14, len(opaque)) + opaque + whole[128:])
    assert read_mat(path, frozenset({"x"}))["x"].tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize("packed", [False, True])
def test_mat_files_of_version_7_3(tmp_path: Path, packed: bool) -> None:
    """HDF5 behind a MATLAB header of 512 bytes, with the axes the other way round."""
    path = tmp_path / "01_MorphableModel.mat"
    options = {"compression": "gzip", "chunks": True} if packed else {}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in files.bfm2009_variables().items():
            file.create_dataset(name, data=array.T, **options).attrs["MATLAB_class"] = np.bytes_("double")
        file.create_group("#refs#")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    with path.open("r+b") as raw:
        raw.write(header)
    model, expected = read_bfm2009(path), tmp_path / "old" / path.name
    expected.parent.mkdir()
    expected.write_bytes(files.mat_bytes(files.bfm2009_variables()))
    same = read_bfm2009(expected)
    for part in ("mean", "triangles", "identity_basis", "albedo_mean", "albedo_basis"):
        np.testing.assert_array_equal(getattr(model, part), getattr(same, part), err_msg=part)


# HDF5


@pytest.mark.parametrize("change", ["double", "packed", "column", "big-endian", "scalismo"])
def test_variants_of_bfm_2019_are_read(tmp_path: Path, change: str) -> None:
    path = files.write_bfm2017(tmp_path / "model2019_fullHead.h5")
    with h5py.File(path, "r+") as file:
        for part in ("shape", "expression", "color"):
            model = file[f"{part}/model"]
            assert isinstance(model, h5py.Group)
            arrays = {name: np.asarray(model[name]) for name in ("mean", "pcaBasis", "pcaVariance")}
            for name, array in arrays.items():
                del model[name]
                if change == "double":
                    model.create_dataset(name, data=array.astype("<f8"))
                elif change == "packed":
                    model.create_dataset(name, data=array, compression="gzip", shuffle=True, chunks=True)
                elif change == "column":
                    model.create_dataset(name, data=array if array.ndim == 2 else array[:, None])
                elif change == "big-endian":
                    model.create_dataset(name, data=array.astype(">f4"))
                else:
                    model.create_dataset(name, data=array)
        if change == "scalismo":
            cells = np.asarray(file["shape/representer/cells"])
            del file["shape/representer/cells"]
            file["shape/representer/cells"] = cells.astype("<u4")
            file["metadata/landmarks/json"] = "[]"
            file["catalog/MorphableModel.shape/modelPath"] = "/shape"
            file["shape/modelinfo/scores"] = np.zeros((3, 2))
    model, same = read_model(path), read_bfm2017(files.write_bfm2017(tmp_path / "plain.h5"))
    for part in ("mean", "triangles", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis"):
        np.testing.assert_allclose(getattr(model, part), getattr(same, part), err_msg=part, **CLOSE)


# ICT-FaceKit


def test_ict_obj_files_with_other_line_ends_and_spaces_are_read(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain", tmp_path / "FaceXModel"
    for folder in (plain, other):
        folder.mkdir()
        files.write_ict_folder(folder)
    for file in other.glob("*.obj"):
        lines = ["# a comment", "mtllib faces.mtl", "o head", "g default", "s 1", *file.read_text().splitlines()]
        lines = [line.replace("v ", "v  ", 1) if line.startswith("v ") else line for line in lines]
        lines = [f"{line} " if line.startswith(("f ", "usemtl ")) else line for line in lines]
        file.write_bytes("\r\n".join(lines).encode())
    (other / "vertex_indices.json").write_text("{}")
    model, same = read_ict(other), read_ict(plain)
    for part in ("mean", "triangles", "identity_basis", "expression_basis"):
        np.testing.assert_array_equal(getattr(model, part), getattr(same, part), err_msg=part)
