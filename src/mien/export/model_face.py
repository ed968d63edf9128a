"""A face that no photo shows: identity coefficients → the files of a reconstruction, drawn by mien itself.

The drawing takes the photo's place, so that everything that works on a reconstruction (transfer, viewers) works on it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mien.camera import Camera
from mien.export.gltf import write_glb
from mien.export.images import albedo_map, save_image
from mien.export.obj import write_obj
from mien.io.files import writing_folder
from mien.io.result_folder import write_result_files
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import render
from mien.result import Reconstruction
from mien.typing import Float, Tensor, UInt8

SIDE_PX = 512
_FOV_DEG = 12.0
_FACE_SHARE = 0.8
"""How much of the picture the face spans."""
_TEXTURE_SIDE = 512
_MAP_SIDE = 224
_PAPER = (250, 249, 247)
PICTURE_FILE = "picture.png"


def model_face(
    identity: Float[Tensor, "I"], model: MorphableModel
) -> tuple[Reconstruction, UInt8[np.ndarray, "H W 3"]]:
    """The neutral face of these coefficients in the mean colour, 512 pixels square, and its picture."""
    counts = model.counts
    shape = model.vertices(identity[None], torch.zeros(1, counts[1]))[0]
    low, high = shape.amin(0), shape.amax(0)
    distance = float((high - low)[:2].amax()) / _FACE_SHARE / 2 / math.tan(math.radians(_FOV_DEG / 2))
    face = FaceCoefficients.mean(identity=counts[0], expression=counts[1], albedo=counts[2], distance=distance)
    face.pose.translation[0, :2] = (low + high)[:2] / 2 * torch.tensor([-1.0, 1.0])
    lighting = ambient_lighting(1, level=0.75)
    lighting[0, 1:4] = torch.tensor([[0.12], [0.3], [0.15]])
    face = replace(face, identity=identity[None], lighting=lighting)
    camera = Camera.from_fov(_FOV_DEG, image_size=(SIDE_PX, SIDE_PX))
    with torch.no_grad():
        drawn = render(model, face, camera)
    alpha = drawn.coverage[0, ..., None]
    paper = torch.tensor(_PAPER) / 255
    image = drawn.image[0].permute(1, 2, 0).clamp(0, 1) * alpha + paper * (1 - alpha)
    visible = torch.zeros(len(model.mean), dtype=torch.bool)
    visible[model.triangles[drawn.triangle_ids[drawn.triangle_ids >= 0].long()].flatten()] = True
    xy = drawn.vertices_px[0]
    reconstruction = Reconstruction(
        model_name=model.name,
        image_size=(SIDE_PX, SIDE_PX),
        focal_px=float(camera.focal_px[0]),
        centre_px=camera.centre_px[0].numpy(),
        scale=1.0,
        rotation=np.eye(3, dtype=np.float32),
        translation=face.pose.translation[0].numpy(),
        identity=identity.numpy(),
        expression=face.expression[0].numpy(),
        albedo=face.albedo[0].numpy(),
        lighting=lighting[0].numpy(),
        vertices_model=drawn.surface.vertices[0].numpy(),
        vertices=drawn.surface.vertices_camera[0].numpy(),
        triangles=model.triangles.numpy().astype(np.int32),
        uv=model.uv.numpy(),
        xy=xy.numpy(),
        visible=visible.numpy(),
        landmarks68=xy[model.landmarks68].numpy(),
        landmarks68_vertices=model.landmarks68.numpy().astype(np.int32),
        vertex_albedo=drawn.surface.albedo[0].clamp(0, 1).numpy(),
        texture=np.zeros((_TEXTURE_SIDE, _TEXTURE_SIDE, 3), np.float32),
        texture_offset=np.zeros((_MAP_SIDE, _MAP_SIDE, 3), np.float32),
        displacement=np.zeros((_MAP_SIDE, _MAP_SIDE), np.float32),
        landmark_error=math.nan,
        photometric_error=math.nan,
        stage_seconds=(),
        expression_names=model.expression_names,
    )
    coloured = replace(reconstruction, texture=albedo_map(reconstruction, model))
    return coloured, (255 * image).round().byte().numpy()


def write_model_face(identity: Float[Tensor, "I"], model: MorphableModel, folder: Path) -> None:
    """Write a reconstruction's files, face.glb, face.obj and picture.png into a folder; OutputError on failure."""
    reconstruction, picture = model_face(identity, model)
    with writing_folder(folder) as partial:
        write_result_files(reconstruction, partial)
        write_glb(reconstruction, model, partial / "face.glb")
        write_obj(reconstruction, model, partial / "face.obj")
        save_image(picture, partial / PICTURE_FILE)
