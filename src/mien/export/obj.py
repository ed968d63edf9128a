"""Wavefront OBJ with its material file: a face or a head in model space, a group and a material for each part."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from mien.export.part_materials import PART_MATERIALS, encoded
from mien.export.rig import Rig, RigLayout
from mien.io.result_files import MeshOptions

_WET, _DRY = ("0.3 0.3 0.3", 200), ("0.04 0.04 0.04", 20)
"""Colour and exponent of highlights, as close to the materials of the GLB as Phong's model comes."""


def write_obj(
    rig: Rig,
    path: Path,
    *,
    texture: str,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
) -> None:
    """Write the OBJ, and beside it its material file, which has the ending .mtl.

    Args:
        rig: The face or head.
        path: The OBJ file.
        texture: Name of the texture, which belongs in the same folder.
        options: The unit of lengths.

    Raises:
        OSError: A file cannot be written.
    """
    materials = path.with_suffix(".mtl")
    path.write_text(obj_text(rig, materials=materials.name, options=options), encoding="utf-8")
    materials.write_text(materials_text(rig, texture=texture), encoding="utf-8")


def materials_text(rig: Rig, *, texture: str) -> str:
    """The content of the material file.

    Args:
        rig: The face or head.
        texture: Name of the texture in the same folder.

    Returns:
        The text.
    """
    lines = [f"# Colours of {rig.layout.name}.obj"]
    for part in rig.layout.parts:
        material = PART_MATERIALS[part.name]
        highlight, exponent = _WET if material.is_wet else _DRY
        colour = (1, 1, 1) if material.colour is None else encoded(material.colour)
        diffuse = " ".join(f"{channel:.4g}" for channel in colour)
        lines += [f"newmtl {part.name}", f"Ka {diffuse}", f"Kd {diffuse}", f"Ks {highlight}", f"Ns {exponent}"]
        lines += ["illum 2", *([] if material.colour else [f"map_Kd {texture}"]), ""]
    return "\n".join(lines)


def obj_text(
    rig: Rig,
    *,
    materials: str,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
) -> str:
    """The content of the OBJ: the rig in its default view, with its vertices in their order.

    Args:
        rig: The face or head.
        materials: Name of the material file in the same folder.
        options: The unit of lengths.

    Returns:
        The text.
    """
    vertices = rig.shown if options.units == "m" else rig.shown * options.units_per_metre
    coordinates, faces = _layout_text(rig.layout)
    lines = [
        f"# mien: {options.units}, +y up, the face towards +z, +x to the subject's left",
        f"mtllib {materials}",
        f"o {rig.layout.name}",
        _rows("v %.7f %.7f %.7f" if options.units == "m" else "v %.5f %.5f %.5f", vertices),
        coordinates,
        _rows("vn %.5f %.5f %.5f", rig.shown_normals),
        faces,
    ]
    return "\n".join(lines) + "\n"


@functools.lru_cache(maxsize=2)
def _layout_text(layout: RigLayout) -> tuple[str, str]:
    """Texture coordinates and faces, which all rigs of a layout have in common; 1.3 MB for the packaged face.

    A vertex has one texture coordinate, or several where the texture has a seam, in the order of the vertices: those
    of a face are numbered as its vertices.
    """
    textured = [part for part in layout.parts if part.uv is not None]
    places = np.concatenate([np.column_stack([part.vertices, part.uv]) for part in textured if part.uv is not None])
    unique, numbers = np.unique(places, axis=0, return_inverse=True)
    lines, first = [], 0
    for part in layout.parts:
        corners = part.vertices[part.triangles] + 1
        lines += [f"g {part.name}", f"usemtl {part.name}"]
        if part.uv is None:
            lines.append(_rows("f %d//%d %d//%d %d//%d", np.repeat(corners, 2, axis=1)))
            continue
        of_uv = numbers.reshape(-1)[first : first + len(part.vertices)][part.triangles] + 1
        first += len(part.vertices)
        lines.append(_rows("f %d/%d/%d %d/%d/%d %d/%d/%d", np.stack([corners, of_uv, corners], axis=-1)))
    return _rows("vt %.6f %.6f", unique[:, 1:]), "\n".join(lines)


def _rows(pattern: str, values: np.ndarray) -> str:
    """A line per row, in one formatting operation, which is faster than one per row."""
    return "\n".join([pattern] * len(values)) % tuple(values.ravel().tolist())
