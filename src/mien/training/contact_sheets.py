"""Contact sheets of crops and their reconstructions: the paper's figures 2, 4 and 5, for any number of faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from mien.camera import Camera
from mien.export.contact_sheet import PAPER, LabelStyle, SheetLayout, contact_sheet
from mien.io.pixels import to_uint8
from mien.lighting import ambient_lighting, directional_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import VertexDetail, build_surface, draw_texture, render
from mien.texture import DetailMaps, TexelAtlas, texel_face
from mien.training.data.batch import FaceBatch, resized
from mien.training.image_terms import landmarks_of_vertices
from mien.typing import Float, Tensor, UInt8

SHEET_FACES = 6
CELL = 160
LAYOUT = SheetLayout(background=PAPER, labels=LabelStyle(height=22, font_size=13, offset=(5, 3), ink=(60, 58, 55)))
CLAY = 0.68
DETAIL_CELL = 224
SHOWN_DEPTH_M = 1e-3
"""Displacement shown as white; its negative is black."""
DETAIL_LABELS = ("photo", "base", "augmented", "base geometry", "with displacement", "texture offset", "displacement")
LABELS = ("photo", "points", "reconstruction", "geometry", "albedo", "shading")


def coarse_sheet(
    model: MorphableModel, batch: FaceBatch, coefficients: FaceCoefficients, *, faces: int = SHEET_FACES
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one row per face: crop, landmarks, reconstruction over the crop, geometry, albedo, shading.

    Args:
        model: Face model of the coefficients.
        batch: The faces; target landmarks are green, those of the reconstruction red.
        coefficients: Their reconstruction.
        faces: Number of rows; the first faces of the batch are drawn.
    """
    shown = slice(0, faces)
    photos = resized(batch, CELL)
    camera, coefficients = photos.camera[shown], coefficients[shown]
    images = photos.images[shown]
    rendered = render(model, coefficients, camera)
    landmarks = landmarks_of_vertices(model, rendered.vertices_px, coefficients.pose.rotmat())
    columns_of_images = [
        images,
        images,
        _over(images, rendered.image, rendered.coverage),
        _over(torch.full_like(images, 0.93), *_geometry(model, coefficients, camera)),
        _over(torch.full_like(images, 0.93), *_recoloured(model, coefficients, camera, albedo=True)),
        _over(torch.full_like(images, 0.93), *_recoloured(model, coefficients, camera, albedo=False)),
    ]
    columns = [_bytes(images) for images in columns_of_images]
    for k, image in enumerate(columns[1]):
        columns[1][k] = _with_points(image, photos.landmarks68_px[k], landmarks[k])
    return contact_sheet(list(zip(*columns, strict=True)), LAYOUT, column_labels=LABELS)


