from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from mien.errors import ConfigError, OutputError
from mien.export import write_mesh, write_reconstruction
from mien.export.gltf import glb_bytes, write_glb
from mien.export.images import PANEL_SIDE, FacePainter, normal_map, overlay_image, sheet_image
from mien.export.obj import write_obj
from mien.export.ply import write_ply
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


class Glb:
    """Just enough of a glTF reader, written from the specification and not from the writer."""

    KINDS: ClassVar = {5123: "<u2", 5125: "<u4", 5126: "<f4"}
    WIDTHS: ClassVar = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}

    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON"
        self.document = json.loads(data[20 : 20 + size])
        rest = data[20 + size :]
        size, kind = struct.unpack_from("<I4s", rest)
        assert (kind, size) == (b"BIN\0", len(rest) - 8)
        self.binary = rest[8:]

    def view(self, index: int, kind: str, count: int) -> np.ndarray:
        view = self.document["bufferViews"][index]
        return np.frombuffer(self.binary, kind, count, view["byteOffset"])

    def accessor(self, index: int) -> np.ndarray:
        accessor = self.document["accessors"][index]
        width, kind = self.WIDTHS[accessor["type"]], self.KINDS[accessor["componentType"]]
        values = np.zeros((accessor["count"], width), kind)
        if "bufferView" in accessor:
            values[:] = self.view(accessor["bufferView"], kind, values.size).reshape(values.shape)
        if sparse := accessor.get("sparse"):
            indices, stored = sparse["indices"], sparse["values"]
            where = self.view(indices["bufferView"], self.KINDS[indices["componentType"]], sparse["count"])
            values[where] = self.view(stored["bufferView"], kind, len(where) * width).reshape(-1, width)
        return values


def test_glb_shows_the_photos_expression_and_can_be_animated() -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction()
    glb = Glb(glb_bytes(reconstruction, model))
    mesh = glb.document["meshes"][0]
    assert mesh["extras"]["targetNames"] == list(EXPRESSION_NAMES)
    assert mesh["weights"] == [0.5, 0.25, 0.0]
    primitive = mesh["primitives"][0]
    base = glb.accessor(primitive["attributes"]["POSITION"])
    deltas = np.stack([glb.accessor(target["POSITION"]) for target in primitive["targets"]])
    basis = model.expression_basis.numpy()
    np.testing.assert_allclose(deltas, basis, atol=1e-6)
    shown = base + np.tensordot(mesh["weights"], deltas, axes=1)
    np.testing.assert_allclose(shown, reconstruction.vertices_model, atol=2e-6)
    normals = glb.accessor(primitive["attributes"]["NORMAL"])
    moved = glb.accessor(primitive["targets"][0]["NORMAL"])
    np.testing.assert_allclose(normals + moved, unit_normals(base + basis[0], reconstruction.triangles), atol=1.1e-3)
    uv = glb.accessor(primitive["attributes"]["TEXCOORD_0"])
    np.testing.assert_allclose(uv, np.stack([reconstruction.uv[:, 0], 1 - reconstruction.uv[:, 1]], -1), atol=1e-6)


def morph_targets(glb: Glb) -> list[tuple[str, dict[str, int]]]:
    """Name and accessors of each morph target of each primitive."""
    mesh = glb.document["meshes"][0]
    names = mesh["extras"]["targetNames"]
    return [pair for part in mesh["primitives"] for pair in zip(names, part["targets"], strict=True)]


def test_every_morph_target_has_a_view_and_explicit_offsets() -> None:
    """glTF asks for neither, but Assimp, Open3D and VTK do."""
    glb = Glb(glb_bytes(tiny_reconstruction(), tiny_model()))
    stored = set()
    for name, target in morph_targets(glb):
        assert set(target) == {"POSITION", "NORMAL"}
        for accessor in (glb.document["accessors"][index] for index in target.values()):
            view = glb.document["bufferViews"][accessor["bufferView"]]
            assert (view["byteStride"], view["byteLength"]) == (12, 12 * accessor["count"])
            if sparse := accessor.get("sparse"):
                assert sparse["indices"]["byteOffset"] == sparse["values"]["byteOffset"] == 0
                stored.add(name)
    assert stored == {"jawOpen", "mouthSmileLeft"}  # tongueOut moves nothing


