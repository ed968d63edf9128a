"""Paints the wrinkles of one face, sampled from the families of `wrinkle_atlas`."""

from __future__ import annotations

import numpy as np

from mien.training.synthetic.canvas import Map, SkinCanvas, gaussian
from mien.training.synthetic.wrinkle_atlas import Wrinkle

AGE_EXPONENT = 1.2
"""Exponent of a wrinkle's strength as a function of the age since its onset."""
YOUNG_DYNAMIC_SHARE = 0.3
"""Share of a dynamic wrinkle's strength that the youngest skin shows while the blendshape is active."""
MIN_STRENGTH = 0.06
"""Strength below which a wrinkle is left out."""


class WrinkleFamily:
    """The wrinkles of one kind on the UV map of one model.

    Args:
        canvas: The UV map.
        wrinkle: The kind.
    """

    def __init__(self, canvas: SkinCanvas, wrinkle: Wrinkle) -> None:
        self.wrinkle, self.canvas = wrinkle, canvas
        self._left = (False,) if wrinkle.crosses_midline else (False, True)
        self.sides = len(self._left)
        """1 for wrinkles that cross the midline, else 2: right and left."""
        self._edges = [
            tuple(
                canvas.curve(offsets, left=left, crosses_midline=wrinkle.crosses_midline)
                for offsets in (wrinkle.first, wrinkle.last)
            )
            for left in self._left
        ]
        self._bulges = [self._bulging_side(k) for k in range(self.sides)]

    def _bulging_side(self, side: int) -> float:
        """1 if the bulge is on the left of the curves in the UV map, else -1."""
        if self.wrinkle.bulges_to is None:
            return 1.0
        target = self.canvas.curve([self.wrinkle.bulges_to] * 2, left=self._left[side])[0]
        first, last = self._edges[side]
        middle = (first + last) / 2
        k = len(middle) // 2
        direction, towards = middle[k + 1] - middle[k - 1], target - middle[k]
        return 1.0 if direction[1] * towards[0] - direction[0] * towards[1] > 0 else -1.0

    def paint(
        self, rng: np.random.Generator, height_mm: Map, *, age: float, blendshapes: dict[str, float], strength: float
    ) -> None:
        """Add the wrinkles of one face to a height map.

        Args:
            rng: The only source of randomness.
            height_mm: The map, changed in place.
            age: From 0 (20 years) to 1 (80 years).
            blendshapes: Strengths of the active blendshapes by name, 0 to 1.
            strength: Multiplies the depth.
        """
        person = float(np.exp(rng.normal(0, 0.45)))
        for side, left in enumerate(self._left):
            level = self._strength(age, blendshapes, left=left) * person * float(np.exp(rng.normal(0, 0.15)))
            if level < MIN_STRENGTH:
                continue
            level = min(level, 1.2)
            for curve in self.sample_curves(rng, side, share=level):
                low, high = self.wrinkle.depth_mm
                depth = min((low + (high - low) * level) * float(np.exp(rng.normal(0, 0.25))), 1.3 * high)
                self._paint_line(rng, height_mm, curve, side, depth_mm=depth * strength)

    def _strength(self, age: float, blendshapes: dict[str, float], *, left: bool) -> float:
        """Permanent strength by age, plus dynamic strength by the blendshapes of this side."""
        wrinkle = self.wrinkle
        permanent = wrinkle.age_strength * max((age - wrinkle.onset) / (1 - wrinkle.onset), 0) ** AGE_EXPONENT
        side = "Left" if left else "Right"
        dynamic = 0.0
        for name, gain in wrinkle.blendshapes.items():
            sided = [name + side] if not wrinkle.crosses_midline else [name + "Left", name + "Right"]
            dynamic += gain * max(blendshapes.get(key, 0.0) for key in (name, *sided))
        return permanent + dynamic * (YOUNG_DYNAMIC_SHARE + (1 - YOUNG_DYNAMIC_SHARE) * age**0.7)

    def sample_curves(self, rng: np.random.Generator, side: int, *, share: float) -> list[Map]:
        """Random curves of the family on one side.

        Args:
            rng: The only source of randomness.
            side: 0, or 1 for the left side.
            share: Expected number of curves between the fewest (0) and the most (1) of the family.

        Returns:
            Each curve as texel columns and rows (N, 2).
        """
        wrinkle, canvas = self.wrinkle, self.canvas
        low, high = wrinkle.count
        count = int(np.clip(round(low + (high - low) * share + rng.normal(0, 0.6)), low, high))
        first, last = self._edges[side]
        positions = (np.arange(count) + 0.5 + rng.uniform(-0.35, 0.35, count)) / count
        curves = []
        for position in positions:
            curve = first + (last - first) * position
            columns, rows = canvas.texel_indices(curve).T
            wander = wrinkle.wander_mm / canvas.texel_mm[rows, columns][:, None]
            curves += _trimmed(rng, curve + _drift(rng, len(curve)) * wander, wrinkle)
        return curves

    def _paint_line(self, rng: np.random.Generator, height_mm: Map, curve: Map, side: int, *, depth_mm: float) -> None:
        width_mm = rng.uniform(*self.wrinkle.width_mm)
        reach = max(abs(lobe.shift) + 2.7 * lobe.width for lobe in self.wrinkle.section) * width_mm
        stroke = self.canvas.stroke(curve, reach_mm=reach)
        if stroke is None:
            return
        across = stroke.across_mm * self._bulges[side]
        section = np.zeros_like(across)
        for lobe in self.wrinkle.section:
            section += lobe.height * gaussian(across - lobe.shift * width_mm, lobe.width * width_mm, stroke.texel_mm)
        uneven = np.interp(stroke.along, np.linspace(0, 1, 7), np.exp(rng.normal(0, 0.2, 7)))
        line = depth_mm * section * uneven * taper(stroke.along, self.wrinkle.taper_share)
        height_mm[stroke.rows, stroke.columns] += line.astype(np.float32)


def taper(along: Map, share: float = 0.25) -> Map:
    """Factor along a line: 1, falling smoothly to 0 over a share of its length at both ends.

    Args:
        along: Position along the line, 0 to 1.
        share: Share of the length of each end.
    """
    ends = np.clip(np.minimum(along, 1 - along) / share, 0, 1)
    return ends * ends * (3 - 2 * ends)


def _drift(rng: np.random.Generator, count: int) -> Map:
    """Smooth random displacements of a curve's points, with a standard deviation of 0.7 at four nodes."""
    nodes = rng.normal(0, 1, (4, 2))
    position = np.linspace(0, 3, count)
    return np.stack([np.interp(position, np.arange(4), nodes[:, k]) for k in range(2)], -1).astype(np.float32) * 0.7


def _trimmed(rng: np.random.Generator, curve: Map, wrinkle: Wrinkle) -> list[Map]:
    """The curve with random trims at both ends; in two pieces if it has a gap."""
    start, end = rng.uniform(0, wrinkle.max_trim), 1 - rng.uniform(0, wrinkle.max_trim)
    if rng.random() >= wrinkle.gap_probability:
        return [_section(curve, start, end)]
    gap, size = rng.uniform(0.35, 0.65), rng.uniform(-0.08, 0.06)
    return [_section(curve, start, gap - size), _section(curve, gap + size, end)]


def _section(curve: Map, start: float, end: float) -> Map:
    position = np.linspace(start, end, len(curve)) * (len(curve) - 1)
    steps = np.arange(len(curve))
    return np.stack([np.interp(position, steps, curve[:, k]) for k in range(2)], -1).astype(np.float32)
