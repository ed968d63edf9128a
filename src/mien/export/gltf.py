"""face.glb: the face as binary glTF 2.0, with the expressions as named morph targets.

The base mesh is the person's neutral face with its fine relief. The weights are those of the photo's expression, so a
viewer shows the photo's face and an animator can move it. Model space is glTF's own: metres, +Y up, the face towards
+Z. The writer is our own because it needs sparse accessors for the morph targets, which no library that we found writes
(docs/dependencies.md).
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mien import __version__
from mien.errors import ConfigError
from mien.export.surface import eye_triangles, unit_normals
from mien.export.tangent_space import tangent_normal_map, vertex_tangents
from mien.io.pixels import to_uint8
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.typing import Bool, Float, Int

# Smaller changes are not stored: one micrometre, and of a normal less than one of 255 levels of shading.
_POSITION_EPSILON_M = 1e-6
_NORMAL_EPSILON = 3e-3

_SKIN_ROUGHNESS = 0.6
_EYE_ROUGHNESS = 0.15  # wet
_JPEG_QUALITY = 94  # no visible difference, at a quarter of the PNG's size

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
_GLB_MAGIC, _CHUNK_JSON, _CHUNK_BIN = 0x46546C67, 0x4E4F534A, 0x004E4942

MORPH_STORAGE = ("sparse", "dense")
"""How morph targets can be stored: the vertices that move, or all vertices, which makes the file 2.4 times as large."""


def write_glb(reconstruction: Reconstruction, model: MorphableModel, path: Path, *, morphs: str = "sparse") -> None:
    """Write a face as a GLB file, see `glb_bytes`.

    Args:
        reconstruction: The face.
        model: The face's model.
        path: The file to write.
        morphs: How the morph targets are stored.

    Raises:
        ConfigError: `morphs` is neither "sparse" nor "dense".
        OSError: The file cannot be written.
    """
    path.write_bytes(glb_bytes(reconstruction, model, morphs=morphs))


def glb_bytes(reconstruction: Reconstruction, model: MorphableModel, *, morphs: str = "sparse") -> bytes:
    """Encode a face as a GLB file.

    Morph weights are the fitted coefficients clamped to [0, 1]. The base mesh keeps what the clamp removes, so the
    default view is exactly `vertices_model`.

    Args:
        reconstruction: The face.
        model: The face's model, which gives the morph targets and the eye triangles.
        morphs: How the morph targets are stored: "sparse", or "dense" for readers that lose sparse data.

    Returns:
        The content of the file.

    Raises:
        ConfigError: `morphs` is neither "sparse" nor "dense".
    """
    if morphs not in MORPH_STORAGE:
        raise ConfigError(f"morphs={morphs!r} is unknown; choose one of {', '.join(MORPH_STORAGE)}.")
    names, basis, weights = _morphs(reconstruction, model)
    # The base also keeps the movements that no target stores.
    basis = basis * np.stack([_exceeds(offsets, _POSITION_EPSILON_M) for offsets in basis])[..., None]
    # np.tensordot gave other last bits for the same face in a process that had done another photo before.
    base = reconstruction.vertices_model - np.einsum("k,kvd->vd", weights, basis).astype(np.float32)
    parts = _parts(reconstruction.triangles, eye_triangles(model))
    glb = _Glb(morphs)
    normals = unit_normals(base, reconstruction.triangles)
    primitives = _primitives(glb, reconstruction, base, basis, normals=normals, parts=parts)
    images = [glb.add_texture(reconstruction.texture)]
    if reconstruction.displacement.any():
        images.append(glb.add_normal_map(tangent_normal_map(reconstruction, model)))
        tangents = vertex_tangents(base, normals, model)[parts[0].vertices]
        primitives[0]["attributes"]["TANGENT"] = glb.add_vectors(tangents)
    mesh = {
        "name": "face",
        "primitives": primitives,
        "weights": [float(weight) for weight in weights],
        "extras": {"targetNames": names},
    }
    document = {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": _extras(reconstruction)},
        "scene": 0,
        # Another name than the node's: three.js makes names unique, and "face" would be the scene.
        "scenes": [{"name": "scene", "nodes": [0]}],
        "nodes": [{"name": "face", "mesh": 0}],
        "meshes": [mesh],
        "materials": _materials(eyes=len(parts) > 1, relief=len(images) > 1),
        "textures": [{"sampler": 0, "source": source} for source in range(len(images))],
        "samplers": [
            {
                "magFilter": _LINEAR,
                "minFilter": _LINEAR_MIPMAP_LINEAR,
                "wrapS": _CLAMP_TO_EDGE,
                "wrapT": _CLAMP_TO_EDGE,
            }
        ],
        "images": images,
        "accessors": glb.accessors,
        "bufferViews": glb.views,
        "buffers": [{"byteLength": len(glb.data)}],
    }
    return _pack(document, bytes(glb.data))


@dataclass(frozen=True)
class _Part:
    """Skin or eyes: its vertices, by their index in the model, and its triangles, by the position among them."""

    vertices: Int[np.ndarray, "P"]
    used: Bool[np.ndarray, "P"]
    """Whether a triangle of the part uses the vertex."""
    triangles: Int[np.ndarray, "T 3"]


def _parts(triangles: Int[np.ndarray, "T 3"], eyes: Bool[np.ndarray, "T"]) -> list[_Part]:
    """Skin, and eyes if there are any.

    Vertex i of the skin is vertex i of the model, so that indices of landmarks hold. For this the skin keeps the places
    of vertices that only the eyes use, up to the last vertex of its own.
    """
    skin = triangles[~eyes]
    places = np.arange(skin.max() + 1)
    parts = [_Part(places, np.isin(places, skin), skin)]
    if eyes.any():
        vertices, renumbered = np.unique(triangles[eyes], return_inverse=True)
        parts.append(_Part(vertices, np.ones(len(vertices), bool), renumbered.reshape(-1, 3)))
    return parts


def _primitives(
    glb: _Glb,
    reconstruction: Reconstruction,
    base: Float[np.ndarray, "V 3"],
    basis: Float[np.ndarray, "N V 3"],
    *,
    normals: Float[np.ndarray, "V 3"],
    parts: list[_Part],
) -> list[dict[str, Any]]:
    """Skin and eyes, each with vertices and morph targets of its own."""
    moved_normals = _MovedNormals(base, reconstruction.triangles)
    turned = [moved_normals(delta) - normals for delta in basis]
    uv = np.stack([reconstruction.uv[:, 0], 1 - reconstruction.uv[:, 1]], axis=-1).clip(0, 1)
    primitives = []
    for material, part in enumerate(parts):
        rows, used = part.vertices, part.used[:, None]
        attributes = {
            "POSITION": glb.add_vectors(base[rows]),
            "NORMAL": glb.add_vectors(normals[rows]),
            "TEXCOORD_0": glb.add_vectors(uv[rows]),
        }
        targets = [
            {
                "POSITION": glb.add_morph(delta[rows] * used, epsilon=_POSITION_EPSILON_M),
                "NORMAL": glb.add_morph(turn[rows] * used, epsilon=_NORMAL_EPSILON),
            }
            for delta, turn in zip(basis, turned, strict=True)
        ]
        indices = glb.add_indices(part.triangles)
        primitives.append({"attributes": attributes, "indices": indices, "material": material, "targets": targets})
        if not np.array_equal(rows, np.arange(len(rows))):
            primitives[-1]["extras"] = {"modelVertices": rows.tolist()}
    return primitives


OWN_EXPRESSION = "expression"
"""Morph target of the photo's expression, for models whose expression coefficients are not blendshapes."""


