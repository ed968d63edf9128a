"""The chart of a face model as skin to draw on, measured in millimetres on the mean face.

The chart stretches the face, so that a line of even width on the face has no even width in the chart. What is drawn
here is therefore placed in the chart and measured on the mean's surface. All profiles are sums of Gaussians, because
a Gaussian averaged over a texel is nearly a Gaussian again: maps of every size show the same skin, without aliasing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_OUTER_EYE_CORNERS, PARTS
from mien.texture import TexelAtlas

Map = NDArray[np.floating]
"""Values of texels, or points of the chart: columns and rows, in texels."""

EYE_SPAN_MM = 88.0
"""Between the outer eye corners of the mean of `mien-face`; places are given for such a face."""
BORDER_MM = 8.0
"""Over so much skin the drawing fades out at the chart's border, where the mesh was cut."""
LID_MM = 1.5
"""The rim of the lids that stays smooth around the eyes."""
TEXEL_SPREAD = 0.4
"""Standard deviation of a texel's footprint in its sides: a box has 0.29, bilinear sampling adds about as much."""
DEPTH_WEIGHT = 0.1
"""Of squared distances along z where a place is snapped to the surface: the front view decides."""
CURVE_POINTS = 14


@dataclass(frozen=True)
class LandmarkOffset:
    """A point on the skin: so many millimetres outwards from the middle, upwards and forwards from a landmark."""

    landmark: int
    """One of the 68 points of the right half of the face, or of the middle."""
    out: float = 0.0
    up: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True)
class Stroke:
    """The surroundings of a curve: for every texel of a window how it lies to the curve."""

    rows: slice
    columns: slice
    across_mm: Map
    """Signed distance; positive on the left of the curve as the chart shows it."""
    along: Map
    """Place along the curve, 0 to 1."""
    texel_mm: Map


