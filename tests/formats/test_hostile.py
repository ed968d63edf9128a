"""Files that are damaged, dishonest or hostile: every reader refuses them by FormatError and runs nothing."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mien.errors import FormatError
from mien.morphable.formats import hdf5, limits, read_model
from mien.morphable.formats.bfm2009 import read_bfm2009
from mien.morphable.formats.bfm2017 import read_bfm2017
from mien.morphable.formats.deep3d import read_deep3d
from mien.morphable.formats.flame import read_flame, read_landmark_embedding
from mien.morphable.formats.generic import read_generic
from mien.morphable.formats.ict import read_ict, read_obj
from mien.morphable.formats.mat5 import read_mat
from mien.morphable.formats.pickles import read_pickled_arrays, read_pickled_npy
from mien.morphable.formats.surrey import read_surrey
from tests.formats import files
from tests.formats.files import FACE, V, mat_bytes
from tests.formats.targets import TARGETS

CHEAP = [name for name in TARGETS if name != "bfm2017"]
"""bfm2017 starts a process for every file; it has tests of its own below."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_honest_files_are_read(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    assert target.survives(tmp_path, target.honest(tmp_path))


@dataclass(frozen=True)
class Honest:
    folder: Path
    content: bytes = field(repr=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Honest]:
    made = {}
    for name, target in TARGETS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = Honest(folder, target.honest(folder))
    return made


@pytest.mark.parametrize("name", CHEAP)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | st.integers(0, 255)), max_size=4
    ),
    kept=st.none() | st.integers(0, 1 << 20),
)
def test_damaged_bytes_are_refused_or_harmless(
    folders: dict[str, Honest], name: str, edits: list[tuple[int, int]], kept: int | None
) -> None:
    content = bytearray(folders[name].content)
    for place, value in edits:
        content[place % len(content)] = value
    TARGETS[name].survives(folders[name].folder, bytes(content if kept is None else content[: kept % len(content)]))


@pytest.mark.parametrize("name", [name for name in CHEAP if name not in ("generic_array", "mat_packed")])
def test_a_file_cut_anywhere_is_refused(folders: dict[str, Honest], name: str) -> None:
    folder, honest = folders[name].folder, folders[name].content
    places = np.unique(np.linspace(0, len(honest) - 8, 40).astype(int))
    read = [int(place) for place in places if TARGETS[name].survives(folder, honest[:place])]
    # A text may lose its last faces and still be a mesh; nothing else may.
    assert not read or name == "ict_folder"


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_missing_and_empty_files_are_named(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    target.honest(tmp_path)
    path = tmp_path / target.file
    path.write_bytes(b"")
    with pytest.raises(FormatError, match=target.file):
        target.read(path)
    path.unlink()
    if name != "bfm2009_expressions":  # without its expressions it is another honest model
        with pytest.raises(FormatError, match="no such file"):
            target.read(path)


def test_larger_files_than_any_model_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FormatError, match="expected 1 to 1000"):
        read_generic(files.write_generic(tmp_path / "a.npz"))


# Pickles that try something