def _morphs(
    reconstruction: Reconstruction, model: MorphableModel
) -> tuple[list[str], Float[np.ndarray, "N V 3"], Float[np.ndarray, "N"]]:
    """Names, offsets and weights of the morph targets.

    If the model's expression coefficients are the named blendshapes, they are the weights. If they are principal
    components, all blendshapes have weight zero, and one more target of weight one holds the photo's expression: the
    base is neutral and the default view shows the photo's face.
    """
    names, basis = model.blendshapes
    offsets = basis.detach().cpu().numpy()
    if names == model.expression_names:
        return list(names), offsets, reconstruction.expression.clip(0, 1)
    own = np.einsum("k,kvd->vd", reconstruction.expression, model.expression_basis.detach().cpu().numpy())
    weights = np.append(np.zeros(len(names), np.float32), np.float32(1))
    return [*names, OWN_EXPRESSION], np.concatenate([offsets, own[None]]), weights


def _materials(*, eyes: bool, relief: bool) -> list[dict[str, object]]:
    """Skin, with the normal map if there is one, and eyes if there are any."""
    skin = _material("skin", roughness=_SKIN_ROUGHNESS)
    if relief:
        skin["normalTexture"] = {"index": 1}
    return [skin, _material("eyes", roughness=_EYE_ROUGHNESS)] if eyes else [skin]


