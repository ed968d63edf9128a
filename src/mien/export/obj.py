"""face.obj with its material file: the face with the photo's expression in model space, with texture.png."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.export.surface import eye_triangles, unit_normals
from mien.io.result_files import TEXTURE_FILE
from mien.morphable import MorphableModel
from mien.morphable.per_model import per_model
from mien.result import Reconstruction
from mien.typing import Bool, Float, Int

_MATERIALS = """\
# Colours of face.obj
newmtl skin
Ka 1 1 1
Kd 1 1 1
Ks 0.04 0.04 0.04
Ns 20
illum 2
map_Kd {texture}

newmtl eyes
Ka 1 1 1
Kd 1 1 1
Ks 0.3 0.3 0.3
Ns 200
illum 2
map_Kd {texture}
"""


def write_obj(
    reconstruction: Reconstruction,
    model: MorphableModel,
    path: Path,
    *,
    normals: Float[np.ndarray, "V 3"] | None = None,
) -> None:
    """Write the OBJ and its material file, which has the same name with the ending .mtl and refers to texture.png.

    Args:
        reconstruction: The face.
        model: The face's model, which says which triangles are eyes.
        path: The OBJ file to write; texture.png belongs in the same folder.
        normals: Unit normals of the vertices, if they are known.

    Raises:
        OSError: A file cannot be written.
    """
    materials = path.with_suffix(".mtl")
    path.write_text(obj_text(reconstruction, model, materials=materials.name, normals=normals), encoding="utf-8")
    materials.write_text(materials_text(TEXTURE_FILE), encoding="utf-8")


def materials_text(texture: str) -> str:
    """The content of the material file.

    Args:
        texture: Name of the texture in the same folder.

    Returns:
        The text.
    """
    return _MATERIALS.format(texture=texture)


def obj_text(
    reconstruction: Reconstruction,
    model: MorphableModel,
    *,
    materials: str,
    normals: Float[np.ndarray, "V 3"] | None = None,
) -> str:
    """The content of the OBJ.

    Args:
        reconstruction: The face.
        model: The face's model, which says which triangles are eyes.
        materials: Name of the material file in the same folder.
        normals: Unit normals of the vertices, if they are known.

    Returns:
        The text.
    """
    if normals is None:
        normals = unit_normals(reconstruction.vertices_model, reconstruction.triangles)
    mesh = per_model(model, _mesh_text)
    if not mesh.is_of(reconstruction):
        mesh = _MeshText.of(reconstruction.triangles, reconstruction.uv, eye_triangles(model))
    parts = [
        "# mien: metres, +y up, the face towards +z, +x to the subject's left",
        f"mtllib {materials}",
        "o face",
        _rows("v %.7f %.7f %.7f", reconstruction.vertices_model),
        mesh.coordinates,
        _rows("vn %.5f %.5f %.5f", normals),
        mesh.faces,
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _MeshText:
    """The lines that all faces of a model have in common; 1.3 MB for the packaged model."""

    triangles: Int[np.ndarray, "T 3"]
    uv: Float[np.ndarray, "V 2"]
    coordinates: str
    faces: str

    @classmethod
    def of(
        cls, triangles: Int[np.ndarray, "T 3"], uv: Float[np.ndarray, "V 2"], eyes: Bool[np.ndarray, "T"]
    ) -> _MeshText:
        lines = []
        for name, part in (("skin", triangles[~eyes]), ("eyes", triangles[eyes])):
            if len(part):
                corners = np.repeat(part + 1, 3, axis=1)
                lines += [f"usemtl {name}", _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", corners)]
        return cls(triangles, uv, _rows("vt %.6f %.6f", uv), "\n".join(lines))

    def is_of(self, reconstruction: Reconstruction) -> bool:
        return np.array_equal(self.triangles, reconstruction.triangles) and np.array_equal(self.uv, reconstruction.uv)


def _mesh_text(model: MorphableModel) -> _MeshText:
    triangles, uv = (values.cpu().numpy() for values in (model.triangles, model.uv))
    return _MeshText.of(triangles.astype(np.int32), uv, eye_triangles(model))


def _rows(pattern: str, values: np.ndarray) -> str:
    """A line per row, in one formatting operation, which is faster than one per row."""
    return "\n".join([pattern] * len(values)) % tuple(values.ravel().tolist())
