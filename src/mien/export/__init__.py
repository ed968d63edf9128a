"""Everything that leaves the package as files: GLB, OBJ, PLY, maps and pictures. docs/outputs.md lists
them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mien.errors import ConfigError
from mien.export.gltf import glb_bytes as glb_bytes
from mien.export.gltf import write_glb as write_glb
from mien.export.images import FacePainter, albedo_map, normal_map, overlay_image, save_image, sheet_image, to_bytes
from mien.export.obj import write_obj as write_obj
from mien.export.ply import write_ply as write_ply
from mien.io.files import writing_folder
from mien.io.photo import Photo
from mien.io.result_folder import write_result_files
from mien.morphable import MorphableModel
from mien.result import Reconstruction


def write_reconstruction(
    reconstruction: Reconstruction, model: MorphableModel, photo: Photo, folder: str | os.PathLike[str]
) -> None:
    """Write every file of docs/outputs.md for one face into a folder.

    The folder appears, or its files change, only once all of them are written. Raises `OutputError` where
    the place cannot be written, `ConfigError` where model or photo are not those of the reconstruction.
    """
    _check_belongs(reconstruction, model, photo)
    if not reconstruction.expression_names:
        reconstruction = replace(reconstruction, expression_names=model.expression_names)
    painter = FacePainter(reconstruction, model)
    normals = painter.normals_map if painter.normals_map is not None else normal_map(reconstruction, model)
    with writing_folder(Path(folder)) as partial:
        write_result_files(reconstruction, partial)
        write_glb(reconstruction, model, partial / "face.glb")
        write_obj(reconstruction, model, partial / "face.obj")
        write_ply(reconstruction, partial / "face.ply")
        save_image(to_bytes(albedo_map(reconstruction, model)), partial / "albedo.png")
        save_image(to_bytes(0.5 + 0.5 * normals), partial / "normals.png")
        save_image(overlay_image(reconstruction, painter, photo), partial / "overlay.png")
        save_image(sheet_image(reconstruction, painter, photo), partial / "sheet.png")


def _check_belongs(reconstruction: Reconstruction, model: MorphableModel, photo: Photo) -> None:
    if reconstruction.model_name != model.name or len(reconstruction.vertices) != len(model.mean):
        raise ConfigError(
            f"the reconstruction was made with the model {reconstruction.model_name!r} of "
            f"{len(reconstruction.vertices)} vertices, not with {model.name!r} of {len(model.mean)}; load that model"
        )
    height, width = photo.pixels.shape[:2]
    if reconstruction.image_size != (width, height):
        size = " x ".join(map(str, reconstruction.image_size))
        raise ConfigError(f"{photo.path} is {width} x {height}, but the reconstruction's photo was {size}")
