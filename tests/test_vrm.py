"""head.vrm: what VRM 1.0 requires, read from its JSON. `make interop` opens it with three-vrm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.export import write_mesh
from mien.export.model_face import model_face
from mien.export.vrm import PRESETS
from mien.morphable import load_model
from mien.result import Reconstruction
from tests.glb_reader import Glb

REQUIRED = {
    "hips", "spine", "head",
    *(side + bone for side in ("left", "right")
      for bone in ("UpperLeg", "LowerLeg", "Foot", "UpperArm", "LowerArm", "Hand")),
}  # fmt: skip
"""Of the specification's list of humanoid bones."""
PARENTS = {"spine": "hips", "leftUpperArm": "spine", "leftLowerArm": "leftUpperArm", "rightHand": "rightLowerArm",
           "leftUpperLeg": "hips", "rightFoot": "rightLowerLeg", "neck": "spine", "head": "neck"}  # fmt: skip


@pytest.fixture(scope="module")
def face() -> Reconstruction:
    model = load_model()
    face = model_face(torch.zeros(model.counts[0]), model)[0]
    expression = np.zeros_like(face.expression)
    expression[[model.expression_names.index(name) for name in ("jawOpen", "eyeLookUpLeft")]] = 0.5
    moved = model.vertices(torch.from_numpy(face.identity)[None], torch.from_numpy(expression)[None])[0].numpy()
    return replace(face, expression=expression, vertices_model=moved)


@pytest.fixture(scope="module")
def vrm(face: Reconstruction, tmp_path_factory: pytest.TempPathFactory) -> Glb:
    path = tmp_path_factory.mktemp("vrm") / "anna.vrm"
    write_mesh(face, load_model(), path)
    return Glb(path.read_bytes())


def world_positions(document: dict) -> dict[int, np.ndarray]:
    places = {}

    def visit(node: int, parent: np.ndarray) -> None:
        assert node not in places  # a tree
        places[node] = parent + document["nodes"][node].get("translation", (0, 0, 0))
        for child in document["nodes"][node].get("children", []):
            visit(child, places[node])

    (root,) = document["scenes"][0]["nodes"]
    visit(root, np.zeros(3))
    return places


def test_the_skeleton_has_the_required_bones_in_their_places(vrm: Glb, face: Reconstruction) -> None:
    document = vrm.document
    assert "VRMC_vrm" in document["extensionsUsed"]
    bones = {name: bone["node"] for name, bone in document["extensions"]["VRMC_vrm"]["humanoid"]["humanBones"].items()}
    assert set(bones) >= REQUIRED
    assert len(set(bones.values())) == len(bones)
    places = world_positions(document)
    assert len(places) == len(document["nodes"])
    for child, parent in PARENTS.items():
        assert bones[child] in document["nodes"][bones[parent]]["children"]
    at = {name: places[node] for name, node in bones.items()}
    assert (
        0 < at["leftFoot"][1] < at["leftLowerLeg"][1] < at["hips"][1] < at["spine"][1] < at["neck"][1] < at["head"][1]
    )
    assert at["leftHand"][0] > at["leftLowerArm"][0] > at["leftUpperArm"][0] > 0.1  # +x is the subject's left
    assert at["rightHand"][0] == pytest.approx(-at["leftHand"][0])
    mesh_node = next(k for k, node in enumerate(document["nodes"]) if node["name"] == "head")
    skin = vrm.accessor(document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]) + places[mesh_node]
    stature = skin[:, 1].max()
    assert 1.4 < stature < 2.0
    chin = face.landmarks68_vertices[8]
    rows = vrm.model_vertices(document["meshes"][0]["primitives"][0])
    assert at["head"][1] == pytest.approx(skin[rows == chin][0, 1], abs=1e-4)  # the top of the neck
    assert abs(skin[:, 2].max() + skin[:, 2].min()) < 1e-4


