"""Sheets of crops and what a network made of them: the paper's figure 2, for any number of faces."""

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
from mien.morphable import FaceCoefficients, MorphableModel, landmark_vertices
from mien.rendering import VertexDetail, build_surface, draw_texture, render
from mien.texture import DetailMaps, TexelAtlas, texel_face
from mien.training.data.batch import FaceBatch, resized
from mien.typing import Float, Tensor, UInt8

SHEET_FACES = 6
CELL = 160
LAYOUT = SheetLayout(background=PAPER, labels=LabelStyle(height=22, font_size=13, offset=(5, 3), ink=(60, 58, 55)))
CLAY = 0.68
DETAIL_CELL = 224
SHOWN_DEPTH_M = 1e-3
"""Displacement that is drawn white; its negative is black."""
DETAIL_LABELS = ("photo", "base", "augmented", "base geometry", "with displacement", "texture offset", "displacement")
LABELS = ("photo", "points", "reconstruction", "geometry", "albedo", "shading")


def coarse_sheet(
    model: MorphableModel, batch: FaceBatch, coefficients: FaceCoefficients, *, faces: int = SHEET_FACES
) -> UInt8[np.ndarray, "H W 3"]:
    """One row a face: crop, its points and the model's, the drawing over it, geometry, albedo, shading."""
    shown = slice(0, faces)
    photos = resized(batch, CELL)
    camera, coefficients = photos.camera[shown], coefficients[shown]
    images = photos.images[shown]
    drawn = render(model, coefficients, camera)
    chosen = landmark_vertices(model, drawn.vertices_px, coefficients.pose.rotmat())
    found = drawn.vertices_px.gather(1, chosen[..., None].expand(-1, -1, 2))
    pictures = [
        images,
        images,
        _over(images, drawn.image, drawn.coverage),
        _over(torch.full_like(images, 0.93), *_geometry(model, coefficients, camera)),
        _over(torch.full_like(images, 0.93), *_recoloured(model, coefficients, camera, albedo=True)),
        _over(torch.full_like(images, 0.93), *_recoloured(model, coefficients, camera, albedo=False)),
    ]
    columns = [_bytes(picture) for picture in pictures]
    for k, picture in enumerate(columns[1]):
        columns[1][k] = _with_points(picture, photos.landmarks68_px[k], found[k])
    return contact_sheet(list(zip(*columns, strict=True)), LAYOUT, column_labels=LABELS)


def detail_sheet(
    model: MorphableModel,
    atlas: TexelAtlas,
    *,
    batch: FaceBatch,
    coefficients: FaceCoefficients,
    maps: DetailMaps,
    worn: DetailMaps,
    faces: int = SHEET_FACES,
    labels: Sequence[str] = DETAIL_LABELS,
) -> UInt8[np.ndarray, "H W 3"]:
    """One row a face with the pictures of DETAIL_LABELS, or with some of them: `labels`.

    The faces wear the maps of `worn`: `maps` themselves, or what is left of them between the vertices that sample them.
    """
    shown = slice(0, faces)
    photos = resized(batch, DETAIL_CELL)
    camera, coefficients, images = photos.camera[shown], coefficients[shown], photos.images[shown]
    maps, worn = maps[shown], worn[shown]
    surface = build_surface(model, coefficients)
    texels = texel_face(atlas, model, coefficients, surface)
    clay = replace(coefficients, lighting=_side_light(coefficients))
    moulded = texel_face(atlas, model, clay, replace(surface, albedo=torch.full_like(surface.albedo, CLAY)))
    flat, nothing = torch.zeros_like(maps.displacement), torch.zeros_like(maps.texture_offset)

    def drawn(back: Tensor, colours: Tensor) -> Tensor:
        image, covered = draw_texture(model, surface.vertices_camera, camera, texture=atlas.dilate(colours))
        return _over(back, image, covered)

    paper = torch.full_like(images, 0.93)
    side = (DETAIL_CELL, DETAIL_CELL)
    charts = [
        0.5 + maps.texture_offset * atlas.valid,
        (0.5 + maps.displacement / (2 * SHOWN_DEPTH_M)).expand_as(maps.texture_offset),
    ]
    columns = [
        images,
        drawn(images, texels.colours(nothing, flat)),
        drawn(images, texels.colours(worn.texture_offset, worn.displacement)),
        drawn(paper, moulded.colours(nothing, flat)),
        drawn(paper, moulded.colours(nothing, worn.displacement)),
        *(torch.nn.functional.interpolate(chart, size=side, mode="bilinear", align_corners=False) for chart in charts),
    ]
    known: dict[str, Tensor] = dict(zip(DETAIL_LABELS, columns, strict=True))
    shown_columns = [_bytes(known[label]) for label in labels]
    return contact_sheet(list(zip(*shown_columns, strict=True)), LAYOUT, column_labels=labels)


def _side_light(coefficients: FaceCoefficients) -> Float[Tensor, "B 9 3"]:
    """A raking light from the upper left, which shows relief."""
    count = len(coefficients.identity)
    light = ambient_lighting(count, level=0.15).to(coefficients.identity)
    direction = torch.nn.functional.normalize(light.new_tensor([[-0.8, 0.5, 0.45]]), dim=-1).expand(count, -1)
    return light + directional_lighting(direction, light.new_full((count, 3), 1.1))


def _over(
    back: Float[Tensor, "B 3 S S"], front: Float[Tensor, "B 3 S S"], alpha: Float[Tensor, "B S S"]
) -> Float[Tensor, "B 3 S S"]:
    return torch.lerp(back, front.clamp(0, 1), alpha[:, None])


def _geometry(model: MorphableModel, coefficients: FaceCoefficients, camera: Camera) -> tuple[Tensor, Tensor]:
    """Grey clay, lit from the upper left."""
    count = len(coefficients.identity)
    light = ambient_lighting(count, level=0.25).to(coefficients.identity)
    direction = torch.nn.functional.normalize(light.new_tensor([[-0.5, 0.6, 0.7]]), dim=-1).expand(count, -1)
    lit = replace(coefficients, lighting=light + directional_lighting(direction, light.new_full((count, 3), 0.9)))
    return _drawn(model, lit, camera, colour=CLAY)


def _recoloured(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    albedo: bool,
) -> tuple[Tensor, Tensor]:
    """The albedo under white light, or white clay under the found light."""
    if albedo:
        white = ambient_lighting(len(coefficients.identity)).to(coefficients.identity)
        return _drawn(model, replace(coefficients, lighting=white), camera, colour=None)
    return _drawn(model, coefficients, camera, colour=CLAY)


def _drawn(
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
    drawn = render(model, coefficients, camera, detail=detail)
    return drawn.image, drawn.coverage


def _bytes(pictures: Float[Tensor, "B 3 S S"]) -> list[UInt8[np.ndarray, "S S 3"]]:
    return list(to_uint8(pictures.permute(0, 2, 3, 1)))


def _with_points(
    picture: UInt8[np.ndarray, "S S 3"], target: Float[Tensor, "68 2"], found: Float[Tensor, "68 2"]
) -> UInt8[np.ndarray, "S S 3"]:
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for points, colour in ((target, (40, 220, 90)), (found, (255, 60, 60))):
        for x, y in points.tolist():
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=colour)
    return np.array(image)
