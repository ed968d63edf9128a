"""The motion of a face as a glTF animation: node transforms and morph weights at the times of a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mien.camera import to_model_axes
from mien.export.glb_file import Glb
from mien.typing import Float, Int

HOLD_S = 1e-3
"""Where the motion jumps, at a cut, the pose before it is kept until so short before the pose after it: linear
interpolation between the two would move the face through the gap."""


@dataclass(frozen=True, eq=False)
class FaceAnimation:
    """The motion of one face in N frames, and the camera that filmed it."""

    times_s: Float[np.ndarray, "N"]
    """Seconds from the start of the video, rising."""
    segments: Int[np.ndarray, "N"]
    """The motion is continuous between frames of one segment."""
    rotation: Float[np.ndarray, "N 3 3"]
    """Of the head, in model axes."""
    translation: Float[np.ndarray, "N 3"]
    """Of the model's origin, in camera axes, metres."""
    weights: Float[np.ndarray, "N E"]
    """Strengths of the expressions."""
    names: tuple[str, ...]
    """Names of the expressions."""
    focal_px: float
    """Focal length of the camera, pixels."""
    image_size: tuple[int, int]
    """Width and height of the video, pixels."""

    def encoded(self, glb: Glb, targets: Sequence[Sequence[str]]) -> dict[str, object]:
        """The animation as an element of glTF's `animations`; its data goes into the binary chunk.

        The first node moves as the head does in front of a camera at the origin, which looks along -z.

        Args:
            glb: The file.
            targets: Names of the morph targets of each node from the first on; empty for nodes without them.
        """
        times, rows = self._keys()
        key_times = glb.add_keys(times[:, None])
        samplers: list[dict[str, object]] = []
        channels: list[dict[str, object]] = []

        def add(node: int, path: str, values: np.ndarray) -> None:
            channels.append({"sampler": len(samplers), "target": {"node": node, "path": path}})
            samplers.append({"input": key_times, "interpolation": "LINEAR", "output": glb.add_keys(values)})

        add(0, "translation", to_model_axes(self.translation[rows]))
        add(0, "rotation", quaternions(self.rotation)[rows])
        column = {name: k for k, name in enumerate(self.names)}
        for node, names in enumerate(targets):
            if names:
                # A target without a curve, such as a fixed expression, keeps its full weight.
                curves = [self.weights[rows, column[name]] if name in column else np.ones(len(rows)) for name in names]
                add(node, "weights", np.stack(curves, axis=1).clip(0, 1).reshape(-1, 1))
        return {"name": "video", "channels": channels, "samplers": samplers}

    def camera(self) -> dict[str, object]:
        """The video's camera, as an element of glTF's `cameras`; it looks along -z from the origin."""
        width, height = self.image_size
        perspective = {
            "yfov": 2 * float(np.arctan(height / 2 / self.focal_px)),
            "aspectRatio": width / height,
            "znear": 0.01,
            "zfar": 100.0,
        }
        return {"name": "video", "type": "perspective", "perspective": perspective}

    def _keys(self) -> tuple[Float[np.ndarray, "K"], Int[np.ndarray, "K"]]:
        """Times of the keys, and the frame that each shows."""
        jumps = np.flatnonzero(np.diff(self.segments))
        held = np.maximum(self.times_s[jumps + 1] - HOLD_S, (self.times_s[jumps] + self.times_s[jumps + 1]) / 2)
        times = np.concatenate([self.times_s, held])
        rows = np.concatenate([np.arange(len(self.times_s)), jumps])
        order = np.argsort(times, kind="stable")
        return times[order], rows[order]


def add_animation(document: dict[str, Any], glb: Glb, animation: FaceAnimation) -> None:
    """Add an animation and its camera to the JSON chunk of a head or face, whose first node is moved.

    Args:
        document: The JSON chunk; its nodes have meshes whose extras name their morph targets.
        glb: The binary chunk.
        animation: The motion.
    """
    nodes, meshes = document["nodes"], document["meshes"]
    _separate_mesh_from_children(nodes)
    targets = [meshes[node["mesh"]]["extras"]["targetNames"] if "mesh" in node else () for node in nodes]
    document["animations"] = [animation.encoded(glb, targets)]
    document["cameras"] = [animation.camera()]
    nodes.append({"name": "camera", "camera": 0})
    document["scenes"][0]["nodes"].append(len(nodes) - 1)


def _separate_mesh_from_children(nodes: list[dict[str, Any]]) -> None:
    """Give the first node's mesh a node of its own: three.js also plays weights of a node in all nodes below it."""
    root = nodes[0]
    if root.get("children"):
        nodes.append({"name": "skin", "mesh": root["mesh"]})
        children = [len(nodes) - 1, *root["children"]]
        nodes[0] = {**{key: value for key, value in root.items() if key != "mesh"}, "children": children}


def quaternions(rotation: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 4"]:
    """Unit quaternions x, y, z, w of rotations; neighbours have the signs between which the shorter way lies."""
    m = rotation.astype(np.float64)
    trace = np.einsum("nii->n", m)
    # The four squares; dividing by the largest component is accurate for every rotation (Shepperd 1978).
    squares = np.stack([*(1 + 2 * m[:, k, k] - trace for k in range(3)), 1 + trace], axis=1)
    products = np.empty((len(m), 4, 4))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        products[:, i, i] = squares[:, i]
        products[:, i, j] = products[:, j, i] = m[:, i, j] + m[:, j, i]
        products[:, 3, i] = products[:, i, 3] = m[:, k, j] - m[:, j, k]
    products[:, 3, 3] = squares[:, 3]
    rows = products[np.arange(len(m)), squares.argmax(1)]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    flips = np.sign((rows[1:] * rows[:-1]).sum(1))
    rows[1:] *= np.cumprod(np.where(flips < 0, -1.0, 1.0))[:, None]
    return rows
