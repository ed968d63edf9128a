"""An endless stream of drawn faces whose fine relief and skin marks are known texel by texel.

    seed, number ──► person, light, camera ┐
                 └─► relief, marks ────────┴─► lit texture ──► crop ──► surroundings, covers, camera, JPEG

The picture is that of the true maps: (albedo + offset) · shading(normal of the displaced surface). Only the dimness
of deep folds, where light hardly reaches, is part of the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from mien.camera import to_camera_axes
from mien.morphable import MorphableModel
from mien.perception import FaceMesh
from mien.rendering import FaceSurface, build_surface, draw_texture, sample_map
from mien.texture import DetailMaps, TexelAtlas, texel_face
from mien.training.data.batch import FaceBatch
from mien.training.synthetic.population import FaceSamples, Population, SkinBank, View
from mien.training.synthetic.relief import ReliefPainter, ReliefSettings
from mien.training.synthetic.scene_cache import SceneCache, composed
from mien.typing import Float, Tensor

VIEW = View(yaw=0.25, largest_yaw=0.61, directed_share=0.5)
"""Within 35 degrees both sides of a face are seen well enough to judge its relief."""
DIMMED_SHARE, DIMMEST = 0.7, 0.35
"""How often folds are darker than their shading says, and by how much at most."""
CAVITY_MM, CAVITY_DEPTH_MM = 6.0, 0.4
"""The neighbourhood that a cavity is deep against, and the depth at which it is fully dim."""
SKIN_BLUR_MM = 10.0
"""Finer structure of a worn skin is left out: it holds the wrinkles of its owner, which are not in the truth."""
PALEST, DARKEST = 0.98, 0.01
TONES = (0.3, 1.3)
"""Marks are drawn for the mean's colours; on other skins they are so much weaker or stronger."""
SUPERSAMPLING = 2
"""Side of the grid of samples in a pixel."""


class DetailedFaces:
    """Draws faces of a model with relief and marks, in crops of `size` pixels with maps of `map_size` texels.

    Like `SyntheticFaces`: a face is a function of seed and number alone, `pool` keeps so many of them, and `mesh` finds
    their points, in crops of this size.
    """

    def __init__(
        self,
        model: MorphableModel,
        *,
        size: int,
        map_size: int,
        seed: int = 0,
        skins: SkinBank | None = None,
        pool: int = 0,
        jitter: float = 1.0,
        relief: ReliefSettings | None = None,
        view: View = VIEW,
        mesh: FaceMesh | None = None,
    ) -> None:
        self.model, self.size, self.seed = model, size, seed
        self.atlas = TexelAtlas.of(model, map_size)
        self._painter = ReliefPainter(model, self.atlas, relief)
        self._population = Population(model, size=size, skins=skins, jitter=jitter, view=view)
        self._studio = SceneCache(self.draw, size=size, seed=seed, pool=pool, mesh=mesh)
        self._texel_mm = self._painter.canvas.mean_texel_mm
        masks = model.masks
        features = torch.stack([masks.lips, masks.brows, masks.eyes, masks.mouth]).amax(0)
        self._plain = self.atlas.interpolate(1 - features[None, :, None])
        self._mean_tone = self._tone(self.atlas.interpolate(model.albedo_mean[None]))

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as some camera shows them, with `truth` and `maps`."""
        return self._studio.batch(numbers)

    @torch.no_grad()
    def draw(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers and what is around and before them, not yet photographed."""
        sample_faces = self._population.sample_faces(
            [np.random.default_rng((self.seed, 2, number)) for number in numbers]
        )
        surface = build_surface(self.model, sample_faces.coefficients)
        base = texel_face(self.atlas, self.model, sample_faces.coefficients, surface)
        maps = self._maps(sample_faces, base.albedo)
        texture = self._dimmed(sample_faces, base.colours(maps.texture_offset, maps.displacement), maps)
        images, coverage = self._drawn(sample_faces, surface, maps, texture)
        names = tuple(f"detailed-{self.seed}-{number}" for number in numbers)
        batch = composed(
            self.model,
            sample_faces,
            vertices_camera=surface.vertices_camera,
            images=images,
            coverage=coverage,
            names=names,
        )
        return replace(batch, maps=maps)

    def _maps(self, sample_faces: FaceSamples, albedo: Float[Tensor, "B 3 S S"]) -> DetailMaps:
        """The true maps: offsets are what albedo and offset together, held to what colours can be, differ by."""
        expressions = sample_faces.coefficients.expression
        skins = DetailMaps.join(
            [
                self._painter.draw(rng, expression=expression)
                for rng, expression in zip(sample_faces.rngs, expressions, strict=True)
            ]
        )
        tone = (self._tone(albedo) / self._mean_tone).clamp(*TONES)
        marks = skins.texture_offset * tone[:, None, None, None]
        worn = self._softened(self.atlas.interpolate(sample_faces.offset))
        coloured = (albedo + worn + marks).clamp(DARKEST, PALEST)
        return DetailMaps((coloured - albedo) * self.atlas.valid, skins.displacement)

    def _tone(self, albedo: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B"]:
        plain = self._plain
        return (albedo * plain).sum((1, 2, 3)) / (3 * plain.sum())

    def _softened(self, offset: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """The broad part on skin, all of it in brows, lips and eyes."""
        plain = self._plain
        step = max(round(SKIN_BLUR_MM / 2 / self._texel_mm), 1)
        broad = _broad(offset * plain, step) / _broad(plain, step).clamp(min=1e-3)
        return torch.lerp(offset, broad, plain)

    def _dimmed(
        self, sample_faces: FaceSamples, lit: Float[Tensor, "B 3 S S"], maps: DetailMaps
    ) -> Float[Tensor, "B 3 S S"]:
        """Darker in hollows, and continued beyond the chart."""
        dimness = [rng.uniform(0, DIMMEST) * (rng.random() < DIMMED_SHARE) for rng in sample_faces.rngs]
        depth_mm = maps.displacement * 1000
        below = _broad(depth_mm, max(round(CAVITY_MM / 2 / self._texel_mm), 1)) - depth_mm
        cavity = (below / CAVITY_DEPTH_MM).clamp(0, 1)
        return self.atlas.dilate(lit * (1 - torch.tensor(dimness, dtype=torch.float32).view(-1, 1, 1, 1) * cavity))

    def _drawn(
        self, sample_faces: FaceSamples, surface: FaceSurface, maps: DetailMaps, texture: Float[Tensor, "B 3 S S"]
    ) -> tuple[Float[Tensor, "B 3 C C"], Float[Tensor, "B C C"]]:
        """The faces' colours, and how much of each pixel they cover."""
        height = sample_map(maps.displacement, self.model.uv)
        outwards = to_camera_axes(surface.normals)
        displaced = surface.vertices_camera + sample_faces.coefficients.pose.scale[:, None, None] * height * outwards
        fine = sample_faces.camera.resized(SUPERSAMPLING * self.size)
        image, covered = draw_texture(self.model, displaced, fine, texture=texture)
        image, coverage = F.avg_pool2d(image, SUPERSAMPLING), F.avg_pool2d(covered[:, None], SUPERSAMPLING)
        return image / coverage.clamp(min=1e-3), coverage[:, 0]


def _broad(maps: Float[Tensor, "B C S S"], step: int) -> Float[Tensor, "B C S S"]:
    """What is left of maps on a grid of so many texels."""
    coarse = F.avg_pool2d(maps, step, ceil_mode=True, count_include_pad=False)
    coarse = F.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
    return F.interpolate(coarse, size=maps.shape[-2:], mode="bilinear", align_corners=False)
