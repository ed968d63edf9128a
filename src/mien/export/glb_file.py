"""The container of a GLB file: its binary chunk, the accessors and buffer views that describe it, and its textures."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mien.export.morph_targets import EncodedTargets, shortest
from mien.io.pixels import to_uint8
from mien.io.png import png_bytes
from mien.result import Reconstruction
from mien.typing import Float, Int

_JPEG_QUALITY = 94  # no visible difference, at a quarter of the PNG's size

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
GLB_MAGIC = b"glTF"
"""The first bytes of a GLB file."""
_CHUNK_JSON, _CHUNK_BIN = 0x4E4F534A, 0x004E4942


@dataclass
class Glb:
    """The binary chunk as it grows, with the accessors and buffer views that describe it."""

    morphs: str
    """How morph targets are stored, one of `mien.io.result_files.MORPH_STORAGE`."""
    chunks: list[bytes | memoryview] = field(default_factory=list)
    length: int = 0
    accessors: list[dict[str, object]] = field(default_factory=list)
    views: list[dict[str, object]] = field(default_factory=list)

    def document(self) -> dict[str, object]:
        """The parts of the JSON chunk that describe the binary one."""
        return {"accessors": self.accessors, "bufferViews": self.views, "buffers": [{"byteLength": self.length}]}

    def add_view(self, content: bytes | memoryview, **properties: int) -> int:
        """Add a buffer view; `properties` are its `target` and `byteStride`, where it has them."""
        padding = bytes(-self.length % 4)
        start = self.length + len(padding)
        self.views.append({"buffer": 0, "byteOffset": start, "byteLength": len(content), **properties})
        self.chunks += [padding, content]
        self.length = start + len(content)
        return len(self.views) - 1

    def add_accessor(self, accessor: dict[str, object]) -> int:
        """Add an accessor, and return its index."""
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_vectors(self, vectors: Float[np.ndarray, "V K"]) -> int:
        """Add an attribute of vertices, and return the index of its accessor."""
        vectors = np.ascontiguousarray(vectors, dtype="<f4")
        view = self.add_view(vectors.tobytes(), target=_ARRAY_BUFFER)
        return self.add_accessor({"bufferView": view, **_described(vectors)})

    def add_keys(self, values: Float[np.ndarray, "N K"]) -> int:
        """Add the times or values of an animation, one row per key, and return the index of their accessor."""
        values = np.ascontiguousarray(values, dtype="<f4")
        view = self.add_view(values.tobytes())
        kind = "SCALAR" if values.shape[1] == 1 else f"VEC{values.shape[1]}"
        return self.add_accessor({"bufferView": view, **_described(values), "type": kind})

    def add_indices(self, triangles: Int[np.ndarray, "T 3"]) -> int:
        """Add the indices of triangles, and return the index of their accessor."""
        kind, code = _index_type(int(triangles.max()))
        view = self.add_view(triangles.astype(kind).tobytes(), target=_ELEMENT_ARRAY_BUFFER)
        return self.add_accessor({"bufferView": view, "componentType": code, "count": triangles.size, "type": "SCALAR"})

    def add_targets(self, kinds: dict[str, EncodedTargets], chosen: Sequence[int]) -> list[dict[str, int]]:
        """Add morph targets of a primitive, as sparse data over no view or as dense views.

        The choice of readers: Babylon.js 9 writes sparse data into the view below them, so that targets that share a
        view of zeros destroy each other; Assimp 5 and Open3D refuse such a view with a stride of its own, and a target
        with neither view nor sparse data; VTK 9.7 reads rubbish from sparse data without a view, but refuses the file
        where their byteOffset is left to its default, which is the better of the two.

        Args:
            kinds: Offsets by the name of their attribute.
            chosen: The targets to add.

        Returns:
            The attributes of each target.
        """
        add = self._add_dense if self.morphs == "dense" else self._add_sparse
        return [{name: add(targets, index) for name, targets in kinds.items()} for index in chosen]

    def _add_dense(self, targets: EncodedTargets, index: int) -> int:
        dense = np.zeros((targets.vertices, 3), "<f4")
        rows, offsets = targets.plain.target(index)
        dense[rows] = offsets
        view = self.add_view(dense.tobytes(), target=_ARRAY_BUFFER)
        return self.add_accessor({"bufferView": view, **_described_target(targets, index)})

    def _add_sparse(self, targets: EncodedTargets, index: int) -> int:
        count, wide, rows, offsets = targets.sparse(index)
        indices, values = self.add_view(rows), self.add_view(offsets)
        sparse = {
            "count": count,
            "indices": {"bufferView": indices, "componentType": _UINT32 if wide else _UINT16},
            "values": {"bufferView": values},
        }
        return self.add_accessor({**_described_target(targets, index), "sparse": sparse})

    def add_texture(self, texture: Float[np.ndarray, "H W 3"]) -> dict[str, object]:
        """Add a colour texture as JPEG, and return its image."""
        return {"name": "texture", "bufferView": self.add_view(jpeg_texture(texture)), "mimeType": "image/jpeg"}

    def add_roughness(self, roughness: Float[np.ndarray, "S S"]) -> dict[str, object]:
        """Add a roughness map as PNG, and return its image: green is the roughness, blue the metallic share, zero."""
        values = to_uint8(roughness)
        encoded = png_bytes(np.stack([np.full_like(values, 255), values, np.zeros_like(values)], axis=-1))
        return {"name": "roughness", "bufferView": self.add_view(encoded), "mimeType": "image/png"}

    def add_normal_map(self, normals: Float[np.ndarray, "S S 3"]) -> dict[str, object]:
        """Add a normal map as PNG, and return its image.

        Args:
            normals: Unit vectors in tangent space.
        """
        return {"name": "normals", "bufferView": self.add_view(png_normal_map(normals)), "mimeType": "image/png"}


def jpeg_texture(texture: Float[np.ndarray, "H W 3"]) -> bytes:
    """A colour texture as JPEG whose sides are powers of two."""
    image = Image.fromarray(to_uint8(texture))
    if any(side & (side - 1) for side in image.size):
        # Older engines build mip levels for powers of two only. At twice the size, resampling loses no detail.
        width, height = (1 << (2 * side - 1).bit_length() for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return encoded.getvalue()


def png_normal_map(normals: Float[np.ndarray, "S S 3"]) -> bytes:
    """Unit vectors in tangent space as PNG: the error of a JPEG is as large as most of the relief."""
    # Flat is 128 by convention; the hundredth keeps rounding errors on one side of it.
    return png_bytes(np.floor(128.01 + 127.5 * normals).astype(np.uint8))


def texture_document(images: list[dict[str, object]]) -> dict[str, object]:
    """The parts of the JSON chunk for images that are not repeated: one texture each."""
    sampler = {
        "magFilter": _LINEAR,
        "minFilter": _LINEAR_MIPMAP_LINEAR,
        "wrapS": _CLAMP_TO_EDGE,
        "wrapT": _CLAMP_TO_EDGE,
    }
    textures = [{"sampler": 0, "source": source} for source in range(len(images))]
    return {"textures": textures, "samplers": [sampler], "images": images}


def glb_extras(reconstruction: Reconstruction) -> dict[str, object]:
    """The coefficients of a face, for the `extras` of a file."""
    return {
        "model": reconstruction.model_name,
        "identity": shortest(reconstruction.identity),
        "expression": shortest(reconstruction.expression),
        "albedo": shortest(reconstruction.albedo),
        "lighting": shortest(reconstruction.lighting),
    }


def _described_target(targets: EncodedTargets, index: int) -> dict[str, object]:
    bounds = {"min": targets.low[index], "max": targets.high[index]}
    return {"componentType": _FLOAT, "count": targets.vertices, "type": "VEC3", **bounds}


def _described(vectors: np.ndarray) -> dict[str, object]:
    return {
        "componentType": _FLOAT,
        "count": len(vectors),
        "type": f"VEC{vectors.shape[1]}",
        # Per column, which is faster than over the first axis.
        "min": shortest(np.array([column.min() for column in vectors.T])),
        "max": shortest(np.array([column.max() for column in vectors.T])),
    }


def _index_type(largest: int) -> tuple[str, int]:
    # The largest value of the type is reserved for primitive restart.
    return ("<u2", _UINT16) if largest < 65535 else ("<u4", _UINT32)


def pack_glb(document: dict[str, object], glb: Glb) -> bytes:
    """The file of a JSON document and the binary chunk that it describes."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    padding = bytes(-glb.length % 4)
    binary = glb.length + len(padding)
    return b"".join(
        [
            struct.pack("<4sII", GLB_MAGIC, 2, 12 + 8 + len(text) + 8 + binary),
            struct.pack("<II", len(text), _CHUNK_JSON),
            text,
            struct.pack("<II", binary, _CHUNK_BIN),
            *glb.chunks,
            padding,
        ]
    )
