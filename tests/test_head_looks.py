"""The looks and materials of head.glb."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mien.errors import ConfigError
from mien.export.head_glb import head_glb_bytes
from mien.export.head_looks import HeadLooks, atlas_size, head_looks
from mien.export.model_face import model_face
from mien.geometry import vertex_normals
from mien.lighting import shading
from mien.morphable import HeadModel, MorphableModel, load_head, load_model
from mien.result import Reconstruction
from mien.texture import TexelAtlas
from mien.texture.head import HeadAtlas
from tests.glb_reader import Glb

SIZE = 256


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def head(model: MorphableModel) -> HeadModel:
    return load_head(model)


@pytest.fixture(scope="module")
def side_lit(model: MorphableModel) -> Reconstruction:
    """The mean face with light from its left, hair, and some relief."""
    face = model_face(torch.zeros(model.counts[0]), model)[0]
    lighting = np.zeros((9, 3), np.float32)
    lighting[0], lighting[3] = 0.75, (0.30, 0.27, 0.24)
    atlas = TexelAtlas.of(model, SIZE)
    normals = vertex_normals(torch.from_numpy(face.vertices_model)[None], model.triangles)
    light = shading(normals, torch.from_numpy(lighting)[None])
    lit = torch.from_numpy(face.vertex_albedo)[None] * light
    texture = atlas.dilate(atlas.interpolate(lit))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    # Towards the border of the face, a shadow that the fitted light does not have.
    from_middle = np.abs(np.linspace(-1, 1, SIZE, dtype=np.float32))
    from_middle = np.maximum(from_middle[:, None], from_middle[None])
    texture = texture * (1 - 0.25 * ((from_middle - 0.75) / 0.15).clip(0, 1))[..., None]
    displacement = np.zeros_like(face.displacement)
    displacement[80:120:4] = 1e-4
    return replace(
        face,
        lighting=lighting,
        texture=np.ascontiguousarray(texture),
        displacement=displacement,
        hair_colour=np.array([0.12, 0.08, 0.06], np.float32),
    )


@pytest.fixture(scope="module")
def looks(side_lit: Reconstruction, model: MorphableModel, head: HeadModel) -> HeadLooks:
    return head_looks(side_lit, model, head)


@pytest.fixture(scope="module")
def glb(side_lit: Reconstruction, model: MorphableModel) -> Glb:
    return Glb(head_glb_bytes(side_lit, model))


def at_vertices(pixels: np.ndarray, head: HeadModel) -> np.ndarray:
    """Colours at the skin's vertices."""
    u, v = head.skin_uv.numpy().T
    size = len(pixels)
    return pixels[((1 - v) * size).astype(int).clip(0, size - 1), (u * size).astype(int).clip(0, size - 1)]


def test_relit_has_no_light_and_photo_has(
    looks: HeadLooks, side_lit: Reconstruction, model: MorphableModel, head: HeadModel
) -> None:
    vertices = head.part("skin").vertices.numpy()
    cheeks = np.flatnonzero((vertices < len(model.mean)) & (np.abs(head.skin_uv[:, 1].numpy() - 0.45) < 0.08))
    cheeks = cheeks[model.masks.skin.numpy()[vertices[cheeks]] > 0.99]
    x = side_lit.vertices_model[vertices[cheeks], 0]
    left, right = cheeks[x > 0.045], cheeks[x < -0.045]

    def difference(pixels: np.ndarray) -> float:
        colours = at_vertices(pixels, head)
        return float(colours[left].mean() - colours[right].mean())

    assert difference(looks.photo) > 0.15
    assert abs(difference(looks.relit)) < 0.02
    error = at_vertices(looks.relit, head)[cheeks].mean(0) - side_lit.vertex_albedo[vertices[cheeks]].mean(0)
    assert np.abs(error).max() < 0.04


def test_no_look_has_a_seam_between_face_and_outer_skin(
    side_lit: Reconstruction, model: MorphableModel, head: HeadModel
) -> None:
    bald = head_looks(side_lit, model, head, scalp="skin")
    skin = head.part("skin")
    outer = (skin.triangles >= len(model.mean)).all(1).numpy()
    seam = np.isin(skin.vertices[skin.triangles].numpy(), head.seam.numpy()).sum(1) == 2
    centres = head.skin_uv[skin.triangles].mean(1)
    edges = [frozenset(set(t.tolist()) & set(head.seam.tolist())) for t in skin.vertices[skin.triangles][seam]]
    for pixels in (bald.relit, bald.photo):
        size = len(pixels)
        colours = pixels[((1 - centres[seam, 1]) * size).long(), (centres[seam, 0] * size).long()]
        inner_of = {edge: c for edge, c, o in zip(edges, colours, outer[seam], strict=True) if not o}
        steps = [
            np.abs(c - inner_of[e]).max()
            for e, c, o in zip(edges, colours, outer[seam], strict=True)
            if o and e in inner_of
        ]
        assert len(steps) > 100
        assert np.median(steps) < 0.02


