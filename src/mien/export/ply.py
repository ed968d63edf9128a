"""PLY: a face or a head in model space, with a normal and a colour per vertex."""

from __future__ import annotations

import numpy as np

from mien.io.pixels import to_uint8
from mien.io.result_files import MeshOptions
from mien.typing import Float, Int

_VERTEX = np.dtype([*((name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")),
                    *((name, "u1") for name in ("red", "green", "blue"))])  # fmt: skip
_FACE = np.dtype([("count", "u1"), ("corners", "<i4", (3,))])


def ply_bytes(
    vertices: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "T 3"],
    *,
    normals: Float[np.ndarray, "V 3"],
    colours: Float[np.ndarray, "V 3"],
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
) -> bytes:
    """Encode a mesh as binary little-endian PLY with float positions and normals and 8-bit colours.

    Args:
        vertices: Positions in metres.
        triangles: Vertex indices.
        normals: Unit normals of the vertices.
        colours: Their colours, sRGB-encoded, 0 to 1.
        options: The unit of lengths.

    Returns:
        The content of the file.
    """
    rows = np.empty(len(vertices), _VERTEX)
    pixels = to_uint8(colours)
    for axis, name in enumerate("xyz"):
        rows[name] = vertices[:, axis] * np.float32(options.units_per_metre)
        rows[f"n{name}"] = normals[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = pixels[:, channel]
    faces = np.empty(len(triangles), _FACE)
    faces["count"] = 3
    faces["corners"] = triangles
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment mien: {options.units}, +y up, the face towards +z, +x to the subject's left",
        f"element vertex {len(rows)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return "\n".join(header).encode() + b"\n" + rows.tobytes() + faces.tobytes()
