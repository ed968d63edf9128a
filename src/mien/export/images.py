"""The pictures of a result: maps in UV space, the overlay on the photo, and the contact sheet."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mien.camera import Camera, to_camera_axes
from mien.export.contact_sheet import PAPER, LabelStyle, SheetLayout, contact_sheet, in_rows
from mien.export.face_normals import FaceNormals
from mien.export.face_view import FaceView
from mien.export.head_painter import HeadPainter
from mien.export.srgb import encode_srgb
from mien.export.uv_layout import texels_of
from mien.geometry import rotvec_to_rotmat
from mien.io.photo import Photo
from mien.io.result_files import Scalp
from mien.lighting import shading
from mien.morphable import MorphableModel
from mien.morphable.head import has_head
from mien.result import Reconstruction
from mien.typing import Float, Tensor, UInt8

OVERLAY_SIDE = 1024
"""Longest side of overlay.png, pixels."""
PANEL_SIDE = 320
"""Side of a picture in sheet.png, pixels."""
_COLUMNS = 4
_PANEL = (229, 227, 223)
"""Background of the panels that do not show the photo."""

_CROP_MARGIN = 0.2  # space around the face, as a share of its larger side
_TURNED_FOV_DEG = 20.0
_HEAD_VIEWS = (("front", 0.0), ("three quarters", -40.0), ("side", -90.0))
"""The last panels of sheet.png and their turns in degrees, for models with a head."""
_MASK_VIEWS = (("left side", -60.0), ("front", 0.0), ("right side", 60.0))
"""The same for the other models."""

_CLAY_ALBEDO = (0.62, 0.58, 0.535)  # linear light
# Directions to the lights in view axes (+x right, +y up, +z to the viewer), and their strengths: a key light from the
# upper left shows the form, a weak fill light the other side, a light from behind the outline.
_CLAY_LIGHTS = (((-0.75, 0.65, 0.55), 0.85), ((0.85, 0.0, 0.5), 0.2), ((0.6, 0.3, -0.75), 0.5))
_CLAY_AMBIENT = (0.06, 0.17)  # from below, from above
_CLAY_GLOSS, _CLAY_GLOSS_POWER = 0.06, 24


def albedo_map(reconstruction: Reconstruction, model: MorphableModel) -> Float[np.ndarray, "S S 3"]:
    """The linear model's colour without lighting, as a UV map of the texture's size.

    Args:
        reconstruction: The face, with its colour per vertex.
        model: The face's model.

    Returns:
        sRGB-encoded colours; row 0 is v = 1.
    """
    texels = texels_of(model, len(reconstruction.texture))
    colours = torch.from_numpy(reconstruction.vertex_albedo)
    albedo = texels.as_map(texels.interpolate(colours))
    # The mean colour fills the rest, so that even the smallest mip level has no dark border.
    empty = (albedo == 0).all(0)
    albedo = torch.where(empty, colours.mean(0)[:, None, None], albedo)
    return albedo.permute(1, 2, 0).clamp(0, 1).numpy()


def normal_map(reconstruction: Reconstruction, model: MorphableModel) -> Float[np.ndarray, "D D 3"]:
    """Unit normals in model space, with the relief of the displacement map, as a UV map of that map's size.

    Args:
        reconstruction: The face.
        model: The face's model.

    Returns:
        Normals, continued beyond the layout. Row 0 is v = 1.
    """
    return FaceNormals(reconstruction, model).of_map


class FacePainter:
    """Colours one reconstruction in any view.

    Args:
        reconstruction: The face.
        model: The face's model.
        normals: The face's normals, if other files need them too.
    """

    def __init__(
        self, reconstruction: Reconstruction, model: MorphableModel, *, normals: FaceNormals | None = None
    ) -> None:
        self.reconstruction, self.model = reconstruction, model
        self._normals = normals or FaceNormals(reconstruction, model)

    @functools.cached_property
    def _relief(self) -> Float[Tensor, "3 D D"] | None:
        """The normal map, if there is a displacement map."""
        return _by_channel(self._normals.of_map) if self.reconstruction.displacement.any() else None

    @functools.cached_property
    def _texture(self) -> Float[Tensor, "3 S S"]:
        return _by_channel(self.reconstruction.texture)

    def normals(self, view: FaceView, rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "N 3"]:
        """Unit normals in view axes; `rotation` takes model axes to view axes."""
        relief = self._relief
        smooth = view.vertex_values(self._normals.of_mesh) if relief is None else view.map_values(relief)
        return F.normalize(smooth @ rotation.T, dim=-1)

    def albedo(self, view: FaceView) -> Float[Tensor, "N 3"]:
        """Colour without lighting, of the linear model."""
        return view.vertex_values(self.reconstruction.vertex_albedo)

    def shaded(self, view: FaceView, normals: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Albedo with the offset of the detail step, in the lighting of the photo; `normals` are in its view axes."""
        light = shading(normals[None], torch.from_numpy(self.reconstruction.lighting)[None])[0]
        return (self.albedo(view) + view.map_values(_by_channel(self.reconstruction.texture_offset))) * light

    @staticmethod
    def clay(normals: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Grey clay under three lamps, which shows the shape alone; `normals` are in view axes."""
        low, high = _CLAY_AMBIENT
        light = low + (high - low) * (0.5 + 0.5 * normals[..., 1:2])
        gloss = torch.zeros_like(light)
        for direction, strength in _CLAY_LIGHTS:
            towards = F.normalize(torch.tensor(direction), dim=0)
            light = light + strength * (normals @ towards).clamp(min=0)[..., None]
            halfway = F.normalize(towards + torch.tensor([0.0, 0.0, 1.0]), dim=0)
            gloss = gloss + strength * ((normals @ halfway).clamp(min=0)[..., None] ** _CLAY_GLOSS_POWER)
        linear = light * torch.tensor(_CLAY_ALBEDO) + _CLAY_GLOSS * gloss
        return encode_srgb(linear)

    def textured(self, view: FaceView) -> Float[Tensor, "N 3"]:
        """The texture, unlit: it contains the lighting of the photo."""
        return view.map_values(self._texture)


def overlay_image(reconstruction: Reconstruction, painter: FacePainter, photo: Photo) -> UInt8[np.ndarray, "H W 3"]:
    """The whole photo, at most 1024 pixels long, with the shaded face composited over it.

    Args:
        reconstruction: The face.
        painter: The same face, ready to be coloured.
        photo: The photo of the reconstruction.
        scalp: What the scalp of the head shows.

    Returns:
        The picture.
    """
    width, height = reconstruction.image_size
    scale = min(1.0, OVERLAY_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = _resized(Image.fromarray(photo.pixels), size)
    camera = _camera(reconstruction).cropped(
        scale=torch.full((1,), scale), shift_px=torch.zeros(1, 2), image_size=(size[1], size[0])
    )
    view = FaceView.of(reconstruction, torch.from_numpy(reconstruction.vertices), camera=camera)
    normals = painter.normals(view, torch.from_numpy(reconstruction.rotation))
    return view.over(painter.shaded(view, normals), picture)


def sheet_image(
    reconstruction: Reconstruction, painter: FacePainter, photo: Photo, *, scalp: Scalp = "hair"
) -> UInt8[np.ndarray, "H W 3"]:
    """Eight labelled panels: photo, overlay, geometry and albedo; shaded, and the head from three sides.

    Models without a head show the textured face instead.

    Args:
        reconstruction: The face.
        painter: The same face, ready to be coloured.
        photo: The photo of the reconstruction.

    Returns:
        The picture.
    """
    crop = _square_crop(reconstruction)
    left, top, side = crop
    camera = _camera(reconstruction).cropped(
        scale=torch.full((1,), PANEL_SIDE / side),
        shift_px=torch.tensor([[-left, -top]]) * (PANEL_SIDE / side),
        image_size=(PANEL_SIDE, PANEL_SIDE),
    )
    view = FaceView.of(reconstruction, torch.from_numpy(reconstruction.vertices), camera=camera)
    picture = _crop_photo(photo.pixels, crop)
    plain = np.full((PANEL_SIDE, PANEL_SIDE, 3), _PANEL, np.uint8)
    normals = painter.normals(view, torch.from_numpy(reconstruction.rotation))
    shaded = painter.shaded(view, normals)
    panels = [
        ("photo", picture),
        ("overlay", view.over(shaded, picture)),
        ("geometry", view.over(painter.clay(normals), plain)),
        ("albedo", view.over(painter.albedo(view), plain)),
        ("shaded", view.over(shaded, plain)),
    ]
    if has_head(painter.model):
        head = HeadPainter(reconstruction, painter.model, scalp=scalp)
        panels += [(label, head.picture(yaw_deg=yaw, side_px=PANEL_SIDE)) for label, yaw in _HEAD_VIEWS]
    else:
        for label, yaw in _MASK_VIEWS:
            turned = _turned_view(reconstruction, yaw)
            panels.append((label, turned.over(painter.textured(turned), plain)))
    gap, label_height = 16, 26
    style = LabelStyle(label_height, font_size=16, offset=(PANEL_SIDE // 2, label_height // 2 + 2), centred=True)
    labels = [label for label, _ in panels]
    return contact_sheet(
        in_rows([pixels for _, pixels in panels], _COLUMNS),
        SheetLayout(gap, PAPER, style),
        labels=[labels[:_COLUMNS], labels[_COLUMNS:]],
    )


def _by_channel(values: Float[np.ndarray, "S S C"]) -> Float[Tensor, "C S S"]:
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _camera(reconstruction: Reconstruction) -> Camera:
    width, height = reconstruction.image_size
    return Camera(
        torch.tensor([reconstruction.focal_px], dtype=torch.float32),
        torch.from_numpy(reconstruction.centre_px.astype(np.float32))[None],
        (height, width),
    )


def _square_crop(reconstruction: Reconstruction) -> tuple[int, int, int]:
    """Left, top and side of the square around the face, in whole pixels; it may extend beyond the photo."""
    low, high = reconstruction.xy.min(0), reconstruction.xy.max(0)
    side = max(float((high - low).max()) * (1 + _CROP_MARGIN), 8.0)
    left, top = (low + high) / 2 - side / 2
    return round(float(left)), round(float(top)), round(side)


def _crop_photo(pixels: UInt8[np.ndarray, "H W 3"], crop: tuple[int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    left, top, side = crop
    canvas = Image.new("RGB", (side, side), _PANEL)
    inside = pixels[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    if inside.size:
        canvas.paste(Image.fromarray(inside), (max(-left, 0), max(-top, 0)))
    return _resized(canvas, (PANEL_SIDE, PANEL_SIDE))


def _resized(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resize a picture; Hamming's filter looks like Lanczos' where it reduces, in a third of the time."""
    filtering = Image.Resampling.HAMMING if image.width > size[0] else Image.Resampling.LANCZOS
    return np.array(image.resize(size, filtering))


def _turned_view(reconstruction: Reconstruction, yaw_deg: float) -> FaceView:
    vertices = torch.from_numpy(reconstruction.vertices_model)
    centred = vertices - (vertices.amin(0) + vertices.amax(0)) / 2
    rotation = rotvec_to_rotmat(torch.tensor([[0.0, np.deg2rad(yaw_deg), 0.0]], dtype=torch.float32))[0]
    radius = float(centred.norm(dim=-1).max())
    distance = radius / np.sin(np.deg2rad(_TURNED_FOV_DEG / 2))
    placed = to_camera_axes(centred @ rotation.T) + torch.tensor([0.0, 0.0, distance])
    camera = Camera.from_fov(_TURNED_FOV_DEG, image_size=(PANEL_SIDE, PANEL_SIDE))
    return FaceView.of(reconstruction, placed.float(), camera=camera)
