"""The 52 ARKit blendshapes as offsets on the face: symmetrised, lips consistent, mouthClose as a corrective."""

from __future__ import annotations

import numpy as np
from face_region import FaceRegion
from lips import LipCloser
from makehuman import MakeHuman
from surface import REFLECT_X

ARKIT_NAMES = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose",
    "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight",
    "mouthFrownLeft", "mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft",
    "mouthStretchRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft",
    "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip
"""In the order of Apple's ARBlendShapeLocation. tongueOut moves nothing: the face has no tongue."""


def mirror_name(name: str) -> str:
    """The same blendshape on the other side of the face."""
    if name.endswith("Left"):
        return name[:-4] + "Right"
    return name[:-5] + "Left" if name.endswith("Right") else name


def read_blendshapes(source: MakeHuman, region: FaceRegion) -> np.ndarray:
    """Offsets (52, V, 3) in MakeHuman's millimetres, exactly mirrored between left and right."""
    raw = {name: region.operator @ source.facial_action(name) for name in ARKIT_NAMES}
    blendshapes = []
    for name in ARKIT_NAMES:
        other = raw[mirror_name(name)][region.mirror] * REFLECT_X
        blendshapes.append((raw[name] + other) / 2)
    return np.stack(blendshapes)


def adapt_to_mean(
    blendshapes: np.ndarray, *, rotation: np.ndarray, scale: np.ndarray, mean: np.ndarray, lips: LipCloser
) -> np.ndarray:
    """Rotate and scale blendshapes from MakeHuman's face to the model's mean face with closed lips.

    `scale` is one factor per axis (3,), in the model's frame.
    """
    adapted = blendshapes @ rotation.T * scale
    jaw, close = ARKIT_NAMES.index("jawOpen"), ARKIT_NAMES.index("mouthClose")
    for k in range(len(adapted)):
        if k not in (jaw, close) and np.abs(adapted[k]).max() > 0:
            # MakeHuman's lips had two millimetres of air to press, roll or shrug into; ours touch already.
            adapted[k] = lips.separate(mean + adapted[k]) - mean
    adapted[close] = lips.close(adapted[jaw] + adapted[close]) - adapted[jaw]
    return adapted
