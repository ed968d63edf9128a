from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import ConfigError, OutputError
from mien.export import write_mesh, write_reconstruction
from mien.export.images import PANEL_SIDE, FacePainter, normal_map, overlay_image, sheet_image
from mien.export.surface import unit_normals
from mien.io.photo import Photo
from mien.morphable.model import save_model
from mien.result import Reconstruction
from tests.tiny_face import EXPRESSION_NAMES, tiny_model, tiny_photo, tiny_reconstruction

FORMATS = {
    "glb": {"face.glb"},
    "obj": {"face.obj", "face.mtl", "texture.png"},
    "ply": {"face.ply"},
    "maps": {"texture.png", "albedo.png", "normals.png", "displacement.png", "texture_offset.png"},
    "sheet": {"sheet.png"},
    "overlay": {"overlay.png"},
    "npz": {"reconstruction.npz", "coefficients.json"},
    "json": {"coefficients.json"},
}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_obj_holds_the_same_surface(tmp_path: Path) -> None:
    reconstruction = tiny_reconstruction()
    write_reconstruction(reconstruction, tiny_model(), None, tmp_path, "obj")
    rows = [line.split() for line in (tmp_path / "face.obj").read_text().splitlines()]
    numbers = {kind: np.array([row[1:] for row in rows if row[0] == kind], float) for kind in ("v", "vt", "vn")}
    np.testing.assert_allclose(numbers["v"], reconstruction.vertices_model, atol=1e-7)
    np.testing.assert_allclose(numbers["vt"], reconstruction.uv, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(numbers["vn"], axis=1), 1, atol=1e-4)
    faces = [[corner.split("/") for corner in row[1:]] for row in rows if row[0] == "f"]
    assert all(len(set(corner)) == 1 for face in faces for corner in face)
    corners = np.array([[int(corner[0]) - 1 for corner in face] for face in faces])
    assert sorted(map(tuple, corners)) == sorted(map(tuple, reconstruction.triangles))
    material = (tmp_path / "face.mtl").read_text()
    assert {row[1] for row in rows if row[0] == "usemtl"} == {"skin", "eyes"}
    assert material.count("map_Kd texture.png") == 2


def test_ply_holds_the_same_surface(tmp_path: Path) -> None:
    reconstruction = tiny_reconstruction()
    write_reconstruction(reconstruction, None, None, tmp_path, "ply")
    header, body = (tmp_path / "face.ply").read_bytes().split(b"end_header\n", 1)
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    count = len(reconstruction.vertices_model)
    assert f"element vertex {count}\n".encode() in header
    vertices = np.frombuffer(body[: 27 * count], "<3f4, <3f4, 3u1")
    np.testing.assert_array_equal(vertices["f0"], reconstruction.vertices_model)
    # The texture's red channel is its row, its green one its column: bilinear samples of a ramp are exact
    # inside.
    inside = np.abs(reconstruction.uv - 0.5).max(axis=1) < 0.45
    expected = ((1 - reconstruction.uv[inside, 1]) * 20 - 0.5) / 19 * 255
    np.testing.assert_allclose(vertices["f2"][inside, 0], expected, atol=0.51)
    faces = np.frombuffer(body[27 * count :], np.dtype([("count", "u1"), ("corners", "<3i4")]))
    np.testing.assert_array_equal(faces["corners"], reconstruction.triangles)


@pytest.mark.external
@pytest.mark.parametrize("name", ["face.glb", "face.obj", "face.ply"])
def test_an_independent_reader_agrees(tmp_path: Path, name: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    model, reconstruction = tiny_model(), tiny_reconstruction()
    write_reconstruction(reconstruction, model, tiny_photo(), tmp_path / "face0", tuple(FORMATS))
    mesh = trimesh.load(tmp_path / "face0" / name, force="mesh", process=False)
    assert len(mesh.faces) == len(reconstruction.triangles)
    if name != "face.glb":  # whose base is the neutral face
        np.testing.assert_allclose(mesh.bounds[0], reconstruction.vertices_model.min(0), atol=1e-6)
    assert mesh.face_normals[:, 2].mean() > 0.7  # wound outwards, towards +z


def test_a_result_folder_is_complete_and_loads(tmp_path: Path) -> None:
    reconstruction = tiny_reconstruction()
    unnamed = replace(reconstruction, expression_names=())
    write_reconstruction(unnamed, tiny_model(), tiny_photo(), tmp_path / "photo" / "face0")
    assert names_in(tmp_path / "photo" / "face0") == {
        "face.glb", "sheet.png", "reconstruction.npz", "coefficients.json"
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "photo").iterdir()] == ["face0"]
    loaded = Reconstruction.load(tmp_path / "photo" / "face0")
    assert loaded.expression_names == EXPRESSION_NAMES
    np.testing.assert_array_equal(loaded.vertices, reconstruction.vertices)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_writes_its_files(tmp_path: Path, name: str) -> None:
    write_reconstruction(tiny_reconstruction(), tiny_model(), tiny_photo(), tmp_path / "face0", name)
    assert names_in(tmp_path / "face0") == FORMATS[name]


