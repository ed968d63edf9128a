from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mien.camera import to_camera_axes, to_model_axes
from mien.errors import ConfigError, FormatError, OutputError
from mien.io.files import writing_folder
from mien.io.pixels import to_uint8
from mien.io.result_files import ARRAYS_FILE, COEFFICIENTS_FILE, TEXTURE_FILE
from mien.io.result_folder import ARRAYS, MAP_ARRAYS, write_offset_maps
from mien.result import Reconstruction
from tests.tiny_face import tiny_reconstruction

# Half a step of each stored map, and the rounding of the pose's inverse (float32 at 0.8 m).
TOLERANCES = {"texture": 0.5 / 255, "texture_offset": 0.5 / 254, "displacement": 0.6e-6, "vertices_model": 3e-7}


def test_blendshapes_have_names() -> None:
    face = tiny_reconstruction()
    named = replace(face, expression_names=tuple(f"shape{k}" for k in range(len(face.expression))))
    assert list(named.blendshapes) == list(named.expression_names)
    np.testing.assert_allclose(list(named.blendshapes.values()), face.expression)
    assert replace(face, expression_names=()).blendshapes == {}


def test_save_and_load_give_everything_back(tmp_path: Path) -> None:
    original = tiny_reconstruction()
    original.save(tmp_path / "face0")
    for path in (tmp_path / "face0", tmp_path / "face0" / "reconstruction.npz"):
        loaded = Reconstruction.load(path)
        for field in fields(Reconstruction):
            before, after = getattr(original, field.name), getattr(loaded, field.name)
            if isinstance(before, np.ndarray):
                assert after.dtype == before.dtype, field.name
                tolerance = TOLERANCES.get(field.name, 0) * 1.001
                np.testing.assert_allclose(after, before, rtol=0, atol=tolerance, err_msg=field.name)
            else:
                assert after == before, field.name


def test_npz_holds_exactly_the_documented_arrays(tmp_path: Path) -> None:
    tiny_reconstruction().save(tmp_path / "reconstruction.npz")
    with np.load(tmp_path / "reconstruction.npz", allow_pickle=False) as stored:
        assert set(stored.files) == set(ARRAYS | MAP_ARRAYS) == {
            "vertices", "triangles", "uv", "xy", "visible", "landmarks68", "landmarks68_vertices", "image_size",
            "vertex_albedo", "texture", "texture_offset", "displacement",
        }  # fmt: skip
        assert stored["image_size"].tolist() == [120, 90]
        assert all(stored[key].dtype == dtype for key, (dtype, _) in (ARRAYS | MAP_ARRAYS).items())


def save_as_mien_0_1(folder: Path) -> None:
    """The tiny face with its maps in files of their own."""
    face = tiny_reconstruction()
    face.save(folder)
    with np.load(folder / ARRAYS_FILE) as stored:
        arrays = {key: stored[key] for key in ARRAYS}
    np.savez(folder / ARRAYS_FILE, **arrays)
    content = json.loads((folder / COEFFICIENTS_FILE).read_text(encoding="utf-8"))
    del content["arrays_sha256"]
    (folder / COEFFICIENTS_FILE).write_text(json.dumps(content), encoding="utf-8")
    write_offset_maps(face, folder)
    Image.fromarray(to_uint8(face.texture)).save(folder / TEXTURE_FILE)
    np.save(folder / "vertex_albedo.npy", face.vertex_albedo)


def test_results_of_mien_0_1_are_the_same(tmp_path: Path) -> None:
    save_as_mien_0_1(tmp_path / "old")
    tiny_reconstruction().save(tmp_path / "new")
    old, new = Reconstruction.load(tmp_path / "old"), Reconstruction.load(tmp_path / "new")
    for field in fields(Reconstruction):
        np.testing.assert_array_equal(getattr(old, field.name), getattr(new, field.name), err_msg=field.name)


def test_a_folder_without_the_format_npz_names_it(tmp_path: Path) -> None:
    tiny_reconstruction().save(tmp_path, formats="json")
    with pytest.raises(FormatError, match=r"reconstruction.npz: no such file; .* with format npz"):
        Reconstruction.load(tmp_path)


def test_coefficients_are_readable_by_people(tmp_path: Path) -> None:
    tiny_reconstruction().save(tmp_path)
    written = json.loads((tmp_path / "coefficients.json").read_text())
    assert written["expression"] == {"jawOpen": 0.5, "mouthSmileLeft": 0.25, "tongueOut": 0.0}
    assert written["camera"]["focal_px"] == 200
    assert written["camera"]["focal_source"] == "unknown"
    assert written["errors"] == {"landmark": 0.031, "photometric": 0.022}


def test_the_source_of_the_focal_length_is_kept_and_unknown_in_older_results(tmp_path: Path) -> None:
    replace(tiny_reconstruction(), focal_source="prior").save(tmp_path)
    assert Reconstruction.load(tmp_path).focal_source == "prior"
    file = tmp_path / COEFFICIENTS_FILE
    content = json.loads(file.read_text())
    assert content["camera"].pop("focal_source") == "prior"
    file.write_text(json.dumps(content))
    assert Reconstruction.load(tmp_path).focal_source == "unknown"


def homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def off_centre() -> Reconstruction:
    """A face of another scale whose principal point is not the centre of the photo."""
    face = replace(tiny_reconstruction(), scale=1.3, centre_px=np.array([50.5, 71.25], np.float32))
    turned = to_camera_axes(1.3 * face.vertices_model @ face.rotation.T) + face.translation
    return replace(face, vertices=turned, xy=200 * turned[:, :2] / turned[:, 2:] + face.centre_px)


def test_camera_and_view_matrix_project_to_the_photo() -> None:
    face = off_centre()
    camera = (homogeneous(face.vertices_model) @ face.view_matrix.T)[:, :3]
    np.testing.assert_allclose(camera, face.vertices, atol=1e-6)
    pixels = camera @ face.camera_matrix.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], face.xy, atol=1e-3)


@pytest.mark.parametrize("planes", [(), (0.1, 3.0)])
def test_opengl_matrices_project_to_the_photo(planes: tuple[float, ...]) -> None:
    face = off_centre()
    view = homogeneous(face.vertices_model) @ face.view_matrix_opengl.T
    np.testing.assert_allclose(view[:, :3], to_model_axes(face.vertices), atol=1e-6)
    clip = view @ face.projection_matrix_opengl(*planes).T
    ndc = clip[:, :3] / clip[:, 3:]
    width, height = face.image_size
    pixels = np.stack([(ndc[:, 0] + 1) / 2 * width, (1 - ndc[:, 1]) / 2 * height], axis=1)
    np.testing.assert_allclose(pixels, face.xy, atol=1e-3)
    near, far = planes or (0.01, 1000.0)
    depth = np.array([[0, 0, -near, 1], [0, 0, -far, 1]]) @ face.projection_matrix_opengl(*planes).T
    np.testing.assert_allclose(depth[:, 2] / depth[:, 3], [-1, 1], atol=1e-9)


def test_clipping_planes_are_checked() -> None:
    with pytest.raises(ConfigError, match="near_m=2 and far_m=1 are out of range"):
        tiny_reconstruction().projection_matrix_opengl(2.0, 1.0)


def test_coefficients_repeat_the_matrices(tmp_path: Path) -> None:
    face = off_centre()
    face.save(tmp_path)
    written = json.loads((tmp_path / "coefficients.json").read_text())["matrices"]
    expected = {
        "camera": face.camera_matrix,
        "view": face.view_matrix,
        "view_opengl": face.view_matrix_opengl,
        "projection_opengl": face.projection_matrix_opengl(),
    }
    assert set(written) == set(expected)
    for name, matrix in expected.items():
        np.testing.assert_allclose(written[name], matrix, rtol=1e-6)


def test_large_displacements_widen_the_step_instead_of_clipping(tmp_path: Path) -> None:
    large = replace(tiny_reconstruction(), displacement=np.linspace(-0.1, 0.1, 256, dtype=np.float32).reshape(16, 16))
    large.save(tmp_path)
    np.testing.assert_allclose(Reconstruction.load(tmp_path).displacement, large.displacement, atol=2e-6)


def test_errors_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    replace(tiny_reconstruction(), landmark_error=float("nan")).save(tmp_path)
    assert np.isnan(Reconstruction.load(tmp_path).landmark_error)


def test_a_list_of_expressions_without_names(tmp_path: Path) -> None:
    replace(tiny_reconstruction(), expression_names=()).save(tmp_path)
    loaded = Reconstruction.load(tmp_path)
    assert loaded.expression_names == ()
    assert loaded.expression.tolist() == [0.5, 0.25, 0.0]


def test_repr_is_one_short_line() -> None:
    assert repr(tiny_reconstruction()) == (
        "Reconstruction(model_name='tiny', image_size=(120, 90), landmark_error=0.031, photometric_error=0.022)"
    )


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def break_arrays(arrays: dict[str, np.ndarray], case: str, marker: Path) -> None:
    match case:
        case "npz pickle":
            arrays["vertices"] = np.array([Trap(marker)], dtype=object)
        case "key missing":
            del arrays["xy"]
        case "shape":
            arrays["xy"] = arrays["xy"][:-1]
        case "dtype":
            arrays["uv"] = arrays["uv"].astype(np.float64)
        case "nan":
            arrays["vertices"][0, 0] = np.nan
        case "map missing":
            del arrays["displacement"]
        case "map shape":
            arrays["texture_offset"] = arrays["texture_offset"][:, :-1]
        case "index":
            arrays["triangles"][0, 0] = 10_000


def break_coefficients(content: dict[str, Any], case: str) -> None:
    match case:
        case "version":
            content["format"] = "mien-reconstruction-99"
        case "json key":
            del content["pose"]["scale"]
        case "json number":
            content["camera"]["focal_px"] = "long"
        case "json source":
            content["camera"]["focal_source"] = "rumour"
        case "json array":
            content["lighting"] = [[1, 2], [3]]
        case "json huge whole number":
            content["camera"]["focal_px"] = 10**400
        case "json huge array":
            content["lighting"] = [[1e300] * 3] * 9
        case "json huge seconds":
            content["stage_seconds"] = [["fit", 10**400]]
        case "scale":
            content["pose"]["scale"] = 0


