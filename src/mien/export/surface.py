"""Properties of a mesh that several exporters need: normals and eye triangles."""

from __future__ import annotations

import numpy as np
import torch

from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.typing import Bool, Float, Int


def unit_normals(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "T 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normals of the vertices; (0, 0, 1) for a vertex whose triangles have no area."""
    corners = torch.from_numpy(triangles.astype(np.int64))
    normals = vertex_normals(torch.from_numpy(vertices.astype(np.float32))[None], corners)[0].numpy()
    normals[np.linalg.norm(normals, axis=-1) < 0.5] = (0, 0, 1)
    return normals


def eye_triangles(model: MorphableModel) -> Bool[np.ndarray, "T"]:
    """Which triangles belong to the eyeballs: all three corners do."""
    on_eye = model.masks.eyes.detach().cpu().numpy() > 0.5
    return np.all(on_eye[model.triangles.cpu().numpy()], axis=1)
