"""A face model and a reconstruction that are small enough to check by hand, for tests of file writers.

The mesh is a bulged grid of 5 × 6 vertices that looks along +z; its UV layout is the grid itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mien.camera import to_camera_axes
from mien.io.photo import Photo
from mien.morphable import MorphableModel
from mien.result import Reconstruction

COLUMNS, ROWS = 5, 6
EXPRESSION_NAMES = ("jawOpen", "mouthSmileLeft", "tongueOut")
MAP_SIZE, TEXTURE_SIZE = 16, 20
PARTS = {"neck": (0, 1, 2, 3, 4), "lips": (6, 8), "mouth": (7,), "eyes": (16, 17, 21, 22), "brows": (23,)}
"""Vertices of each part; eyes and brows are not symmetric, so that a test sees an exchange of left and right."""


def tiny_model() -> MorphableModel:
    u, v = (grid.flatten() for grid in np.meshgrid(np.linspace(0.05, 0.95, COLUMNS), np.linspace(0.05, 0.95, ROWS)))
    x, y = (u - 0.5) * 0.16, (v - 0.5) * 0.22
    mean = np.stack([x, y, 0.05 - 6 * (x**2 + y**2)], axis=-1)
    count = len(mean)
    corner = (np.arange(ROWS - 1)[:, None] * COLUMNS + np.arange(COLUMNS - 1)).reshape(-1)
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + COLUMNS + 1], axis=-1),
            np.stack([corner, corner + COLUMNS + 1, corner + COLUMNS], axis=-1),
        ]
    )
    rng = np.random.default_rng(0)
    expression = np.zeros((len(EXPRESSION_NAMES), count, 3))
    expression[0, :8, 1] = -0.01
    expression[1, 12:15] = rng.normal(size=(3, 3)) * 0.004
    mirror = np.arange(count).reshape(ROWS, COLUMNS)[:, ::-1].reshape(-1)
    zeros = np.zeros(count)
    arrays = {
        "mean": mean,
        "uv": np.stack([u, v], axis=-1),
        "identity_basis": rng.normal(size=(4, count, 3)) * 0.001,
        "expression_basis": expression,
        "albedo_mean": np.stack([0.5 + 0.4 * u, 0.3 + 0.4 * v, 0.4 + zeros], axis=-1),
        "albedo_basis": rng.normal(size=(2, count, 3)) * 0.02,
        "mediapipe_barycentrics": np.full((468, 3), 1 / 3),
        **{f"mask_{part}": np.isin(np.arange(count), vertices).astype(float) for part, vertices in PARTS.items()},
        "mask_skin": np.isin(np.arange(count), (*PARTS["lips"], *PARTS["mouth"], *PARTS["eyes"]), invert=True) + 0.0,
    }
    indices = {
        "triangles": triangles,
        "mirror": mirror.copy(),
        "landmarks68": np.arange(68) % count,
        "contour_candidates": np.array([[5, 6], *[[10, -1]] * 7, [-1, -1], *[[14, 13]] * 8]),
        "mediapipe_triangles": np.zeros(468),
    }
    return MorphableModel(
        "tiny",
        {key: torch.tensor(value, dtype=torch.float32) for key, value in arrays.items()}
        | {key: torch.tensor(value, dtype=torch.int64) for key, value in indices.items()},
        expression_names=EXPRESSION_NAMES,
        licence="CC0-1.0",
    )


def tiny_photo() -> Photo:
    x, y = np.meshgrid(np.linspace(40, 220, 120), np.linspace(40, 220, 90))
    return Photo(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8), None, Path("tiny.png"))


def tiny_reconstruction(model: MorphableModel | None = None, *, detail: bool = True) -> Reconstruction:
    """The tiny model with every coefficient used, turned by 0.3 rad, in front of a 120 × 90 photo."""
    model = model or tiny_model()
    rng = np.random.default_rng(1)
    identity = rng.normal(size=4).astype(np.float32)
    expression = np.array([0.5, 0.25, 0.0], np.float32)
    albedo = rng.normal(size=2).astype(np.float32)
    displacement = np.full((MAP_SIZE, MAP_SIZE), 0.0012, np.float32) if detail else np.zeros((MAP_SIZE, MAP_SIZE))
    vertices_model = model.vertices(torch.tensor(identity[None]), torch.tensor(expression[None]))[0].numpy()
    vertices_model = vertices_model + np.array([0, 0, displacement[0, 0]])
    cos, sin = np.cos(0.3), np.sin(0.3)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32)
    translation = np.array([0.01, -0.005, 0.8], np.float32)
    vertices = to_camera_axes(vertices_model @ rotation.T) + translation
    centre, focal = np.array([60, 45], np.float32), 200.0
    xy = focal * vertices[:, :2] / vertices[:, 2:] + centre
    lighting = np.zeros((9, 3), np.float32)
    lighting[0], lighting[2] = 0.8, 0.3
    landmarks = model.landmarks68.numpy().astype(np.int32)
    ramp = np.linspace(0, 1, TEXTURE_SIZE, dtype=np.float32)
    offset = np.zeros((MAP_SIZE, MAP_SIZE, 3), np.float32)
    offset[: MAP_SIZE // 2] = 0.05 if detail else 0
    texture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.float32(0.5)), axis=-1)
    return Reconstruction(
        model_name=model.name,
        image_size=(120, 90),
        focal_px=focal,
        centre_px=centre,
        scale=1.0,
        rotation=rotation,
        translation=translation,
        identity=identity,
        expression=expression,
        albedo=albedo,
        lighting=lighting,
        vertices_model=vertices_model.astype(np.float32),
        vertices=vertices.astype(np.float32),
        triangles=model.triangles.numpy().astype(np.int32),
        uv=model.uv.numpy(),
        xy=xy.astype(np.float32),
        visible=np.arange(len(xy)) % 2 == 0,
        landmarks68=xy[landmarks].astype(np.float32),
        landmarks68_vertices=landmarks,
        vertex_albedo=model.albedo(torch.tensor(albedo[None]))[0].numpy(),
        texture=np.ascontiguousarray(texture),
        texture_offset=offset,
        displacement=displacement.astype(np.float32),
        landmark_error=0.031,
        photometric_error=0.022,
        stage_seconds=(("landmarks", 0.5), ("detail", 2.25)),
        expression_names=EXPRESSION_NAMES,
        hair_colour=np.array([0.2, 0.15, 0.1], np.float32),
    )
