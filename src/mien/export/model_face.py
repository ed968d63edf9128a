"""A face without a photo: identity coefficients become the files of a reconstruction, and mien renders the picture.

The rendered picture replaces the photo, so that everything that reads a reconstruction (transfer, viewers) works on it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mien.export.gltf import write_glb
from mien.export.images import albedo_map
from mien.export.obj import write_obj
from mien.export.portrait import HALF_VIEW, Portrait, render_portrait
from mien.export.rig import make_rig
from mien.io.files import writing_folder
from mien.io.pixels import to_uint8
from mien.io.png import write_png
from mien.io.result_files import FACE, GLB_FILE, OBJ_FILE, TEXTURE_FILE
from mien.io.result_folder import write_result_files
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.typing import Float, Tensor, UInt8

SIDE_PX = 512
_FACE_SHARE = 0.8
"""Share of the picture's width or height that the face fills."""
_TEXTURE_SIDE = 512
_MAP_SIDE = 224
PICTURE_FILE = "picture.png"


def model_face(
    identity: Float[Tensor, "I"], model: MorphableModel
) -> tuple[Reconstruction, UInt8[np.ndarray, "H W 3"]]:
    """Make the neutral face of identity coefficients, in the mean colour.

    Args:
        identity: Standard deviations of the population.
        model: The model of the coefficients, on the CPU.

    Returns:
        The reconstruction of a picture of 512 × 512 pixels, and that picture.
    """
    counts = model.counts
    shape = model.vertices(identity[None], torch.zeros(1, counts[1]))[0]
    low, high = shape.amin(0), shape.amax(0)
    portrait = render_portrait(
        model,
        identity=identity,
        expression=torch.zeros(counts[1]),
        albedo=torch.zeros(counts[2]),
        centre=(low + high) / 2,
        distance=float((high - low)[:2].amax()) / _FACE_SHARE / 2 / HALF_VIEW,
        side_px=SIDE_PX,
    )
    reconstruction = _reconstruction(portrait, model)
    return replace(reconstruction, texture=albedo_map(reconstruction, model)), portrait.pixels


def _reconstruction(portrait: Portrait, model: MorphableModel) -> Reconstruction:
    """What the portrait shows, with empty maps."""
    face, camera, rendered = portrait.face, portrait.camera, portrait.rendered
    visible = torch.zeros(len(model.mean), dtype=torch.bool)
    visible[model.triangles[rendered.triangle_ids[rendered.triangle_ids >= 0].long()].flatten()] = True
    xy = rendered.vertices_px[0]
    return Reconstruction(
        model_name=model.name,
        image_size=(SIDE_PX, SIDE_PX),
        focal_px=float(camera.focal_px[0]),
        centre_px=camera.centre_px[0].numpy(),
        scale=1.0,
        rotation=np.eye(3, dtype=np.float32),
        translation=face.pose.translation[0].numpy(),
        identity=face.identity[0].numpy(),
        expression=face.expression[0].numpy(),
        albedo=face.albedo[0].numpy(),
        lighting=face.lighting[0].numpy(),
        vertices_model=rendered.surface.vertices[0].numpy(),
        vertices=rendered.surface.vertices_camera[0].numpy(),
        triangles=model.triangles.numpy().astype(np.int32),
        uv=model.uv.numpy(),
        xy=xy.numpy(),
        visible=visible.numpy(),
        landmarks68=xy[model.landmarks68].numpy(),
        landmarks68_vertices=model.landmarks68.numpy().astype(np.int32),
        vertex_albedo=rendered.surface.albedo[0].clamp(0, 1).numpy(),
        texture=np.zeros((_TEXTURE_SIDE, _TEXTURE_SIDE, 3), np.float32),
        texture_offset=np.zeros((_MAP_SIDE, _MAP_SIDE, 3), np.float32),
        displacement=np.zeros((_MAP_SIDE, _MAP_SIDE), np.float32),
        landmark_error=math.nan,
        photometric_error=math.nan,
        stage_seconds=(),
        expression_names=model.expression_names,
    )


def write_model_face(identity: Float[Tensor, "I"], model: MorphableModel, folder: Path) -> None:
    """Write the files of a reconstruction, face.glb, face.obj and picture.png into a folder.

    Args:
        identity: Standard deviations of the population.
        model: The model of the coefficients, on the CPU.
        folder: Made if it is missing.

    Raises:
        OutputError: The folder cannot be written.
    """
    reconstruction, picture = model_face(identity, model)
    with writing_folder(folder) as partial:
        write_result_files(reconstruction, partial)
        rig = make_rig(reconstruction, model, FACE)
        write_glb(reconstruction, model, partial / GLB_FILE, rig=rig)
        write_obj(rig, partial / OBJ_FILE, texture=TEXTURE_FILE)
        write_png(to_uint8(reconstruction.texture), partial / TEXTURE_FILE)
        write_png(picture, partial / PICTURE_FILE)