def test_files_of_formats_that_are_no_longer_chosen_are_removed(tmp_path: Path) -> None:
    face, model, photo = tiny_reconstruction(), tiny_model(), tiny_photo()
    write_reconstruction(face, model, photo, tmp_path, tuple(FORMATS))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "vertex_albedo.npy").write_bytes(b"of mien 0.1")
    write_reconstruction(face, model, photo, tmp_path, ["obj", "json"])
    assert names_in(tmp_path) == FORMATS["obj"] | FORMATS["json"] | {"notes.txt"}


def test_formats_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    face, model, photo = tiny_reconstruction(), tiny_model(), tiny_photo()
    with pytest.raises(ConfigError, match=r"formats contains 'stl'; choose from glb, obj, ply, usd, vrm, maps"):
        write_reconstruction(face, model, photo, tmp_path / "out", "glb,stl")
    with pytest.raises(ConfigError, match="formats is empty"):
        write_reconstruction(face, model, photo, tmp_path / "out", ())
    with pytest.raises(ConfigError, match="photo=None, but sheet, overlay of formats need it"):
        write_reconstruction(face, model, None, tmp_path / "out", ("overlay", "sheet", "ply"))
    with pytest.raises(ConfigError, match="model=None, but glb of formats need it"):
        write_reconstruction(face, None, photo, tmp_path / "out", "json, glb")
    assert not (tmp_path / "out").exists()
    write_reconstruction(face, None, None, tmp_path / "out", "ply, json")
    assert names_in(tmp_path / "out") == {"face.ply", "coefficients.json"}


@pytest.mark.parametrize("name", ["anna.glb", "anna.PLY", "anna.obj"])
def test_one_mesh_file(tmp_path: Path, name: str) -> None:
    face, model = tiny_reconstruction(), tiny_model()
    face.save(tmp_path / "deep" / name, model=model)
    write_reconstruction(face, model, None, tmp_path / "face0", ("glb", "obj", "ply"))
    suffix = Path(name).suffix.lower()
    content = (tmp_path / "deep" / name).read_bytes()
    assert content == (tmp_path / "face0" / f"face{suffix}").read_bytes().replace(b"face.mtl", b"anna.mtl")
    others = {"anna.mtl", "anna_texture.png"} if suffix == ".obj" else set()
    assert names_in(tmp_path / "deep") == {name} | others
    if others:
        assert (tmp_path / "deep" / "anna.mtl").read_text().count("map_Kd anna_texture.png") == 2
        with Image.open(tmp_path / "deep" / "anna_texture.png") as texture:
            assert texture.size == (20, 20)


def test_save_writes_what_its_arguments_allow(tmp_path: Path) -> None:
    face, model = tiny_reconstruction(), tiny_model()
    numbers = FORMATS["npz"]
    face.save(tmp_path / "alone")  # no model is called "tiny"
    face.save(tmp_path / "model", model=model)
    face.save(tmp_path / "both" / "reconstruction.npz", model=model, photo=tiny_photo())
    assert names_in(tmp_path / "alone") == numbers
    assert names_in(tmp_path / "model") == numbers | {"face.glb"}
    assert names_in(tmp_path / "both") == numbers | {"face.glb", "sheet.png"}
    assert face.glb_bytes(model) == (tmp_path / "model" / "face.glb").read_bytes()


def test_save_finds_a_converted_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIEN_MODELS", str(tmp_path))
    face, model = tiny_reconstruction(), tiny_model()
    with pytest.raises(
        ConfigError, match=r"model='tiny' cannot be found by its name; give .*model=reconstructor.model"
    ):
        face.glb_bytes()
    with pytest.raises(ConfigError, match="cannot be found"):
        face.save(tmp_path / "out", formats="obj")
    save_model(model, tmp_path / "tiny.safetensors")
    assert face.glb_bytes() == face.glb_bytes(model)
    face.save(tmp_path / "out")
    assert "face.glb" in names_in(tmp_path / "out")
    with pytest.raises(ConfigError, match="load that model"):
        replace(face, model_name="other").glb_bytes(model)


