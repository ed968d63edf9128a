"""face.obj with its material file: the face with the photo's expression in model space, with texture.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.export.surface import eye_triangles, unit_normals
from mien.io.result_files import TEXTURE_FILE
from mien.morphable import MorphableModel
from mien.result import Reconstruction

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


def write_obj(reconstruction: Reconstruction, model: MorphableModel, path: Path) -> None:
    """Write the OBJ and its material file, which has the same name with the ending .mtl and refers to texture.png.

    Args:
        reconstruction: The face.
        model: The face's model, which says which triangles are eyes.
        path: The OBJ file to write; texture.png belongs in the same folder.

    Raises:
        OSError: A file cannot be written.
    """
    materials = path.with_suffix(".mtl")
    path.write_text(obj_text(reconstruction, model, materials=materials.name), encoding="utf-8")
    materials.write_text(materials_text(TEXTURE_FILE), encoding="utf-8")


def materials_text(texture: str) -> str:
    """The content of the material file.

    Args:
        texture: Name of the texture in the same folder.

    Returns:
        The text.
    """
    return _MATERIALS.format(texture=texture)


def obj_text(reconstruction: Reconstruction, model: MorphableModel, *, materials: str) -> str:
    """The content of the OBJ.

    Args:
        reconstruction: The face.
        model: The face's model, which says which triangles are eyes.
        materials: Name of the material file in the same folder.

    Returns:
        The text.
    """
    normals = unit_normals(reconstruction.vertices_model, reconstruction.triangles)
    eyes = eye_triangles(model)
    parts = [
        "# mien: metres, +y up, the face towards +z, +x to the subject's left",
        f"mtllib {materials}",
        "o face",
        _rows("v %.7f %.7f %.7f", reconstruction.vertices_model),
        _rows("vt %.6f %.6f", reconstruction.uv),
        _rows("vn %.5f %.5f %.5f", normals),
    ]
    for name, part in (("skin", reconstruction.triangles[~eyes]), ("eyes", reconstruction.triangles[eyes])):
        if len(part):
            corners = np.repeat(part + 1, 3, axis=1)
            parts += [f"usemtl {name}", _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", corners)]
    return "\n".join(parts) + "\n"


def _rows(pattern: str, values: np.ndarray) -> str:
    """A line per row, in one formatting operation, which is faster than one per row."""
    return "\n".join([pattern] * len(values)) % tuple(values.ravel().tolist())
