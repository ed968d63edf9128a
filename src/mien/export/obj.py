"""face.obj with its material file: the face with the photo's expression in model space, with texture.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.export.surface import eye_triangles, unit_normals
from mien.io.result_folder import TEXTURE_FILE
from mien.morphable import MorphableModel
from mien.result import Reconstruction

_MATERIALS = f"""\
# Colours of face.obj
newmtl skin
Ka 1 1 1
Kd 1 1 1
Ks 0.04 0.04 0.04
Ns 20
illum 2
map_Kd {TEXTURE_FILE}

newmtl eyes
Ka 1 1 1
Kd 1 1 1
Ks 0.3 0.3 0.3
Ns 200
illum 2
map_Kd {TEXTURE_FILE}
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
    normals = unit_normals(reconstruction.vertices_model, reconstruction.triangles)
    eyes = eye_triangles(model)
    materials = path.with_suffix(".mtl")
    lines = [
        "# mien: metres, +y up, the face towards +z, +x to the subject's left",
        f"mtllib {materials.name}",
        "o face",
        *_rows("v %.7f %.7f %.7f", reconstruction.vertices_model),
        *_rows("vt %.6f %.6f", reconstruction.uv),
        *_rows("vn %.5f %.5f %.5f", normals),
    ]
    for name, part in (("skin", reconstruction.triangles[~eyes]), ("eyes", reconstruction.triangles[eyes])):
        if len(part):
            lines.append(f"usemtl {name}")
            lines += _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", np.repeat(part + 1, 3, axis=1))
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    materials.write_text(_MATERIALS, encoding="ascii")


def _rows(pattern: str, values: np.ndarray) -> list[str]:
    return [pattern % tuple(row) for row in values.tolist()]
