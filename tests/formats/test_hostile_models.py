"""Models whose parts do not fit each other, one reader after the other."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats.bfm2009 import read_bfm2009
from mien.morphable.formats.deep3d import read_deep3d
from mien.morphable.formats.flame import read_flame
from mien.morphable.formats.ict import read_ict, read_obj
from mien.morphable.formats.mat5 import read_mat
from mien.morphable.formats.surrey import read_surrey
from tests.formats import files
from tests.formats.files import FACE, V, mat_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"landmarks68": np.arange(5)}, "68 vertices"),
        ({"vertices": np.zeros((V, 2))}, "the last of 3"),
        ({"expression_names": np.array(["a", "b", "c", "d", "e"])}, "has an ARKit name"),
        ({"expression_names": np.array(["jawOpen"])}, "1 names for blendshapes"),
        ({"material_quad_range": np.zeros((5, 2), int)}, "material_quad_range"),
    ],
)
def test_inconsistent_ict_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_ict(files.write_ict_npz(tmp_path / "a.npz", **change))


def test_incomplete_ict_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_ict_folder(tmp_path)
    neutral = (tmp_path / "generic_neutral_mesh.obj").read_text()
    for text, message in (
        (neutral.replace("f 1/1/1", "f a/1/1", 1), "not a list of vertex numbers"),
        (neutral.replace("f 1/1/1", "f 99999999999999999999/1/1", 1), "too large"),
        (neutral.replace("v ", "v x", 1), "not three numbers"),
        (neutral.replace("v ", "v 1\nv ", 1), "3 numbers each"),
        ("v 0 0 0\n", "1 vertices"),
        (neutral.replace("v ", f"v {'0' * 100_000}", 1), "characters"),  # as wide an array would not fit any memory
    ):
        (tmp_path / "bad.obj").write_text(text)
        with pytest.raises(FormatError, match=message):
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
    ("change", "message"),
    [
        ({"shapeMU": None}, "lacks shapeMU"),
        ({"texMU": np.zeros((3, 1), np.float32)}, "expected 3 per vertex"),
        ({"shapePC": np.zeros((3 * V, 2), np.float32)}, "shapePC is"),
        ({"shapeEV": np.full((3, 1), np.nan, np.float32)}, "identity_basis holds"),
        ({"tl": FACE.triangles.astype(float)}, "tl is"),
        ({"tl": FACE.triangles[:, :2] + 1.0}, "tl is"),
        ({"tl": FACE.triangles + 1.5}, "not whole numbers"),
    ],
)
def test_inconsistent_bfm2009_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    variables = {k: v for k, v in (files.bfm2009_variables() | change).items() if v is not None}
    path = tmp_path / "01_MorphableModel.mat"
    path.write_bytes(mat_bytes(variables))
    with pytest.raises(FormatError, match=message):
        read_bfm2009(path)


def test_inconsistent_bfm2009_expression_files_are_refused(tmp_path: Path) -> None:
    files.write_bfm2009(tmp_path)
    honest = {name: (tmp_path / name).read_bytes() for name in ("Exp_Pca.bin", "std_exp.txt", "BFM_exp_idx.mat")}
    for name, content, message in (
        ("Exp_Pca.bin", struct.pack("<i", 5000) + bytes(100), "5000 components"),
        ("Exp_Pca.bin", b"ab", "0 components"),
        ("BFM_exp_idx.mat", mat_bytes({"trimIndex": np.arange(3.0, V)[:, None]}), "2 components in"),  # another mesh's
        ("std_exp.txt", b"1.0", "1 numbers; expected 2"),
        ("std_exp.txt", b"one two", "not a list of numbers"),
        ("std_exp.txt", b"1 " * (1 << 20), "too large"),
        ("BFM_exp_idx.mat", mat_bytes({"other": np.ones((2, 1))}), "lacks 'trimIndex'"),
        ("BFM_exp_idx.mat", mat_bytes({"trimIndex": np.full((2, 1), 999.0)}), "refers outside"),
        ("BFM_exp_idx.mat", mat_bytes({"trimIndex": np.full((2, 1), 5.0)}), "lists a vertex twice"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=message):
            read_bfm2009(tmp_path)
        (tmp_path / name).write_bytes(honest[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exBase": None}, "lacks exBase"),
        ({"skinmask": np.ones((1, 3))}, "1 per vertex"),
        ({"idBase": np.ones((3, 3), np.float32)}, "idBase is"),
        ({"keypoints": np.ones((1, 5), np.int32)}, "5 keypoints"),
        ({"keypoints": np.zeros((1, 68), np.int32)}, "landmarks refers to vertex -1"),
        ({"tri": FACE.triangles.astype(np.int32)}, "triangles refers to vertex -1"),
    ],
)
def test_inconsistent_deep3d_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = files.write_deep3d(tmp_path / "a.mat")
    names = frozenset({"meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints", "skinmask"})
    variables = {k: v for k, v in (read_mat(path, names) | change).items() if v is not None}
    path = tmp_path / "b.mat"
    path.write_bytes(mat_bytes(variables))
    with pytest.raises(FormatError, match=message):
        read_deep3d(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_template": None}, "lacks the arrays v_template"),
        ({"v_template": np.zeros((2, 3))}, "v_template is"),
        ({"shapedirs": np.zeros((V, 3))}, "shapedirs is"),
        ({"posedirs": np.zeros((V, 3, 35))}, "pose_basis has shape"),
        ({"weights": np.full((V, 5), np.nan)}, "weights has shape"),
        ({"J_regressor": np.zeros((5, 2))}, "joint_regressor has shape"),
        ({"kintree_table": np.zeros((5, 2), int)}, "kintree_table is"),
        ({"kintree_table": np.array([[0, 3, 1, 1, 1], [0, 1, 2, 3, 4]])}, "each parent before its children"),
    ],
)
def test_inconsistent_flame_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{k: v for k, v in (files.flame_arrays() | change).items() if v is not None})
    with pytest.raises(FormatError, match=message):
        read_flame(path)


def test_inconsistent_surrey_files_are_refused(tmp_path: Path) -> None:
    whole = files.write_surrey(tmp_path / "a.bin", version=4).read_bytes()
    bare = files.write_surrey(tmp_path / "a.bin", version=1).read_bytes()
    variance = (FACE.deviations * 1e3) ** 2
    pca = files.cereal_pca(FACE.mean.reshape(-1) * 1e3, FACE.directions[:3], variance[:3], FACE.triangles)
    head = struct.pack("<I", 2) + pca + files.EMPTY_PCA
    tail = struct.pack("<Q", 0)
    for content, message in (
        (struct.pack("<I", 9) + whole[4:], "version 9"),
        (bare + b"x", "more data after"),
        (struct.pack("<Iii", 1, -1, 5), "no negative side"),
        (struct.pack("<Iii", 1, 1 << 30, 1 << 30), "the file has"),
        (head + b"\x07" + tail, "marked 7"),
        (head + b"\0" + struct.pack("<i", 2) + tail, "kind 2"),
        (head + b"\0" + struct.pack("<i", 1) + struct.pack("<Q", 1 << 40), "blendshapes; expected at most"),
        (head + b"\0" + struct.pack("<i", 1) + struct.pack("<Q", 0) + tail, "no blendshapes"),
        (head + b"\0" + struct.pack("<i", 1) + files.cereal_blendshapes(("a",), np.zeros((1, 4))), "3 per vertex"),
        (head + b"\0" + struct.pack("<i", 0) + files.EMPTY_PCA + tail, "expression mean has 0"),
        (head + b"\0" + struct.pack("<i", 1) + files.cereal_blendshapes(("a",), np.zeros((1, 3))) + tail, "has shape"),
        (
            struct.pack("<I", 1) + files.cereal_pca(np.zeros(9), np.zeros((2, 6)), np.ones(2), FACE.triangles),
            "basis is",
        ),
        (
            struct.pack("<I", 1)
            + files.cereal_pca(FACE.mean.ravel(), FACE.directions[:2], -variance[:2], FACE.triangles),
            "not variances",
        ),
    ):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(FormatError, match=message):
            read_surrey(tmp_path / "a.bin")


def test_surrey_with_texture_triangles_has_no_uv_per_vertex(tmp_path: Path) -> None:
    path = files.write_surrey(tmp_path / "a.bin", version=4)
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<Q3i", 1, 0, 1, 2))
    assert read_surrey(path).uv is None
