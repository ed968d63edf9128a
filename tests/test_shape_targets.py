"""Sliders of a person's shape: morph targets that are the model's own change, and the changed face."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import torch

from mien.errors import ConfigError
from mien.export import head_glb_bytes
from mien.export.rig import make_rig
from mien.export.shape_targets import COMPONENTS, PHENOTYPE_ENDS, reshaped, shape_axes, with_shape_targets
from mien.export.surface import unit_normals
from mien.morphable import MorphableModel, load_head, load_model
from mien.morphable.phenotypes import Phenotype, phenotype_identity
from mien.result import Reconstruction
from tests.test_rig import degrees_between, smiling_face

STRENGTHS = {"identity:1": 0.5, "identity:3": -1.0, "phenotype:age": 0.7}


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def smiling(model: MorphableModel) -> Reconstruction:
    return smiling_face(model)


def changed_identity(face: Reconstruction, model: MorphableModel) -> torch.Tensor:
    """The identity coefficients of the face with `STRENGTHS`."""
    start, end = phenotype_identity([Phenotype(age=1 / 3), Phenotype(age=1.0)], model)
    identity = torch.from_numpy(face.identity) + 0.7 * (end - start) / 2
    identity[0] += 0.5 * 2
    identity[2] -= 1.0 * 2
    return identity[None]


def test_the_targets_move_a_head_as_the_model_does(smiling: Reconstruction, model: MorphableModel) -> None:
    plain = make_rig(smiling, model, "head")
    rig = with_shape_targets(plain, model)
    assert rig.names[: len(plain.names)] == plain.names
    assert len(rig.names) == len(plain.names) + COMPONENTS + len(PHENOTYPE_ENDS)
    weights = rig.weights.copy()
    weights[[rig.names.index(name) for name in STRENGTHS]] = list(STRENGTHS.values())
    moved = rig.base + np.einsum("n,nvd->vd", weights, rig.moved.dense(len(rig.base)))
    identity, expression = changed_identity(smiling, model), torch.from_numpy(smiling.expression)[None]
    own = load_head(model).own_vertices(identity, expression)
    expected = torch.cat([model.vertices(identity, expression), own], dim=1)[0].numpy()
    assert np.abs(expected - rig.shown).max() > 4e-3
    assert np.abs(moved - expected).max() < 1e-5


def test_the_targets_turn_the_normals(smiling: Reconstruction, model: MorphableModel) -> None:
    rig = with_shape_targets(make_rig(smiling, model, "head", neutral=True), model)
    index = rig.names.index("phenotype:age")
    moved = rig.base + rig.moved.dense(len(rig.base))[index]
    turned = rig.base_normals + rig.turned.dense(len(rig.base))[index]
    skin = rig.layout.parts[0].vertices[rig.layout.parts[0].used]
    true = unit_normals(moved, rig.layout.triangles)[skin]
    assert np.median(degrees_between(turned[skin], true)) < 0.1
    assert np.percentile(degrees_between(rig.base_normals[skin], true), 90) > 3


def test_sliders_are_in_their_own_file_only_and_move_the_eyes(smiling: Reconstruction, model: MorphableModel) -> None:
    rig = make_rig(smiling, model, "head")
    plain, whole = (document(head_glb_bytes(smiling, model, rig=one)) for one in (rig, with_shape_targets(rig, model)))
    names = set(shape_axes(model).names)
    for mesh in plain["meshes"]:
        assert not names & set(mesh["extras"]["targetNames"])
    for mesh in whole["meshes"]:  # the head and both eyes
        assert names <= set(mesh["extras"]["targetNames"])
        assert len(mesh["weights"]) == len(mesh["primitives"][0]["targets"]) == len(mesh["extras"]["targetNames"])
    assert len(whole["meshes"]) == 3


def test_a_changed_face_is_the_models_before_the_same_camera(smiling: Reconstruction, model: MorphableModel) -> None:
    face = reshaped(smiling, model, STRENGTHS)
    identity = changed_identity(smiling, model)
    expected = model.vertices(identity, torch.from_numpy(smiling.expression)[None])[0].numpy()
    assert np.abs(face.identity - identity[0].numpy()).max() < 1e-5
    assert np.abs(face.vertices_model - expected).max() < 1e-5
    camera = np.c_[expected, np.ones(len(expected))] @ face.view_matrix[:3].T
    pixels = camera @ face.camera_matrix.T
    assert np.abs(face.vertices - camera).max() < 1e-5
    assert np.abs(face.xy - pixels[:, :2] / pixels[:, 2:]).max() < 0.02
    assert np.array_equal(face.landmarks68, face.xy[face.landmarks68_vertices])
    assert np.array_equal(face.expression, smiling.expression)
    same = reshaped(smiling, model, {})
    assert np.abs(same.xy - smiling.xy).max() < 0.02


def test_phenotypes_go_the_way_of_their_names(smiling: Reconstruction, model: MorphableModel) -> None:
    def landmarks(name: str, strength: float) -> np.ndarray:
        shape = reshaped(smiling, model, {f"phenotype:{name}": strength}).vertices_model
        return np.ptp(shape[model.landmarks68[:17].numpy()], axis=0)

    def throat(strength: float) -> float:
        shape = reshaped(smiling, model, {"phenotype:weight": strength}).vertices_model
        return float(shape[model.masks.neck.numpy() > 0.5, 2].mean())

    assert landmarks("age", -1.0)[1] + 5e-3 < landmarks("age", 1.0)[1]  # a longer face
    assert landmarks("gender", 1.0)[0] + 5e-3 < landmarks("gender", -1.0)[0]  # a narrower one
    assert throat(-1.0) + 1e-3 < throat(1.0)  # a double chin


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({"identity:9": 0.1}, "identity:9: unknown slider"),
        ({"phenotype:age": 1.01}, r"phenotype:age=1\.01 is out of range"),
        ({"phenotype:age": float("nan")}, "out of range"),
    ],
)
def test_wrong_strengths_are_refused(
    smiling: Reconstruction, model: MorphableModel, strengths: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        reshaped(smiling, model, strengths)


def document(glb: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", glb, 12)
    return json.loads(glb[20 : 20 + length])