def test_scalp_shows_hair_or_skin(
    looks: HeadLooks, side_lit: Reconstruction, model: MorphableModel, head: HeadModel
) -> None:
    crown = torch.cat([model.mean, head.mean])[head.part("skin").vertices][:, 1].numpy() > 0.118
    hair = at_vertices(looks.relit, head)[crown].mean(0)
    assert side_lit.hair_colour is not None
    np.testing.assert_allclose(hair, side_lit.hair_colour, atol=0.1)
    shaved = at_vertices(head_looks(side_lit, model, head, scalp="skin").relit, head)[crown].mean(0)
    assert shaved.mean() > 2 * hair.mean()
    brows = head_looks(replace(side_lit, hair_colour=None), model, head)
    assert at_vertices(brows.relit, head)[crown].mean() < 0.9 * shaved.mean()


def test_a_grey_photo_gives_a_grey_head(side_lit: Reconstruction, model: MorphableModel, head: HeadModel) -> None:
    luma = side_lit.texture @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = head_looks(replace(side_lit, texture=np.repeat(luma[..., None], 3, axis=2)), model, head)
    for pixels in (grey.relit, grey.photo, grey.eyes_relit, grey.eyes_photo):
        assert np.ptp(pixels, axis=2).max() < 2e-3
        assert pixels.std() > 0.02
    for part in ("mouth", "tongue", "teeth", "gums"):
        assert np.ptp(grey.part_colour(part)) < 1e-3
        assert np.ptp(grey.part_colour_in_photo(part)) < 1e-3


def test_lips_and_nose_are_glossier_and_hair_is_matte(looks: HeadLooks, model: MorphableModel, head: HeadModel) -> None:
    roughness = at_vertices(looks.roughness, head)
    vertices = head.part("skin").vertices.numpy()
    face = vertices < len(model.mean)
    on_lips, cheeks = np.zeros(len(vertices), bool), np.zeros(len(vertices), bool)
    on_lips[face] = model.masks.lips.numpy()[vertices[face]] > 0.95
    cheeks[face] = (np.abs(model.mean[vertices[face], 1].numpy() + 0.02) < 0.01) & (
        np.abs(model.mean[vertices[face], 0].numpy()) > 0.04
    )
    crown = torch.cat([model.mean, head.mean])[vertices][:, 1].numpy() > 0.118
    assert roughness[on_lips].mean() < roughness[cheeks].mean() - 0.1
    assert roughness[crown].mean() > roughness[cheeks].mean() + 0.2


def test_relief_lies_in_the_faces_part_of_the_normal_map(looks: HeadLooks, head: HeadModel) -> None:
    assert looks.normals is not None
    size = len(looks.normals)
    width = round(size * head.face_width)
    np.testing.assert_allclose(np.linalg.norm(looks.normals, axis=2), 1, atol=1e-4)
    assert float((1 - looks.normals[:, :width, 2]).max()) > 1e-3
    np.testing.assert_array_equal(looks.normals[:, width:], np.broadcast_to([0, 0, 1], (size, size - width, 3)))


def test_two_variants_choose_a_lit_and_an_unlit_material_per_part(glb: Glb, head: HeadModel) -> None:
    document = glb.document
    assert document["extensionsUsed"] == ["KHR_materials_ior", "KHR_materials_unlit", "KHR_materials_variants"]
    assert "extensionsRequired" not in document
    variants = [v["name"] for v in document["extensions"]["KHR_materials_variants"]["variants"]]
    assert variants == ["relit", "photo"]
    materials = document["materials"]
    primitives = [primitive for mesh in document["meshes"] for primitive in mesh["primitives"]]
    assert len(primitives) == len(head.parts)
    for primitive in primitives:
        mappings = primitive["extensions"]["KHR_materials_variants"]["mappings"]
        assert [mapping["variants"] for mapping in mappings] == [[0], [1]]
        assert primitive["material"] == mappings[0]["material"]  # what a viewer without variants shows
        relit, photo = (materials[mapping["material"]] for mapping in mappings)
        assert photo["name"] == f"{relit['name']}_photo"
        assert "KHR_materials_unlit" in photo["extensions"]
        assert "KHR_materials_unlit" not in relit["extensions"]
        textured = "baseColorTexture" in relit["pbrMetallicRoughness"]
        assert textured == ("TEXCOORD_0" in primitive["attributes"])
        for key in ("baseColorTexture", "baseColorFactor"):
            assert relit["pbrMetallicRoughness"].get(key) != photo["pbrMetallicRoughness"].get(key) or key not in str(
                relit
            )