class _Runs:
    """Pickled, it is a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_a_pickle_that_would_run_a_command_is_refused_by_its_name(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(pickle.dumps({"f": _Runs(subprocess.call, ["touch", str(proof)])}, protocol=protocol))
    with pytest.raises(FormatError, match=r"(subprocess|commands)\.call"):
        read_model(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "os.system", "numpy.load", "builtins.getattr", "numpy.core.multiarray.os", "chumpy.ch.os"]
)
def test_any_global_but_the_few_arrays_need_is_refused(tmp_path: Path, name: str) -> None:
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
    ("program", "said"),
    [
        (b"\x80\x05}.", None),
        (b"\x96" + struct.pack("<Q", 1 << 40) + b".", "no pickle|damaged|protocol"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", "damaged"),
        (b"r" + struct.pack("<I", 1 << 31) + b"}.", "memo"),
        (b"}p999999999\n.", "memo"),
        (b"0" * 300_000, "instructions|damaged"),
        (b"N" * 200_001 + b".", "instructions"),
        (b"]" + b"2" * 10 + b".", "holds a list"),
        (b"K\x01.", "holds a int"),
        (b"\x80\x02cnumpy\nndarray\n(tb.", "no pickle"),
        (b"ccopy_reg\n_reconstructor\n(tR.", "no pickle"),
        (b"ccopy_reg\n_reconstructor\n(cnumpy\ndtype\ntR.", "no pickle"),
        (b"P0\n.", "no pickle"),
        (b"\x82\x01.", "no pickle"),
        (b".", "no pickle|damaged"),
        (b"garbage", "damaged|no pickle"),
    ],
)
def test_odd_programs_are_refused(tmp_path: Path, program: bytes, said: str | None) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(program)
    if said is None:
        assert read_pickled_arrays(path) == {}
        return
    with pytest.raises(FormatError, match=said):
        read_pickled_arrays(path)


def array_program(state: Any, kind: str = "array") -> bytes:
    """A dictionary with one array whose state is as given."""

    class Array:
        def __reduce__(self) -> Any:
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state  # type: ignore[attr-defined]

    return pickle.dumps({"x": Array()}, protocol=2)


@pytest.mark.parametrize(
    ("state", "said"),
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
    ],
)
def test_arrays_with_dishonest_states_are_refused(tmp_path: Path, state: Any, said: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(array_program(state))
    with pytest.raises(FormatError, match=said):
        read_pickled_arrays(path)


def test_an_element_type_of_odd_byte_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    honest = pickle.dumps({"x": np.zeros(2)}, protocol=2)
    assert honest.count(b"X\x01\x00\x00\x00<") == 1
    path.write_bytes(honest.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00?"))
    with pytest.raises(FormatError, match="byte order"):
        read_pickled_arrays(path)


def test_text_beyond_latin_1_is_no_array_content(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(array_program((1, (1,), np.dtype("f8"), False, "\u2603")))
    with pytest.raises(FormatError, match="text where bytes belong"):
        read_pickled_arrays(path)


def test_notes_beside_the_arrays_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2], "b": 3, "c": "text", "d": None, "e": np.int64(4)}, protocol=2))
    assert read_pickled_arrays(path) == {"a": None, "b": 3, "c": "text", "d": None, "e": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_shape": (5, 1 << 23)}, "do not fit"),
        ({"_shape": "wide"}, "no compressed sparse"),
        ({"_shape": (0, 5)}, "no compressed sparse"),
        ({"data": None}, "no compressed sparse"),
        ({"indptr": np.zeros(V + 1, np.int32)}, "do not fit"),
        ({"indptr": np.zeros((2, 2), np.int32)}, "do not fit"),
        ({"indices": np.full(20, 99, np.int32)}, "do not fit"),
        ({"indices": np.zeros(20)}, "do not fit"),
    ],
)
def test_sparse_matrices_that_do_not_hold_together_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    content = files.flame_content()
    for name, value in change.items():
        setattr(content["J_regressor"], name, value)
    path = tmp_path / "a.pkl"
    path.write_bytes(files.python2_pickle(content))
    with pytest.raises(FormatError, match=said):
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
    for name, said in (("chumpy.ch\nCh", "chumpy"), ("scipy.sparse.csc\ncsc_matrix", "without its state")):
        path.write_bytes(b"\x80\x02}U\x01xc" + name.encode() + b"\n)\x81s.")
        with pytest.raises(FormatError, match=said):
            read_pickled_arrays(path)


def test_protocol_0_objects_of_plain_classes_are_read(tmp_path: Path) -> None:
    inner = pickle.dumps(np.arange(3.0), protocol=0)[:-1]
    program = b"(dS'x'\nccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR(dS'x'\n" + inner + b"sbs."
    (tmp_path / "a.pkl").write_bytes(program)
    assert read_pickled_arrays(tmp_path / "a.pkl")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros(3), "begins with"),
        (np.array([{"a": 1}, {"b": 2}], dtype=object), "begins with"),
        (np.array("text", dtype=object), "no dictionary"),
    ],
)
def test_an_npy_without_a_dictionary_is_no_embedding(tmp_path: Path, content: np.ndarray, said: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, content, allow_pickle=True)
    with pytest.raises(FormatError, match=said):
        read_pickled_npy(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"full_lmk_faces_idx": np.arange(68) + 1000}, "points at triangle"),
        ({"full_lmk_bary_coords": np.zeros((5, 3))}, "expected 3 each"),
        ({"full_lmk_bary_coords": np.zeros((68, 2))}, "expected 3 each"),
        ({"full_lmk_bary_coords": np.full((68, 3), np.nan)}, "expected 3 each"),
        ({"full_lmk_bary_coords": 3}, "lacks the triangles or weights"),
        ({"static_lmk_faces_idx": np.arange(60), "static_lmk_bary_coords": np.ones((60, 3))}, "expected a FLAME"),
        ({"dynamic_lmk_faces_idx": np.arange(5), "dynamic_lmk_bary_coords": np.ones((5, 3))}, "multiple of 17"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array(files.embedding_arrays() | change, dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=said):
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


def test_tensors_that_do_not_hold_together_are_refused(tmp_path: Path) -> None:
    import io

    import torch

    stream = io.BytesIO()
    torch.save(torch.arange(6.0), stream, _use_new_zipfile_serialization=False)
    whole = stream.getvalue()
    path = tmp_path / "a.pkl"
    path.write_bytes(tensor_program(whole, 0, (2, 3), (3, 1), False, {}))
    assert read_pickled_arrays(path)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for storage, rest, said in (
        (whole, (0, (7,), (1,)), "expected all of them"),
        (whole, (1, (5,), (1,)), "expected all of them"),
        (whole, (0, ("x",), (1,)), "expected all of them"),
        (whole, (0, (2, 3), (1, 2)), "strides"),
        (whole[:-4], (0, (6,), (1,)), "but has"),
        (b"\x80\x02N.", (0, (6,), (1,)), "no tensor that torch saved"),
    ):
        path.write_bytes(tensor_program(storage, *rest, False, {}))
        with pytest.raises(FormatError, match=said):
            read_pickled_arrays(path)


# Models whose parts do not fit


@pytest.mark.parametrize(
    ("change", "said"),
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
        ({"triangles": FACE.triangles + 20}, "triangles points at"),
        ({"triangles": FACE.triangles[:0]}, "0 triangles"),
        ({"triangles": FACE.triangles + 0.5}, "no whole numbers"),
        ({"triangles": FACE.triangles.astype(np.uint64) + 2**40}, "below 2"),
        ({"triangles": np.full((4, 3), np.nan)}, "no whole numbers"),
        ({"identity_basis": np.zeros((1001, V, 3), np.float16)}, "at most 1000"),
        ({"identity_basis": np.zeros((3, V - 1, 3))}, "identity_basis has shape"),
        ({"expression_names": np.array(["one"])}, "1 expression names"),
        ({"expression_names": np.array([1, 2])}, "list of names"),
        ({"expression_kind": np.array("mood")}, "mood"),
        ({"landmarks68": np.arange(5)}, "68 vertices"),
        ({"landmarks68": np.full(68, V)}, "landmarks points at"),
        ({"mirror": np.full(V, V)}, "mirror points at"),
        ({"uv": np.zeros((V, 3))}, "uv has shape"),
        ({"mask_skin": np.full(V, np.inf)}, "mask_skin holds"),
        ({"contour_candidates": np.full((17, 2), -2)}, "contour_candidates points at"),
    ],
)
def test_generic_files_whose_parts_do_not_fit(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_generic(files.write_generic(tmp_path / "a.npz", **change))


def test_objects_in_an_npz_are_never_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    attack = np.array(_Runs(subprocess.call, ["touch", str(proof)]), dtype=object)
    np.savez(tmp_path / "a.npz", **files.generic_arrays(mean=attack))
    with pytest.raises(FormatError, match="plain array"):
        read_generic(tmp_path / "a.npz")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (99, 3, 2), }", "has 2376 bytes"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }", "has the header"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 999999999999), }", "bytes"),
        (b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (99, 3), }", "has the header"),
        (b"__import__('os').system('true')", "has the header"),
        (b"x" * 5000, "has the header"),
    ],
)
def test_array_headers_that_lie_are_refused(tmp_path: Path, header: bytes, said: str) -> None:
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(V * 3 * 8)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in files.generic_arrays().items():
            content = member if name == "mean" else files.npy_bytes(np.asarray(array))
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(FormatError, match=said):
        read_generic(tmp_path / "a.npz")


def test_npz_of_a_packing_or_number_that_no_model_has(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"landmarks68": np.arange(5)}, "68 vertices"),
        ({"vertices": np.zeros((V, 2))}, "the last of 3"),
        ({"expression_names": np.array(["a", "b", "c", "d", "e"])}, "has an ARKit name"),
        ({"expression_names": np.array(["jawOpen"])}, "1 names for actions"),
        ({"material_quad_range": np.zeros((5, 2), int)}, "material_quad_range"),
    ],
)
def test_ict_files_whose_parts_do_not_fit(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_ict(files.write_ict_npz(tmp_path / "a.npz", **change))


def test_ict_folders_that_are_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_ict_folder(tmp_path)
    neutral = (tmp_path / "generic_neutral_mesh.obj").read_text()
    for text, said in (
        (neutral.replace("f 1/1/1", "f a/1/1", 1), "no list of vertex numbers"),
        (neutral.replace("f 1/1/1", "f 99999999999999999999/1/1", 1), "beyond all meshes"),
        (neutral.replace("v ", "v x", 1), "no three numbers"),
        (neutral.replace("v ", "v 1\nv ", 1), "3 numbers each"),
        ("v 0 0 0\n", "1 vertices"),
    ):
        (tmp_path / "bad.obj").write_text(text)
        with pytest.raises(FormatError, match=said):
            read_obj(tmp_path / "bad.obj")
    (tmp_path / "bad.obj").unlink()
    (tmp_path / "identity000.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(FormatError, match="3 vertices; expected 99"):
        read_ict(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mien.morphable.formats.ict.MAX_COMPONENTS", 3)
        with pytest.raises(FormatError, match="OBJ files"):
            read_ict(tmp_path)
        patch.setattr("mien.morphable.formats.ict.MAX_TRIANGLES", 3)
        with pytest.raises(FormatError, match="more than 3 triangles"):
            read_ict(tmp_path)
        patch.setattr("mien.morphable.formats.ict._LARGEST_OBJ", 10)
        with pytest.raises(FormatError, match="larger than 10"):
            read_ict(tmp_path)
    for file in tmp_path.glob("identity*.obj"):
        file.unlink()
    with pytest.raises(FormatError, match="lacks identity000"):
        read_ict(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shapeMU": None}, "lacks shapeMU"),
        ({"texMU": np.zeros((3, 1), np.float32)}, "expected 3 a vertex"),
        ({"shapePC": np.zeros((3 * V, 2), np.float32)}, "shapePC is"),
        ({"shapeEV": np.full((3, 1), np.nan, np.float32)}, "identity_basis holds"),
        ({"tl": FACE.triangles.astype(float)}, "tl is"),
        ({"tl": FACE.triangles[:, :2] + 1.0}, "tl is"),
        ({"tl": FACE.triangles + 1.5}, "no whole numbers"),
    ],
)
def test_bfm2009_files_whose_parts_do_not_fit(tmp_path: Path, change: dict, said: str) -> None:
    variables = {k: v for k, v in (files.bfm2009_variables() | change).items() if v is not None}
    path = tmp_path / "01_MorphableModel.mat"
    path.write_bytes(mat_bytes(variables))
    with pytest.raises(FormatError, match=said):
        read_bfm2009(path)


def test_bfm2009_expression_files_that_do_not_fit(tmp_path: Path) -> None:
    files.write_bfm2009(tmp_path)
    honest = {name: (tmp_path / name).read_bytes() for name in ("Exp_Pca.bin", "std_exp.txt", "BFM_exp_idx.mat")}
    for name, content, said in (
        ("Exp_Pca.bin", struct.pack("<i", 5000) + bytes(100), "5000 components"),
        ("Exp_Pca.bin", b"ab", "0 components"),
        ("std_exp.txt", b"1.0", "1 numbers; expected 2"),
        ("std_exp.txt", b"one two", "no list of numbers"),
        ("std_exp.txt", b"1 " * (1 << 20), "too large"),
        ("BFM_exp_idx.mat", mat_bytes({"other": np.ones((2, 1))}), "lacks 'trimIndex'"),
        ("BFM_exp_idx.mat", mat_bytes({"trimIndex": np.full((2, 1), 999.0)}), "points outside"),
        ("BFM_exp_idx.mat", mat_bytes({"trimIndex": np.full((2, 1), 5.0)}), "names a vertex twice"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=said):
            read_bfm2009(tmp_path)
        (tmp_path / name).write_bytes(honest[name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exBase": None}, "lacks exBase"),
        ({"skinmask": np.ones((1, 3))}, "1 a vertex"),
        ({"idBase": np.ones((3, 3), np.float32)}, "idBase is"),
        ({"keypoints": np.ones((1, 5), np.int32)}, "5 keypoints"),
        ({"keypoints": np.zeros((1, 68), np.int32)}, "landmarks points at vertex -1"),
        ({"tri": FACE.triangles.astype(np.int32)}, "triangles points at vertex -1"),
    ],
)
def test_deep3d_files_whose_parts_do_not_fit(tmp_path: Path, change: dict, said: str) -> None:
    path = files.write_deep3d(tmp_path / "a.mat")
    names = frozenset({"meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints", "skinmask"})
    variables = {k: v for k, v in (read_mat(path, names) | change).items() if v is not None}
    path = tmp_path / "b.mat"
    path.write_bytes(mat_bytes(variables))
    with pytest.raises(FormatError, match=said):
        read_deep3d(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v_template": None}, "lacks the arrays v_template"),
        ({"v_template": np.zeros((2, 3))}, "v_template is"),
        ({"shapedirs": np.zeros((V, 3))}, "shapedirs is"),
        ({"posedirs": np.zeros((V, 3, 35))}, "pose_basis has shape"),
        ({"weights": np.full((V, 5), np.nan)}, "weights has shape"),
        ({"J_regressor": np.zeros((5, 2))}, "joint_regressor has shape"),
        ({"kintree_table": np.zeros((5, 2), int)}, "kintree_table is"),
        ({"kintree_table": np.array([[0, 3, 1, 1, 1], [0, 1, 2, 3, 4]])}, "no tree"),
    ],
)
def test_flame_files_whose_parts_do_not_fit(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{k: v for k, v in (files.flame_arrays() | change).items() if v is not None})
    with pytest.raises(FormatError, match=said):
        read_flame(path)


def test_surrey_files_whose_parts_do_not_fit(tmp_path: Path) -> None:
    whole = files.write_surrey(tmp_path / "a.bin", version=4).read_bytes()
    bare = files.write_surrey(tmp_path / "a.bin", version=1).read_bytes()
    variance = (FACE.deviations * 1e3) ** 2
    pca = files.cereal_pca(FACE.mean.reshape(-1) * 1e3, FACE.directions[:3], variance[:3], FACE.triangles)
    head = struct.pack("<I", 2) + pca + files.EMPTY_PCA
    tail = struct.pack("<Q", 0)
    for content, said in (
        (struct.pack("<I", 9) + whole[4:], "version 9"),
        (bare + b"x", "goes on after"),
        (struct.pack("<Iii", 1, -1, 5), "no negative side"),
        (struct.pack("<Iii", 1, 1 << 30, 1 << 30), "the file has"),
        (head + b"\x07" + tail, "marked 7"),
        (head + b"\0" + struct.pack("<i", 2) + tail, "kind 2"),
        (head + b"\0" + struct.pack("<i", 1) + struct.pack("<Q", 1 << 40), "blendshapes; expected at most"),
        (head + b"\0" + struct.pack("<i", 1) + struct.pack("<Q", 0) + tail, "no blendshapes"),
        (head + b"\0" + struct.pack("<i", 1) + files.cereal_blendshapes(("a",), np.zeros((1, 4))), "3 a vertex"),
        (head + b"\0" + struct.pack("<i", 0) + files.EMPTY_PCA + tail, "expression mean has 0"),
        (head + b"\0" + struct.pack("<i", 1) + files.cereal_blendshapes(("a",), np.zeros((1, 3))) + tail, "has shape"),
        (
            struct.pack("<I", 1) + files.cereal_pca(np.zeros(9), np.zeros((2, 6)), np.ones(2), FACE.triangles),
            "basis is",
        ),
        (
            struct.pack("<I", 1)
            + files.cereal_pca(FACE.mean.ravel(), FACE.directions[:2], -variance[:2], FACE.triangles),
            "no variances",
        ),
    ):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(FormatError, match=said):
            read_surrey(tmp_path / "a.bin")


def test_surrey_with_triangles_of_its_texture_has_no_chart_of_its_vertices(tmp_path: Path) -> None:
    path = files.write_surrey(tmp_path / "a.bin", version=4)
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<Q3i", 1, 0, 1, 2))
    assert read_surrey(path).uv is None


# MAT-files


def test_mat_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    honest = mat_bytes({"x": np.arange(300.0)[None] + 0.5})
    many = honest[:128] + honest[128:] * 1001
    body = honest[128 + 8 :]
    for content, said in (
        (honest[:124] + struct.pack("<H", 0x0200) + honest[126:], "version 7.3"),
        (b"x" * 200, "no MAT-file"),
        (many, "more than 1000 variables"),
        (honest[:128] + struct.pack("<I", 5 << 16 | 1) + b"abcd", "small element"),
        (honest[:128] + struct.pack("<II", 14, len(body)) + files.element(5, b"12345678") + body[16:], "array header"),
        (honest[:128] + struct.pack("<II", 14, 1 << 30) + body, "the file ends"),
        (honest[:130], "ends inside the tag"),
        (honest.replace(struct.pack("<2i", 1, 300), struct.pack("<2i", 2, 300)), "but has"),
        (honest.replace(struct.pack("<2i", 1, 300), struct.pack("<2i", -1, 300)), "no negative side"),
        (honest.replace(struct.pack("<II", 9, 2400), struct.pack("<II", 17, 2400)), "expected a number type"),
        (honest.replace(struct.pack("<II", 6, 0), struct.pack("<II", 1, 0)), "no real numeric array"),
        (honest.replace(struct.pack("<II", 6, 0), struct.pack("<II", 0x0806, 0)), "no real numeric array"),
        (honest[:128] + struct.pack("<II", 15, 4) + b"junk", "damaged compression"),
        (honest[:128] + packed(b"1234"), "without a tag"),
        (honest[:128] + packed(struct.pack("<II", 14, 1000) + b"short"), "ends after 5 of 1000"),
        (honest[:128] + packed(struct.pack("<II", 14, 1 << 31) + b"short"), "claims"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=said):
            read_mat(path, frozenset({"x"}))


def packed(body: bytes) -> bytes:
    squeezed = zlib.compress(body)
    return struct.pack("<II", 15, len(squeezed)) + squeezed


# HDF5


def test_a_damaged_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match="HDF5 library"):
        read_bfm2017(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(FormatError, match="HDF5 library"):
        read_bfm2017(path)


def test_hdf5_files_whose_parts_do_not_fit(tmp_path: Path) -> None:
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

    for change, said in (
        (lambda file: file.__delitem__("shape/representer/cells"), "lacks shape/representer/cells"),
        (lambda file: file.__delitem__("color/model/pcaBasis"), "color/model is not whole"),
        (links_out, "a link to somewhere else"),
        (lies_elsewhere, "lies in another file"),
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
        with pytest.raises(FormatError, match=said):
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


# Memory


def peak_bytes(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        read()
    except FormatError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def big_face() -> dict[str, np.ndarray]:
    return files.generic_arrays(identity_basis=np.random.default_rng(0).normal(size=(900, V, 3)).astype(np.float32))


def test_reading_takes_no_more_than_four_times_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "generic.npz", **big_face())
    basis = np.random.default_rng(0).normal(size=(3 * V, 900)).astype(np.float32)
    large = files.bfm2009_variables() | {"shapePC": basis, "shapeEV": np.ones((900, 1), np.float32)}
    (tmp_path / "01_MorphableModel.mat").write_bytes(mat_bytes(large))
    flame = files.flame_arrays() | {"shapedirs": basis.reshape(V, 3, 900).astype(np.float32)}
    (tmp_path / "flame.pkl").write_bytes(files.python2_pickle(flame))
    for name in ("generic.npz", "01_MorphableModel.mat", "flame.pkl"):
        path = tmp_path / name
        assert peak_bytes(lambda path=path: read_model(path)) <= 4 * path.stat().st_size, name


def test_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    """Honest beginnings, and content that would unfold to hundreds of megabytes."""
    zeros = np.zeros((300, 200_000, 3), np.float32)
    np.savez_compressed(tmp_path / "generic.npz", **files.generic_arrays(identity_basis=zeros))
    header, body = files.mat_bytes({}), files.mat_bytes({"shapeMU": zeros.reshape(-1, 1)})[128:]
    (tmp_path / "01_MorphableModel.mat").write_bytes(header + packed(body))
    del zeros, body
    for name in ("generic.npz", "01_MorphableModel.mat"):
        path = tmp_path / name
        with pytest.raises(FormatError, match="more than 16 times"):
            read_model(path)
        honest = 4 << 20
        assert peak_bytes(lambda path=path: read_model(path)) <= 4 * honest, name


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The child's program in this process, where coverage sees it; its memory limit would be ours."""
    from mien.morphable.formats import hdf5_child

    monkeypatch.setattr(hdf5_child, "_limit_memory", lambda limit: None)
    return hdf5_child


def test_the_child_says_what_it_found(tmp_path: Path, child: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    child.main([str(path), str(tmp_path), "100000", "shape/model/mean", "shape/model/none", "shape/model"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [{"name": "shape/model/mean", "type": "<f4", "shape": [3 * V]}]
    assert (tmp_path / "shape.model.mean.raw").stat().st_size == 12 * V


def test_the_child_says_why_it_refuses(tmp_path: Path, child: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["text"] = "text"
        file["soft"] = h5py.SoftLink("/shape/model/mean")
        file.create_dataset("outside", (3,), "<f4", external=[("raw.bin", 0, 12)])
    for name, limit, said in (
        ("shape/model/pcaBasis", "10", "claims"),
        ("text", "1000", "expected numbers"),
        ("soft", "1000", "link to somewhere else"),
        ("outside", "1000", "lies in another file"),
    ):
        child.main([str(path), str(tmp_path), limit, name])
        assert said in json.loads(capsys.readouterr().out)["error"]
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    child.main([str(tmp_path / "bad.h5"), str(tmp_path), "1000", "x"])
    assert "the HDF5 library says" in json.loads(capsys.readouterr().out)["error"]


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
