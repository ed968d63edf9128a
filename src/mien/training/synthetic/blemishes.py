"""Skin blemishes: pigment, redness, hair and paint, as offsets of the mean's albedo that change no shape.

Some blemishes are lines on the curves of wrinkles, dark or light; others imitate stage make-up that paints a wrinkle as
a shadow with a highlight beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from mien.training.synthetic.canvas import LandmarkOffset, Map, SkinCanvas, gaussian, uniform
from mien.training.synthetic.wrinkles import WrinkleFamily, taper

MELANIN = np.array((-0.26, -0.32, -0.32), np.float32)
"""Change of the gamma-encoded albedo per unit of pigment."""
BLOOD = np.array((-0.03, -0.24, -0.18), np.float32)
"""Change of the gamma-encoded albedo per unit of redness."""
INKS = (
    (-0.55, -0.4, -0.3), (-0.5, -0.3, -0.15), (-0.1, -0.4, -0.35), (-0.45, -0.15, -0.25), (0.2, 0.3, 0.32),
    (-0.6, -0.45, -0.4), (0.1, -0.3, -0.05),
)  # fmt: skip
"""Changes of the albedo by tattoo inks: black, blue, red, green, white, another black, pink."""


class BlemishPainter:
    """Paints skin blemishes on the UV map of a model.

    Args:
        canvas: The UV map.
        families: Wrinkles whose curves some blemishes follow.
    """

    def __init__(self, canvas: SkinCanvas, families: Sequence[WrinkleFamily]) -> None:
        self.canvas, self._families = canvas, families
        region = canvas.soft_region
        self._freckle_region = np.maximum(
            region([LandmarkOffset(48, 14.0, 26.0), LandmarkOffset(30, 0.0, 6.0)], sigma_mm=16.0), 0.25
        )
        self._blush_region = np.maximum(
            region([LandmarkOffset(48, 20.0, 24.0)], sigma_mm=13.0),
            region([LandmarkOffset(30, 0.0, 2.0)], sigma_mm=8.0),
        )
        self._under_eyes = region(
            [LandmarkOffset(40, 3.0, -8.0), LandmarkOffset(41, 0.0, -8.0), LandmarkOffset(39, 1.0, -5.0)], sigma_mm=5.0
        )
        self._lids = region(
            [LandmarkOffset(37, 0.0, 5.0), LandmarkOffset(38, 0.0, 5.0), LandmarkOffset(36, 4.0, 4.0)], sigma_mm=4.0
        )
        self._beard_region = self._make_beard_region()

    def _make_beard_region(self) -> Map:
        canvas = self.canvas
        lip = canvas.landmark_position(LandmarkOffset(33))[1]
        chin = canvas.landmark_position(LandmarkOffset(8))[1]
        below = np.clip((lip - canvas.positions[..., 1]) / max(0.2 * (lip - chin), 1e-3), 0, 1)
        sideways = np.clip((np.abs(canvas.positions[..., 0]) - 30) / 20, 0, 1)
        jaw = np.clip((lip - 25 * canvas.unit - canvas.positions[..., 1]) / 15, 0, 1)
        return below * np.maximum(1 - sideways, jaw) * (1 - canvas.parts["lips"]) * canvas.rough_skin

    def paint(self, rng: np.random.Generator) -> Map:
        """The albedo offset (3, rows, columns) of one face's blemishes."""
        canvas = self.canvas
        pigment, blood = self._pigment(rng), self._blood(rng)
        offset = np.multiply.outer(MELANIN, pigment) + np.multiply.outer(BLOOD, blood)
        self._add_make_up(rng, offset)
        self._add_hair(rng, offset)
        skin = (1 - canvas.parts["eyes"]) * (1 - canvas.parts["mouth"])
        offset *= skin * (1 - 0.7 * canvas.parts["lips"])
        offset += self._lipstick(rng)
        lines = np.zeros_like(offset)
        if rng.random() < 0.4:
            self._add_wrinkle_lines(rng, lines)
        if rng.random() < 0.15:
            self._add_tattoo(rng, lines)
        return (offset + lines * skin) * canvas.valid

    def _pigment(self, rng: np.random.Generator) -> Map:
        """Unevenness, freckles, moles, age spots, dark circles, vitiligo."""
        canvas = self.canvas
        pigment = min(rng.exponential(0.02), 0.08) * canvas.noise(rng, rng.uniform(6, 25))[0]
        if rng.random() < 0.25:
            count = int(rng.integers(40, 450))
            freckles = canvas.sample_points(rng, count, self._freckle_region)
            sizes = uniform(rng, 0.5, 1.3, count)
            strength = rng.uniform(0.3, 1)
            pigment += strength * canvas.spots(freckles, sizes, uniform(rng, 0.3, 1.0, count))
        moles = canvas.sample_points(rng, int(rng.integers(0, 9)), canvas.rough_skin)
        sizes = uniform(rng, 0.6, 2.2, len(moles))
        pigment += canvas.spots(moles, sizes, uniform(rng, 0.3, 1.2, len(moles)))
        if rng.random() < 0.2:
            pigment += rng.uniform(0.05, 0.3) * self._blotches(
                rng, grain_mm=rng.uniform(5, 14), share=rng.uniform(0.03, 0.2)
            )
        if rng.random() < 0.4:
            pigment += rng.uniform(0.05, 0.4) * self._under_eyes
        if rng.random() < 0.04:
            pigment -= rng.uniform(0.3, 0.8) * self._blotches(rng, grain_mm=rng.uniform(15, 40), share=0.3)
        return pigment

    def _blood(self, rng: np.random.Generator) -> Map:
        """Blotches, blush, dark circles, a port-wine stain."""
        canvas = self.canvas
        blood = min(rng.exponential(0.035), 0.12) * canvas.noise(rng, rng.uniform(8, 25))[0]
        if rng.random() < 0.4:
            blood += rng.uniform(0.1, 0.7) * self._blush_region
        if rng.random() < 0.3:
            blood += rng.uniform(0.1, 0.4) * self._under_eyes
        if rng.random() < 0.04:
            centre = canvas.sample_points(rng, 1, canvas.rough_skin)
            if len(centre):
                column, row = canvas.texel_indices(centre)[0]
                distance = np.linalg.norm(canvas.positions - canvas.positions[row, column], axis=-1)
                edge = (rng.uniform(12, 40) + 8 * canvas.noise(rng, 15.0)[0] - distance) / 2
                blood += rng.uniform(0.5, 1.2) * np.clip(edge, 0, 1)
        return blood

    def _blotches(self, rng: np.random.Generator, *, grain_mm: float, share: float) -> Map:
        field = self.canvas.noise(rng, grain_mm)[0] + 0.3 * self.canvas.noise(rng, grain_mm / 3)[0]
        edge = np.quantile(field, 1 - share)
        return np.clip((field - edge) / rng.uniform(0.2, 1.0), 0, 1)

    def _add_make_up(self, rng: np.random.Generator, offset: Map) -> None:
        if rng.random() < 0.25:
            offset += np.multiply.outer(rng.normal(-0.08, 0.12, 3).astype(np.float32), self._lids)
        if rng.random() < 0.15:
            tint = np.array((0.03, -0.1, -0.06), np.float32) * rng.uniform(0.3, 1.5)
            offset += np.multiply.outer(tint, self._blush_region)

    def _lipstick(self, rng: np.random.Generator) -> Map:
        tint = rng.normal(0, 0.03, 3)
        if rng.random() < 0.3:
            tint = np.array((-0.02, -0.25, -0.18)) * rng.uniform(0.2, 1.4) + rng.normal(0, 0.04, 3)
        grain = 1 + 0.15 * self.canvas.noise(rng, 2.0)[0]
        return np.multiply.outer(tint.astype(np.float32), self.canvas.parts["lips"] * grain)

    def _add_hair(self, rng: np.random.Generator, offset: Map) -> None:
        """Brows with single hairs, a beard's shadow and its stubble."""
        canvas = self.canvas
        dark = np.array((-0.45, -0.4, -0.35), np.float32) * rng.uniform(0.2, 1.2) * (1 if rng.random() < 0.9 else -0.4)
        brows = canvas.parts["brows"] * np.clip(0.7 + 0.6 * self._hair_noise(rng), 0, 2)
        offset += np.multiply.outer(dark * rng.uniform(0.2, 0.9), brows)
        if rng.random() < 0.35:
            shadow = rng.uniform(0, 0.3)
            stubble = rng.uniform(0.1, 0.9) * np.maximum(canvas.noise(rng, 1.2)[0] - 0.2, 0)
            patchy = np.clip(0.8 + 0.3 * canvas.noise(rng, 18.0)[0], 0, 1.3)
            offset += np.multiply.outer(dark, self._beard_region * patchy * (shadow + stubble))

    def _hair_noise(self, rng: np.random.Generator) -> Map:
        """Noise stretched along the direction of brow hairs, mirrored about the middle of the UV map."""
        size = self.canvas.size
        texel = self.canvas.mean_texel_mm
        steps = (np.arange(size) + 0.5 - size / 2) * texel
        x, y = np.meshgrid(np.abs(steps), steps)
        lean = rng.uniform(0.2, 0.6)
        across, along = (y + lean * x) / rng.uniform(0.9, 1.4), (x - lean * y) / 6.0
        cells = 64
        grid = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), dtype=np.float32))
        where = np.stack([along, across], -1).astype(np.float32) * (2 / cells)
        where = torch.from_numpy((where + 1) % 2 - 1)[None]
        return F.grid_sample(grid, where, mode="bilinear", padding_mode="reflection", align_corners=False)[0, 0].numpy()

    def _add_wrinkle_lines(self, rng: np.random.Generator, lines: Map) -> None:
        """Coloured lines where wrinkles would be, whether the skin has wrinkles there or not."""
        stage_make_up = rng.random() < 0.4
        beside = -0.5 * stage_make_up  # a highlight beside the shadow
        for family in self._families:
            if rng.random() > 0.35:
                continue
            tone = (BLOOD if rng.random() < 0.3 else MELANIN) * rng.uniform(0.15, 1.0)
            tone = tone if stage_make_up or rng.random() < 0.7 else -0.6 * tone
            for side in range(family.sides):
                for curve in family.sample_curves(rng, side, share=rng.random()):
                    self._paint_line(rng, lines, curve, tone, width_mm=rng.uniform(0.5, 1.8), beside=beside)

    def _add_tattoo(self, rng: np.random.Generator, lines: Map) -> None:
        """Strokes of ink at a random place, straight, bent and crossing."""
        canvas = self.canvas
        tone = np.array(INKS[int(rng.integers(len(INKS)))], np.float32) * rng.uniform(0.5, 1.0)
        middle = canvas.sample_points(rng, 1, canvas.rough_skin)
        for _ in range(int(rng.integers(2, 10)) if len(middle) else 0):
            start = middle + rng.normal(0, rng.uniform(3, 16), (1, 2)) / canvas.mean_texel_mm
            turns = np.cumsum(rng.normal(0, 0.35, 10)) + rng.uniform(0, 2 * np.pi)
            step = rng.uniform(0.7, 4.0) / canvas.mean_texel_mm
            steps = np.stack([np.cos(turns), np.sin(turns)], -1) * step
            curve = np.clip(start + steps.cumsum(0), 0, canvas.size - 1).astype(np.float32)
            self._paint_line(rng, lines, curve, tone, width_mm=rng.uniform(0.4, 1.2), beside=0.0)

    def _paint_line(
        self, rng: np.random.Generator, lines: Map, curve: Map, tone: Map, *, width_mm: float, beside: float
    ) -> None:
        """Add a line of colour `tone`, and `beside` times it in a parallel line."""
        stroke = self.canvas.stroke(curve, reach_mm=4 * width_mm)
        if stroke is None:
            return
        section = gaussian(stroke.across_mm, width_mm, stroke.texel_mm)
        if beside:
            shift = width_mm * 2.2 * rng.choice([-1, 1])
            section = section + beside * gaussian(stroke.across_mm - shift, width_mm * 1.2, stroke.texel_mm)
        lines[:, stroke.rows, stroke.columns] += np.multiply.outer(tone, section * taper(stroke.along))
