"""Pictures of a prediction beside a scan: photo, overlay, error map and profile, and a sheet of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from mien.export.contact_sheet import PAPER, LabelStyle, SheetLayout, contact_sheet
from mien.geometry import Surface, vertex_normals
from mien.io.files import write_whole
from mien.rasterizer import interpolate, rasterize_hard
from mien.typing import Float, Tensor, UInt8

PANEL_SIZE = 300, 360
"""Width and height of a panel, pixels."""
_PIXELS_PER_MM = 1.6
_WORST_MM = 5.0
"""Errors from this on have the darkest colour."""
_GOOD, _BAD, _SCAN = (252, 246, 205), (150, 10, 40), (60, 60, 60)
_PREDICTION = (225, 110, 20)
_DEPTH_OFFSET_MM = 1e4
"""Added to depths for the rasterizer: so far away its perspective division is a parallel projection."""
_OPACITY = 0.7
_CROP_MARGIN = 0.08
"""Margin of the photo's crop around the prediction, in sizes of the prediction."""
_LABELS = LabelStyle(height=22, font_size=13, offset=(4, 4))
COLUMNS = ("photo", "prediction", f"error, 0 to {_WORST_MM:.0f} mm", "profile: scan dark, prediction orange")


@dataclass(frozen=True)
class ScanPicture:
    """What the panels of one photo show; lengths in millimetres, in the scan's frame."""

    photo: UInt8[np.ndarray, "H W 3"] | None
    """The photo."""
    pixels: Float[Tensor, "V 2"] | None
    """Position of each vertex of the prediction in the photo, with the centre of the first pixel at (0, 0)."""
    prediction: Surface
    """The aligned prediction."""
    scan: Surface
    """The scan."""
    points: Float[Tensor, "P 3"]
    """Points of the scan that were measured."""
    errors: Float[np.ndarray, "P"]
    """Error of each of them."""
    landmarks7: Float[Tensor, "7 3"] | None
    """Corners of the eyes, nose base and corners of the mouth on the scan, which define the frontal view."""


def scan_panels(picture: ScanPicture) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The four panels of one photo; one that lacks its data is empty."""
    frame = None if picture.landmarks7 is None else _FrontalFrame.of(picture.landmarks7)
    panels = [_blank() for _ in COLUMNS]
    if picture.photo is not None:
        crop = _crop_box(picture)
        panels[0] = _cropped(picture.photo, crop)
        if picture.pixels is not None and frame is not None:
            panels[1] = _overlay(picture, crop, frame, panels[0])
    if frame is not None:
        panels[2] = _error_map(picture, frame)
        panels[3] = _profile(picture, frame)
    return panels


def save_scan_sheet(rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]], labels: Sequence[str], path: Path) -> None:
    """Write a PNG with the panels of many photos.

    Args:
        rows: The panels of each photo.
        labels: Text below the panels of each photo.
        path: The file.

    Raises:
        OSError: The file cannot be written.
    """
    layout = SheetLayout(gap=4, background=PAPER, labels=_LABELS)
    sheet = contact_sheet(rows, layout, labels=[[label] for label in labels], column_labels=COLUMNS)
    write_whole(path, lambda partial: Image.fromarray(sheet).save(partial, format="PNG"))


@dataclass(frozen=True)
class _FrontalFrame:
    """A parallel view of the scan from the front: x right in the picture, y up, z to the viewer."""

    centre: Tensor
    axes: Float[Tensor, "3 3"]

    @classmethod
    def of(cls, landmarks: Float[Tensor, "7 3"]) -> _FrontalFrame | None:
        right, left, mouth = (part.nanmean(0) for part in (landmarks[:2], landmarks[2:4], landmarks[5:7]))
        x = torch.nn.functional.normalize(left - right, dim=0)
        eyes = (left + right) / 2
        up = eyes - mouth
        y = torch.nn.functional.normalize(up - (up @ x) * x, dim=0)
        axes = torch.stack([x, y, torch.linalg.cross(x, y)])
        return cls((eyes + mouth) / 2, axes) if bool(axes.isfinite().all()) else None

    def __call__(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        return (points - self.centre) @ self.axes.mT


def _blank() -> np.ndarray:
    return np.full((PANEL_SIZE[1], PANEL_SIZE[0], 3), PAPER, np.uint8)


def _crop_box(picture: ScanPicture) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the crop in the photo, in the shape of a panel."""
    assert picture.photo is not None
    height, width = picture.photo.shape[:2]
    low, high = np.zeros(2), np.array([width, height], float)
    if picture.pixels is not None:
        known = picture.pixels[picture.pixels.isfinite().all(-1)].numpy()
        low, high = known.min(0), known.max(0)
    side = float(max((high - low) / PANEL_SIZE)) * (1 + 2 * _CROP_MARGIN)
    left, top = (low + high) / 2 - side * np.array(PANEL_SIZE) / 2
    return float(left), float(top), float(left + side * PANEL_SIZE[0]), float(top + side * PANEL_SIZE[1])


