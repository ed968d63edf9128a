"""Skin drawn on the chart of a face model: relief in millimetres, and marks that are colour alone.

    age, actions ──► folds and lines ┐
    chance ──► bumps, pits, pores ───┴──► displacement
    chance ──► pigment, hairs, paint ──► texture offset

The two are drawn independently, and some of the marks follow the very curves of the folds. So what is dark is no
sign of what is deep; only shading is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mien.morphable import MorphableModel
from mien.texture import DetailMaps, TexelAtlas
from mien.training.synthetic.blemishes import BLOOD, MELANIN, BlemishPainter
from mien.training.synthetic.canvas import LandmarkOffset, Map, SkinCanvas, gaussian
from mien.training.synthetic.wrinkle_atlas import WRINKLES
from mien.training.synthetic.wrinkles import WrinkleFamily, taper
from mien.typing import Float, Tensor

DEEPEST_MM = 2.0
"""What crossing folds add up to saturates here."""

CHEEKS = (
    (LandmarkOffset(48, 18.0, 20.0), 14.0),
    (LandmarkOffset(48, 24.0, 2.0), 12.0),
    (LandmarkOffset(4, -8.0, 8.0), 10.0),
)
"""Where a face is fuller or hollower, and over how many millimetres."""


@dataclass(frozen=True)
class ReliefSettings:
    """How often things happen to a skin, and how strong they are."""

    flat_share: float = 0.2
    """Faces without any relief, whatever their marks say."""
    unmarked_share: float = 0.15
    """Faces without any marks, whatever their relief; with `flat_share` a few have neither."""
    young_share: float = 0.25
    """Faces younger than a fifth of the scale; the others' age is even."""
    fold_strength: float = 1.0
    """Multiplies the depth of all folds."""
    texture_mm: tuple[float, float] = (0.02, 0.08)
    """Standard deviation of pores and fine texture, on smooth and on rough skin."""
    fullness_mm: float = 0.5
    """Standard deviation of the cheeks' difference from the model, 15 to 30 mm broad."""
    bumps_share: float = 0.35
    """Faces with pimples or raised moles."""
    pits_share: float = 0.12
    """Faces with the scars of acne."""
    scar_share: float = 0.08
    """Faces with a scar."""


