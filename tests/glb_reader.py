"""A glTF reader for tests, written from the specification and not from the writer."""

from __future__ import annotations

import json
import struct
from typing import Any, ClassVar

import numpy as np


class Glb:
    """The accessors of a GLB file; sparse data are applied."""

    KINDS: ClassVar = {5123: "<u2", 5125: "<u4", 5126: "<f4"}
    WIDTHS: ClassVar = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}

    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON"
        self.document = json.loads(data[20 : 20 + size])
        rest = data[20 + size :]
        size, kind = struct.unpack_from("<I4s", rest)
        assert (kind, size) == (b"BIN\0", len(rest) - 8)
        self.binary = rest[8:]

    def view(self, index: int, kind: str, count: int) -> np.ndarray:
        view = self.document["bufferViews"][index]
        return np.frombuffer(self.binary, kind, count, view["byteOffset"])

    def accessor(self, index: int) -> np.ndarray:
        accessor = self.document["accessors"][index]
        width, kind = self.WIDTHS[accessor["type"]], self.KINDS[accessor["componentType"]]
        values = np.zeros((accessor["count"], width), kind)
        if "bufferView" in accessor:
            values[:] = self.view(accessor["bufferView"], kind, values.size).reshape(values.shape)
        if sparse := accessor.get("sparse"):
            indices, stored = sparse["indices"], sparse["values"]
            where = self.view(indices["bufferView"], self.KINDS[indices["componentType"]], sparse["count"])
            values[where] = self.view(stored["bufferView"], kind, len(where) * width).reshape(-1, width)
        return values

    def model_vertices(self, primitive: dict[str, Any]) -> np.ndarray:
        """The model's index of each vertex of a primitive."""
        count = self.document["accessors"][primitive["attributes"]["POSITION"]]["count"]
        return np.array(primitive.get("extras", {}).get("modelVertices", range(count)))

    def shown(self, primitive: dict[str, Any]) -> np.ndarray:
        """The positions of a primitive with the weights of its mesh."""
        shown = self.accessor(primitive["attributes"]["POSITION"]).astype(np.float64)
        for weight, target in zip(self.document["meshes"][0]["weights"], primitive["targets"], strict=True):
            shown += weight * self.accessor(target["POSITION"])
        return shown
