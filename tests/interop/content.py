"""What a reader finds in a file, and what it must find."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TOLERANCE_M = 1e-5
COLOUR_TOLERANCE = 3
"""Of 255: decoders of JPEG differ by one or two."""
SIZE_RANGE_M = (0.12, 0.40)
"""Height of a face or a head."""
FRAMES = {
    "+Y": np.eye(3),
    "+Z, face to −Y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "+Y, x mirrored": np.diag([-1.0, 1, 1]),
}
"""Matrices from the axes of a reader to those of the file: a row is where an axis of the reader points."""


@dataclass(frozen=True)
class Content:
    """What a reader gives access to; None for what its API does not have."""

    parts: tuple[np.ndarray, ...]
    """Vertices of each part, (V, 3); most readers make a mesh of each material."""
    triangles: int
    name: str | None = None
    """Name of the mesh or its node."""
    targets: int | None = None
    """Number of morph targets."""
    target_names: tuple[str, ...] | None = None
    offsets: tuple[float, ...] | None = None
    """Greatest offset of each morph target of the first part along an axis."""
    uv: np.ndarray | None = None
    """Texture coordinates of the first part, (V, 2), v down."""
    nodes: tuple[str, ...] | None = None
    """Names of the nodes, or of objects made from them."""
    image: np.ndarray | None = None
    """Base colour texture, (H, W, 3) 8-bit, top row first."""


def content(
    parts: Sequence[Any],
    *,
    triangles: int,
    name: str | None = None,
    targets: int | None = None,
    target_names: Sequence[str] | None = None,
    offsets: Sequence[Any] | None = None,
    uv: Any = None,
    nodes: Sequence[str] | None = None,
    image: Any = None,
) -> Content:
    """The content of parts, from arrays of any shape and type; the first one is the skin."""
    if not any(map(np.size, parts)):
        raise ValueError("the reader returned an empty mesh")
    sizes = None if offsets is None else tuple(float(np.abs(offset).max()) for offset in offsets)
    return Content(
        parts=tuple(np.array(part, float).reshape(-1, 3) for part in parts),
        triangles=triangles,
        name=name,
        targets=len(sizes) if targets is None and sizes is not None else targets,
        target_names=None if target_names is None else tuple(target_names),
        offsets=sizes,
        uv=None if uv is None else np.array(uv, float)[:, :2],
        nodes=None if nodes is None else tuple(nodes),
        image=None if image is None else np.array(image)[..., :3],
    )


class Glb:
    """The JSON of a GLB file, and its dense accessors of floats."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack_from("<I", data, 12)[0]
        self.document = json.loads(data[20 : 20 + length])
        self._binary = data[28 + length :]

    def vectors(self, accessor: int) -> np.ndarray:
        """(N, 3) of a dense accessor that shares its view with no other."""
        described = self.document["accessors"][accessor]
        start = self.document["bufferViews"][described["bufferView"]].get("byteOffset", 0)
        return np.frombuffer(self._binary, "<f4", 3 * described["count"], start).reshape(-1, 3).astype(float)

    def box(self, accessors: Sequence[int]) -> np.ndarray:
        """Lowest and highest corner that the accessors declare, 2 × 3."""
        low, high = ([self.document["accessors"][one][bound] for one in accessors] for bound in ("min", "max"))
        return np.stack([np.min(low, axis=0), np.max(high, axis=0)])


@dataclass(frozen=True)
class Shape:
    """Box and landmarks of a mesh in the axes of the file."""

    box: np.ndarray
    """Lowest and highest corner, 2 × 3."""
    landmarks: np.ndarray
    """Positions of the first and last landmark, 2 × 3."""
    eyes: np.ndarray
    """Positions of a vertex of each eyeball that is a node of its own, N × 3."""


