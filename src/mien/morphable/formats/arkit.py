"""The 52 blendshapes of Apple's ARKit, in the order of MediaPipe's table, and their weights as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mien.errors import FormatError
from mien.io.reading import MAX_SETTINGS_BYTES, read_json

ARKIT_NAMES = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel",
    "mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp",
    "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft",
    "noseSneerRight", "tongueOut",
)  # fmt: skip
"""Apple's order in ARFaceAnchor.BlendShapeLocation, which is also the packaged model's."""
_NEUTRAL = "_neutral"
"""MediaPipe's first entry, which moves nothing."""


def read_arkit_weights(path: Path) -> dict[str, float]:
    """Read blendshape weights from a JSON object of names and numbers; MediaPipe's `_neutral` is ignored.

    Raises:
        FormatError: The file is not such an object, or a name or value is not allowed.
    """
    advice = "expected an object of names and numbers"
    stored = read_json(path, dict[str, Any], limit=MAX_SETTINGS_BYTES, advice=advice)
    stored.pop(_NEUTRAL, None)
    for name, value in stored.items():
        if name not in ARKIT_NAMES:
            raise FormatError(f"{path}: {name!r} is not an ARKit blendshape; expected browDownLeft and so on")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise FormatError(f"{path}: {name} is {value!r}; expected a number from 0 to 1")
    return {name: float(value) for name, value in stored.items()}


def write_arkit_weights(path: Path, weights: dict[str, float]) -> None:
    """Write the weights of all 52 blendshapes; missing ones become 0.

    Raises:
        FormatError: A name is unknown.
        OSError: The file cannot be written.
    """
    unknown = sorted(set(weights) - set(ARKIT_NAMES))
    if unknown:
        raise FormatError(f"{path}: {', '.join(unknown)} are not ARKit blendshapes")
    content = {name: float(weights.get(name, 0.0)) for name in ARKIT_NAMES}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