def test_expressions_move_the_blendshapes_at_each_node(vrm: Glb) -> None:
    document = vrm.document
    extension = document["extensions"]["VRMC_vrm"]
    assert extension["specVersion"] == "1.0"
    assert extension["meta"]["licenseUrl"] == "https://vrm.dev/licenses/1.0/"
    assert extension["meta"]["name"]
    assert all(extension["meta"]["authors"])
    expressions = extension["expressions"]
    assert set(expressions["preset"]) == {
        "happy", "angry", "sad", "relaxed", "surprised", "aa", "ih", "ou", "ee", "oh", "blink", "blinkLeft",
        "blinkRight", "lookUp", "lookDown", "lookLeft", "lookRight",
    }  # fmt: skip
    assert not set(expressions["preset"]) & set(expressions["custom"])
    names = load_model().expression_names
    assert set(expressions["custom"]) == {*names, "photo"}
    for mesh in document["meshes"]:
        assert not any(mesh["weights"])

    def moved(expression: dict) -> dict[tuple[str, str], float]:
        found = {}
        for bind in expression["morphTargetBinds"]:
            node = document["nodes"][bind["node"]]
            target = document["meshes"][node["mesh"]]["extras"]["targetNames"][bind["index"]]
            found[node["name"], target] = bind["weight"]
        return found

    assert moved(expressions["preset"]["blink"]) == {  # the lids press on the eyeballs
        ("head", "eyeBlinkLeft"): 1, ("head", "eyeBlinkRight"): 1,
        ("eye_left", "eyeBlinkLeft"): 1, ("eye_right", "eyeBlinkRight"): 1,
    }  # fmt: skip
    assert moved(expressions["preset"]["lookLeft"]) == {
        ("head", "eyeLookOutLeft"): 1, ("head", "eyeLookInRight"): 1,
        ("eye_left", "eyeLookOutLeft"): 1, ("eye_right", "eyeLookInRight"): 1,
    }  # fmt: skip
    for name, strengths in PRESETS.items():
        on_head = {key[1]: value for key, value in moved(expressions["preset"][name]).items() if key[0] == "head"}
        assert on_head == strengths
        assert set(strengths) <= set(names)
    assert moved(expressions["custom"]["photo"]) == {
        ("head", "jawOpen"): 0.5, ("head", "eyeLookUpLeft"): 0.5, ("eye_left", "eyeLookUpLeft"): 0.5
    }  # fmt: skip


def test_the_gaze_turns_eyes_by_the_angle_that_is_asked_for(vrm: Glb) -> None:
    look_at = vrm.document["extensions"]["VRMC_vrm"]["lookAt"]
    assert look_at["type"] == "expression"
    left = next(mesh for mesh in vrm.document["meshes"] if mesh["name"] == "eye_left")
    primitive = left["primitives"][0]
    eye = vrm.accessor(primitive["attributes"]["POSITION"])
    front = eye[:, 2].argmax()
    target = primitive["targets"][left["extras"]["targetNames"].index("eyeLookUpLeft")]
    turned = eye[front] + vrm.accessor(target["POSITION"])[front]
    pitch = [np.degrees(np.arctan2(at[1], np.hypot(at[0], at[2]))) for at in (eye[front], turned)]
    assert look_at["rangeMapVerticalUp"]["outputScale"] == 1
    assert look_at["rangeMapVerticalUp"]["inputMaxValue"] == pytest.approx(pitch[1] - pitch[0], abs=1.0)
    assert 0 < look_at["offsetFromHeadBone"][1] < 0.2
    assert look_at["offsetFromHeadBone"][2] > 0


def test_a_folder_has_the_vrm_beside_the_face(tmp_path: Path, face: Reconstruction) -> None:
    face.save(tmp_path, formats="glb,vrm,json", model=load_model())
    assert {path.name for path in tmp_path.iterdir()} == {"face.glb", "head.vrm", "coefficients.json"}