@dataclass(frozen=True)
class Obj:
    """An OBJ of mien: one vertex has one number, and maybe several texture coordinates."""

    vertices: np.ndarray
    uv: np.ndarray
    uv_of_vertex: dict[int, int]
    """A texture coordinate of each vertex that has one."""
    corners: np.ndarray
    """Vertices of the triangles, (T, 3)."""

    @classmethod
    def read(cls, path: Path) -> Obj:
        rows = [line.split() for line in path.read_text().splitlines()]
        vertices, uv = (np.array([row[1:] for row in rows if row[:1] == [kind]], float) for kind in ("v", "vt"))
        faces = [[corner.split("/") for corner in row[1:]] for row in rows if row[:1] == ["f"]]
        uv_of_vertex = {int(v) - 1: int(vt) - 1 for face in reversed(faces) for v, vt, _ in face if vt}
        return cls(vertices, uv, uv_of_vertex, np.array([[int(corner[0]) - 1 for corner in face] for face in faces]))


@dataclass(frozen=True)
class Expected:
    """What a reader must find in a GLB, from the other files of its result folder and the ranges that it declares."""

    triangles: int
    landmarks: np.ndarray
    """Vertices of iBUG points 0 and 67, as numbers of the skin's vertices."""
    nodes: tuple[str, ...]
    """Names of the nodes with meshes."""
    shapes: dict[str, Shape]
    """The base mesh and the mesh with the photo's expression."""
    colours: np.ndarray
    """Of the texture at both landmarks, 2 × 3, 8-bit."""
    target_names: tuple[str, ...]
    offsets: tuple[tuple[float, ...], tuple[float, ...]]
    """Greatest offset of each morph target, of the skin and of all; readers that join the parts have the latter."""

    @classmethod
    def of(cls, folder: Path, part: str) -> Expected:
        obj, glb = Obj.read(folder / f"{part}.obj"), Glb(folder / f"{part}.glb")
        with np.load(folder / "reconstruction.npz") as arrays:
            landmarks = arrays["landmarks68_vertices"][[0, 67]]
        nodes = [node for node in glb.document["nodes"] if "mesh" in node]
        meshes = [glb.document["meshes"][node["mesh"]] for node in nodes]
        skin = meshes[0]["primitives"][0]
        rows = skin.get("extras", {}).get("modelVertices")
        on_skin = landmarks if rows is None else np.array([rows.index(vertex) for vertex in landmarks])
        boxes, eyes, eye_rows = [], [], []
        for node, mesh in zip(nodes, meshes, strict=True):
            place = np.array(node.get("translation", (0, 0, 0)))
            positions = [primitive["attributes"]["POSITION"] for primitive in mesh["primitives"]]
            boxes.append(glb.box(positions) + place)
            if node["name"].startswith("eye"):
                eyes.append(glb.vectors(positions[0])[0] + place)
                eye_rows.append(mesh["primitives"][0]["extras"]["modelVertices"][0])
        targets = [primitive["targets"] for primitive in meshes[0]["primitives"]]

        def greatest(parts: Sequence[Any]) -> tuple[float, ...]:
            boxes = (glb.box([target["POSITION"] for target in same]) for same in zip(*parts, strict=True))
            return tuple(float(np.abs(box).max()) for box in boxes)

        name = "texture.png" if part == "face" else "head_texture.png"
        texture = np.array(Image.open(folder / name).convert("RGB"))
        uv = obj.uv[[obj.uv_of_vertex[vertex] for vertex in landmarks.tolist()]]
        drawn = obj.vertices[np.unique(obj.corners)]
        return cls(
            triangles=len(obj.corners),
            landmarks=on_skin,
            nodes=tuple(node["name"] for node in nodes),
            shapes={
                "neutral": Shape(
                    np.stack([np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]]),
                    glb.vectors(skin["attributes"]["POSITION"])[on_skin],
                    np.reshape(eyes, (-1, 3)),
                ),
                "with expression": Shape(
                    np.stack([drawn.min(axis=0), drawn.max(axis=0)]),
                    obj.vertices[landmarks],
                    obj.vertices[eye_rows].reshape(-1, 3),
                ),
            },
            colours=np.array([texel(texture, place) for place in uv * (1, -1) + (0, 1)]),
            target_names=tuple(meshes[0]["extras"]["targetNames"]),
            offsets=(greatest(targets[:1]), greatest(targets)),
        )


