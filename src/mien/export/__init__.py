"""Results as files: GLB, OBJ, PLY, UV maps and pictures. docs/outputs.md lists them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mien.errors import ConfigError
from mien.export.gltf import glb_bytes as glb_bytes
from mien.export.gltf import write_glb as write_glb
from mien.export.images import FacePainter, albedo_map, normal_map, overlay_image, save_image, sheet_image
from mien.export.obj import write_obj as write_obj
from mien.export.ply import write_ply as write_ply
from mien.io.files import writing_folder
from mien.io.photo import Photo
from mien.io.pixels import to_uint8
from mien.io.result_folder import (
    ALBEDO_FILE,
    GLB_FILE,
    NORMALS_FILE,
    OBJ_FILE,
    OVERLAY_FILE,
    PLY_FILE,
    SHEET_FILE,
    write_result_files,
)
from mien.morphable import MorphableModel
from mien.result import Reconstruction


def write_reconstruction(
    reconstruction: Reconstruction,
    model: MorphableModel,
    photo: Photo,
    folder: str | os.PathLike[str],
    *,
    morphs: str = "sparse",
) -> None:
    """Write all files of one face into a folder: mesh, UV maps, pictures and numbers, as docs/outputs.md lists them.

    The folder appears, or its files change, only after all files are written.

    Args:
        reconstruction: The face.
        model: The model that the face was reconstructed with, `Reconstructor.model`.
        photo: The photo that shows the face, for overlay.png and sheet.png.
        folder: The folder of this face; missing parents are made.
        morphs: How face.glb stores its morph targets: "sparse", or "dense" for programs that lose sparse data.

    Raises:
        ConfigError: Model or photo are not those of the reconstruction, or `morphs` is unknown.
        OutputError: The folder cannot be written.

    Example:
        >>> photo = mien.read_photo("photo.jpg")
        >>> reconstructor = mien.Reconstructor()
        >>> for index, face in enumerate(reconstructor(photo)):
        ...     mien.write_reconstruction(face, reconstructor.model, photo, f"out/face{index}")
    """
    _check_belongs(reconstruction, model, photo)
    if not reconstruction.expression_names:
        reconstruction = replace(reconstruction, expression_names=model.expression_names)
    painter = FacePainter(reconstruction, model)
    normals = painter.normals_map if painter.normals_map is not None else normal_map(reconstruction, model)
    with writing_folder(Path(folder)) as partial:
        write_result_files(reconstruction, partial)
        write_glb(reconstruction, model, partial / GLB_FILE, morphs=morphs)
        write_obj(reconstruction, model, partial / OBJ_FILE)
        write_ply(reconstruction, partial / PLY_FILE)
        save_image(to_uint8(albedo_map(reconstruction, model)), partial / ALBEDO_FILE)
        save_image(to_uint8(0.5 + 0.5 * normals), partial / NORMALS_FILE)
        save_image(overlay_image(reconstruction, painter, photo), partial / OVERLAY_FILE)
        save_image(sheet_image(reconstruction, painter, photo), partial / SHEET_FILE)


def _check_belongs(reconstruction: Reconstruction, model: MorphableModel, photo: Photo) -> None:
    if reconstruction.model_name != model.name or len(reconstruction.vertices) != len(model.mean):
        raise ConfigError(
            f"model={model.name!r} has {len(model.mean)} vertices, but the reconstruction was made with "
            f"{reconstruction.model_name!r} of {len(reconstruction.vertices)}; load that model."
        )
    height, width = photo.pixels.shape[:2]
    if reconstruction.image_size != (width, height):
        size = " × ".join(map(str, reconstruction.image_size))
        raise ConfigError(
            f"photo={photo.path} is {width} × {height}, but the reconstruction's photo was {size}; give that photo."
        )
