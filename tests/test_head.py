"""The packaged head: its parts fit the face, follow its coefficients, and become a GLB."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.camera import Camera
from mien.errors import ModelMismatch
from mien.export.head_glb import head_glb_bytes
from mien.export.model_face import model_face
from mien.morphable import FaceCoefficients, HeadModel, MorphableModel, load_head, load_model
from mien.morphable.head import EYES
from mien.rasterizer import rasterize_hard
from mien.rendering import VISIBILITY_SLACK_M, build_surface, sample_map, sample_nearest, vertex_visibility
from mien.result import Reconstruction
from mien.texture.head import continued_over_head
from mien.typing import Float, Tensor
from tests.glb_reader import Glb
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def head(model: MorphableModel) -> HeadModel:
    return load_head(model)


def whole(
    model: MorphableModel, head: HeadModel, *, identity: Float[Tensor, "1 I"] | None = None, **actions: float
) -> Float[Tensor, "W 3"]:
    """All vertices of a head in millimetres."""
    identity = torch.zeros(1, model.counts[0]) if identity is None else identity
    expression = torch.zeros(1, model.counts[1])
    for name, strength in actions.items():
        expression[0, model.expression_names.index(name)] = strength
    parts = [model.vertices(identity, expression), head.own_vertices(identity, expression)]
    return 1000 * torch.cat(parts, dim=1)[0]


def vertices_of(head: HeadModel, name: str) -> Tensor:
    return head.part(name).vertices.unique()


def loops_of(triangles: np.ndarray) -> list[int]:
    """Lengths of the boundary loops of a surface."""
    edges = {(int(a), int(b)) for t in triangles for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    following = {a: b for a, b in edges if (b, a) not in edges}
    lengths = []
    while following:
        start, vertex = following.popitem()
        length = 1
        while vertex != start:
            vertex, length = following.pop(vertex), length + 1
        lengths.append(length)
    return sorted(lengths)


def test_skin_and_mouth_are_one_surface_that_is_open_at_eyes_and_collar(head: HeadModel) -> None:
    parts = [head.part(name) for name in ("skin", "mouth")]
    triangles = torch.cat([part.vertices[part.triangles] for part in parts]).numpy()
    left, right, collar = loops_of(triangles)
    assert left == right
    assert collar > left


def test_each_closed_part_is_closed(head: HeadModel) -> None:
    for name in EYES:
        part = head.part(name)
        assert loops_of(part.vertices[part.triangles].numpy()) == []


def test_head_has_the_size_of_a_head(model: MorphableModel, head: HeadModel) -> None:
    """Length and breadth within one standard deviation of adults (Zhuang and Bradtmiller 2005)."""
    skull = whole(model, head)[vertices_of(head, "skin")]
    skull = skull[skull[:, 1] > 40]
    length, breadth = (float(skull[:, axis].max() - skull[:, axis].min()) for axis in (2, 0))
    assert length == pytest.approx(192.4, abs=1.0)
    assert 150 - 7 < breadth < 150 + 7


@pytest.mark.parametrize(("action", "axis", "sign"), [
    ("eyeLookInLeft", 0, -1), ("eyeLookOutLeft", 0, 1), ("eyeLookUpLeft", 1, 1), ("eyeLookDownLeft", 1, -1),
])  # fmt: skip
def test_a_look_turns_the_eyeball_about_its_centre(
    model: MorphableModel, head: HeadModel, action: str, axis: int, sign: int
) -> None:
    eye, centre = vertices_of(head, "eye_left"), len(model.mean) + head.eye_centres[0]
    before, after = whole(model, head), whole(model, head, **{action: 1.0})
    assert torch.equal(before[centre], after[centre])
    radii = [(shape[eye] - shape[centre]).norm(dim=1) for shape in (before, after)]
    torch.testing.assert_close(*radii, atol=0.05, rtol=0)
    front = eye[before[eye, 2].argmax()]
    assert sign * float(after[front, axis] - before[front, axis]) > 2.0
    still = vertices_of(head, "eye_right")
    assert torch.equal(before[still], after[still])


def test_the_jaw_takes_the_lower_teeth_along_and_the_tongue_can_come_out(
    model: MorphableModel, head: HeadModel
) -> None:
    before, opened, out = (whole(model, head, **a) for a in ({}, {"jawOpen": 1.0}, {"tongueOut": 1.0}))
    teeth, tongue = vertices_of(head, "teeth"), vertices_of(head, "tongue")
    fall = (before - opened)[teeth, 1]
    upper, lower = fall.chunk(2)  # the rows have the same number of vertices
    assert float(upper.abs().max()) < 0.01
    assert float(lower.min()) > 5.0
    assert float((out - before)[tongue, 2].max()) > 15.0


@pytest.mark.parametrize("seed", range(5))
def test_lids_lie_before_the_eyeballs_of_random_people(model: MorphableModel, head: HeadModel, seed: int) -> None:
    """At most half a millimetre inside; what remains of the face's eye caps lies on them."""
    identity = torch.randn(1, model.counts[0], generator=torch.Generator().manual_seed(seed))
    shape = whole(model, head, identity=identity)
    lids = torch.cat([model.masks.eyes < 0.5, torch.ones(len(head.mean), dtype=torch.bool)])
    skin = vertices_of(head, "skin")
    skin = skin[lids[skin]]
    for name, centre in zip(EYES, head.eye_centres, strict=True):
        ball = shape[vertices_of(head, name)]
        middle = shape[len(model.mean) + centre]
        radius = float((ball - middle).norm(dim=1).median())
        assert float((shape[skin] - middle).norm(dim=1).min()) > radius - 0.5


