"""Paints skin on the UV map of a face model: relief in millimetres, and blemishes that are colour alone.

    age, blendshapes ──► wrinkles ────────────┐
    rng ──► bumps, pits, pores, fullness ─────┴──► displacement
    rng ──► pigment, redness, hair, paint ───────► texture offset

The two are sampled independently, and some blemishes follow the same curves as wrinkles. Therefore dark texels do not
show where the skin is deep; only shading does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mien.morphable import MorphableModel
from mien.texture import DetailMaps, TexelAtlas
from mien.training.synthetic.blemishes import BLOOD, MELANIN, BlemishPainter
from mien.training.synthetic.canvas import LandmarkOffset, Map, SkinCanvas, gaussian, uniform
from mien.training.synthetic.wrinkle_atlas import WRINKLES
from mien.training.synthetic.wrinkles import WrinkleFamily, taper
from mien.typing import Float, Tensor

DEEPEST_MM = 2.0
"""Limit of the relief where wrinkles and bumps add up."""

CHEEKS = (
    (LandmarkOffset(48, 18.0, 20.0), 14.0),
    (LandmarkOffset(48, 24.0, 2.0), 12.0),
    (LandmarkOffset(4, -8.0, 8.0), 10.0),
)
"""Centres and radii in millimetres of the regions where a face is fuller or hollower than the model."""


@dataclass(frozen=True)
class ReliefSettings:
    """Frequency and strength of relief and blemishes."""

    flat_share: float = 0.2
    """Share of the faces without any relief, independent of their blemishes."""
    unblemished_share: float = 0.15
    """Share of the faces without any blemishes, independent of their relief."""
    young_share: float = 0.25
    """Share of the faces with an age below 0.2, where 0 is 20 years and 1 is 80; the others are uniform from 0.1."""
    wrinkle_strength: float = 1.0
    """Multiplies the depth of all wrinkles."""
    texture_mm: tuple[float, float] = (0.02, 0.08)
    """Range of the standard deviation of pores and fine texture, from smooth to rough skin."""
    fullness_mm: float = 0.5
    """Standard deviation of the cheeks' difference from the model, over 15 to 30 mm."""
    bumps_share: float = 0.35
    """Share of the faces with pimples or raised moles."""
    pits_share: float = 0.12
    """Share of the faces with acne scars."""
    scar_share: float = 0.08
    """Share of the faces with a scar."""