def test_morph_targets_are_the_models_blendshapes() -> None:
    model, reconstruction = tiny_model(), tiny_reconstruction()
    glb = Glb(glb_bytes(reconstruction, model))
    attributes = glb.document["meshes"][0]["primitives"][0]["attributes"]
    base, normals = glb.accessor(attributes["POSITION"]), glb.accessor(attributes["NORMAL"])
    offsets = dict(zip(EXPRESSION_NAMES, model.expression_basis.numpy(), strict=True))
    targets = morph_targets(glb)
    assert [name for name, _ in targets] == [*EXPRESSION_NAMES] * 2  # skin and eyes
    for name, target in targets:
        np.testing.assert_allclose(glb.accessor(target["POSITION"]), offsets[name], rtol=0, atol=1e-6)
        moved = unit_normals(base + offsets[name], reconstruction.triangles)
        np.testing.assert_allclose(normals + glb.accessor(target["NORMAL"]), moved, rtol=0, atol=1.1e-3)


def test_the_name_face_belongs_to_the_node() -> None:
    document = Glb(glb_bytes(tiny_reconstruction(), tiny_model())).document
    assert [node["name"] for node in document["nodes"]] == ["face"]
    assert [scene["name"] for scene in document["scenes"]] == ["scene"]


def test_glb_splits_skin_and_eyes_and_loses_no_triangle() -> None:
    reconstruction = tiny_reconstruction()
    glb = Glb(glb_bytes(reconstruction, tiny_model()))
    primitives = glb.document["meshes"][0]["primitives"]
    parts = [glb.accessor(primitive["indices"]).reshape(-1, 3) for primitive in primitives]
    assert [glb.document["materials"][primitive["material"]]["name"] for primitive in primitives] == ["skin", "eyes"]
    assert set(parts[1].flatten()) == {16, 17, 21, 22}
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, reconstruction.triangles))


def test_expressions_beyond_their_range_are_clamped_but_shown() -> None:
    reconstruction = replace(tiny_reconstruction(), expression=np.array([1.5, -0.25, 0.0], np.float32))
    glb = Glb(glb_bytes(reconstruction, tiny_model()))
    mesh = glb.document["meshes"][0]
    assert mesh["weights"] == [1, 0, 0]
    base = glb.accessor(mesh["primitives"][0]["attributes"]["POSITION"])
    shown = base + glb.accessor(mesh["primitives"][0]["targets"][0]["POSITION"])
    np.testing.assert_allclose(shown, reconstruction.vertices_model, atol=2e-6)


@pytest.fixture(scope="session")
def gltf_validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that prints the report of Khronos' validator for a file."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm (for gltf-validator) is not installed")
    folder = tmp_path_factory.mktemp("gltf-validator")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), "gltf-validator@2.0.0-dev.3.10"]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        # A laptop may be offline; where the checks are meant to be complete, that is a failure.
        message = f"npm cannot install gltf-validator: {installed.stderr[-300:]}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    script = folder / "validate.js"
    script.write_text(
        "const fs = require('fs'), validator = require('gltf-validator');\n"
        "validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))\n"
        "  .then(report => console.log(JSON.stringify(report)));\n"
    )
    return script


@pytest.mark.external
@pytest.mark.parametrize("texture_size", [20, 64])
def test_khronos_validator_finds_nothing(tmp_path: Path, gltf_validator: Path, texture_size: int) -> None:
    texture = np.full((texture_size, texture_size, 3), 0.5, np.float32)
    write_glb(replace(tiny_reconstruction(), texture=texture), tiny_model(), tmp_path / "face.glb")
    command = ["node", str(gltf_validator), str(tmp_path / "face.glb")]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["hasMorphTargets"]
    assert report["info"]["drawCallCount"] == 2


def test_obj_holds_the_same_surface(tmp_path: Path) -> None:
    reconstruction = tiny_reconstruction()
    write_obj(reconstruction, tiny_model(), tmp_path / "face.obj")
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
    write_ply(reconstruction, tmp_path / "face.ply")
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
    with pytest.raises(ConfigError, match=r"formats contains 'stl'; choose from glb, obj, ply"):
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
    others = {"anna.mtl", "anna.png"} if suffix == ".obj" else set()
    assert names_in(tmp_path / "deep") == {name} | others
    if others:
        assert (tmp_path / "deep" / "anna.mtl").read_text().count("map_Kd anna.png") == 2
        with Image.open(tmp_path / "deep" / "anna.png") as texture:
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
    with pytest.raises(ConfigError, match=r"ends in '.stl'; use one of .glb, .obj, .ply"):
        write_mesh(tiny_reconstruction(), tiny_model(), tmp_path / "face.stl")


@pytest.mark.parametrize("failing", ["face.glb", "sheet.png", "reconstruction.npz"])
def test_a_full_disk_leaves_no_result_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = {"face.glb": "mien.export.write_glb", "sheet.png": "mien.export.sheet_image"}

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