@pytest.mark.parametrize("seed", range(5))
def test_teeth_and_tongue_of_random_people_are_behind_the_lips(
    model: MorphableModel, head: HeadModel, seed: int
) -> None:
    identity = torch.randn(1, model.counts[0], generator=torch.Generator().manual_seed(seed))
    shape = whole(model, head, identity=identity)
    lips = shape[: len(model.mean)][model.masks.lips > 0.5]
    for name in ("teeth", "gums", "tongue"):
        part = shape[vertices_of(head, name)]
        for lip in lips[lips[:, 2] > lips[:, 2].median()]:
            beside = part[(part[:, 0] - lip[0]).abs() < 2]
            assert not len(beside) or float(beside[:, 2].max()) < float(lip[2]) - 2.0


def test_the_skin_is_laid_out_without_overlap(head: HeadModel) -> None:
    skin = head.part("skin")
    a, b, c = head.skin_uv[skin.triangles].double().unbind(1)
    outer = a[:, 0] > head.face_width
    sizes = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert bool((sizes[outer] < 0).all() | (sizes[outer] > 0).all())
    share = float(sizes[outer].abs().sum()) / 2 / (1 - head.face_width)
    assert 0.8 < share < 1.0  # overlaps would count twice


def test_colours_go_on_over_the_seam(model: MorphableModel, head: HeadModel) -> None:
    texture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    texture = torch.nn.functional.interpolate(texture[None], size=(128, 128), mode="bicubic")
    far = torch.tensor([0.5, 0.4, 0.3])
    colours = continued_over_head(sample_map(texture, model.uv)[0], head, far=far)
    skin = head.part("skin")
    joint = skin.vertices[skin.triangles]
    crossing = joint[(joint >= len(model.mean)).any(1) & (joint < len(model.mean)).any(1)]
    steps = colours[crossing].amax(1) - colours[crossing].amin(1)
    assert float(steps.mean()) < 0.03
    crown = len(model.mean) + int(head.mean[:, 1].argmax())
    torch.testing.assert_close(colours[crown], far, atol=0.12, rtol=0)


@pytest.fixture(scope="module")
def portrait(model: MorphableModel) -> Reconstruction:
    face = model_face(torch.zeros(model.counts[0]), model)[0]
    expression = np.zeros_like(face.expression)
    expression[model.expression_names.index("jawOpen")] = 0.4
    expression[model.expression_names.index("eyeLookUpLeft")] = 1.2
    moved = model.vertices(torch.from_numpy(face.identity)[None], torch.from_numpy(expression)[None])[0].numpy()
    return replace(face, expression=expression, vertices_model=moved)


def test_glb_of_a_head_shows_the_photos_face(model: MorphableModel, head: HeadModel, portrait: Reconstruction) -> None:
    glb = Glb(head_glb_bytes(portrait, model))
    document = glb.document
    assert [node["name"] for node in document["nodes"]] == ["head", *EYES]
    names = [part.name for part in head.parts]
    assert [material["name"] for material in document["materials"]] == [*names, *(f"{name}_photo" for name in names)]
    mesh = document["meshes"][0]
    assert mesh["extras"]["targetNames"] == list(model.expression_names)
    skin = head.part("skin").vertices.numpy()
    used = np.isin(np.arange(len(skin)), head.part("skin").triangles.numpy())
    on_face = used & (skin < len(model.mean))
    assert set(portrait.landmarks68_vertices) <= set(skin[on_face])
    shown = glb.shown(mesh["primitives"][0])
    np.testing.assert_allclose(shown[on_face], portrait.vertices_model[skin[on_face]], atol=3e-6)
    left = document["meshes"][1]
    assert all(name.startswith("eyeLook") and name.endswith("Left") for name in left["extras"]["targetNames"])
    assert left["weights"] == [1.0 if "Up" in name else 0.0 for name in left["extras"]["targetNames"]]
    eye = glb.accessor(left["primitives"][0]["attributes"]["POSITION"])
    assert np.abs(eye.mean(0)).max() < 0.004  # around the centre, which is the node's place


def test_another_face_model_has_no_head() -> None:
    with pytest.raises(ModelMismatch, match="only mien-face"):
        load_head(tiny_model())


@pytest.mark.parametrize("pitch", [-0.5, 0.5])
@pytest.mark.parametrize("yaw", [0.0, 0.7, 1.4])
def test_the_heads_skin_hides_nothing_of_the_visible_face(
    model: MorphableModel, head: HeadModel, yaw: float, pitch: float
) -> None:
    """Ears lie beside the face, not before it: so texture and fit need not know what they hide."""
    identity, expression, albedo = model.counts
    face = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.8)
    face = replace(face, pose=replace(face.pose, rotation=torch.tensor([[pitch, yaw, 0.0]])))
    camera = Camera.from_fov(25.0, image_size=(448, 448))
    surface = build_surface(model, face)
    visible = vertex_visibility(model, surface, camera)[0] > 0
    own = face.pose.to_camera(head.own_vertices(face.identity, face.expression))
    skin = head.part("skin")
    triangles = skin.vertices[skin.triangles]
    outer = triangles[(triangles >= len(model.mean)).any(1)]
    whole = camera.to_ndc(torch.cat([surface.vertices_camera, own], dim=1))
    depth = rasterize_hard(whole, outer, image_size=camera.image_size, near=0.1, far=3.0).depth
    front = sample_nearest(depth, camera.project(surface.vertices_camera))[0]
    hidden = visible & (front > 0) & (surface.vertices_camera[0, :, 2] > front + VISIBILITY_SLACK_M)
    assert hidden.sum() < 1e-3 * visible.sum()
