"""VRM 1.0: the head with the expressions by which applications of avatars animate faces.

VRM is binary glTF with the extension VRMC_vrm (https://github.com/vrm-c/vrm-specification). It describes a humanoid, so
the head stands on a skeleton without a body: the fifteen bones that VRM requires, in T-pose, in the proportions of an
adult with this head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mien.export.glb_file import Glb, pack_glb
from mien.export.head_glb import head_document
from mien.export.head_looks import HeadLooks, head_looks
from mien.export.rig import Rig, make_rig
from mien.io.result_files import HEAD, MeshOptions
from mien.morphable import MorphableModel, load_head
from mien.morphable.head import EYES
from mien.result import Reconstruction
from mien.typing import Float

_LICENCE = "https://vrm.dev/licenses/1.0/"
"""The only value that VRM 1.0 allows; its defaults, which stay, permit the least."""


def _both(name: str, strength: float) -> dict[str, float]:
    return {f"{name}Left": strength, f"{name}Right": strength}


PRESETS: dict[str, dict[str, float]] = {
    "happy": _both("mouthSmile", 0.8) | _both("cheekSquint", 0.6) | _both("eyeSquint", 0.3),
    "angry": _both("browDown", 1.0) | _both("noseSneer", 0.5) | _both("mouthPress", 0.4) | _both("eyeSquint", 0.4),
    "sad": {"browInnerUp": 0.9, "mouthShrugLower": 0.4} | _both("mouthFrown", 0.8) | _both("eyeSquint", 0.2),
    "relaxed": _both("mouthSmile", 0.35) | _both("eyeBlink", 0.3),
    "surprised": {"browInnerUp": 0.9, "jawOpen": 0.35} | _both("browOuterUp", 0.9) | _both("eyeWide", 0.8),
    "aa": {"jawOpen": 0.6} | _both("mouthLowerDown", 0.3) | _both("mouthUpperUp", 0.15),
    "ih": {"jawOpen": 0.2} | _both("mouthStretch", 0.4) | _both("mouthLowerDown", 0.4) | _both("mouthUpperUp", 0.2),
    "ou": {"jawOpen": 0.15, "mouthPucker": 0.9, "mouthFunnel": 0.3},
    "ee": {"jawOpen": 0.15} | _both("mouthSmile", 0.5) | _both("mouthStretch", 0.3) | _both("mouthLowerDown", 0.4),
    "oh": {"jawOpen": 0.4, "mouthFunnel": 0.7, "mouthPucker": 0.3},
    "blink": _both("eyeBlink", 1.0),
    "blinkLeft": {"eyeBlinkLeft": 1.0},
    "blinkRight": {"eyeBlinkRight": 1.0},
    "lookUp": _both("eyeLookUp", 1.0),
    "lookDown": _both("eyeLookDown", 1.0),
    "lookLeft": {"eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0},
    "lookRight": {"eyeLookInLeft": 1.0, "eyeLookOutRight": 1.0},
}
"""VRM's expressions as strengths of ARKit's blendshapes. Emotions and vowels are chosen by eye; VRM prescribes none."""


def vrm_bytes(
    reconstruction: Reconstruction,
    model: MorphableModel,
    *,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
    looks: HeadLooks | None = None,
) -> bytes:
    """Encode the whole head as a VRM file.

    All morph targets are at zero, as applications of VRM begin with. The expressions are VRM's presets, and as custom
    expressions ARKit's blendshapes by their names and `photo`, the expression of the photo.

    Args:
        reconstruction: The face.
        model: The face's model.
        options: How the morph targets are stored, and what the scalp shows.
        looks: The head's images, if other files need them too.

    Returns:
        The content of the file.

    Raises:
        ModelMismatch: The model has no head.
    """
    rig = make_rig(reconstruction, model, HEAD, neutral=True)
    glb = Glb(options.morphs)
    looks = looks or head_looks(reconstruction, model, load_head(model), scalp=options.scalp)
    nodes, content = head_document(glb, reconstruction, model, rig, looks)
    meshes: list[dict[str, Any]] = content["meshes"]
    targets = [meshes[node["mesh"]]["extras"]["targetNames"] for node in nodes]
    skeleton = _Skeleton.below(rig, chin=int(reconstruction.landmarks68_vertices[8]))
    bones, human_bones = skeleton.nodes(nodes)
    custom = {name: {name: 1.0} for name in rig.names}
    custom["photo"] = dict(zip(rig.names, reconstruction.expression.clip(0, 1).tolist(), strict=True))
    extension = {
        "specVersion": "1.0",
        "meta": {"name": "head from a photo", "authors": ["made with mien"], "licenseUrl": _LICENCE},
        "humanoid": {"humanBones": human_bones},
        "expressions": {
            "preset": {name: _expression(strengths, targets) for name, strengths in PRESETS.items()},
            "custom": {name: _expression(strengths, targets) for name, strengths in custom.items()},
        },
        "lookAt": _look_at(rig, skeleton),
    }
    document = {
        **content,
        "scene": 0,
        "scenes": [{"name": "scene", "nodes": [len(nodes)]}],
        "nodes": [*nodes, *bones],
        "extensionsUsed": [*content.get("extensionsUsed", []), "VRMC_vrm"],
        "extensions": {**content.get("extensions", {}), "VRMC_vrm": extension},
        **glb.document(),
    }
    return pack_glb(document, glb)


def _expression(strengths: Mapping[str, float], targets: Iterable[list[str]]) -> dict[str, object]:
    """An expression: its morph targets at each node that has them."""
    binds = [
        {"node": node, "index": names.index(name), "weight": weight}
        for node, names in enumerate(targets)
        for name, weight in strengths.items()
        if name in names and weight > 0
    ]
    return {"morphTargetBinds": binds}


_HEIGHTS = {
    "hips": ("root", 0.530),
    "spine": ("hips", 0.600),
    "neck": ("spine", 0.818),
    "head": ("neck", 0.870),
}
"""Parent, and height over the floor as a share of the stature (Drillis and Contini 1966, in Winter 2009): hip, pelvis,
shoulder and chin."""
_LIMBS = {
    "UpperLeg": ("hips", 0.0955, 0.530),
    "LowerLeg": ("UpperLeg", 0.0955, 0.285),
    "Foot": ("LowerLeg", 0.0955, 0.039),
    "UpperArm": ("spine", 0.129, 0.818),
    "LowerArm": ("UpperArm", 0.129 + 0.186, 0.818),
    "Hand": ("LowerArm", 0.129 + 0.186 + 0.146, 0.818),
}
"""The same of the left limbs, with the distance from the middle; arms are stretched to the sides."""
_HEAD_SHARE = 0.130
"""Height of the head, chin to vertex, over the stature."""


@dataclass(frozen=True)
class _Skeleton:
    """The bones of an adult below a head. The floor is y = 0, the middle of the head above x = z = 0."""

    parents: dict[str, str]
    places: dict[str, Float[np.ndarray, "3"]]
    """Positions of the bones, metres."""
    origin: Float[np.ndarray, "3"]
    """Position of the origin of model space."""

    @classmethod
    def below(cls, rig: Rig, *, chin: int) -> _Skeleton:
        """The skeleton for a head.

        Args:
            rig: The head.
            chin: Its vertex at the chin.
        """
        skin = rig.base[rig.layout.parts[0].vertices]
        top, middle = float(skin[:, 1].max()), float(skin[:, 2].min() + skin[:, 2].max()) / 2
        stature = (top - float(rig.base[chin, 1])) / _HEAD_SHARE
        parents, places = {}, {"root": np.zeros(3)}
        for bone, (parent, height) in _HEIGHTS.items():
            parents[bone], places[bone] = parent, np.array([0, height * stature, 0])
        for side, sign in (("left", 1), ("right", -1)):
            for bone, (parent, across, height) in _LIMBS.items():
                parents[side + bone] = side + parent if parent in _LIMBS else parent
                places[side + bone] = np.array([sign * across, height, 0]) * stature
        return cls(parents, places, np.array([0, stature - top, -middle]))

    def nodes(self, head: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, object]]:
        """Nodes of the root and the bones, behind those of the head, and VRM's list of the bones.

        Args:
            head: Nodes of the head; its root moves below the bone of the head.
        """
        first, names = len(head), ["root", *self.parents]
        head[0]["translation"] = (self.origin - self.places["head"]).tolist()
        nodes: list[dict[str, Any]] = []
        for bone in names:
            children = [first + names.index(child) for child, parent in self.parents.items() if parent == bone]
            node: dict[str, Any] = {"name": "root" if bone == "root" else f"{bone}_bone"}
            if bone == "head":
                children.append(0)
            if children:
                node["children"] = children
            if bone != "root":
                node["translation"] = (self.places[bone] - self.places[self.parents[bone]]).tolist()
            nodes.append(node)
        return nodes, {bone: {"node": first + names.index(bone)} for bone in self.parents}


def _look_at(rig: Rig, skeleton: _Skeleton) -> dict[str, object]:
    """Gaze by expressions, because these move the lids too; full strength belongs to the angle that it turns eyes."""
    eyes = [part for part in rig.layout.parts if part.name in EYES]
    centres = np.stack([rig.base[part.centre] for part in eyes])
    between = centres.mean(axis=0) + skeleton.origin - skeleton.places["head"]

    def range_map(expression: str) -> dict[str, float]:
        angles = [_turn(rig, name, centres) for name in PRESETS[expression]]
        return {"inputMaxValue": float(np.mean(angles)), "outputScale": 1.0}

    return {
        "type": "expression",
        "offsetFromHeadBone": between.tolist(),
        # With expressions, the outer map is that of both directions.
        "rangeMapHorizontalInner": range_map("lookLeft"),
        "rangeMapHorizontalOuter": range_map("lookLeft"),
        "rangeMapVerticalUp": range_map("lookUp"),
        "rangeMapVerticalDown": range_map("lookDown"),
    }


def _turn(rig: Rig, target: str, centres: Float[np.ndarray, "2 3"]) -> float:
    """The angle in degrees by which a morph target turns the front of the eye of its side."""
    eye = EYES.index("eye_left" if target.endswith("Left") else "eye_right")
    vertices = next(part.vertices for part in rig.layout.parts if part.name == EYES[eye])
    front = vertices[rig.base[vertices, 2].argmax()]
    before = rig.base[front] - centres[eye]
    after = before + rig.layout.basis[rig.names.index(target), front]
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    return float(np.degrees(np.arccos(cosine)))
