"""Pickles that try to run something, or whose arrays, matrices and tensors do not hold together."""

from __future__ import annotations

import pickle
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats import read_model
from mien.morphable.formats.flame import read_flame, read_landmark_embedding
from mien.morphable.formats.pickles import read_pickled_arrays, read_pickled_npy
from tests.formats import files
from tests.formats.files import FACE, V

# What NumPy itself names in a pickle, whose place has moved with NumPy 2.
RECONSTRUCT = np.zeros(0).__reduce__()[0]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(pickle.dumps({"f": files.Runs(subprocess.call, ["touch", str(proof)])}, protocol=protocol))
    with pytest.raises(FormatError, match=r"(subprocess|commands)\.call"):
        read_model(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "os.system", "numpy.load", "builtins.getattr", "numpy.core.multiarray.os", "chumpy.ch.os"]
)
def test_unknown_globals_are_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    for program in (
        f"c{module}\n{attribute}\n(S'x'\ntR.".encode(),
        f"(S'x'\ni{module}\n{attribute}\n.".encode(),
        b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(attribute)])
        + attribute.encode() + b"\x93.",
    ):  # fmt: skip
        path = tmp_path / "a.pkl"
        path.write_bytes(program)
        with pytest.raises(FormatError, match=name.replace(".", r"\.")):
            read_pickled_arrays(path)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x05}.", None),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "damaged"),
        (b"\x80\x05\x97.", "not a readable pickle"),
        (b"\x80\x06}.", "not a readable pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", "damaged"),
        (b"r" + struct.pack("<I", 1 << 31) + b"}.", "memo"),
        (b"}p999999999\n.", "memo"),
        (b"0" * 300_000, "instructions|damaged"),
        (b"N" * 200_001 + b".", "instructions"),
        (b"]" + b"2" * 10 + b".", "holds a list"),
        (b"K\x01.", "holds a int"),
        (b"\x80\x02cnumpy\nndarray\n(tb.", "not a readable pickle"),
        (b"ccopy_reg\n_reconstructor\n(tR.", "not a readable pickle"),
        (b"ccopy_reg\n_reconstructor\n(cnumpy\ndtype\ntR.", "not a readable pickle"),
        (b"P0\n.", "not a readable pickle"),
        (b"\x82\x01.", "not a readable pickle"),
        (b".", "not a readable pickle|damaged"),
        (b"garbage", "damaged|not a readable pickle"),
    ],
)
def test_invalid_pickle_programs_are_refused(tmp_path: Path, program: bytes, message: str | None) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(program)
    if message is None:
        assert read_pickled_arrays(path) == {}
        return
    with pytest.raises(FormatError, match=message):
        read_pickled_arrays(path)


def array_program(state: Any, kind: str = "array") -> bytes:
    """A dictionary with one array whose state is as given."""

    class Array:
        def __reduce__(self) -> Any:
            return RECONSTRUCT, (np.ndarray, (0,), b"b"), state

    return pickle.dumps({"x": Array()}, protocol=2)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((1, (2,), np.dtype("f8"), False, b"12345678"), r"\(2,\) of float64, but has 8 bytes"),
        ((1, (-1,), np.dtype("f8"), False, b""), "but has 0 bytes"),
        ((1, ("x",), np.dtype("f8"), False, b""), "but has 0 bytes"),
        ((1, (1 << 40,), np.dtype("f8"), False, b"12345678"), "but has 8 bytes"),
        ((1, (1,), np.dtype("O"), False, [1]), "type 'O8'"),
        ((1, (1,), "f8", False, b"12345678"), "type None"),
        ((1, (1,), np.dtype("f8"), False, 7), "holds a int"),
        ((1, (1,), np.dtype("f8")), "five parts"),
        ("nothing", "five parts"),
        ((1, (1,) * 65, np.dtype("f8"), False, b"12345678"), "but has 8 bytes"),
        ((1, (0, (1 << 63) - 1), np.dtype("f8"), False, b""), "but has 0 bytes"),
        ((1, (10**5000,), np.dtype("f8"), False, b"12345678"), "is not valid"),
    ],
)
def test_arrays_with_false_states_are_refused(tmp_path: Path, state: Any, message: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(array_program(state))
    with pytest.raises(FormatError, match=message):
        read_pickled_arrays(path)


@pytest.mark.parametrize("deep", ["name", "shape", "type"])
def test_keys_too_deep_to_print_are_refused(tmp_path: Path, deep: str) -> None:
    """Messages show what was found; a tuple in a tuple, 100,000 times over, or a number of 5,000 digits cannot be."""
    nest, path = b")" + b"\x85" * 100_000, tmp_path / "a.pkl"
    shape, dtype = (nest if deep == "shape" else b")"), (nest if deep == "type" else b"U\x02f8")
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape + b"cnumpy\ndtype\n(" + dtype + b"tR\x89U\x00tb"
    path.write_bytes(b"\x80\x02}" + (nest if deep == "name" else b"U\x01x") + array + b"s.")
    with pytest.raises(FormatError, match="is not valid"):
        read_pickled_arrays(path)
    path.write_bytes(pickle.dumps({10**5000: 1}))
    with pytest.raises(FormatError, match="is not valid"):
        read_pickled_arrays(path)


def test_an_unknown_byte_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    honest = pickle.dumps({"x": np.zeros(2)}, protocol=2)
    assert honest.count(b"X\x01\x00\x00\x00<") == 1
    path.write_bytes(honest.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00?"))
    with pytest.raises(FormatError, match="byte order"):
        read_pickled_arrays(path)


def test_array_content_beyond_latin_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(array_program((1, (1,), np.dtype("f8"), False, "\u2603")))
    with pytest.raises(FormatError, match="text where bytes belong"):
        read_pickled_arrays(path)


def test_objects_other_than_arrays_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2], "b": 3, "c": "text", "d": None, "e": np.int64(4)}, protocol=2))
    assert read_pickled_arrays(path) == {"a": None, "b": 3, "c": "text", "d": None, "e": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_shape": (5, 1 << 23)}, "do not fit"),
        ({"_shape": "wide"}, "not a compressed sparse"),
        ({"_shape": (0, 5)}, "not a compressed sparse"),
        ({"data": None}, "not a compressed sparse"),
        ({"indptr": np.zeros(V + 1, np.int32)}, "do not fit"),
        ({"indptr": np.zeros((2, 2), np.int32)}, "do not fit"),
        ({"indices": np.full(20, 99, np.int32)}, "do not fit"),
        ({"indices": np.zeros(20)}, "do not fit"),
    ],
)
def test_inconsistent_sparse_matrices_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    content = files.flame_content()
    for name, value in change.items():
        setattr(content["J_regressor"], name, value)
    path = tmp_path / "a.pkl"
    path.write_bytes(files.python2_pickle(content))
    with pytest.raises(FormatError, match=message):
        read_flame(path)