class ReliefPainter:
    """Draws skins on the chart of a model."""

    def __init__(self, model: MorphableModel, atlas: TexelAtlas, settings: ReliefSettings | None = None) -> None:
        self.settings = settings or ReliefSettings()
        self.canvas = SkinCanvas(model, atlas)
        self.families = [WrinkleFamily(self.canvas, fold) for fold in WRINKLES]
        self._marks = BlemishPainter(self.canvas, self.families)
        self._expression_names = model.expression_names
        canvas = self.canvas
        self._cheeks = [
            canvas.near([place], sigma_mm=sigma, sides=[left]) for place, sigma in CHEEKS for left in (False, True)
        ]
        self._oily = np.maximum(
            canvas.near([LandmarkOffset(30, 0.0, 4.0), LandmarkOffset(31, 8.0, 4.0)], sigma_mm=11.0),
            0.7 * canvas.near([LandmarkOffset(48, 14.0, 24.0)], sigma_mm=13.0),
        )
        self._spotty = np.maximum(
            canvas.near(
                [LandmarkOffset(48, 20.0, 15.0), LandmarkOffset(57, 6.0, -12.0), LandmarkOffset(48, 28.0, -8.0)],
                sigma_mm=16.0,
            ),
            0.6 * canvas.near([LandmarkOffset(27, 12.0, 48.0)], sigma_mm=20.0),
        )
        self._crepey = np.maximum(
            canvas.near([LandmarkOffset(48, 28.0, 10.0), LandmarkOffset(36, 6.0, -14.0)], sigma_mm=16.0),
            canvas.near([LandmarkOffset(36, 12.0, 0.0)], sigma_mm=10.0),
        )

    def draw(self, rng: np.random.Generator, *, expression: Float[Tensor, "*one E"] | None) -> DetailMaps:
        """One skin: the displacement in metres and the offset for a face of the mean's colours, batch of one.

        `expression` are coefficients of the model; its named actions deepen their folds.
        """
        settings = self.settings
        flat, unmarked = rng.random() < settings.flat_share, rng.random() < settings.unmarked_share
        age = rng.uniform(0, 0.2) if rng.random() < settings.young_share else rng.uniform(0.1, 1.0)
        # Both are always drawn, so that what a face has of one does not depend on whether it has the other.
        relief, colour = self._relief(rng, age, self._actions(expression))
        marks = self._marks.draw(rng)
        relief_mm = np.zeros_like(relief) if flat else relief
        offset = np.zeros_like(marks) if unmarked else marks
        if not flat and not unmarked:
            offset = offset + colour
        return DetailMaps(
            torch.from_numpy(np.ascontiguousarray(offset, dtype=np.float32))[None],
            torch.from_numpy(np.ascontiguousarray(relief_mm, dtype=np.float32))[None, None] * 1e-3,
        )

    def _actions(self, expression: Tensor | None) -> dict[str, float]:
        if expression is None:
            return {}
        strengths = expression.reshape(-1).clamp(0, 1).tolist()
        return dict(zip(self._expression_names, strengths, strict=True))

    def _relief(self, rng: np.random.Generator, age: float, actions: dict[str, float]) -> tuple[Map, Map]:
        """Height in millimetres, and the colour that bumps and scars have besides."""
        canvas, settings = self.canvas, self.settings
        height = np.zeros((canvas.size, canvas.size), np.float32)
        for family in self.families:
            family.draw(rng, height, age=age, actions=actions, strength=settings.fold_strength)
        height += self._texture(rng, age)
        height += self._fullness(rng)
        bumps, colour = self._bumps(rng)
        height = DEEPEST_MM * np.tanh((height + bumps) / DEEPEST_MM)
        return height * canvas.bare * (1 - 0.6 * canvas.parts["lips"]), colour * canvas.bare

    def _texture(self, rng: np.random.Generator, age: float) -> Map:
        """Pores, and on old skin a net of fine creases."""
        canvas = self.canvas
        fine = canvas.noise(rng, 1.0)[0]
        fine = fine - 0.5 * canvas.noise(rng, 3.0)[0]
        level = rng.uniform(*self.settings.texture_mm)
        texture = level * fine * (0.35 + 0.65 * self._oily)
        if age > 0.5:
            crease = 1 - np.abs(canvas.noise(rng, 4.0)[0]) * 2
            texture -= rng.uniform(0.1, 0.3) * (age - 0.5) * np.maximum(crease, 0) ** 2 * self._crepey
        return texture

    def _fullness(self, rng: np.random.Generator) -> Map:
        level = self.settings.fullness_mm
        common = rng.normal(0, level, len(self._cheeks) // 2).repeat(2)
        single = rng.normal(0, 0.4 * level, len(self._cheeks))
        total = sum(height * region for height, region in zip(common + single, self._cheeks, strict=True))
        return np.asarray(total, np.float32)

    def _bumps(self, rng: np.random.Generator) -> tuple[Map, Map]:
        """Pimples, raised moles, acne's pits and scars, and their colours."""
        canvas, settings = self.canvas, self.settings
        height = np.zeros((canvas.size, canvas.size), np.float32)
        colour = np.zeros((3, canvas.size, canvas.size), np.float32)
        if rng.random() < settings.bumps_share:
            pimples = canvas.scattered(rng, int(rng.integers(0, 14)), self._spotty)
            sigmas = rng.uniform(0.8, 1.6, len(pimples)).astype(np.float32)
            height += canvas.spots(pimples, sigmas, rng.uniform(0.2, 0.8, len(pimples)).astype(np.float32))
            redness = canvas.spots(pimples, 1.6 * sigmas, rng.uniform(0.2, 1, len(pimples)).astype(np.float32))
            colour += np.multiply.outer(0.7 * BLOOD, redness)
            moles = canvas.scattered(rng, int(rng.integers(0, 4)), canvas.bare)
            sigmas = rng.uniform(0.9, 2.2, len(moles)).astype(np.float32)
            height += canvas.spots(moles, sigmas, rng.uniform(0.4, 1.4, len(moles)).astype(np.float32))
            brown = canvas.spots(moles, sigmas, rng.uniform(0, 1, len(moles)).astype(np.float32))
            colour += np.multiply.outer(0.9 * MELANIN, brown)
        if rng.random() < settings.pits_share:
            pits = canvas.scattered(rng, int(rng.integers(20, 140)), self._spotty**2)
            sigmas = rng.uniform(0.6, 1.3, len(pits)).astype(np.float32)
            height -= canvas.spots(pits, sigmas, rng.uniform(0.1, 0.5, len(pits)).astype(np.float32))
        if rng.random() < settings.scar_share:
            self._scar(rng, height, colour)
        return height, colour

    def _scar(self, rng: np.random.Generator, height: Map, colour: Map) -> None:
        canvas = self.canvas
        start = canvas.scattered(rng, 1, canvas.bare)
        if len(start) == 0:
            return
        turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(8, 35) / canvas.mean_texel_mm
        steps = np.linspace(-0.5, 0.5, 8)[:, None] * length
        bend = (steps / length) ** 2 * rng.normal(0, 0.4) * length
        axis, normal = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        curve = (start + steps * axis + bend * normal).astype(np.float32)
        stroke = canvas.stroke(curve, reach_mm=6.0)
        if stroke is None:
            return
        part = gaussian(stroke.across_mm, rng.uniform(0.6, 1.5), stroke.texel_mm) * taper(stroke.along)
        height[stroke.rows, stroke.columns] += part * rng.choice([-1, 1]) * rng.uniform(0.2, 0.8)
        paleness, redness = rng.uniform(-1.5, 2.0), 0.2 * rng.random()
        tint = paleness * np.array((0.05, 0.02, 0.03), np.float32) + redness * BLOOD
        colour[:, stroke.rows, stroke.columns] += np.multiply.outer(tint, part)