def _cropped(photo: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = (round(value) for value in box)
    return np.array(
        Image.fromarray(photo).crop((left, top, right, bottom)).resize(PANEL_SIZE, Image.Resampling.BILINEAR)
    )


def _overlay(picture: ScanPicture, box: tuple[float, ...], frame: _FrontalFrame, photo: np.ndarray) -> np.ndarray:
    assert picture.pixels is not None
    scale = PANEL_SIZE[0] / (box[2] - box[0])
    places = (picture.pixels - torch.tensor(box[:2])) * scale
    kept = picture.pixels.isfinite().all(-1)
    triangles = picture.prediction.triangles[kept[picture.prediction.triangles].all(-1)]
    depth = -frame(picture.prediction.vertices)[:, 2]
    shade, covered = _shaded(torch.nan_to_num(places), depth, triangles, picture.prediction, frame)
    mixed = np.where(covered, _OPACITY * shade + (1 - _OPACITY) * photo, photo)
    return mixed.round().astype(np.uint8)


def _shaded(
    places: Tensor, depth: Tensor, triangles: Tensor, surface: Surface, frame: _FrontalFrame
) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of a surface, lit from the viewer, and where it is covered."""
    width, height = PANEL_SIZE
    ndc = (2 * places - torch.tensor([width, height])) / min(width, height)
    distance = depth - depth.min() + _DEPTH_OFFSET_MM
    vertices = torch.cat([ndc, distance[:, None]], dim=-1)[None].float()
    fragments = rasterize_hard(
        vertices,
        triangles,
        image_size=(height, width),
        near=_DEPTH_OFFSET_MM / 2,
        far=float(distance.max()) + 1,
    )
    facing = (vertex_normals(surface.vertices[None], surface.triangles)[0] @ frame.axes[2]).abs()
    grey = interpolate((60 + 180 * facing)[:, None].float(), triangles, fragments)[0, 0]
    return grey.numpy()[..., None].repeat(3, -1), (fragments.triangle_ids[0] >= 0).numpy()[..., None]


def _places(points: Float[Tensor, "P 3"], across: int) -> Float[Tensor, "P 2"]:
    """Position in a panel of points of a frontal frame; `across` is the axis to the right."""
    x = PANEL_SIZE[0] / 2 + _PIXELS_PER_MM * points[:, across]
    return torch.stack([x, PANEL_SIZE[1] / 2 - _PIXELS_PER_MM * points[:, 1]], dim=-1)


def _error_map(picture: ScanPicture, frame: _FrontalFrame) -> np.ndarray:
    """The scan in grey, and the error of each measured point on it."""
    local = frame(picture.scan.vertices)
    grey, covered = _shaded(_places(local, 0), -local[:, 2], picture.scan.triangles, picture.scan, frame)
    panel = np.where(covered, grey, _blank()).astype(np.uint8)
    points = frame(picture.points)
    order = points[:, 2].argsort().numpy()  # the nearest to the viewer last
    columns, rows = _places(points, 0).floor().long().numpy()[order].T
    share = np.clip(picture.errors[order] / _WORST_MM, 0, 1)[:, None]
    colours = ((1 - share) * np.array(_GOOD) + share * np.array(_BAD)).round().astype(np.uint8)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            y, x = rows + down, columns + right
            inside = (x >= 0) & (x < PANEL_SIZE[0]) & (y >= 0) & (y < PANEL_SIZE[1])
            panel[y[inside], x[inside]] = colours[inside]
    return panel


def _profile(picture: ScanPicture, frame: _FrontalFrame) -> np.ndarray:
    """The cuts of both surfaces with the plane through the middle of the face, from the side."""
    image = Image.fromarray(_blank())
    draw = ImageDraw.Draw(image)
    for surface, colour in ((picture.prediction, _PREDICTION), (picture.scan, _SCAN)):
        for start, end in midplane_cut(frame(surface.vertices), surface.triangles):
            ends = _places(torch.stack([start, end]), 2)
            draw.line([tuple(place) for place in ends.tolist()], fill=colour, width=2)
    return np.array(image)


def midplane_cut(vertices: Float[Tensor, "V 3"], triangles: Tensor) -> Float[Tensor, "S 2 3"]:
    """The segments in which triangles cross the plane x = 0."""
    corners = vertices[triangles]
    side = corners[..., 0] >= 0
    corners = corners[side.any(1) & ~side.all(1)]
    ends = corners.roll(-1, dims=1)
    crosses = (corners[..., 0] >= 0) != (ends[..., 0] >= 0)
    rise = (ends - corners)[..., 0]
    share = -corners[..., 0] / rise.where(crosses, torch.ones_like(rise))
    points = corners + share[..., None] * (ends - corners)
    return points[crosses].reshape(-1, 2, 3)