def texel(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Mean of the texels around a texture coordinate, v down: enlarged images do not move it."""
    height, width = image.shape[:2]
    reach = max(1, width // 128)
    column, row = int(uv[0] * width), int(uv[1] * height)
    window = image[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
    return window.reshape(-1, window.shape[-1]).mean(axis=0)


@dataclass(frozen=True)
class Verdict:
    """The cells of one reader for one file."""

    vertices: str
    targets: str
    landmarks: str
    shape: str
    size: str
    colour: str


def judged(read: Content, expected: Expected, *, up: str) -> tuple[Verdict | None, list[str]]:
    """The cells of a file, and its faults."""
    faults = []
    vertices = np.concatenate(read.parts) @ FRAMES[up]
    shape = matching_shape(vertices, expected)
    if read.triangles != expected.triangles:
        faults.append(f"{read.triangles} triangles instead of {expected.triangles}")
    if read.targets not in (None, len(expected.target_names)):
        faults.append(f"{read.targets} morph targets")
    if read.target_names not in (None, expected.target_names):
        faults.append("other names of morph targets")
    if read.offsets is not None and not any(
        len(read.offsets) == len(known) and np.allclose(read.offsets, known, rtol=0, atol=TOLERANCE_M)
        for known in expected.offsets
    ):
        faults.append("other morph targets")
    if shape is None:
        return None, [*faults, f"bounding box {vertices.min(axis=0).round(4)} to {vertices.max(axis=0).round(4)}"]
    if read.nodes is not None and not set(expected.nodes) <= set(read.nodes):
        faults.append(f"the nodes {', '.join(sorted(set(expected.nodes) - set(read.nodes)))} are missing")
    eyes = [np.linalg.norm(vertices - eye, axis=1).min() for eye in expected.shapes[shape].eyes]
    if max(eyes, default=0) > TOLERANCE_M:
        faults.append(f"an eyeball in another place, by {1000 * max(eyes):.1f} mm")
    landmarks = expected.shapes[shape].landmarks
    upright = read.parts[0] @ FRAMES[up]
    distances = np.linalg.norm(upright[:, None] - landmarks[None], axis=2)
    nearest = distances.argmin(axis=0)
    if distances.min(axis=0).max() > TOLERANCE_M:
        faults.append(f"no vertex at the landmarks, the nearest at {1000 * distances.min(axis=0).max():.2f} mm")
    if not SIZE_RANGE_M[0] < np.ptp(vertices, axis=0)[1] < SIZE_RANGE_M[1]:
        faults.append("not a face in metres")
    colour = "not read"
    if read.uv is not None and read.image is not None:
        colours = np.array([texel(read.image, read.uv[index]) for index in nearest])
        colour = "as texture.png"
        if np.abs(colours - expected.colours).max() > COLOUR_TOLERANCE:
            faults.append(f"colours {colours.round().tolist()} instead of {expected.colours.round().tolist()}")
    targets = "not read" if read.targets is None else str(read.targets)
    return Verdict(
        vertices=" + ".join(f"{len(part):,}" for part in read.parts),
        targets=targets + (", named" if read.target_names else ""),
        landmarks="same" if (nearest == expected.landmarks).all() else "other",
        shape=shape,
        size=" × ".join(f"{1000 * side:.1f}" for side in np.ptp(vertices, axis=0)),
        colour=colour,
    ), faults


def matching_shape(vertices: np.ndarray, expected: Expected) -> str | None:
    """Which of the shapes has the box of the vertices."""
    box = np.stack([vertices.min(axis=0), vertices.max(axis=0)])
    near = (shape for shape, known in expected.shapes.items() if np.abs(box - known.box).max() < TOLERANCE_M)
    return next(near, None)