def break_file(folder: Path, case: str) -> None:
    npz, coefficients, texture = (folder / name for name in (ARRAYS_FILE, COEFFICIENTS_FILE, TEXTURE_FILE))
    with np.load(npz) as stored:
        arrays = {key: stored[key] for key in stored.files}
    break_arrays(arrays, case, folder / "trapped")
    np.savez(npz, **arrays)
    content = json.loads(coefficients.read_text())
    break_coefficients(content, case)
    coefficients.write_text(json.dumps(content))
    match case:
        case "npz missing":
            npz.unlink()
        case "coefficients missing":
            coefficients.unlink()
        case "texture missing":
            texture.unlink()
        case "albedo missing":
            (folder / "vertex_albedo.npy").unlink()
        case "npz cut":
            npz.write_bytes(npz.read_bytes()[:300])
        case "npz bare pickle":
            npz.write_bytes(pickle.dumps(Trap(folder / "trapped")))
        case "albedo pickle":
            np.save(folder / "vertex_albedo.npy", np.array([Trap(folder / "trapped")], dtype=object))
        case "json cut":
            coefficients.write_text(coefficients.read_text()[:100])
        case "texture cut":
            texture.write_bytes(texture.read_bytes()[:60])
        case "texture mode":
            Image.new("L", (16, 16)).save(texture)
        case "texture size":
            Image.new("RGB", (8, 8)).save(folder / "texture_offset.png")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("npz missing", "no such file"),
        ("coefficients missing", "no such file"),
        ("texture missing", "no such file"),
        ("albedo missing", "no such file"),
        ("npz cut", "damaged"),
        ("npz pickle", "plain array"),
        ("npz bare pickle", "damaged"),
        ("albedo pickle", "plain array"),
        ("key missing", "lacks the array 'xy'"),
        ("map missing", "lacks the array 'displacement'"),
        ("map shape", r"texture_offset is uint8 \(16, 15, 3\)"),
        ("shape", "xy is float32"),
        ("dtype", "uv is float64"),
        ("nan", "not finite"),
        ("index", "triangles contains indices of vertices"),
        ("json cut", "damaged"),
        ("version", "mien-reconstruction-99"),
        ("json key", "lacks 'pose.scale'"),
        ("json number", "camera.focal_px must be"),
        ("json source", "camera.focal_source must be one of given, exif, prior"),
        ("json array", "lighting must be"),
        ("json huge whole number", "digits"),
        ("json huge array", "lighting must be"),
        ("json huge seconds", "digits"),
        ("scale", "must be positive"),
        ("texture cut", "damaged"),
        ("texture mode", "not a map"),
        ("texture size", "differ in size"),
    ],
)
def test_damage_is_a_format_error_that_names_the_file(tmp_path: Path, case: str, message: str) -> None:
    if case.startswith(("texture", "albedo")):  # files that only mien 0.1 reads
        save_as_mien_0_1(tmp_path)
    else:
        tiny_reconstruction().save(tmp_path)
    break_file(tmp_path, case)
    with pytest.raises(FormatError, match=message) as caught:
        Reconstruction.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    with pytest.raises(OutputError, match=r"No space left.*free some space"):
        tiny_reconstruction().save(tmp_path / "deep" / "face0")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_second_save_keeps_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "face0"
    tiny_reconstruction().save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mien.io.result_folder.json.dumps", fail)
    with pytest.raises(KeyboardInterrupt):
        tiny_reconstruction(detail=False).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["face0"]


def test_a_result_that_was_replaced_in_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tiny_reconstruction(), replace(tiny_reconstruction(), identity=tiny_reconstruction().identity + 1)
    new = replace(new, vertices=new.vertices + np.float32(0.01))
    old.save(tmp_path)
    move = Path.replace

    def move_one(source: Path, target: Path) -> None:
        if target.name == ARRAYS_FILE:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", move_one)
        with pytest.raises(KeyboardInterrupt):
            new.save(tmp_path)
    content = json.loads((tmp_path / COEFFICIENTS_FILE).read_text(encoding="utf-8"))
    np.testing.assert_allclose(content["identity"], new.identity)
    with pytest.raises(FormatError, match=r"coefficients\.json: belongs to another result than reconstruction\.npz"):
        Reconstruction.load(tmp_path)
    new.save(tmp_path)
    np.testing.assert_array_equal(Reconstruction.load(tmp_path).vertices, new.vertices)


def test_saving_again_replaces_its_files_and_keeps_others(tmp_path: Path) -> None:
    folder = tmp_path / "face0"
    tiny_reconstruction().save(folder)
    (folder / "notes.txt").write_text("mine")
    tiny_reconstruction(detail=False).save(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert Reconstruction.load(folder).displacement.max() == 0


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        tiny_reconstruction().save(tmp_path / "out" / "face0")
    with pytest.raises(OutputError, match="cannot be written"):
        tiny_reconstruction().save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"), writing_folder(tmp_path / "face0"):
            pass
    finally:
        tmp_path.chmod(0o700)
