"""The UV map of a face model as skin to paint on, measured in millimetres on the mean face.

The UV map stretches the face: a line of constant width on the face has no constant width in the map. Therefore shapes
are placed in the map and measured on the surface of the mean face. All profiles are sums of Gaussians, because a
Gaussian averaged over a texel is nearly a Gaussian again: maps of every size show the same skin, without aliasing.
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
"""Values per texel (rows, columns), or points of the UV map (N, 2): columns and rows, in texels."""

EYE_SPAN_MM = 88.0
"""Distance of the outer eye corners of the mean of `mien-face`, for which landmark offsets are given."""
BORDER_MM = 8.0
"""Width of the strip in which everything fades out at the border of the UV map, where the mesh ends."""
LID_MM = 1.5
"""Width of the smooth rim around eyes and mouth."""
TEXEL_SPREAD = 0.4
"""Standard deviation of a texel's footprint, in its sides: a box has 0.29, and bilinear sampling adds about as much."""
DEPTH_WEIGHT = 0.1
"""Weight of squared distances along z when a point is moved to the nearest vertex: the front view decides."""
CURVE_POINTS = 14
"""Points per curve."""


@dataclass(frozen=True)
class LandmarkOffset:
    """A point on the skin, as an offset in millimetres from a landmark of a face of average size (`EYE_SPAN_MM`)."""

    landmark: int
    """Index among the 68 landmarks; one of the right half of the face or of the middle."""
    out: float = 0.0
    """Away from the middle of the face."""
    up: float = 0.0
    """Upwards."""
    forward: float = 0.0
    """Towards the viewer."""


@dataclass(frozen=True)
class Stroke:
    """The texels around a curve, each with its position relative to the curve."""

    rows: slice
    """Rows of the window."""
    columns: slice
    """Columns of the window."""
    across_mm: Map
    """Signed distance to the curve; positive on its left in the UV map."""
    along: Map
    """Position along the curve, 0 to 1."""
    texel_mm: Map
    """Side of each texel."""


