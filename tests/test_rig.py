"""What all mesh files of a face or head share: default view, neutral shape, units and the photo's camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import ConfigError, ModelMismatch
from mien.export import write_mesh, write_reconstruction
from mien.export.head_looks import head_looks
from mien.export.model_face import model_face
from mien.export.rig import make_rig
from mien.export.surface import unit_normals
from mien.io.result_files import MeshOptions
from mien.morphable import MorphableModel, load_head, load_model
from mien.result import Reconstruction
from tests.glb_reader import Glb
from tests.test_export import names_in
from tests.tiny_face import tiny_model, tiny_reconstruction


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def smiling(model: MorphableModel) -> Reconstruction:
    return smiling_face(model)


def smiling_face(model: MorphableModel) -> Reconstruction:
    """The packaged model's face with many expressions at once, turned, before an off-centre camera."""
    face = model_face(torch.zeros(model.counts[0]), model)[0]
    generator = torch.Generator().manual_seed(3)
    expression = torch.rand(model.counts[1], generator=generator) * (torch.arange(model.counts[1]) % 3 == 0)
    vertices = model.vertices(torch.from_numpy(face.identity)[None], expression[None])[0].numpy()
    cos, sin = np.cos(0.4), np.sin(0.4)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ np.array(
        [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
    )
    return seen(replace(face, expression=expression.numpy(), vertices_model=vertices, rotation=rotation.astype("f4")))


def seen(face: Reconstruction) -> Reconstruction:
    """The face before an off-centre camera of an oblong photo, with a scale of 1.25."""
    face = replace(face, scale=1.25, image_size=(640, 400), focal_px=700.0, centre_px=np.array([300.5, 170.25]),
                   translation=np.array([0.03, -0.02, 0.9], np.float32))  # fmt: skip
    camera = np.c_[face.vertices_model, np.ones(len(face.vertices_model))] @ face.view_matrix[:3].T
    xy = camera @ face.camera_matrix.T
    return replace(face, vertices=camera.astype("f4"), xy=(xy[:, :2] / xy[:, 2:]).astype("f4"))


def degrees_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.degrees(np.arccos(cosines.clip(-1, 1)))


@pytest.mark.parametrize("part", ["face", "head"])
def test_morph_normals_are_those_of_the_default_view(smiling: Reconstruction, model: MorphableModel, part: str) -> None:
    """Within two degrees wherever a triangle is drawn; the sum of single targets would be off by 80."""
    glb = Glb(smiling.glb_bytes(model, parts=part))
    layout = make_rig(smiling, model, part).layout
    if part == "head":
        own = load_head(model).own_vertices(
            *(torch.from_numpy(x)[None] for x in (smiling.identity, smiling.expression))
        )
        whole = np.concatenate([smiling.vertices_model, own[0].numpy()])
    else:
        whole = smiling.vertices_model
    exact = unit_normals(whole, layout.triangles)
    worst, plain = 0.0, 0.0
    for mesh in glb.document["meshes"]:
        for primitive in mesh["primitives"]:
            rows, used = glb.model_vertices(primitive), np.unique(glb.accessor(primitive["indices"]))
            normals = glb.accessor(primitive["attributes"]["NORMAL"]).astype(float)
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
            shown = normals.copy()
            for weight, target in zip(mesh["weights"], primitive["targets"], strict=True):
                shown += weight * glb.accessor(target["NORMAL"])
            worst = max(worst, degrees_between(shown, exact[rows])[used].max())
            plain = max(plain, degrees_between(normals, exact[rows])[used].max())
    assert worst < 2.0
    assert plain > 20.0  # the expression turns normals


def test_a_single_target_keeps_its_normals_where_the_view_needs_no_correction(model: MorphableModel) -> None:
    face = model_face(torch.zeros(model.counts[0]), model)[0]
    expression = np.zeros_like(face.expression)
    jaw = model.expression_names.index("jawOpen")
    expression[jaw] = 1.0
    rig = make_rig(replace(face, expression=expression), model, "face")
    rows, offsets = rig.turned.target(jaw)
    exact = unit_normals(rig.base + rig.layout.basis[jaw], rig.layout.triangles)
    np.testing.assert_allclose((rig.base_normals[rows] + offsets), exact[rows], atol=1e-5)


def test_a_neutral_face_has_no_expression_in_any_format(tmp_path: Path) -> None:
    tiny = tiny_model()
    face = tiny_reconstruction(tiny, detail=False)
    face = replace(face, expression=np.array([1.5, 0.25, 0.0], np.float32))  # beyond the range of a weight
    moved = np.einsum("k,kvd->vd", face.expression, tiny.expression_basis.numpy())
    neutral = tiny.vertices(torch.from_numpy(face.identity)[None], torch.zeros(1, 3))[0].numpy()
    face = replace(face, vertices_model=neutral + moved)
    write_reconstruction(face, tiny, None, tmp_path, "glb,obj,ply", neutral=True)
    glb = Glb((tmp_path / "face.glb").read_bytes())
    assert glb.document["meshes"][0]["weights"] == [0, 0, 0]
    np.testing.assert_allclose(glb.shown(glb.document["meshes"][0]["primitives"][0]), neutral, atol=2e-6)
    assert glb.document["asset"]["extras"]["expression"] == [1.5, 0.25, 0.0]
    np.testing.assert_allclose(obj_rows(tmp_path / "face.obj", "v"), neutral, atol=1e-6)
    np.testing.assert_allclose(ply_vertices(tmp_path / "face.ply"), neutral, atol=2e-6)


def obj_rows(path: Path, kind: str) -> np.ndarray:
    return np.array([line.split()[1:] for line in path.read_text().splitlines() if line.split()[:1] == [kind]], float)


def ply_vertices(path: Path) -> np.ndarray:
    header, body = path.read_bytes().split(b"end_header\n", 1)
    count = int(header.split(b"element vertex ")[1].split()[0])
    return np.frombuffer(body[: 27 * count], "<3f4, <3f4, 3u1")["f0"]


@pytest.mark.parametrize(("units", "factor"), [("m", 1), ("cm", 100), ("mm", 1000)])
def test_obj_and_ply_have_the_chosen_unit(tmp_path: Path, units: str, factor: float) -> None:
    face, tiny = tiny_reconstruction(), tiny_model()
    write_reconstruction(face, tiny, None, tmp_path, "obj,ply,glb", units=units)
    expected = face.vertices_model * factor
    np.testing.assert_allclose(obj_rows(tmp_path / "face.obj", "v"), expected, atol=2e-7 * factor)
    np.testing.assert_allclose(ply_vertices(tmp_path / "face.ply"), expected, rtol=1e-6)
    for name in ("face.obj", "face.ply"):
        assert f"mien: {units}, +y up".encode() in (tmp_path / name).read_bytes()
    glb = Glb((tmp_path / "face.glb").read_bytes())
    shown = glb.shown(glb.document["meshes"][0]["primitives"][0])
    np.testing.assert_allclose(shown, face.vertices_model, atol=2e-6)  # glTF prescribes metres


@pytest.mark.parametrize("part", ["face", "head"])
def test_the_embedded_camera_sees_the_photo(smiling: Reconstruction, model: MorphableModel, part: str) -> None:
    """By the file alone: projected positions are those in the photo, whose principal point is off-centre."""
    document = (glb := Glb(smiling.glb_bytes(model, parts=part, embed_camera=True))).document
    root, camera_node = (document["nodes"][k] for k in document["scenes"][0]["nodes"])
    assert camera_node == {"name": "camera", "camera": 0}  # at the origin
    skin = document["meshes"][root["mesh"]]["primitives"][0]
    rows = glb.model_vertices(skin)
    on_face = np.isin(np.arange(len(rows)), glb.accessor(skin["indices"])) & (rows < len(smiling.xy))
    points = glb.shown(skin)[on_face] * root["scale"] @ quaternion_matrix(root["rotation"]).T + root["translation"]
    camera = document["cameras"][0]
    half_height = np.tan(camera["perspective"]["yfov"] / 2)
    half = np.array([half_height * camera["perspective"]["aspectRatio"], half_height])
    extras = camera["extras"]
    in_frame = (1 + points[:, :2] / -points[:, 2:] / half * (1, -1)) / 2 * extras["framePx"]
    np.testing.assert_allclose(in_frame - extras["photoOffsetPx"], smiling.xy[rows[on_face]], atol=2e-3)
    assert extras["photoPx"] == [640, 400]
    # The frame is the smallest one around the photo whose middle is the optical axis.
    assert extras["framePx"] == pytest.approx([2 * (640 - 300.5), 2 * (400 - 170.25)])
    assert extras["photoOffsetPx"] == pytest.approx([640 - 2 * 300.5, 400 - 2 * 170.25])


def quaternion_matrix(q: list[float]) -> np.ndarray:
    x, y, z, w = q
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def test_a_head_as_obj_has_a_group_for_each_part(
    tmp_path: Path, smiling: Reconstruction, model: MorphableModel
) -> None:
    write_reconstruction(smiling, model, None, tmp_path, "obj,ply", parts="head")
    assert names_in(tmp_path) == {"head.obj", "head.mtl", "head_texture.png", "head.ply"}
    head = load_head(model)
    lines = (tmp_path / "head.obj").read_text().splitlines()
    groups = [line.split()[1] for line in lines if line.startswith("g ")]
    assert groups == [part.name for part in head.parts]
    assert groups == [line.split()[1] for line in lines if line.startswith("usemtl ")]
    vertices, uv = obj_rows(tmp_path / "head.obj", "v"), obj_rows(tmp_path / "head.obj", "vt")
    np.testing.assert_allclose(vertices[: len(model.mean)], smiling.vertices_model, atol=1e-6)
    np.testing.assert_allclose(ply_vertices(tmp_path / "head.ply"), vertices, atol=1e-6)
    skin = head.part("skin")
    start = lines.index("usemtl skin") + 1
    for triangle, line in zip(skin.triangles.tolist(), lines[start:], strict=False):
        for corner, text in zip(triangle, line.split()[1:], strict=True):
            v, vt, vn = map(int, text.split("/"))
            assert v == vn == int(skin.vertices[corner]) + 1
            assert np.abs(uv[vt - 1] - head.skin_uv[corner].numpy()).max() < 1e-6
    materials = (tmp_path / "head.mtl").read_text()
    assert materials.count("map_Kd head_texture.png") == 3  # skin and eyes
    assert "newmtl teeth\nKa 0.7" in materials  # linear 0.58


def test_colours_of_a_head_as_ply(tmp_path: Path, smiling: Reconstruction, model: MorphableModel) -> None:
    write_mesh(smiling, model, tmp_path / "anna.ply", MeshOptions.parsed("head"))
    body = (tmp_path / "anna.ply").read_bytes().split(b"end_header\n", 1)[1]
    rig, photo = make_rig(smiling, model, "head"), head_looks(smiling, model, load_head(model)).photo
    colours = np.frombuffer(body[: 27 * len(rig.shown)], "<3f4, <3f4, 3u1")["f2"].astype(int)
    for part in rig.layout.parts:
        rows = np.flatnonzero(part.used)
        if part.name == "teeth":
            assert np.unique(colours[part.vertices[rows]], axis=0).tolist() == [[200, 192, 177]]  # 0.58, 0.53, 0.44
        elif part.name == "skin":
            assert part.uv is not None
            column, row = (part.uv[rows] * [1, -1] + [0, 1]).T * len(photo) - 0.5
            inside = [x.round().astype(int).clip(0, len(photo) - 1) for x in (row, column)]
            assert np.median(np.abs(colours[part.vertices[rows]] - 255 * photo[tuple(inside)])) < 4


def test_meshes_of_face_and_head_side_by_side(tmp_path: Path, smiling: Reconstruction, model: MorphableModel) -> None:
    smiling.save(tmp_path, formats="glb,obj,json", parts="face,head", model=model)
    both = {"face.glb", "head.glb", "face.obj", "face.mtl", "texture.png", "head.obj", "head.mtl", "head_texture.png"}
    assert names_in(tmp_path) == both | {"coefficients.json"}
    smiling.save(tmp_path, formats="glb,json", parts="head", model=model)
    assert names_in(tmp_path) == {"head.glb", "coefficients.json"}
    smiling.save(tmp_path / "anna.glb", parts="head", model=model)
    assert (tmp_path / "anna.glb").read_bytes() == (tmp_path / "head.glb").read_bytes()


def test_choices_without_effect_are_errors(tmp_path: Path) -> None:
    face, tiny = tiny_reconstruction(), tiny_model()
    with pytest.raises(ConfigError, match=r"parts contains 'hand'; choose from face, head"):
        face.save(tmp_path / "out", model=tiny, parts="hand")
    with pytest.raises(ConfigError, match=r"parts is empty"):
        face.save(tmp_path / "out", model=tiny, parts=())
    with pytest.raises(ConfigError, match=r"units='inch' is unknown; choose one of m, cm, mm"):
        face.save(tmp_path / "out", model=tiny, units="inch")
    with pytest.raises(ConfigError, match=r"units='cm' has no effect on the formats glb; choose one of obj, ply, usd"):
        face.save(tmp_path / "anna.glb", model=tiny, units="cm")
    with pytest.raises(ConfigError, match="embed_camera=True has no effect on the formats obj, ply; choose one of glb"):
        write_reconstruction(face, tiny, None, tmp_path / "out", "ply,obj", embed_camera=True)
    with pytest.raises(ConfigError, match="neutral=True has no effect on the formats json"):
        write_reconstruction(face, tiny, None, tmp_path / "out", "json", neutral=True)
    with pytest.raises(ConfigError, match="parts='face,head' are two meshes, but path="):
        write_mesh(face, tiny, tmp_path / "anna.glb", MeshOptions.parsed("face,head"))
    with pytest.raises(ConfigError, match="parts='face,head' are two meshes; choose one"):
        face.glb_bytes(tiny, parts="face,head")
    with pytest.raises(ConfigError, match="model=None, but ply of formats need it"):
        write_reconstruction(face, None, None, tmp_path / "out", "ply", parts="head")
    with pytest.raises(ConfigError, match="model=None, but ply of formats need it"):
        write_reconstruction(face, None, None, tmp_path / "out", "ply", neutral=True)
    with pytest.raises(ModelMismatch, match="only mien-face"):
        write_reconstruction(face, tiny, None, tmp_path / "out", "glb", parts="head")
    assert list(tmp_path.iterdir()) == []