def test_a_sparse_matrix_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    sparse = files.Csc(np.zeros((1, 1)))
    width = 1 << 16
    sparse._shape, sparse.indptr = (1 << 23, width), np.zeros(width + 1, np.int32)
    path = tmp_path / "a.pkl"
    path.write_bytes(files.python2_pickle({"J_regressor": sparse}))
    with pytest.raises(FormatError, match="claims"):
        read_pickled_arrays(path)


def test_chumpy_and_sparse_objects_without_content_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for name, message in (("chumpy.ch\nCh", "chumpy"), ("scipy.sparse.csc\ncsc_matrix", "without its state")):
        path.write_bytes(b"\x80\x02}U\x01xc" + name.encode() + b"\n)\x81s.")
        with pytest.raises(FormatError, match=message):
            read_pickled_arrays(path)


def test_protocol_0_objects_of_plain_classes_are_read(tmp_path: Path) -> None:
    inner = pickle.dumps(np.arange(3.0), protocol=0)[:-1]
    program = b"(dS'x'\nccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR(dS'x'\n" + inner + b"sbs."
    (tmp_path / "a.pkl").write_bytes(program)
    assert read_pickled_arrays(tmp_path / "a.pkl")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(3), "begins with"),
        (np.array([{"a": 1}, {"b": 2}], dtype=object), "begins with"),
        (np.array("text", dtype=object), "not hold a dictionary"),
    ],
)
def test_an_npy_without_a_dictionary_is_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, content, allow_pickle=True)
    with pytest.raises(FormatError, match=message):
        read_pickled_npy(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_lmk_faces_idx": np.arange(68) + 1000}, "refers to triangle"),
        ({"full_lmk_bary_coords": np.zeros((5, 3))}, "expected 3 each"),
        ({"full_lmk_bary_coords": np.zeros((68, 2))}, "expected 3 each"),
        ({"full_lmk_bary_coords": np.full((68, 3), np.nan)}, "expected 3 each"),
        ({"full_lmk_bary_coords": 3}, "lacks the triangles or weights"),
        ({"static_lmk_faces_idx": np.arange(60), "static_lmk_bary_coords": np.ones((60, 3))}, "expected a FLAME"),
        ({"dynamic_lmk_faces_idx": np.arange(5), "dynamic_lmk_bary_coords": np.ones((5, 3))}, "multiple of 17"),
    ],
)
def test_inconsistent_embeddings_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array(files.embedding_arrays() | change, dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=message):
        read_landmark_embedding(path, FACE.triangles)


def test_an_embedding_without_landmarks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array({"other": np.zeros(3)}, dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="0 landmarks"):
        read_landmark_embedding(path, FACE.triangles)


def tensor_program(storage: bytes, *rest: Any) -> bytes:
    import torch

    class Storage:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (storage,)

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), *rest)

    return pickle.dumps({"x": Tensor()}, protocol=2)


def test_inconsistent_tensors_are_refused(tmp_path: Path) -> None:
    import io

    import torch

    stream = io.BytesIO()
    torch.save(torch.arange(6.0), stream, _use_new_zipfile_serialization=False)
    whole = stream.getvalue()
    path = tmp_path / "a.pkl"
    path.write_bytes(tensor_program(whole, 0, (2, 3), (3, 1), False, {}))
    assert read_pickled_arrays(path)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for storage, rest, message in (
        (whole, (0, (7,), (1,)), "expected all of them"),
        (whole, (1, (5,), (1,)), "expected all of them"),
        (whole, (0, ("x",), (1,)), "expected all of them"),
        (whole, (0, (2, 3), (1, 2)), "strides"),
        (whole[:-4], (0, (6,), (1,)), "but has"),
        (b"\x80\x02N.", (0, (6,), (1,)), "not a tensor saved by torch"),
    ):
        path.write_bytes(tensor_program(storage, *rest, False, {}))
        with pytest.raises(FormatError, match=message):
            read_pickled_arrays(path)