class SkinCanvas:
    """Paints curves, spots and noise on the UV map of a model.

    Args:
        model: The face model; distances are measured on its mean.
        atlas: Its UV map, which sets the size in texels.

    Attributes:
        size: Side of the map, texels.
        valid: Texels that belong to the face.
        texel_mm: Side of a square with the area of each texel on the mean.
        mean_texel_mm: Median of it.
        positions: Position of each texel on the mean (rows, columns, 3), millimetres.
        unit: Scale of landmark offsets: 1 for a face with `EYE_SPAN_MM`.
        parts: Masks of the model's parts by name.
        rough_skin: 1 on skin that may have relief, 0 in eyes and mouth, falling to 0 at the border of the map.
    """

    def __init__(self, model: MorphableModel, atlas: TexelAtlas) -> None:
        self.size = len(atlas.triangle_ids)
        self.valid: NDArray[np.bool_] = atlas.valid.numpy()
        tangents = atlas.tangents(model, model.mean[None])[0] * (1000 / self.size)
        self.texel_mm: Map = torch.linalg.det(tangents.mT @ tangents).clamp(min=1e-6).pow(0.25).numpy()
        self.mean_texel_mm = float(np.median(self.texel_mm[self.valid]))
        extended = atlas.dilate(atlas.interpolate(model.mean[None] * 1000))[0]
        self.positions: Map = np.ascontiguousarray(extended.permute(1, 2, 0).numpy())
        self._uv = model.uv.numpy()
        self._vertices = (model.mean * 1000).numpy()
        self._targets = _paintable_vertices(model)
        landmarks = self._vertices[model.landmarks68.numpy()]
        self._landmarks = (landmarks, self._vertices[model.mirror[model.landmarks68].numpy()])
        right, left = landmarks[list(IBUG_OUTER_EYE_CORNERS)]
        self.unit = max(float(np.linalg.norm(right - left)), 1.0) / EYE_SPAN_MM
        self.parts: dict[str, Map] = {
            name: atlas.interpolate(getattr(model.masks, name)[None, :, None])[0, 0].numpy()
            for name in PARTS
            if name != "skin"
        }
        self.rough_skin: Map = self._rough_skin()

    def _rough_skin(self) -> Map:
        radius = max(round(LID_MM / self.mean_texel_mm), 1)
        hole = torch.from_numpy(np.maximum(self.parts["eyes"], self.parts["mouth"]))[None, None]
        hole = F.max_pool2d((hole > 0.02).float(), 2 * radius + 1, 1, radius)
        hole = F.avg_pool2d(hole, 3, 1, 1)[0, 0].numpy()
        return (1 - hole) * self._border_fade()

    def _border_fade(self) -> Map:
        """0 at the border, 1 from `BORDER_MM` on; the distance is counted in erosions."""
        inside = torch.from_numpy(self.valid).float()[None, None]
        inside = F.pad(inside, (1, 1, 1, 1))
        reach = max(round(BORDER_MM / self.mean_texel_mm), 1)
        total = torch.zeros_like(inside)
        for _ in range(reach):
            inside = -F.max_pool2d(-inside, 3, 1, 1)
            total += inside
        share = total[0, 0, 1:-1, 1:-1] / reach
        return (share * share * (3 - 2 * share)).numpy()

    def landmark_position(self, offset: LandmarkOffset, *, left: bool = False) -> Map:
        """Position of a landmark offset on the mean, millimetres; on the right half of the face unless `left`."""
        outwards = 1.0 if left else -1.0
        shift = np.array([outwards * offset.out, offset.up, offset.forward], np.float32) * self.unit
        return self._landmarks[left][offset.landmark] + shift

    def curve(self, offsets: Sequence[LandmarkOffset], *, left: bool = False, crosses_midline: bool = False) -> Map:
        """A smooth curve through landmark offsets.

        Args:
            offsets: At least two points.
            left: Whether the curve is on the left half of the face.
            crosses_midline: Whether the curve continues into its mirror image.

        Returns:
            `CURVE_POINTS` points as texel columns and rows.
        """
        points = [self.landmark_position(offset, left=left) for offset in offsets]
        if crosses_midline:
            mirrored = [self.landmark_position(offset, left=True) for offset in offsets]
            points += mirrored[-2::-1] if offsets[-1].out == 0 else mirrored[::-1]
        return smooth_curve(np.stack([self._nearest_texel(point) for point in points]))

    def _nearest_texel(self, point: Map) -> Map:
        difference = self._vertices[self._targets] - point
        nearest = self._targets[(difference**2 * (1, 1, DEPTH_WEIGHT)).sum(-1).argmin()]
        u, v = self._uv[nearest]
        return np.array([u, 1 - v], np.float32) * self.size

    def texel_indices(self, texels: Map) -> NDArray[np.int64]:
        """Integer columns and rows of the texels that contain these points."""
        return np.clip(np.floor(texels), 0, self.size - 1).astype(np.int64)

    def stroke(self, curve: Map, *, reach_mm: float) -> Stroke | None:
        """The texels within reach of a curve.

        Args:
            curve: Points as texel columns and rows.
            reach_mm: Distance up to which texels are needed.

        Returns:
            A window with all these texels (and others), or None if the curve is shorter than a texel.
        """
        points = self.positions_at(curve)
        segments = np.diff(points, axis=0)
        lengths = np.sqrt(np.maximum((segments**2).sum(-1), 1e-6))
        total = float(lengths.sum())
        if total < self.mean_texel_mm:
            return None
        rows, columns = self._window(curve, reach_mm)
        texels = self.positions[rows, columns]
        squared, nearest, share = _nearest_segments(texels.reshape(-1, 3), points, segments)
        along = (np.concatenate([[0], lengths.cumsum()[:-1]])[nearest] + share * lengths[nearest]) / total
        distance = np.sqrt(np.maximum(squared, 0)) * self._side(curve, nearest, rows, columns)
        shape = texels.shape[:2]
        return Stroke(
            rows,
            columns,
            distance.reshape(shape).astype(np.float32),
            along.reshape(shape).astype(np.float32),
            self.texel_mm[rows, columns],
        )

    def _window(self, curve: Map, reach_mm: float) -> tuple[slice, slice]:
        """Rows and columns that contain all texels within reach of a curve."""
        columns, rows = self.texel_indices(curve).T
        local = self.texel_mm[rows, columns]
        # Texels beside the curve may be smaller than those on it, and the window has to contain all within reach: 1.3
        # allows for that, and a floor of 0.3 of the median size keeps the window finite.
        margin = int(np.ceil(1.3 * reach_mm / max(float(local.min()), 0.3 * self.mean_texel_mm))) + 1
        return (
            slice(max(int(rows.min()) - margin, 0), min(int(rows.max()) + margin + 1, self.size)),
            slice(max(int(columns.min()) - margin, 0), min(int(columns.max()) + margin + 1, self.size)),
        )

    def _side(self, curve: Map, nearest: NDArray[np.int64], rows: slice, columns: slice) -> Map:
        """1 for texels on the left of their nearest segment in the UV map, -1 on its right."""
        steps = np.arange(self.size) + 0.5
        texels = np.stack(np.meshgrid(steps[columns], steps[rows]), -1).reshape(-1, 2)
        direction, offset = np.diff(curve, axis=0)[nearest], texels - curve[:-1][nearest]
        return np.sign(direction[:, 1] * offset[:, 0] - direction[:, 0] * offset[:, 1])

    def positions_at(self, texels: Map) -> Map:
        """Positions on the mean (N, 3) of points of the UV map, bilinear between texel centres; millimetres."""
        shifted = np.clip(texels - 0.5, 0, self.size - 1.001)
        low = np.floor(shifted).astype(np.int64)
        fx, fy = (shifted - low).T[..., None]
        x, y = low.T
        grid = self.positions
        return (grid[y, x] * (1 - fx) + grid[y, x + 1] * fx) * (1 - fy) + (
            grid[y + 1, x] * (1 - fx) + grid[y + 1, x + 1] * fx
        ) * fy

    def spots(self, texels: Map, sigmas_mm: Map, heights: Map) -> Map:
        """The sum of Gaussian spots.

        Args:
            texels: Centres as texel columns and rows (N, 2).
            sigmas_mm: Standard deviation of each spot.
            heights: Height of each spot at its centre, before it is averaged over texels.
        """
        total = np.zeros(self.size * self.size, np.float32)
        if len(texels) == 0:
            return total.reshape(self.size, self.size)
        columns, rows = self.texel_indices(texels).T
        local = self.texel_mm[rows, columns]
        spread = np.sqrt(sigmas_mm**2 + (TEXEL_SPREAD * local) ** 2)
        heights = heights * (sigmas_mm / spread) ** 2
        radius = max(int(np.ceil(3 * float((spread / np.maximum(local, 0.5 * self.mean_texel_mm)).max()))), 1)
        index, inside = self._neighbours(columns, rows, min(radius, self.size // 2 - 1))
        difference = self.positions.reshape(-1, 3)[index] - self.positions_at(texels)[:, None, None]
        squared = (difference**2).sum(-1)
        values = heights[:, None, None] * np.exp(-squared / (2 * spread[:, None, None] ** 2)) * inside
        total = np.bincount(index.ravel(), values.ravel(), minlength=len(total))
        return total.reshape(self.size, self.size).astype(np.float32)

    def _neighbours(
        self, columns: NDArray[np.int64], rows: NDArray[np.int64], radius: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Flat indices (N, 2r + 1, 2r + 1) of the texels around each centre, and which of them are in the map."""
        steps = np.arange(-radius, radius + 1)
        rows, columns = (rows[:, None, None] + steps[:, None]), (columns[:, None, None] + steps)
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return np.clip(rows, 0, self.size - 1) * self.size + np.clip(columns, 0, self.size - 1), inside

    def soft_region(
        self, offsets: Sequence[LandmarkOffset], *, sigma_mm: float, sides: Sequence[bool] = (False, True)
    ) -> Map:
        """A region that is 1 at the given points and falls off as a Gaussian of the distance on the face.

        Args:
            offsets: The points.
            sigma_mm: Standard deviation for a face with `EYE_SPAN_MM`.
            sides: Halves of the face: False is the right one, True the left one.
        """
        region = np.zeros((self.size, self.size), np.float32)
        for left in sides:
            for offset in offsets:
                centre = self._nearest_texel(self.landmark_position(offset, left=left))
                column, row = self.texel_indices(centre)
                squared = ((self.positions - self.positions[row, column]) ** 2).sum(-1)
                region = np.maximum(region, np.exp(-squared / (2 * (sigma_mm * self.unit) ** 2)))
        return region * self.valid

    def noise(self, rng: np.random.Generator, grain_mm: float, *, channels: int = 1) -> Map:
        """Smooth noise of unit variance (channels, rows, columns) with grains of about `grain_mm`."""
        cells = int(np.clip(round(self.size * self.mean_texel_mm / grain_mm), 2, self.size))
        grid = torch.from_numpy(rng.standard_normal((1, channels, cells + 1, cells + 1), dtype=np.float32))
        if cells == self.size:
            return grid[0, :, 1:, 1:].numpy()
        smooth = F.interpolate(grid, size=(self.size, self.size), mode="bicubic", align_corners=True)[0]
        # Between the nodes of a bicubic grid the variance is about 0.6 of that at the nodes; 1.3² · 0.6 is 1.
        return (smooth * 1.3).numpy()

    def sample_points(self, rng: np.random.Generator, count: int, density: Map) -> Map:
        """Random points of the UV map, distributed by area on the face times a density.

        Args:
            rng: The only source of randomness.
            count: Number of points.
            density: Relative density per texel.

        Returns:
            Texel columns and rows (count, 2), or no points if the density is 0 everywhere.
        """
        weights = (density * self.texel_mm**2 * self.valid).ravel().astype(np.float64)
        total = weights.cumsum()
        if count == 0 or total[-1] <= 0:
            return np.zeros((0, 2), np.float32)
        chosen = np.searchsorted(total, rng.random(count) * total[-1]).clip(max=len(total) - 1)
        rows, columns = np.divmod(chosen, self.size)
        return (np.stack([columns, rows], -1) + rng.random((count, 2))).astype(np.float32)


def smooth_curve(points: Map, *, count: int = CURVE_POINTS) -> Map:
    """A curve of `count` points through the given ones (Catmull and Rom 1974); each segment gets the same share."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    position = np.linspace(0, len(points) - 1, count)
    first = np.minimum(position.astype(np.int64), len(points) - 2)
    t = (position - first)[:, None]
    a, b, c, d = (padded[first + k] for k in range(4))
    cubic = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return cubic.astype(np.float32)


def gaussian(distance_mm: Map, sigma_mm: float, texel_mm: Map) -> Map:
    """exp(−d²/2σ²) averaged over texels: wider and lower than at a point.

    Args:
        distance_mm: Distance d of each texel's centre.
        sigma_mm: Standard deviation σ.
        texel_mm: Side of each texel.
    """
    spread = sigma_mm**2 + (TEXEL_SPREAD * texel_mm) ** 2
    return np.exp(-(distance_mm**2) / (2 * spread)) * (sigma_mm / np.sqrt(spread))


def uniform(rng: np.random.Generator, low: float, high: float, count: int) -> Map:
    """`count` random numbers between two bounds, in the maps' float32."""
    return rng.uniform(low, high, count).astype(np.float32)


def _paintable_vertices(model: MorphableModel) -> NDArray[np.int64]:
    """Vertices to which landmark offsets are moved: those of the front that are not in mouth, eyes or lips."""
    masks = model.masks
    front = vertex_normals(model.mean[None], model.triangles)[0, :, 2] > -0.3
    paintable = front & (masks.mouth + masks.eyes + masks.lips < 0.5)
    return np.flatnonzero(paintable.numpy()) if paintable.any() else np.arange(len(model.mean))


def _nearest_segments(texels: Map, points: Map, segments: Map) -> tuple[Map, NDArray[np.int64], Map]:
    """Squared distance of each texel to a curve, its nearest segment, and the position along that segment, 0 to 1."""
    origin = points.mean(0)
    lengths = np.maximum((segments**2).sum(-1), 1e-6)
    texels, starts = texels - origin, points[:-1] - origin
    ahead = texels @ segments.T - (starts * segments).sum(-1)
    share = np.clip(ahead / lengths, 0, 1)
    squared = (texels**2).sum(-1, keepdims=True) - 2 * texels @ starts.T + (starts**2).sum(-1)
    squared = squared - share * (2 * ahead - share * lengths)
    nearest = squared.argmin(1)
    chosen = np.arange(len(nearest)), nearest
    return squared[chosen], nearest, share[chosen]
