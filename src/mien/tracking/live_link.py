"""blendshapes.csv: the table that Epic's app Live Link Face writes, which Unreal, Blender and Maya import.

Columns, units, timecode and the signs of the eyes are those of seven recordings of the app. No recording at hand has
angles of the head; their signs are those that an importer expects. docs/tracking.md names both.
"""

from __future__ import annotations

import numpy as np

from mien.tracking.track import Track
from mien.typing import Float

BLENDSHAPES = (
    "EyeBlinkLeft", "EyeLookDownLeft", "EyeLookInLeft", "EyeLookOutLeft", "EyeLookUpLeft", "EyeSquintLeft",
    "EyeWideLeft", "EyeBlinkRight", "EyeLookDownRight", "EyeLookInRight", "EyeLookOutRight", "EyeLookUpRight",
    "EyeSquintRight", "EyeWideRight", "JawForward", "JawRight", "JawLeft", "JawOpen", "MouthClose", "MouthFunnel",
    "MouthPucker", "MouthRight", "MouthLeft", "MouthSmileLeft", "MouthSmileRight", "MouthFrownLeft", "MouthFrownRight",
    "MouthDimpleLeft", "MouthDimpleRight", "MouthStretchLeft", "MouthStretchRight", "MouthRollLower", "MouthRollUpper",
    "MouthShrugLower", "MouthShrugUpper", "MouthPressLeft", "MouthPressRight", "MouthLowerDownLeft",
    "MouthLowerDownRight", "MouthUpperUpLeft", "MouthUpperUpRight", "BrowDownLeft", "BrowDownRight", "BrowInnerUp",
    "BrowOuterUpLeft", "BrowOuterUpRight", "CheekPuff", "CheekSquintLeft", "CheekSquintRight", "NoseSneerLeft",
    "NoseSneerRight", "TongueOut",
)  # fmt: skip
"""ARKit's blendshapes in the order of the app; right before left at jaw and mouth, other than in ARKit's own list."""
ROTATIONS = (
    "HeadYaw", "HeadPitch", "HeadRoll", "LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch",
    "RightEyeRoll",
)  # fmt: skip
HEADER = ("Timecode", "BlendShapeCount", *BLENDSHAPES, *ROTATIONS)
TIMECODE_RATE = 60
"""Frames per second of the timecode, at any rate of the video: so the app counts, and Unreal's importer divides."""


def live_link_csv(track: Track) -> str:
    """The table of a track: a row per frame in which the person is seen.

    Blendshapes that the model does not have are 0. Angles are radians. The head has other signs (yaw to the subject's
    right, pitch upwards, roll towards the left shoulder) than the eyes (yaw to the left, pitch downwards).

    Args:
        track: The person.
    """
    column = {name[0].upper() + name[1:]: k for k, name in enumerate(track.expression_names)}
    zeros = np.zeros(len(track.frames))
    shapes = [track.expression[:, column[name]].clip(0, 1) if name in column else zeros for name in BLENDSHAPES]
    left, right = track.gaze[:, 0], track.gaze[:, 1]
    yaw, pitch, roll = head_angles(track.rotation).T
    eyes = [left[:, 0], -left[:, 1], zeros, right[:, 0], -right[:, 1], zeros]
    values = np.stack([*shapes, -yaw, pitch, roll, *eyes], axis=1)
    lines = [",".join(HEADER)]
    for time_s, row in zip(track.times_s.tolist(), values.tolist(), strict=True):
        lines.append(f"{timecode(time_s)},{len(row)}," + ",".join(f"{value:.10f}" for value in row))
    return "\n".join(lines) + "\n"


def timecode(time_s: float) -> str:
    """Hours, minutes, seconds, frame within the second, and thousandths of a frame: 00:00:01:12.500."""
    frames, part = divmod(round(time_s * TIMECODE_RATE * 1000), 1000)
    seconds, frame = divmod(frames, TIMECODE_RATE)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}:{frame:02d}.{part:03d}"


def head_angles(rotation: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Yaw, pitch and roll of the head: turned by the roll first, then by the pitch, then by the yaw.

    Args:
        rotation: Of the head, in model axes.

    Returns:
        Radians: to the subject's left, upwards, towards the left shoulder.
    """
    m = rotation.astype(np.float64)
    yaw = np.arctan2(m[:, 0, 2], m[:, 2, 2])
    pitch = np.arcsin(m[:, 1, 2].clip(-1, 1))
    roll = np.arctan2(-m[:, 1, 0], m[:, 1, 1])
    return np.stack([yaw, pitch, roll], axis=1)