def _material(name: str, *, roughness: float) -> dict[str, object]:
    # A face is an open surface: without doubleSided it would be invisible from behind.
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": roughness}
    return {"name": name, "doubleSided": True, "pbrMetallicRoughness": surface}


def _extras(reconstruction: Reconstruction) -> dict[str, object]:
    return {
        "model": reconstruction.model_name,
        "identity": _plain(reconstruction.identity),
        "expression": _plain(reconstruction.expression),
        "albedo": _plain(reconstruction.albedo),
        "lighting": [_plain(row) for row in reconstruction.lighting],
    }


def _plain(values: np.ndarray) -> list[float]:
    """The shortest numbers that give these float32 back."""
    return [float(str(np.float32(value))) for value in values]


class _MovedNormals:
    """Computes unit normals after a part of the surface moved; the cost is proportional to that part."""

    def __init__(self, base: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "T 3"]) -> None:
        self._base, self._triangles = base, triangles
        self._sums = _scattered(_cross_products(base[triangles]), triangles, len(base))
        self._normals = _normalised(self._sums)

    def __call__(self, delta: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
        moved = _exceeds(delta, 0.0)[self._triangles]
        touched = self._triangles[moved[:, 0] | moved[:, 1] | moved[:, 2]]
        change = _cross_products((self._base + delta)[touched]) - _cross_products(self._base[touched])
        changed = _scattered(change, touched, len(delta))
        rows = np.flatnonzero(_exceeds(changed, 0.0))
        normals = self._normals.copy()
        normals[rows] = _normalised(self._sums[rows] + changed[rows])
        return normals


def _scattered(
    values: Float[np.ndarray, "T 3"], triangles: Int[np.ndarray, "T 3"], vertices: int
) -> Float[np.ndarray, "V 3"]:
    """The sum of the values of the triangles at each vertex."""
    corners = triangles.ravel()
    sums = [np.bincount(corners, np.repeat(values[:, axis], 3), vertices) for axis in range(3)]
    return np.stack(sums, axis=1).astype(np.float32)


def _normalised(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Unit vectors; (0, 0, 1) for vectors of length zero."""
    x, y, z = vectors.T
    length = np.sqrt(x * x + y * y + z * z)[:, None]
    return np.where(length > 0, vectors / np.maximum(length, 1e-30), np.array([0, 0, 1], np.float32))


def _cross_products(corners: Float[np.ndarray, "T 3 3"]) -> Float[np.ndarray, "T 3"]:
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    (ax, ay, az), (bx, by, bz) = first.T, second.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)  # np.cross takes twice the time


@dataclass
class _Glb:
    """The binary chunk as it grows, with the accessors and buffer views that describe it."""

    morphs: str
    data: bytearray = field(default_factory=bytearray)
    accessors: list[dict[str, object]] = field(default_factory=list)
    views: list[dict[str, object]] = field(default_factory=list)

    def add_view(self, content: bytes, **properties: int) -> int:
        """Add a buffer view; `properties` are its `target` and `byteStride`, where it has them."""
        self.data += bytes(-len(self.data) % 4)
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content), **properties})
        self.data += content
        return len(self.views) - 1

    def add_accessor(self, accessor: dict[str, object]) -> int:
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_vectors(self, vectors: Float[np.ndarray, "V K"]) -> int:
        vectors = np.ascontiguousarray(vectors, dtype="<f4")
        view = self.add_view(vectors.tobytes(), target=_ARRAY_BUFFER)
        return self.add_accessor({"bufferView": view, **_described(vectors)})

    def add_indices(self, triangles: Int[np.ndarray, "T 3"]) -> int:
        kind, code = _index_type(int(triangles.max()))
        view = self.add_view(triangles.astype(kind).tobytes(), target=_ELEMENT_ARRAY_BUFFER)
        return self.add_accessor({"bufferView": view, "componentType": code, "count": triangles.size, "type": "SCALAR"})

    def add_morph(self, delta: Float[np.ndarray, "V 3"], *, epsilon: float) -> int:
        """Add the offsets of a morph target above `epsilon`, as sparse data over no view or as a dense view.

        The choice of readers: Babylon.js 9 writes sparse data into the view below them, so that targets that share a
        view of zeros destroy each other; Assimp 5 and Open3D refuse such a view with a stride of its own, and a target
        with neither view nor sparse data; VTK 9.7 reads rubbish from sparse data without a view, but refuses the file
        where their byteOffset is left to its default, which is the better of the two.
        """
        moved = np.flatnonzero(_exceeds(delta, epsilon))
        stored = np.ascontiguousarray(delta[moved], dtype="<f4")
        if self.morphs == "dense":
            dense = np.zeros(delta.shape, "<f4")
            dense[moved] = stored
            return self.add_vectors(dense)
        if not len(moved):
            moved, stored = np.zeros(1, int), np.zeros((1, 3), "<f4")  # a zero that replaces a zero
        still = np.zeros((min(1, len(delta) - len(moved)), 3), "<f4")
        kind, code = _index_type(int(moved[-1]))
        indices, values = self.add_view(moved.astype(kind).tobytes()), self.add_view(stored.tobytes())
        return self.add_accessor(
            {
                **_described(np.concatenate([stored, still])),
                "count": len(delta),
                "sparse": {
                    "count": len(moved),
                    "indices": {"bufferView": indices, "componentType": code},
                    "values": {"bufferView": values},
                },
            }
        )

    def add_texture(self, texture: Float[np.ndarray, "S S 3"]) -> dict[str, object]:
        image = Image.fromarray(to_uint8(texture))
        side = image.width
        if side & (side - 1):
            # Older engines build mip levels for powers of two only. At twice the size, resampling loses no detail.
            side = 1 << (2 * side - 1).bit_length()
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
        return {"name": "texture", "bufferView": self.add_view(encoded.getvalue()), "mimeType": "image/jpeg"}

    def add_normal_map(self, normals: Float[np.ndarray, "S S 3"]) -> dict[str, object]:
        # Flat is 128 by convention; the hundredth keeps rounding errors on one side of it.
        # PNG: the error of a JPEG is as large as most of the relief.
        encoded = io.BytesIO()
        Image.fromarray(np.floor(128.01 + 127.5 * normals).astype(np.uint8)).save(encoded, "PNG")
        return {"name": "normals", "bufferView": self.add_view(encoded.getvalue()), "mimeType": "image/png"}


def _described(vectors: np.ndarray) -> dict[str, object]:
    return {
        "componentType": _FLOAT,
        "count": len(vectors),
        "type": f"VEC{vectors.shape[1]}",
        # Per column, which is faster than over the first axis.
        "min": _plain(np.array([column.min() for column in vectors.T])),
        "max": _plain(np.array([column.max() for column in vectors.T])),
    }


def _exceeds(vectors: Float[np.ndarray, "V 3"], limit: float) -> Bool[np.ndarray, "V"]:
    """Which vectors have a component above a limit."""
    above = np.abs(vectors) > limit
    return above[:, 0] | above[:, 1] | above[:, 2]  # ten times as fast as above.any(axis=1)


def _index_type(largest: int) -> tuple[str, int]:
    # The largest value of the type is reserved for primitive restart.
    return ("<u2", _UINT16) if largest < 65535 else ("<u4", _UINT32)


def _pack(document: dict[str, object], binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<III", _GLB_MAGIC, 2, length),
            struct.pack("<II", len(text), _CHUNK_JSON),
            text,
            struct.pack("<II", len(binary), _CHUNK_BIN),
            binary,
        ]
    )
