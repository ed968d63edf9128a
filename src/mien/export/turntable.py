"""Moving and many pictures of a head: the turntable, and the sheet of expressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mien.export.contact_sheet import PAPER, LabelStyle, SheetLayout, contact_sheet, in_rows
from mien.export.head_painter import FACE, HeadPainter
from mien.io.animation import check_animation, write_animation
from mien.typing import Float, Tensor, UInt8

SIDE_PX = 480
"""Side of a picture of the turntable."""
FRAMES, FRAMES_PER_SECOND = 96, 24
"""A turn of four seconds in steps of 3.75°."""
_PITCH_DEG = 4.0
"""The camera looks down a little."""

EXPRESSIONS: tuple[tuple[str, dict[str, float]], ...] = (
    ("neutral", {}),
    ("smile", {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "cheekSquintLeft": 0.5, "cheekSquintRight": 0.5}),
    ("open smile", {
        "mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "jawOpen": 0.25, "cheekSquintLeft": 0.6, "cheekSquintRight": 0.6,
        "mouthUpperUpLeft": 0.3, "mouthUpperUpRight": 0.3,
    }),
    ("surprise", {
        "browInnerUp": 1.0, "browOuterUpLeft": 1.0, "browOuterUpRight": 1.0, "eyeWideLeft": 0.9, "eyeWideRight": 0.9,
        "jawOpen": 0.55,
    }),
    ("anger", {
        "browDownLeft": 1.0, "browDownRight": 1.0, "noseSneerLeft": 0.6, "noseSneerRight": 0.6, "mouthPressLeft": 0.6,
        "mouthPressRight": 0.6, "eyeSquintLeft": 0.5, "eyeSquintRight": 0.5,
    }),
    ("sadness", {
        "browInnerUp": 0.9, "mouthFrownLeft": 0.9, "mouthFrownRight": 0.9, "mouthShrugLower": 0.5,
        "eyeLookDownLeft": 0.3, "eyeLookDownRight": 0.3,
    }),
    ("disgust", {
        "noseSneerLeft": 1.0, "noseSneerRight": 1.0, "mouthUpperUpLeft": 0.7, "mouthUpperUpRight": 0.7,
        "browDownLeft": 0.6, "browDownRight": 0.6,
    }),
    ("eyes shut", {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}),
    ("look aside", {"eyeLookInLeft": 1.0, "eyeLookOutRight": 1.0}),
    ("kiss", {"mouthPucker": 1.0}),
    ("cheeks puffed", {"cheekPuff": 1.0}),
    ("tongue out", {"jawOpen": 0.5, "tongueOut": 1.0}),
)  # fmt: skip
"""The labels of the sheet of expressions and their ARKit blendshapes."""
_SHEET_SIDE_PX, _COLUMNS, _SHEET_YAW_DEG = 320, 4, -18.0


def turntable_file(painter: HeadPainter, path: Path) -> None:
    """Write the head turning once, as an endless animation.

    Args:
        painter: The head.
        path: The file to write, `.webp` or `.mp4`.

    Raises:
        ConfigError: The ending is another, or PyAV, which writes MP4, is not installed.
        OSError: The file cannot be written.
    """
    check_animation(path)
    write_animation(turntable_frames(painter), path, frames_per_second=FRAMES_PER_SECOND)


def turntable_frames(painter: HeadPainter) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    """The pictures of one turn, from the front by the left to the front."""
    for number in range(FRAMES):
        yield painter.picture(yaw_deg=-360 * number / FRAMES, pitch_deg=_PITCH_DEG, side_px=SIDE_PX)


def expression_sheet(painter: HeadPainter, names: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Twelve expressions of a head, labelled.

    Args:
        painter: The head.
        names: The blendshapes of its model.
    """
    pictures = [
        painter.picture(
            yaw_deg=_SHEET_YAW_DEG, side_px=_SHEET_SIDE_PX, expression=_strengths(names, actions), framing=FACE
        )
        for _, actions in EXPRESSIONS
    ]
    style = LabelStyle(26, font_size=16, offset=(_SHEET_SIDE_PX // 2, 15), centred=True)
    labels = [label for label, _ in EXPRESSIONS]
    rows = [labels[k : k + _COLUMNS] for k in range(0, len(labels), _COLUMNS)]
    return contact_sheet(in_rows(pictures, _COLUMNS), SheetLayout(16, PAPER, style), labels=rows)


def _strengths(names: Sequence[str], actions: dict[str, float]) -> Float[Tensor, "E"]:
    expression = torch.zeros(len(names))
    for name, strength in actions.items():
        expression[list(names).index(name)] = strength
    return expression