class ReliefPainter:
    """Paints skins, relief and blemishes, on the UV map of a model.

    Args:
        model: The face model.
        atlas: Its UV map, which sets the size in texels.
        settings: Frequency and strength.
    """

    def __init__(self, model: MorphableModel, atlas: TexelAtlas, settings: ReliefSettings | None = None) -> None:
        self.settings = settings or ReliefSettings()
        self.canvas = canvas = SkinCanvas(model, atlas)
        self.families = [WrinkleFamily(canvas, wrinkle) for wrinkle in WRINKLES]
        self._blemishes = BlemishPainter(canvas, self.families)
        self._expression_names = model.expression_names
        region = canvas.soft_region
        self._cheeks = [
            region([centre], sigma_mm=sigma, sides=[left]) for centre, sigma in CHEEKS for left in (False, True)
        ]
        self._pore_region = np.maximum(
            region([LandmarkOffset(30, 0.0, 4.0), LandmarkOffset(31, 8.0, 4.0)], sigma_mm=11.0),
            0.7 * region([LandmarkOffset(48, 14.0, 24.0)], sigma_mm=13.0),
        )
        self._acne_region = np.maximum(
            region(
                [LandmarkOffset(48, 20.0, 15.0), LandmarkOffset(57, 6.0, -12.0), LandmarkOffset(48, 28.0, -8.0)],
                sigma_mm=16.0,
            ),
            0.6 * region([LandmarkOffset(27, 12.0, 48.0)], sigma_mm=20.0),
        )
        self._crease_region = np.maximum(
            region([LandmarkOffset(48, 28.0, 10.0), LandmarkOffset(36, 6.0, -14.0)], sigma_mm=16.0),
            region([LandmarkOffset(36, 12.0, 0.0)], sigma_mm=10.0),
        )

    def paint(self, rng: np.random.Generator, *, expression: Float[Tensor, "*one E"] | None) -> DetailMaps:
        """The detail maps of one skin.

        Args:
            rng: The only source of randomness.
            expression: Coefficients of the model; its named blendshapes deepen their wrinkles. None for a neutral face.

        Returns:
            Displacement in metres, and texture offset for a face with the mean's colours; batch of one.
        """
        settings = self.settings
        flat, unblemished = rng.random() < settings.flat_share, rng.random() < settings.unblemished_share
        age = rng.uniform(0, 0.2) if rng.random() < settings.young_share else rng.uniform(0.1, 1.0)
        # Both are always sampled, so that one of them does not depend on whether the face has the other.
        relief, colour = self._relief(rng, age, self._blendshapes(expression))
        blemishes = self._blemishes.paint(rng)
        relief_mm = np.zeros_like(relief) if flat else relief
        offset = np.zeros_like(blemishes) if unblemished else blemishes
        if not flat and not unblemished:
            offset = offset + colour
        return DetailMaps(
            torch.from_numpy(np.ascontiguousarray(offset, dtype=np.float32))[None],
            torch.from_numpy(np.ascontiguousarray(relief_mm, dtype=np.float32))[None, None] * 1e-3,
        )

    def _blendshapes(self, expression: Tensor | None) -> dict[str, float]:
        """Strengths by name, 0 to 1."""
        if expression is None:
            return {}
        strengths = expression.reshape(-1).clamp(0, 1).tolist()
        return dict(zip(self._expression_names, strengths, strict=True))

    def _relief(self, rng: np.random.Generator, age: float, blendshapes: dict[str, float]) -> tuple[Map, Map]:
        """Height in millimetres, and the colours of bumps and scars."""
        canvas, strength = self.canvas, self.settings.wrinkle_strength
        height = np.zeros((canvas.size, canvas.size), np.float32)
        for family in self.families:
            family.paint(rng, height, age=age, blendshapes=blendshapes, strength=strength)
        height += self._texture(rng, age)
        height += self._fullness(rng)
        bumps, colour = self._bumps(rng)
        height = DEEPEST_MM * np.tanh((height + bumps) / DEEPEST_MM)
        return height * canvas.rough_skin * (1 - 0.6 * canvas.parts["lips"]), colour * canvas.rough_skin

    def _texture(self, rng: np.random.Generator, age: float) -> Map:
        """Pores, and fine creases on old skin."""
        canvas = self.canvas
        fine = canvas.noise(rng, 1.0)[0]
        fine = fine - 0.5 * canvas.noise(rng, 3.0)[0]
        level = rng.uniform(*self.settings.texture_mm)
        texture = level * fine * (0.35 + 0.65 * self._pore_region)
        if age > 0.5:
            crease = 1 - np.abs(canvas.noise(rng, 4.0)[0]) * 2
            texture -= rng.uniform(0.1, 0.3) * (age - 0.5) * np.maximum(crease, 0) ** 2 * self._crease_region
        return texture

    def _fullness(self, rng: np.random.Generator) -> Map:
        """Broad differences of the cheeks from the model, mostly the same on both sides."""
        level = self.settings.fullness_mm
        common = rng.normal(0, level, len(self._cheeks) // 2).repeat(2)
        single = rng.normal(0, 0.4 * level, len(self._cheeks))
        total = sum(height * region for height, region in zip(common + single, self._cheeks, strict=True))
        return np.asarray(total, np.float32)

    def _bumps(self, rng: np.random.Generator) -> tuple[Map, Map]:
        """Pimples, raised moles, acne scars and a scar: heights in millimetres, and colours."""
        canvas, settings = self.canvas, self.settings
        height = np.zeros((canvas.size, canvas.size), np.float32)
        colour = np.zeros((3, canvas.size, canvas.size), np.float32)
        if rng.random() < settings.bumps_share:
            self._add_pimples(rng, height, colour)
            self._add_moles(rng, height, colour)
        if rng.random() < settings.pits_share:
            pits = canvas.sample_points(rng, int(rng.integers(20, 140)), self._acne_region**2)
            sigmas = uniform(rng, 0.6, 1.3, len(pits))
            height -= canvas.spots(pits, sigmas, uniform(rng, 0.1, 0.5, len(pits)))
        if rng.random() < settings.scar_share:
            self._add_scar(rng, height, colour)
        return height, colour

    def _add_pimples(self, rng: np.random.Generator, height: Map, colour: Map) -> None:
        canvas = self.canvas
        pimples = canvas.sample_points(rng, int(rng.integers(0, 14)), self._acne_region)
        sigmas = uniform(rng, 0.8, 1.6, len(pimples))
        height += canvas.spots(pimples, sigmas, uniform(rng, 0.2, 0.8, len(pimples)))
        redness = canvas.spots(pimples, 1.6 * sigmas, uniform(rng, 0.2, 1.0, len(pimples)))
        colour += np.multiply.outer(0.7 * BLOOD, redness)

    def _add_moles(self, rng: np.random.Generator, height: Map, colour: Map) -> None:
        canvas = self.canvas
        moles = canvas.sample_points(rng, int(rng.integers(0, 4)), canvas.rough_skin)
        sigmas = uniform(rng, 0.9, 2.2, len(moles))
        height += canvas.spots(moles, sigmas, uniform(rng, 0.4, 1.4, len(moles)))
        brown = canvas.spots(moles, sigmas, uniform(rng, 0.0, 1.0, len(moles)))
        colour += np.multiply.outer(0.9 * MELANIN, brown)

    def _add_scar(self, rng: np.random.Generator, height: Map, colour: Map) -> None:
        canvas = self.canvas
        start = canvas.sample_points(rng, 1, canvas.rough_skin)
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