def test_images_are_those_of_the_looks(glb: Glb, looks: HeadLooks) -> None:
    names = [image["name"] for image in glb.document["images"]]
    assert names == ["skin_relit", "skin_photo", "eyes_relit", "eyes_photo", "skin_roughness", "skin_normals"]

    def pixels(name: str) -> np.ndarray:
        view = glb.document["bufferViews"][glb.document["images"][names.index(name)]["bufferView"]]
        content = glb.binary[view["byteOffset"] :][: view["byteLength"]]
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255

    for name, expected in (("skin_relit", looks.relit), ("skin_photo", looks.photo), ("eyes_relit", looks.eyes_relit)):
        assert np.abs(pixels(name) - expected).mean() < 0.02, name
    rough = pixels("skin_roughness")
    np.testing.assert_allclose(rough[..., 1], looks.roughness, atol=0.003)
    assert rough[..., 2].max() == 0  # not metallic
    skin = glb.document["materials"][0]
    assert names[skin["pbrMetallicRoughness"]["metallicRoughnessTexture"]["index"]] == "skin_roughness"
    assert names[skin["normalTexture"]["index"]] == "skin_normals"


def test_tangents_belong_to_the_atlas(glb: Glb, head: HeadModel) -> None:
    """Along them u grows, as MikkTSpace has it."""
    attributes = glb.document["meshes"][0]["primitives"][0]["attributes"]
    points, tangents, uv = (glb.accessor(attributes[name]) for name in ("POSITION", "TANGENT", "TEXCOORD_0"))
    normals = glb.accessor(attributes["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-4)
    assert np.abs((tangents[:, :3] * normals).sum(1)).max() < 1e-3
    triangles = head.part("skin").triangles.numpy()
    a, b, c = (points[triangles[:, k]].astype(float) for k in range(3))
    ua, ub, uc = (uv[triangles[:, k]].astype(float) for k in range(3))
    d1, d2 = ub - ua, uc - ua
    determinant = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]
    along_u = ((b - a) * d2[:, 1:] - (c - a) * d1[:, 1:]) * np.sign(determinant)[:, None]
    along_u /= np.maximum(np.linalg.norm(along_u, axis=1, keepdims=True), 1e-12)
    cosine = (along_u * tangents[triangles[:, 0], :3]).sum(1)
    assert np.median(cosine) > 0.98


def test_what_lies_deep_in_the_mouth_is_dark(glb: Glb) -> None:
    names = [material["name"] for material in glb.document["materials"]]
    teeth = next(p for p in glb.document["meshes"][0]["primitives"] if names[p["material"]] == "teeth")
    light = glb.accessor(teeth["attributes"]["COLOR_0"])[:, 0]
    depth = -glb.accessor(teeth["attributes"]["POSITION"])[:, 2]
    assert light[depth > np.quantile(depth, 0.9)].max() < 0.8 * light[depth < np.quantile(depth, 0.1)].min()
    assert 0.2 < light.min() < light.max() < 1.0


def test_without_relief_there_is_no_normal_map(side_lit: Reconstruction, model: MorphableModel) -> None:
    flat = Glb(head_glb_bytes(replace(side_lit, displacement=0 * side_lit.displacement), model))
    assert len(flat.document["images"]) == 5
    assert "normalTexture" not in flat.document["materials"][0]
    assert "TANGENT" not in flat.document["meshes"][0]["primitives"][0]["attributes"]


def test_equal_faces_give_equal_files(side_lit: Reconstruction, model: MorphableModel) -> None:
    assert head_glb_bytes(side_lit, model) == head_glb_bytes(side_lit, model)


def test_scalp_is_checked(side_lit: Reconstruction, model: MorphableModel) -> None:
    with pytest.raises(ConfigError, match="scalp='wig' is unknown; choose one of hair, skin"):
        side_lit.glb_bytes(model, parts="head", scalp="wig")


def test_the_atlas_keeps_the_texels_of_the_texture(head: HeadModel) -> None:
    assert [atlas_size(side, head) for side in (256, 512, 1024, 2048)] == [1024, 1024, 2048, 4096]
    assert head.face_width > 0.6
    atlas = HeadAtlas.of(head, 128)
    u, v = head.skin_uv.unbind(-1)
    skin = head.part("skin").vertices
    values = torch.zeros(int(skin.max()) + 1, 2)
    values[skin] = torch.stack([u, v], dim=-1)
    drawn = atlas.interpolate(torch.cat([values, torch.zeros(len(head.mean), 2)]))
    inside = atlas.valid[0] > 0
    columns = (torch.arange(128) + 0.5) / 128
    assert float((drawn[0] - columns)[inside].abs().median()) < 0.01
