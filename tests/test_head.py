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
from tests.head_contacts import Contact, contacts_of, random_expression
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def head(model: MorphableModel) -> HeadModel:
    return load_head(model)


@pytest.fixture(scope="module")
def contacts(model: MorphableModel, head: HeadModel) -> list[Contact]:
    return contacts_of(model, head)


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


@pytest.fixture(scope="module")
def whole_mean(model: MorphableModel, head: HeadModel) -> Float[Tensor, "W 3"]:
    return whole(model, head)


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
    dent = radii[0] - radii[1]  # where lids press on it
    assert float(dent.min()) > -0.05
    assert float(dent.max()) < 2.0
    front = eye[before[eye, 2].argmax()]
    assert float(dent[eye == front]) < 0.3
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


DEEPEST_MM = {
    "lids in eye_left": 1.2, "lids in eye_right": 1.2, "teeth in lips": 1.0, "gums in lips": 2.0, "tongue in lips": 2.5,
    "tongue in teeth": 2.5, "tongue in gums": 1.0, "lower in upper teeth": 1.0,
}  # fmt: skip
"""How far parts may enter each other in mixtures. Tongue, lips and gums are soft and give way; the deepest lids are
those that close over eyes that look up."""
DEEPEST_AT_REST_MM = 0.2


def deepest(contacts: list[Contact], shape: Float[Tensor, "W 3"]) -> dict[str, float]:
    return {contact.name: contact.deepest(shape) for contact in contacts}


def test_parts_of_random_people_do_not_enter_each_other(
    model: MorphableModel, head: HeadModel, contacts: list[Contact]
) -> None:
    for seed in range(20):
        identity = torch.randn(1, model.counts[0], generator=torch.Generator().manual_seed(seed))
        depths = deepest(contacts, whole(model, head, identity=identity))
        assert max(depths.values()) < DEEPEST_AT_REST_MM, (seed, depths)


def test_parts_do_not_enter_each_other_at_any_action(
    model: MorphableModel, head: HeadModel, contacts: list[Contact]
) -> None:
    """Lips stay shut where the tongue alone comes out, and the jaw where the lips close over it: both need jawOpen."""
    jaw = {"tongueOut": 0.7, "mouthClose": 1.0}
    for name in model.expression_names:
        actions = {name: 1.0} | ({"jawOpen": jaw[name]} if name in jaw else {})
        depths = deepest(contacts, whole(model, head, **actions))
        assert max(depths.values()) < DEEPEST_AT_REST_MM, (name, depths)


def test_parts_do_not_enter_each_other_far_in_random_mixtures(
    model: MorphableModel, head: HeadModel, contacts: list[Contact]
) -> None:
    basis = 1000 * torch.cat([model.expression_basis, head.expression_basis], dim=1)
    generator = torch.Generator().manual_seed(0)
    people = [None, *(torch.randn(1, model.counts[0], generator=generator) for _ in range(3))]
    neutral = [whole(model, head, identity=person) for person in people]
    worst = dict.fromkeys(DEEPEST_MM, 0.0)
    for number in range(200):
        expression = random_expression(model.expression_names, generator)
        shape = neutral[number % len(neutral)] + torch.tensordot(expression, basis, dims=1)
        worst = {name: max(worst[name], depth) for name, depth in deepest(contacts, shape).items()}
    assert all(worst[name] < limit for name, limit in DEEPEST_MM.items()), worst


@pytest.mark.parametrize(("part", "shift", "contact"), [
    ("tongue", (6.0, -4.0, 0.0), "tongue in gums"), ("teeth", (0.0, 0.0, 5.0), "teeth in lips"),
    ("tongue", (6.0, 0.0, 0.0), "tongue in teeth"), ("gums", (0.0, 0.0, 8.0), "gums in lips"),
    ("eye_left", (0.0, 0.0, 2.0), "lids in eye_left"),
])  # fmt: skip
def test_a_displaced_part_enters_its_neighbour(
    whole_mean: Float[Tensor, "W 3"], head: HeadModel, contacts: list[Contact], *, part: str, shift: tuple[float, ...],
    contact: str,
) -> None:  # fmt: skip
    shape = whole_mean.clone()
    shape[vertices_of(head, part)] += torch.tensor(shift)
    assert deepest(contacts, shape)[contact] > 1.0


def test_closed_lips_hide_the_teeth_and_parted_lips_show_their_edges(model: MorphableModel, head: HeadModel) -> None:
    shape = whole(model, head)
    lips = shape[: len(model.mean)]
    middle = (lips[:, 0].abs() < 3) & (model.masks.lips > 0.5)
    line = float(lips[model.landmarks68[62], 1] + lips[model.landmarks68[66], 1]) / 2
    upper, lower = (shape[rows] for rows in vertices_of(head, "teeth").chunk(2))
    edge = float(upper[upper[:, 0].abs() < 8, 1].min())
    assert 1.0 < line - edge < 2.5
    assert float(lower[lower[:, 0].abs() < 8, 1].max()) < edge
    assert float(upper[:, 2].max()) < float(lips[middle, 2].max()) - 8.0  # a lip's thickness behind


def test_ears_are_symmetric_and_have_the_size_of_ears(model: MorphableModel, head: HeadModel) -> None:
    """Length within two standard deviations of ANSUR II (Gordon et al. 2014): 61.8 ± 4.9 mm."""
    shape = whole(model, head)
    skin = shape[vertices_of(head, "skin")]
    beside = (skin[:, 1] < 25) & (skin[:, 1] > -48) & (skin[:, 2] < -45)
    left, right = (skin[beside & (sign * skin[:, 0] > 76)] for sign in (1, -1))
    assert len(left) == len(right)
    for axis in (1, 2):
        torch.testing.assert_close(left[:, axis].amax(), right[:, axis].amax(), atol=0.01, rtol=0)
        torch.testing.assert_close(left[:, axis].amin(), right[:, axis].amin(), atol=0.01, rtol=0)


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
    assert all(name.startswith("eye") and name.endswith("Left") for name in left["extras"]["targetNames"])
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
