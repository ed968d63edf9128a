"""Writes the files of a transferred face."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mien.io.files import writing_folder
from mien.registration.transfer import Transfer

MESH_FILE, COEFFICIENTS_FILE = "mesh.obj", "coefficients.json"


def write_transfer(carried: Transfer, folder: Path) -> None:
    """Write mesh.obj (metres, vertices in the model's order) and coefficients.json; OutputError on failure."""
    vertices, triangles = carried.vertices.numpy(), carried.model.triangles.numpy() + 1
    uv = carried.model.uv.numpy()
    content = {
        "format": "mien-transfer-1",
        "model": carried.model.name,
        "identity": carried.identity.tolist(),
        "expression": dict(zip(carried.model.expression_names, carried.expression.tolist(), strict=True)),
        "landmark_error_mm": 1000 * carried.landmark_error_m,
        "surface_error_mm": {key: 1000 * getattr(carried.surface_error, key) for key in ("mean", "median", "p90")},
    }
    with writing_folder(folder) as partial:
        with (partial / MESH_FILE).open("w", encoding="ascii") as file:
            np.savetxt(file, vertices, fmt="v %.8f %.8f %.8f")
            np.savetxt(file, uv, fmt="vt %.6f %.6f")
            corners = np.repeat(triangles, 2, axis=1)
            np.savetxt(file, corners, fmt="f %d/%d %d/%d %d/%d")
        (partial / COEFFICIENTS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