class SkinCanvas:
    """Draws curves, spots and noise on the chart of a model."""

    def __init__(self, model: MorphableModel, atlas: TexelAtlas) -> None:
        self.size = len(atlas.triangle_ids)
        self.valid: NDArray[np.bool_] = atlas.valid.numpy()
        tangents = atlas.tangents(model, model.mean[None])[0] * (1000 / self.size)
        self.texel_mm: Map = torch.linalg.det(tangents.mT @ tangents).clamp(min=1e-6).pow(0.25).numpy()
        """Side of a square of the texel's area."""
        self.mean_texel_mm = float(np.median(self.texel_mm[self.valid]))
        self.positions: Map = np.ascontiguousarray(_extended(atlas, model.mean[None] * 1000).permute(1, 2, 0).numpy())
        """Of each texel on the mean, millimetres."""
        self.uv = model.uv.numpy()
        self._vertices = (model.mean * 1000).numpy()
        masks = model.masks
        front = vertex_normals(model.mean[None], model.triangles)[0, :, 2] > -0.3
        drawable = front & (masks.mouth + masks.eyes + masks.lips < 0.5)
        self._drawable = np.flatnonzero(drawable.numpy()) if drawable.any() else np.arange(len(model.mean))
        landmarks = self._vertices[model.landmarks68.numpy()]
        self._landmarks = (landmarks, self._vertices[model.mirror[model.landmarks68].numpy()])
        right, left = landmarks[list(IBUG_OUTER_EYE_CORNERS)]
        self.unit = max(float(np.linalg.norm(right - left)), 1.0) / EYE_SPAN_MM
        self.parts: dict[str, Map] = {
            name: atlas.interpolate(getattr(masks, name)[None, :, None])[0, 0].numpy()
            for name in PARTS
            if name != "skin"
        }
        self.bare: Map = self._bare()
        """1 on skin that may be rough, 0 in eyes and mouth, falling to 0 towards the border of the chart."""

    def _bare(self) -> Map:
        radius = max(round(LID_MM / self.mean_texel_mm), 1)
        hole = torch.from_numpy(np.maximum(self.parts["eyes"], self.parts["mouth"]))[None, None]
        hole = F.max_pool2d((hole > 0.02).float(), 2 * radius + 1, 1, radius)
        hole = F.avg_pool2d(hole, 3, 1, 1)[0, 0].numpy()
        return (1 - hole) * self._away_from_border()

    def _away_from_border(self) -> Map:
        """Distance to the border as a share of BORDER_MM, from erosions of growing size."""
        inside = torch.from_numpy(self.valid).float()[None, None]
        inside = F.pad(inside, (1, 1, 1, 1))
        reach = max(round(BORDER_MM / self.mean_texel_mm), 1)
        total = torch.zeros_like(inside)
        for _ in range(reach):
            inside = -F.max_pool2d(-inside, 3, 1, 1)
            total += inside
        share = total[0, 0, 1:-1, 1:-1] / reach
        return (share * share * (3 - 2 * share)).numpy()

    def point(self, place: LandmarkOffset, *, left: bool = False) -> Map:
        """Where a place is on the mean, millimetres; by default on the right half, else on the left."""
        outwards = 1.0 if left else -1.0
        shift = np.array([outwards * place.out, place.up, place.forward], np.float32) * self.unit
        return self._landmarks[left][place.landmark] + shift

    def curve(self, places: Sequence[LandmarkOffset], *, left: bool = False, spans: bool = False) -> Map:
        """A smooth curve through places as texel columns and rows; one that spans goes on into its mirror image."""
        points = [self.point(place, left=left) for place in places]
        if spans:
            mirrored = [self.point(place, left=True) for place in places]
            points += mirrored[-2::-1] if places[-1].out == 0 else mirrored[::-1]
        return smooth_curve(np.stack([self._texel(point) for point in points]))

    def _texel(self, point: Map) -> Map:
        difference = self._vertices[self._drawable] - point
        nearest = self._drawable[(difference**2 * (1, 1, DEPTH_WEIGHT)).sum(-1).argmin()]
        u, v = self.uv[nearest]
        return np.array([u, 1 - v], np.float32) * self.size

    def at(self, texels: Map) -> NDArray[np.int64]:
        """Columns and rows of the texels that hold these points, as indices."""
        return np.clip(np.floor(texels), 0, self.size - 1).astype(np.int64)

    def stroke(self, curve: Map, *, reach_mm: float) -> Stroke | None:
        """How the texels within reach of a curve lie to it; None where it is no curve."""
        columns, rows = self.at(curve).T
        points, local = self.positions[rows, columns], self.texel_mm[rows, columns]
        # A texel is never smaller than this share of its neighbours', and the window has to hold all in reach.
        margin = int(np.ceil(1.3 * reach_mm / max(float(local.min()), 0.3 * self.mean_texel_mm))) + 1
        window = (
            slice(max(int(rows.min()) - margin, 0), min(int(rows.max()) + margin + 1, self.size)),
            slice(max(int(columns.min()) - margin, 0), min(int(columns.max()) + margin + 1, self.size)),
        )
        points = self.between(curve)
        segments = np.diff(points, axis=0)
        lengths = np.maximum((segments**2).sum(-1), 1e-6)
        origin = points.mean(0)
        shape = self.positions[window].shape[:2]
        texels, starts = (self.positions[window] - origin).reshape(-1, 3), points[:-1] - origin
        ahead = texels @ segments.T - (starts * segments).sum(-1)
        share = np.clip(ahead / lengths, 0, 1)
        squared = (texels**2).sum(-1, keepdims=True) - 2 * texels @ starts.T + (starts**2).sum(-1)
        squared = squared - share * (2 * ahead - share * lengths)
        nearest = squared.argmin(1)
        chosen = np.arange(len(nearest)), nearest
        steps = np.sqrt(lengths)
        total = float(steps.sum())
        if total < self.mean_texel_mm:
            return None
        along = (np.concatenate([[0], steps.cumsum()[:-1]])[nearest] + share[chosen] * steps[nearest]) / total
        chart = np.stack(np.meshgrid(np.arange(self.size)[window[1]] + 0.5, np.arange(self.size)[window[0]] + 0.5), -1)
        direction, offset = np.diff(curve, axis=0)[nearest], chart.reshape(-1, 2) - curve[:-1][nearest]
        side = np.sign(direction[:, 1] * offset[:, 0] - direction[:, 0] * offset[:, 1])
        distance = np.sqrt(np.maximum(squared[chosen], 0)) * side
        return Stroke(
            *window,
            distance.reshape(shape).astype(np.float32),
            along.reshape(shape).astype(np.float32),
            self.texel_mm[window],
        )

    def between(self, texels: Map) -> Map:
        """Positions on the mean of points of the chart, bilinear between texel centres; millimetres."""
        shifted = np.clip(texels - 0.5, 0, self.size - 1.001)
        low = np.floor(shifted).astype(np.int64)
        fx, fy = (shifted - low).T[..., None]
        x, y = low.T
        grid = self.positions
        return (grid[y, x] * (1 - fx) + grid[y, x + 1] * fx) * (1 - fy) + (
            grid[y + 1, x] * (1 - fx) + grid[y + 1, x + 1] * fx
        ) * fy

    def spots(self, texels: Map, sigmas_mm: Map, heights: Map) -> Map:
        """Gaussian spots around points of the chart, each with its size and height."""
        total = np.zeros(self.size * self.size, np.float32)
        if len(texels) == 0:
            return total.reshape(self.size, self.size)
        columns, rows = self.at(texels).T
        local = self.texel_mm[rows, columns]
        spread = np.sqrt(sigmas_mm**2 + (TEXEL_SPREAD * local) ** 2)
        heights = heights * (sigmas_mm / spread) ** 2
        radius = max(int(np.ceil(3 * float((spread / np.maximum(local, 0.5 * self.mean_texel_mm)).max()))), 1)
        radius = min(radius, self.size // 2 - 1)
        steps = np.arange(-radius, radius + 1)
        around_rows, around_columns = (rows[:, None, None] + steps[:, None]), (columns[:, None, None] + steps)
        inside = (around_rows >= 0) & (around_rows < self.size) & (around_columns >= 0) & (around_columns < self.size)
        index = np.clip(around_rows, 0, self.size - 1) * self.size + np.clip(around_columns, 0, self.size - 1)
        difference = self.positions.reshape(-1, 3)[index] - self.between(texels)[:, None, None]
        squared = (difference**2).sum(-1)
        values = heights[:, None, None] * np.exp(-squared / (2 * spread[:, None, None] ** 2)) * inside
        total = np.bincount(index.ravel(), values.ravel(), minlength=len(total))
        return total.reshape(self.size, self.size).astype(np.float32)

    def near(self, places: Sequence[LandmarkOffset], *, sigma_mm: float, sides: Sequence[bool] = (False, True)) -> Map:
        """A soft region around places on one or both sides, 1 at its heart."""
        region = np.zeros((self.size, self.size), np.float32)
        for left in sides:
            for place in places:
                centre = self._texel(self.point(place, left=left))
                column, row = self.at(centre)
                squared = ((self.positions - self.positions[row, column]) ** 2).sum(-1)
                region = np.maximum(region, np.exp(-squared / (2 * (sigma_mm * self.unit) ** 2)))
        return region * self.valid

    def noise(self, rng: np.random.Generator, grain_mm: float, *, channels: int = 1) -> Map:
        """Smooth noise of unit variance with grains of about so many millimetres."""
        cells = int(np.clip(round(self.size * self.mean_texel_mm / grain_mm), 2, self.size))
        grid = torch.from_numpy(rng.standard_normal((1, channels, cells + 1, cells + 1), dtype=np.float32))
        if cells == self.size:
            return grid[0, :, 1:, 1:].numpy()
        smooth = F.interpolate(grid, size=(self.size, self.size), mode="bicubic", align_corners=True)[0]
        # Between the nodes of a bicubic grid the variance falls to about 0.6 of that at the nodes.
        return (smooth * 1.3).numpy()

    def scattered(self, rng: np.random.Generator, count: int, density: Map) -> Map:
        """Points of the chart, as many as asked, where the density (at most 1) is high, even on the face's area."""
        weights = (density * self.texel_mm**2 * self.valid).ravel().astype(np.float64)
        total = weights.cumsum()
        if count == 0 or total[-1] <= 0:
            return np.zeros((0, 2), np.float32)
        chosen = np.searchsorted(total, rng.random(count) * total[-1]).clip(max=len(total) - 1)
        rows, columns = np.divmod(chosen, self.size)
        return (np.stack([columns, rows], -1) + rng.random((count, 2))).astype(np.float32)


def smooth_curve(points: Map, *, count: int = CURVE_POINTS) -> Map:
    """A curve of `count` points through the given ones, even in their order (Catmull and Rom 1974)."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    place = np.linspace(0, len(points) - 1, count)
    first = np.minimum(place.astype(np.int64), len(points) - 2)
    t = (place - first)[:, None]
    a, b, c, d = (padded[first + k] for k in range(4))
    cubic = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return cubic.astype(np.float32)


def gaussian(distance_mm: Map, sigma_mm: float, texel_mm: Map) -> Map:
    """exp(−d²/2σ²) as texels of the given sides show it: wider and lower."""
    spread = sigma_mm**2 + (TEXEL_SPREAD * texel_mm) ** 2
    return np.exp(-(distance_mm**2) / (2 * spread)) * (sigma_mm / np.sqrt(spread))


def _extended(atlas: TexelAtlas, values: torch.Tensor) -> torch.Tensor:
    return atlas.dilate(atlas.interpolate(values))[0]
