"""A small z-buffer renderer for looking at the model while it is built (not the package's rasterizer)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from surface import vertex_normals


@dataclass(frozen=True)
class View:
    """An orthographic look at a shape: angles in degrees, scale in pixels per millimetre."""

    yaw: float = 0.0
    pitch: float = 0.0
    scale: float = 1.6
    width: int = 330
    height: int = 420
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def rotation(self) -> np.ndarray:
        a, b = np.deg2rad([self.yaw, self.pitch])
        turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        return nod @ turn

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixel x, pixel y and depth (larger is nearer) of points in model space."""
        turned = (points - np.array(self.centre)) @ self.rotation().T
        return np.stack(
            [
                self.width / 2 + self.scale * turned[:, 0],
                self.height / 2 - self.scale * turned[:, 1],
                turned[:, 2],
            ],
            1,
        )


def rasterize(pixels: np.ndarray, triangles: np.ndarray, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangle index (-1 empty) and barycentrics of the nearest triangle at every pixel centre."""
    depth = np.full((height, width), -np.inf)
    index = np.full((height, width), -1)
    weights = np.zeros((height, width, 3))
    a, b, c = (pixels[triangles[:, k]] for k in range(3))
    corners = np.stack([a, b, c], 1)
    low = np.clip(np.floor(corners[..., :2].min(1) - 0.5).astype(int), 0, [width - 1, height - 1])
    high = np.clip(np.ceil(corners[..., :2].max(1)).astype(int), 0, [width - 1, height - 1])
    area = (b[:, 1] - c[:, 1]) * (a[:, 0] - c[:, 0]) + (c[:, 0] - b[:, 0]) * (a[:, 1] - c[:, 1])
    for t in np.flatnonzero(np.abs(area) > 1e-9):
        x, y = np.meshgrid(np.arange(low[t, 0], high[t, 0] + 1), np.arange(low[t, 1], high[t, 1] + 1))
        px, py = x + 0.5, y + 0.5
        wa = ((b[t, 1] - c[t, 1]) * (px - c[t, 0]) + (c[t, 0] - b[t, 0]) * (py - c[t, 1])) / area[t]
        wb = ((c[t, 1] - a[t, 1]) * (px - c[t, 0]) + (a[t, 0] - c[t, 0]) * (py - c[t, 1])) / area[t]
        wc = 1 - wa - wb
        z = wa * a[t, 2] + wb * b[t, 2] + wc * c[t, 2]
        hit = (wa >= -1e-6) & (wb >= -1e-6) & (wc >= -1e-6) & (z > depth[y, x])
        if hit.any():
            yy, xx = y[hit], x[hit]
            depth[yy, xx], index[yy, xx] = z[hit], t
            weights[yy, xx] = np.stack([wa[hit], wb[hit], wc[hit]], -1)
    return index, weights


def render(
    vertices: np.ndarray, triangles: np.ndarray, view: View, *, colours: np.ndarray | None = None, ambient: float = 0.25
) -> np.ndarray:
    """Lambert-shaded picture (H, W, 3) in [0, 1] on white, without back faces."""
    pixels = view.project(vertices)
    index, weights = rasterize(pixels, triangles, height=view.height, width=view.width)
    normals = vertex_normals(vertices, triangles) @ view.rotation().T
    light = np.array([0.3, 0.4, 0.85])
    light /= np.linalg.norm(light)
    colours = np.full((len(vertices), 3), 0.8) if colours is None else colours
    picture = np.ones((view.height, view.width, 3))
    covered = index >= 0
    corner = triangles[index[covered]]
    weight = weights[covered][..., None]
    normal = (normals[corner] * weight).sum(1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    shade = ambient + (1 - ambient) * np.clip(normal @ light, 0, 1)
    picture[covered] = np.clip((colours[corner] * weight).sum(1) * shade[:, None], 0, 1)
    return picture


def annotate(
    picture: np.ndarray,
    points: np.ndarray,
    *,
    colour: tuple[int, int, int] = (220, 20, 20),
    radius: float = 2.0,
    labels: bool = False,
) -> np.ndarray:
    """The picture with dots (and their numbers) at pixel positions."""
    image = Image.fromarray((picture * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number, (x, y) in enumerate(points[:, :2]):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        if labels:
            draw.text((x + 3, y - 5), str(number), fill=(0, 0, 200))
    return np.asarray(image) / 255.0


def save(picture: np.ndarray, path: Path) -> None:
    """Write a palette PNG: a third of the size of a full-colour one, and no visible loss for these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