def detail_sheet(
    model: MorphableModel,
    atlas: TexelAtlas,
    *,
    batch: FaceBatch,
    coefficients: FaceCoefficients,
    maps: DetailMaps,
    sampled: DetailMaps,
    faces: int = SHEET_FACES,
    labels: Sequence[str] = DETAIL_LABELS,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one row per face with the columns of `DETAIL_LABELS`, or with some of them.

    Args:
        model: Face model of the coefficients.
        atlas: UV map of the detail maps.
        batch: The faces.
        coefficients: Their coarse reconstruction.
        maps: The maps of the last two columns.
        sampled: The maps with which the faces are drawn: `maps`, or `maps` as the vertices sample them.
        faces: Number of rows; the first faces of the batch are drawn.
        labels: Columns, from `DETAIL_LABELS`.
    """
    shown = slice(0, faces)
    photos = resized(batch, DETAIL_CELL)
    camera, coefficients, images = photos.camera[shown], coefficients[shown], photos.images[shown]
    maps, sampled = maps[shown], sampled[shown]
    surface = build_surface(model, coefficients)
    texels = texel_face(atlas, model, coefficients, surface)
    clay = replace(coefficients, lighting=_side_light(coefficients))
    clay_texels = texel_face(atlas, model, clay, replace(surface, albedo=torch.full_like(surface.albedo, CLAY)))
    flat, nothing = torch.zeros_like(maps.displacement), torch.zeros_like(maps.texture_offset)

    def textured(back: Tensor, colours: Tensor) -> Tensor:
        image, covered = draw_texture(model, surface.vertices_camera, camera, texture=atlas.dilate(colours))
        return _over(back, image, covered)

    paper = torch.full_like(images, 0.93)
    columns = [
        images,
        textured(images, texels.colours(nothing, flat)),
        textured(images, texels.colours(sampled.texture_offset, sampled.displacement)),
        textured(paper, clay_texels.colours(nothing, flat)),
        textured(paper, clay_texels.colours(nothing, sampled.displacement)),
        *_map_images(maps, atlas),
    ]
    known: dict[str, Tensor] = dict(zip(DETAIL_LABELS, columns, strict=True))
    shown_columns = [_bytes(known[label]) for label in labels]
    return contact_sheet(list(zip(*shown_columns, strict=True)), LAYOUT, column_labels=labels)


def _map_images(maps: DetailMaps, atlas: TexelAtlas) -> list[Float[Tensor, "B 3 S S"]]:
    """Texture offset and displacement as images, grey where a map is zero."""
    images = (
        0.5 + maps.texture_offset * atlas.valid,
        (0.5 + maps.displacement / (2 * SHOWN_DEPTH_M)).expand_as(maps.texture_offset),
    )
    size = (DETAIL_CELL, DETAIL_CELL)
    return [torch.nn.functional.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in images]


def _side_light(coefficients: FaceCoefficients) -> Float[Tensor, "B 9 3"]:
    """A grazing light from the upper left, which shows relief."""
    count = len(coefficients.identity)
    light = ambient_lighting(count, level=0.15).to(coefficients.identity)
    direction = torch.nn.functional.normalize(light.new_tensor([[-0.8, 0.5, 0.45]]), dim=-1).expand(count, -1)
    return light + directional_lighting(direction, light.new_full((count, 3), 1.1))


def _over(
    back: Float[Tensor, "B 3 S S"], front: Float[Tensor, "B 3 S S"], alpha: Float[Tensor, "B S S"]
) -> Float[Tensor, "B 3 S S"]:
    return torch.lerp(back, front.clamp(0, 1), alpha[:, None])


def _geometry(model: MorphableModel, coefficients: FaceCoefficients, camera: Camera) -> tuple[Tensor, Tensor]:
    """Rendering in grey, lit from the upper left."""
    count = len(coefficients.identity)
    light = ambient_lighting(count, level=0.25).to(coefficients.identity)
    direction = torch.nn.functional.normalize(light.new_tensor([[-0.5, 0.6, 0.7]]), dim=-1).expand(count, -1)
    lit = replace(coefficients, lighting=light + directional_lighting(direction, light.new_full((count, 3), 0.9)))
    return _rendered(model, lit, camera, colour=CLAY)


def _recoloured(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    albedo: bool,
) -> tuple[Tensor, Tensor]:
    """Rendering of the albedo under white light, or of a grey face under the reconstructed light."""
    if albedo:
        white = ambient_lighting(len(coefficients.identity)).to(coefficients.identity)
        return _rendered(model, replace(coefficients, lighting=white), camera, colour=None)
    return _rendered(model, coefficients, camera, colour=CLAY)


def _rendered(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    colour: float | None,
) -> tuple[Tensor, Tensor]:
    detail = None
    if colour is not None:
        albedo = model.albedo(coefficients.albedo)
        detail = VertexDetail(None, albedo_offset=colour - albedo)
    rendered = render(model, coefficients, camera, detail=detail)
    return rendered.image, rendered.coverage


def _bytes(images: Float[Tensor, "B 3 S S"]) -> list[UInt8[np.ndarray, "S S 3"]]:
    return list(to_uint8(images.permute(0, 2, 3, 1)))


def _with_points(
    crop: UInt8[np.ndarray, "S S 3"], target: Float[Tensor, "68 2"], predicted: Float[Tensor, "68 2"]
) -> UInt8[np.ndarray, "S S 3"]:
    image = Image.fromarray(crop)
    draw = ImageDraw.Draw(image)
    for points, colour in ((target, (40, 220, 90)), (predicted, (255, 60, 60))):
        for x, y in points.tolist():
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=colour)
    return np.array(image)
