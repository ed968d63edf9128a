"""face.ply: the face with the photo's expression in model space, with a normal and a colour per vertex."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.export.surface import texture_at_vertices, unit_normals
from mien.io.pixels import to_uint8
from mien.result import Reconstruction

_VERTEX = np.dtype([*((name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")),
                    *((name, "u1") for name in ("red", "green", "blue"))])  # fmt: skip
_FACE = np.dtype([("count", "u1"), ("corners", "<i4", (3,))])


def write_ply(reconstruction: Reconstruction, path: Path) -> None:
    """Write a binary little-endian PLY with float positions and normals and 8-bit colours, sampled from the texture.

    Args:
        reconstruction: The face.
        path: The file to write.

    Raises:
        OSError: The file cannot be written.
    """
    vertices = np.empty(len(reconstruction.vertices_model), _VERTEX)
    normals = unit_normals(reconstruction.vertices_model, reconstruction.triangles)
    colours = to_uint8(texture_at_vertices(reconstruction))
    for axis, name in enumerate("xyz"):
        vertices[name] = reconstruction.vertices_model[:, axis]
        vertices[f"n{name}"] = normals[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = colours[:, channel]
    faces = np.empty(len(reconstruction.triangles), _FACE)
    faces["count"] = 3
    faces["corners"] = reconstruction.triangles
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment mien: metres, +y up, the face towards +z, +x to the subject's left",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    path.write_bytes("\n".join(header).encode() + b"\n" + vertices.tobytes() + faces.tobytes())
