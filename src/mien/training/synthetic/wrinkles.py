"""Lines of one face out of the families of folds that `anatomy` describes."""

from __future__ import annotations

import numpy as np

from mien.training.synthetic.canvas import Map, SkinCanvas, gaussian
from mien.training.synthetic.wrinkle_atlas import Wrinkle

GROWTH = 1.2
"""Exponent of a fold's strength over the age past its onset."""
UNFOLDED_SHARE = 0.3
"""Of a dynamic fold that even the youngest skin shows while an action lasts."""
TRACE = 0.06
"""Strength below which a fold is not there."""


class WrinkleFamily:
    """The lines of one kind on one model's chart."""

    def __init__(self, canvas: SkinCanvas, fold: Wrinkle) -> None:
        self.fold, self.canvas = fold, canvas
        self.sides = 1 if fold.spans else 2
        self._sides = (False,) if fold.spans else (False, True)
        self._edges = [
            tuple(canvas.curve(places, left=left, spans=fold.spans) for places in (fold.first, fold.last))
            for left in self._sides
        ]
        self._bulges = [self._bulging_side(k) for k in range(len(self._sides))]

    def _bulging_side(self, side: int) -> float:
        """1 where the bulge lies on the left of the curves in the chart, else -1."""
        if self.fold.bulges_to is None:
            return 1.0
        target = self.canvas.curve([self.fold.bulges_to, self.fold.bulges_to], left=self._sides[side])[0]
        first, last = self._edges[side]
        middle = (first + last) / 2
        k = len(middle) // 2
        direction, towards = middle[k + 1] - middle[k - 1], target - middle[k]
        return 1.0 if direction[1] * towards[0] - direction[0] * towards[1] > 0 else -1.0

    def draw(
        self, rng: np.random.Generator, height_mm: Map, *, age: float, actions: dict[str, float], strength: float
    ) -> None:
        """Add the lines of one face to a height map; age from 0 (twenty years) to 1 (eighty)."""
        personal = float(np.exp(rng.normal(0, 0.45)))
        for side, left in enumerate(self._sides):
            level = self._strength(age, actions, left=left) * personal * float(np.exp(rng.normal(0, 0.15)))
            if level < TRACE:
                continue
            level = min(level, 1.2)
            for curve in self.curves(rng, side, share=level):
                low, high = self.fold.depth_mm
                depth = min((low + (high - low) * level) * float(np.exp(rng.normal(0, 0.25))), 1.3 * high)
                self._line(rng, height_mm, curve, side, depth_mm=depth * strength)

    def _strength(self, age: float, actions: dict[str, float], *, left: bool) -> float:
        fold = self.fold
        lasting = fold.lasting * max((age - fold.onset) / (1 - fold.onset), 0) ** GROWTH
        side = "Left" if left else "Right"
        moved = 0.0
        for name, gain in fold.actions.items():
            sided = [name + side] if not fold.spans else [name + "Left", name + "Right"]
            moved += gain * max(actions.get(key, 0.0) for key in (name, *sided))
        return lasting + moved * (UNFOLDED_SHARE + (1 - UNFOLDED_SHARE) * age**0.7)

    def curves(self, rng: np.random.Generator, side: int, *, share: float) -> list[Map]:
        """Curves of the family on one side; a larger share of those that it has at most."""
        fold, canvas = self.fold, self.canvas
        low, high = fold.count
        count = int(np.clip(round(low + (high - low) * share + rng.normal(0, 0.6)), low, high))
        first, last = self._edges[side]
        places = (np.arange(count) + 0.5 + rng.uniform(-0.35, 0.35, count)) / count
        found = []
        for place in places:
            curve = first + (last - first) * place
            columns, rows = canvas.at(curve).T
            wander = fold.wander_mm / canvas.texel_mm[rows, columns][:, None]
            found += _pieces(rng, curve + _drift(rng, len(curve)) * wander, fold)
        return found

    def _line(self, rng: np.random.Generator, height_mm: Map, curve: Map, side: int, *, depth_mm: float) -> None:
        width_mm = rng.uniform(*self.fold.width_mm)
        reach = max(abs(lobe.shift) + 2.7 * lobe.width for lobe in self.fold.section) * width_mm
        stroke = self.canvas.stroke(curve, reach_mm=reach)
        if stroke is None:
            return
        across = stroke.across_mm * self._bulges[side]
        section = np.zeros_like(across)
        for lobe in self.fold.section:
            section += lobe.height * gaussian(across - lobe.shift * width_mm, lobe.width * width_mm, stroke.texel_mm)
        uneven = np.interp(stroke.along, np.linspace(0, 1, 7), np.exp(rng.normal(0, 0.2, 7)))
        part = depth_mm * section * uneven * taper(stroke.along, self.fold.ends)
        height_mm[stroke.rows, stroke.columns] += part.astype(np.float32)


def taper(along: Map, share: float = 0.25) -> Map:
    """1 along a line, running out over a share of its length at both ends."""
    ends = np.clip(np.minimum(along, 1 - along) / share, 0, 1)
    return ends * ends * (3 - 2 * ends)


def _drift(rng: np.random.Generator, count: int) -> Map:
    """Smooth displacements of a curve's points, of unit size."""
    nodes = rng.normal(0, 1, (4, 2))
    place = np.linspace(0, 3, count)
    return np.stack([np.interp(place, np.arange(4), nodes[:, k]) for k in range(2)], -1).astype(np.float32) * 0.7


def _pieces(rng: np.random.Generator, curve: Map, fold: Wrinkle) -> list[Map]:
    """The curve, not quite from end to end; in two pieces where it is broken."""
    start, end = rng.uniform(0, fold.shortened), 1 - rng.uniform(0, fold.shortened)
    if rng.random() >= fold.broken:
        return [_part(curve, start, end)]
    gap, size = rng.uniform(0.35, 0.65), rng.uniform(-0.08, 0.06)
    return [_part(curve, start, gap - size), _part(curve, gap + size, end)]


def _part(curve: Map, start: float, end: float) -> Map:
    place = np.linspace(start, end, len(curve)) * (len(curve) - 1)
    steps = np.arange(len(curve))
    return np.stack([np.interp(place, steps, curve[:, k]) for k in range(2)], -1).astype(np.float32)
