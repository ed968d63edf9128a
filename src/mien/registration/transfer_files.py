"""Writes the files of a transferred face."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mien.export.gltf import write_glb
from mien.export.obj import write_obj
from mien.export.rig import make_rig
from mien.io.files import writing_folder
from mien.io.pixels import to_uint8
from mien.io.png import write_png
from mien.io.result_files import FACE, GLB_FILE, TEXTURE_FILE
from mien.registration.transfer import Transfer

MESH_FILE, COEFFICIENTS_FILE, SHAPES_FILE = "mesh.obj", "coefficients.json", "shapes.npz"


def write_transfer(carried: Transfer, folder: Path) -> None:
    """Write face.glb, mesh.obj, mesh.mtl, texture.png, shapes.npz and coefficients.json; see docs/formats.md.

    Args:
        carried: The transferred face.
        folder: Made if it is missing.

    Raises:
        OutputError: The folder cannot be written.
    """
    face, model = carried.face, carried.model
    content = {
        "format": "mien-transfer-1",
        **transfer_content(carried),
        "identity": face.identity.tolist(),
        "expression": dict(zip(model.expression_names, face.expression.tolist(), strict=True)),
        "albedo": face.albedo.tolist(),
    }
    with writing_folder(folder) as partial:
        rig = make_rig(face, model, FACE)
        write_obj(rig, partial / MESH_FILE, texture=TEXTURE_FILE)
        write_png(to_uint8(face.texture), partial / TEXTURE_FILE)
        write_glb(face, model, partial / GLB_FILE, rig=rig)
        _write_shapes(carried, partial / SHAPES_FILE)
        (partial / COEFFICIENTS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def transfer_content(carried: Transfer) -> dict[str, object]:
    """Model and errors of a transfer, for JSON."""
    return {
        "model": carried.model.name,
        "vertices": len(carried.vertices),
        "landmark_error_mm": 1000 * carried.landmark_error_m,
        "surface_error_mm": {key: 1000 * getattr(carried.surface_error, key) for key in ("mean", "median", "p90")},
    }


def _write_shapes(carried: Transfer, path: Path) -> None:
    """Write the face with its expression, without it, and the offsets of the target's blendshapes."""
    face, model = carried.face, carried.model
    names, basis = model.blendshapes
    strengths = face.expression if names == model.expression_names else np.zeros(len(names), np.float32)
    own = np.tensordot(face.expression, model.expression_basis.numpy(), axes=1)
    np.savez_compressed(
        path,
        vertices=face.vertices_model,
        neutral=(face.vertices_model - own).astype(np.float32),
        triangles=face.triangles,
        uv=face.uv,
        names=np.array(names, dtype=np.str_),
        offsets=basis.numpy(),
        strengths=strengths,
    )
