"""Every reader on tiny files of its exact format: units, order, index base, variance or deviation, colour range."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import BackendUnavailable, ConfigError, FormatError
from mien.morphable import formats
from mien.morphable.formats import hdf5, read_model
from mien.morphable.formats.arkit import ARKIT_NAMES, read_arkit_weights, write_arkit_weights
from mien.morphable.formats.bfm2009 import read_bfm2009
from mien.morphable.formats.flame import read_flame
from mien.morphable.formats.generic import read_generic, write_generic
from mien.morphable.formats.ict import arkit_name, read_ict
from mien.morphable.formats.mat5 import read_mat, write_mat
from mien.morphable.formats.source import SourceModel
from tests.formats import files
from tests.formats.files import FACE, V

CLOSE = {"rtol": 2e-6, "atol": 1e-8}


def check_shape(model: SourceModel, identity: int = 3, mean: np.ndarray | None = None) -> None:
    """The face that every writer of `files` puts down, in metres."""
    np.testing.assert_allclose(model.mean, FACE.mean if mean is None else mean, **CLOSE)
    np.testing.assert_allclose(model.identity_basis, FACE.basis(0, identity), **CLOSE)
    assert model.mean.dtype == model.identity_basis.dtype == np.float32
    np.testing.assert_array_equal(model.triangles, FACE.triangles)


@pytest.mark.parametrize("packed", [False, True])
def test_bfm2009_without_expressions(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "01_MorphableModel.mat"
    path.write_bytes(files.mat_bytes(files.bfm2009_variables(), packed=packed))
    model = read_model(path)
    check_shape(model)
    assert model.albedo_mean is not None
    assert model.albedo_basis is not None
    np.testing.assert_allclose(model.albedo_mean, FACE.albedo, **CLOSE)
    np.testing.assert_allclose(model.albedo_basis, FACE.basis(3, 2), **CLOSE)
    assert model.expression_basis.shape == (0, V, 3)


def test_bfm2009_with_expressions_follows_the_index_chain(tmp_path: Path) -> None:
    folder = files.write_bfm2009(tmp_path, drop=(0, 5))
    whole = read_model(folder)
    kept = np.setdiff1d(np.arange(V), (0, 5))
    np.testing.assert_allclose(whole.mean, FACE.mean[kept], **CLOSE)
    np.testing.assert_allclose(whole.expression_basis, FACE.basis(5, 2)[:, kept], rtol=1e-5, atol=1e-8)
    corners = whole.mean[whole.triangles]
    assert (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 0).all()
    front = read_model(folder, front=True)
    np.testing.assert_allclose(front.mean, FACE.mean[kept[:-5]], **CLOSE)
    np.testing.assert_allclose(front.expression_basis, whole.expression_basis[:, :-5])
    assert front.triangles.max() < len(front.mean)
    assert len(front.triangles) < len(whole.triangles) < len(FACE.triangles)


def test_bfm2009_front_without_expressions(tmp_path: Path) -> None:
    files.write_bfm2009(tmp_path, drop=())
    (tmp_path / "Exp_Pca.bin").unlink()
    assert read_bfm2009(tmp_path, front=True).expression_basis.shape == (0, V - 5, 3)
    with pytest.raises(FormatError, match="give the folder"):
        read_bfm2009(tmp_path / "01_MorphableModel.mat", front=True)


def test_deep3d_is_converted_to_metres_about_its_centroid(tmp_path: Path) -> None:
    model = read_model(files.write_deep3d(tmp_path / "BFM_model_front.mat"))
    check_shape(model, mean=FACE.mean - FACE.mean.mean(0))
    np.testing.assert_allclose(model.expression_basis, FACE.basis(3, 2), **CLOSE)
    assert model.albedo_mean is not None
    np.testing.assert_allclose(model.albedo_mean, FACE.albedo, **CLOSE)
    assert model.landmarks == {k: k for k in range(68)}
    np.testing.assert_array_equal(model.masks["skin"], np.arange(V) % 2)


def test_bfm2017_variances_and_both_means(tmp_path: Path) -> None:
    model = read_model(files.write_bfm2017(tmp_path / "model2017-1_face12_nomouth.h5"))
    check_shape(model, mean=FACE.mean + np.array([0.0005, 0, 0]))
    np.testing.assert_allclose(model.expression_basis, FACE.basis(3, 2), **CLOSE)
    assert model.albedo_basis is not None
    np.testing.assert_allclose(model.albedo_basis, FACE.basis(5, 2), **CLOSE)
    assert model.expression_kind == "deviation"


def test_bfm2017_with_shape_only(tmp_path: Path) -> None:
    model = read_model(files.write_bfm2017(tmp_path / "a.h5", expression=False, colour=False))
    check_shape(model)
    assert model.albedo_mean is None
    assert len(model.expression_basis) == 0


def test_hdf5_without_h5py_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_bfm2017(tmp_path / "a.h5")
    monkeypatch.setattr(hdf5.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"mien\[formats\]"):
        read_model(path)


@pytest.mark.parametrize("as_npz", [False, True])
def test_flame(tmp_path: Path, as_npz: bool) -> None:
    path = tmp_path / ("FLAME2020.npz" if as_npz else "generic_model.pkl")
    if as_npz:
        np.savez(path, **files.flame_arrays())  # pyright: ignore[reportArgumentType]
    else:
        files.write_flame(path)
    model = read_model(path)
    np.testing.assert_allclose(model.mean, FACE.mean, **CLOSE)
    assert model.identity_basis.shape == (300, V, 3)
    np.testing.assert_allclose(model.identity_basis[:4], FACE.basis(0, 4), **CLOSE)
    np.testing.assert_allclose(model.expression_basis, FACE.basis(4, 2), **CLOSE)
    np.testing.assert_array_equal(model.triangles, FACE.triangles)
    assert model.skinning is not None
    arrays = files.flame_arrays()
    np.testing.assert_allclose(model.skinning.joint_regressor, arrays["J_regressor"], **CLOSE)
    np.testing.assert_allclose(model.skinning.pose_basis, arrays["posedirs"].transpose(2, 0, 1), **CLOSE)
    assert model.skinning.parents.tolist() == [-1, 0, 1, 1, 1]


def test_flame_pickled_by_python_3(tmp_path: Path) -> None:
    for protocol in (0, 1, 2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(files.flame_arrays(), protocol=protocol))
        np.testing.assert_allclose(read_flame(path).mean, FACE.mean, **CLOSE)


def save_embedding(path: Path, content: dict, *, tensors: bool = False) -> Path:
    if tensors:
        content = content | {k: torch.from_numpy(v) for k, v in content.items() if k.startswith("dynamic")}
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize("tensors", [False, True])
def test_flame_landmark_embedding_with_its_dynamic_contour(tmp_path: Path, tensors: bool) -> None:
    model_file = files.write_flame(tmp_path / "generic_model.pkl")
    embedding = save_embedding(tmp_path / "landmark_embedding.npy", files.embedding_arrays(), tensors=tensors)
    model = read_model(model_file, landmarks=embedding)
    assert model.landmarks == {k: int(FACE.triangles[k, 1]) for k in range(68)}
    assert model.contour_candidates is not None
    assert model.contour_candidates.shape == (17, 2)
    strip = {int(FACE.triangles[k, 2]) for k in (4, 7)}
    assert set(model.contour_candidates[4].tolist()) == strip


def test_flame_static_embedding_in_a_pickle(tmp_path: Path) -> None:
    arrays = files.embedding_arrays()
    content = {"lmk_face_idx": arrays["static_lmk_faces_idx"], "lmk_b_coords": arrays["static_lmk_bary_coords"]}
    path = tmp_path / "flame_static_embedding.pkl"
    path.write_bytes(files.python2_pickle(content))
    model = read_flame(files.write_flame(tmp_path / "m.pkl"), landmarks=path)
    assert sorted(model.landmarks) == list(range(17, 68))
    assert model.contour_candidates is None


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize("expression", ["none", "blendshapes", "pca"])
def test_surrey(tmp_path: Path, version: int, expression: str) -> None:
    path = files.write_surrey(tmp_path / "sfm_shape.bin", version=version, expression=expression)
    model = read_model(path)
    moved = [0.0005, 0, 0] if version > 1 and expression == "pca" else [0, 0, 0]
    check_shape(model, mean=FACE.mean + moved)
    has_own = version > 1 and expression != "none"
    assert len(model.expression_basis) == (2 if has_own else 0)
    if has_own:
        np.testing.assert_allclose(model.expression_basis, FACE.basis(3, 2), **CLOSE)
        assert model.expression_kind == ("strength" if expression == "blendshapes" else "deviation")
    assert model.uv is not None
    np.testing.assert_allclose(model.uv[:, 1], (FACE.mean[:, 1] + 0.09) / 0.18, atol=1e-6)
    assert model.albedo_basis is not None
    np.testing.assert_allclose(model.albedo_basis, FACE.basis(5, 2), **CLOSE)


def test_surrey_shape_only_with_its_blendshape_file(tmp_path: Path) -> None:
    path = files.write_surrey(tmp_path / "sfm_shape_3448.bin", version=1, colour=False)
    shapes = tmp_path / "expression_blendshapes_3448.bin"
    shapes.write_bytes(files.cereal_blendshapes(("anger", "joy"), FACE.basis(3, 2) * 1e3))
    model = read_model(path, blendshapes=shapes)
    assert model.expression_names == ("anger", "joy")
    assert model.albedo_mean is None
    shapes.write_bytes(shapes.read_bytes() + b"x")
    with pytest.raises(FormatError, match="more data after the blendshapes"):
        read_model(path, blendshapes=shapes)


def check_ict(model: SourceModel) -> None:
    np.testing.assert_allclose(model.mean, FACE.mean, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(model.identity_basis, FACE.basis(0, 2), rtol=1e-4, atol=1e-8)
    assert model.expression_names == ARKIT_NAMES
    own = dict(zip(files.ICT_ACTIONS, files.ict_offsets() / 100, strict=True))
    by_name = dict(zip(ARKIT_NAMES, model.expression_basis, strict=True))
    np.testing.assert_allclose(by_name["browDownLeft"], own["browDown_L"], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(by_name["browInnerUp"], own["browInnerUp_L"] + own["browInnerUp_R"], atol=1e-7)
    assert not by_name["tongueOut"].any()
    assert model.albedo_mean is None


def test_ict_folder_of_objs(tmp_path: Path) -> None:
    model = read_model(files.write_ict_folder(tmp_path))
    check_ict(model)
    assert len(model.triangles) == len(FACE.triangles) - 4
    corners = model.mean[model.triangles]
    assert (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 0).all()


def test_ict_npz(tmp_path: Path) -> None:
    model = read_model(files.write_ict_npz(tmp_path / "ict.npz"))
    check_ict(model)
    np.testing.assert_array_equal(model.triangles, FACE.triangles[:140])
    assert model.landmarks[67] == 67


def test_ict_names() -> None:
    assert arkit_name("mouthSmile_L") == "mouthSmileLeft"
    assert arkit_name("cheekPuff_R") == "cheekPuff"
    assert arkit_name("cheekRaiser_L") is None


def test_ict_npz_without_materials_keeps_every_triangle(tmp_path: Path) -> None:
    path = files.write_ict_npz(tmp_path / "ict.npz")
    with np.load(path) as stored:
        kept = {name: stored[name] for name in stored.files if not name.startswith("material")}
    np.savez(path, **kept)
    assert len(read_ict(path).triangles) == len(FACE.triangles)


def test_generic_units_and_defaults(tmp_path: Path) -> None:
    model = read_model(files.write_generic(tmp_path / "mine.npz"))
    check_shape(model)
    assert (model.name, model.licence) == ("mine", "not stated in the file")
    assert model.expression_names == ("jawOpen", "smile")
    assert model.albedo_mean is not None
    np.testing.assert_allclose(model.albedo_mean, FACE.albedo, **CLOSE)
    assert sorted(model.landmarks) == list(range(60))
    bare = {k: None for k in files.generic_arrays() if k.startswith(("expression", "albedo", "uv", "land", "mask"))}
    model = read_generic(files.write_generic(tmp_path / "bare.npz", **bare))
    assert model.albedo_mean is model.albedo_basis is model.uv is None
    assert model.landmarks == {}
    assert model.expression_basis.shape == (0, V, 3)


def test_generic_unnamed_expressions_are_numbered(tmp_path: Path) -> None:
    path = files.write_generic(tmp_path / "a.npz", expression_names=None, expression_kind=np.array("deviation"))
    model = read_generic(path)
    assert model.expression_names == ("expression1", "expression2")
    assert model.expression_kind == "deviation"


def test_generic_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    full = files.generic_arrays(
        mirror=np.arange(V)[::-1], contour_candidates=np.full((17, 2), -1), name=np.array("me"), licence=np.array("CC0")
    )
    first = read_generic(files.write_generic(tmp_path / "a.npz", **full))
    write_generic(tmp_path / "b.npz", first)
    second = read_generic(tmp_path / "b.npz")
    for field in fields(SourceModel):
        np.testing.assert_equal(getattr(second, field.name), getattr(first, field.name), field.name)


def test_mat_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"id": rng.normal(size=(1, 80)).astype(np.float32), "lm68": rng.normal(size=(1, 68, 2))}
    write_mat(tmp_path / "a.mat", arrays)
    again = read_mat(tmp_path / "a.mat", frozenset(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_mat_of_a_big_endian_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(files.mat_bytes({"x": np.array([[1.5, 2.5]]), "n": np.array([[7]], np.int32)}, order=">"))
    found = read_mat(path, frozenset({"x", "n"}))
    assert found["x"].tolist() == [[1.5, 2.5]]
    assert found["n"].tolist() == [[7]]


def test_mat_agrees_with_scipy(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    arrays = {"a": np.random.default_rng(0).normal(size=(5, 3)), "b": np.arange(300, dtype=np.int32)[None]}
    for compressed in (False, True):
        scipy_io.savemat(tmp_path / "a.mat", arrays | {"text": "skip me"}, do_compression=compressed)
        found = read_mat(tmp_path / "a.mat", frozenset(arrays))
        np.testing.assert_array_equal(found["a"], arrays["a"])
        np.testing.assert_array_equal(found["b"], arrays["b"])
    write_mat(tmp_path / "b.mat", {"a": arrays["a"]})
    np.testing.assert_array_equal(scipy_io.loadmat(tmp_path / "b.mat")["a"], arrays["a"])


def test_arkit_json(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    write_arkit_weights(path, {"jawOpen": 0.25})
    weights = read_arkit_weights(path)
    assert len(weights) == 52
    assert weights["jawOpen"] == 0.25
    path.write_text('{"_neutral": 0.9, "jawOpen": 1}')
    assert read_arkit_weights(path) == {"jawOpen": 1.0}
    with pytest.raises(FormatError, match="smile"):
        write_arkit_weights(path, {"smile": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object"),
        ('{"smile": 1}', "not an ARKit blendshape"),
        ('{"jawOpen": "wide"}', "from 0 to 1"),
        ('{"jawOpen": true}', "from 0 to 1"),
        ('{"jawOpen": 1.5}', "from 0 to 1"),
        ('{"jawOpen": 1' + "0" * 400 + "}", "401 digits"),
        ('{"jawOpen": NaN}', "NaN is not finite"),
        ("{" * 10, "not JSON"),
        (" " * (1 << 21), "expected 0 to 1048576"),
    ],
)
def test_invalid_arkit_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_arkit_weights(path)


def test_options_of_another_family_are_refused(tmp_path: Path) -> None:
    path = files.write_generic(tmp_path / "a.npz")
    for options in ({"front": True}, {"blendshapes": tmp_path / "b.bin"}, {"landmarks": tmp_path / "l.npy"}):
        with pytest.raises(ConfigError, match="option of the family"):
            read_model(path, **options)


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="neither"):
        read_model(tmp_path)
    with pytest.raises(FormatError, match="no such file or folder"):
        read_model(tmp_path / "x.mat")
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(FormatError, match="unknown file ending"):
        read_model(tmp_path / "x.docx")
    assert formats.family("ict").terms == "MIT"
    with pytest.raises(ConfigError, match="use one of: bfm2009"):
        formats.family("smpl")


def test_pickle_helpers_write_what_python_2_wrote() -> None:
    """The tests' own writer: byte strings and the modules' old names, nothing newer."""
    text = files.python2_pickle(files.flame_content())
    for name in (b"chumpy.ch\nCh\n", b"scipy.sparse.csc\ncsc_matrix\n", b"numpy.core.multiarray\n_reconstruct\n"):
        assert name in text
    assert b"_codecs" not in text
    assert text[:2] == b"\x80\x02"