def test_formats_and_a_mesh_file_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names one file"):
        tiny_reconstruction().save(tmp_path / "face.glb", formats="glb", model=tiny_model())
    with pytest.raises(ConfigError, match=r"ends in '.stl'; use one of .glb, .obj, .ply, .usdz, .vrm"):
        write_mesh(tiny_reconstruction(), tiny_model(), tmp_path / "face.stl")


@pytest.mark.parametrize("failing", ["face.glb", "sheet.png", "reconstruction.npz"])
def test_a_full_disk_leaves_no_result_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = {"face.glb": "mien.export.mesh_files.glb_bytes", "sheet.png": "mien.export.sheet_image"}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target.get(failing, "numpy.lib.format.write_array"), full)
    with pytest.raises(OutputError, match="No space left"):
        write_reconstruction(tiny_reconstruction(), tiny_model(), tiny_photo(), tmp_path / "out" / "face0")
    assert list(tmp_path.iterdir()) == []


def test_model_and_photo_must_belong_to_the_reconstruction(tmp_path: Path) -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction()
    with pytest.raises(ConfigError, match="load that model"):
        write_reconstruction(replace(reconstruction, model_name="other"), model, tiny_photo(), tmp_path)
    turned = Photo(np.ascontiguousarray(tiny_photo().pixels.transpose(1, 0, 2)), None, Path("turned.png"))
    with pytest.raises(ConfigError, match="is 90 × 120"):
        write_reconstruction(reconstruction, model, turned, tmp_path)


def test_normal_map_follows_the_surface() -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction(detail=False)
    normals = normal_map(reconstruction, model)
    size = len(normals)
    expected = unit_normals(reconstruction.vertices_model, reconstruction.triangles)
    for vertex in (6, 7, 12, 17, 18):
        u, v = reconstruction.uv[vertex]
        found = normals[int((1 - v) * size), int(u * size)]
        assert found @ expected[vertex] > 0.97  # texels of 0.06 against facets of 0.2


def test_overlay_keeps_the_photo_where_there_is_no_face() -> None:
    model, reconstruction, photo = tiny_model(), tiny_reconstruction(), tiny_photo()
    overlay = overlay_image(reconstruction, FacePainter(reconstruction, model), photo)
    assert overlay.shape == photo.pixels.shape
    rows, columns = np.indices(overlay.shape[:2]) + 0.5
    low, high = reconstruction.xy.min(0) - 1, reconstruction.xy.max(0) + 1
    outside = (columns < low[0]) | (columns > high[0]) | (rows < low[1]) | (rows > high[1])
    np.testing.assert_array_equal(overlay[outside], photo.pixels[outside])
    middle = reconstruction.xy[12:18].mean(0).astype(int)
    assert (overlay[middle[1], middle[0]] != photo.pixels[middle[1], middle[0]]).any()


def test_overlay_of_a_large_photo_is_capped() -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction()
    factor = 20
    large = Photo(np.asarray(Image.fromarray(tiny_photo().pixels).resize((2400, 1800))), None, Path("large.png"))
    scaled = replace(
        reconstruction,
        image_size=(2400, 1800),
        focal_px=reconstruction.focal_px * factor,
        centre_px=reconstruction.centre_px * factor,
        xy=reconstruction.xy * factor,
    )
    assert overlay_image(scaled, FacePainter(scaled, model), large).shape == (768, 1024, 3)


def test_the_sheet_shows_the_subjects_left_and_right_side() -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction()
    left_red = np.zeros_like(reconstruction.texture)
    left_red[:, len(left_red) // 2 :, 0] = 1  # u grows with x, to the subject's left
    reconstruction = replace(reconstruction, texture=left_red)
    sheet = sheet_image(reconstruction, FacePainter(reconstruction, model), tiny_photo())

    def red_share(column: int) -> float:
        left = 16 + column * (PANEL_SIDE + 16)
        panel = sheet[-PANEL_SIDE - 42 : -42, left : left + PANEL_SIDE].astype(int)
        red = (panel[..., 0] > 200) & (panel[..., 1] < 50)
        black = panel.sum(-1) < 50
        return red.sum() / (red.sum() + black.sum())

    assert red_share(1) > 0.8  # left side
    assert 0.4 < red_share(2) < 0.6  # front
    assert red_share(3) < 0.2  # right side


def test_a_face_that_extends_beyond_the_photo_is_rendered() -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction()
    shifted = replace(reconstruction, centre_px=reconstruction.centre_px - 60, xy=reconstruction.xy - 60)
    sheet = sheet_image(shifted, FacePainter(shifted, model), tiny_photo())
    assert sheet.shape == (16 + 2 * (PANEL_SIDE + 26 + 16), 16 + 4 * (PANEL_SIDE + 16), 3)
