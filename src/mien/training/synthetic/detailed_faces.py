"""An endless stream of synthetic faces whose fine relief and skin blemishes are known per texel.

    seed, number ──► person, light, camera ─┐
                 └─► relief, blemishes ─────┴─► lit texture ──► crop ──► background, occluders, camera simulation

The image is rendered from the ground-truth maps: (albedo + offset) · shading(normal of the displaced surface). Only the
darkening of deep hollows, where little light arrives, is in the image and not in the maps.
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
from mien.training.synthetic.population import FaceSamples, Population, SkinBank, ViewDistribution
from mien.training.synthetic.relief import ReliefPainter, ReliefSettings
from mien.training.synthetic.scene_cache import SceneCache, compose_batch
from mien.typing import Float, Tensor

DETAIL_VIEW = ViewDistribution(yaw_std_rad=0.25, max_yaw_rad=0.61, directional_share=0.5)
"""Within 35 degrees both sides of a face are visible well enough to judge its relief."""
DARKENED_SHARE = 0.7
"""Share of the faces whose hollows are darker than their shading."""
MAX_DARKENING = 0.35
"""Largest loss of brightness in a hollow."""
HOLLOW_RADIUS_MM = 6.0
"""Size of the neighbourhood that the depth of a hollow is measured against."""
HOLLOW_DEPTH_MM = 0.4
"""Depth at which the darkening is complete."""
SKIN_BLUR_MM = 10.0
"""Finer structure of a real person's skin is removed: it shows that person's wrinkles, which are not in the maps."""
ALBEDO_RANGE = (0.01, 0.98)
TONE_RANGE = (0.3, 1.3)
"""Blemishes are made for the mean skin colour. On other skins they are scaled by its relative brightness, within this
range."""
SUPERSAMPLING = 2
"""Samples per pixel along each axis."""


class DetailedFaces:
    """Renders faces of a model with ground-truth detail maps.

    Args:
        model: The face model.
        size: Side of the crops, pixels.
        map_size: Side of the maps, texels.
        seed: Decides all faces of the stream.
        skins: Real skin colours for most of the faces.
        pool: Number of different scenes, kept in memory (`SceneCache`); 0 makes every face a new scene.
        jitter: Multiplies the random shift and size of the crops.
        relief: Frequency and strength of relief and blemishes.
        view: How faces are turned and lit.
        mesh: Network that detects `detected_px`, in crops of `size`; without it they equal `gt_px`.
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
        view: ViewDistribution = DETAIL_VIEW,
        mesh: FaceMesh | None = None,
    ) -> None:
        self.model, self.size, self.seed = model, size, seed
        self.atlas = TexelAtlas.of(model, map_size)
        self._painter = ReliefPainter(model, self.atlas, relief)
        self._population = Population(model, size=size, skins=skins, jitter=jitter, view=view)
        self._scenes = SceneCache(self.render, size=size, seed=seed, pool=pool, mesh=mesh)
        self._texel_mm = self._painter.canvas.mean_texel_mm
        masks = model.masks
        features = torch.stack([masks.lips, masks.brows, masks.eyes, masks.mouth]).amax(0)
        self._plain_skin = self.atlas.interpolate(1 - features[None, :, None])
        self._mean_tone = self._tone(self.atlas.interpolate(model.albedo_mean[None]))

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as simulated cameras show them, with `gt` and `maps`."""
        return self._scenes.batch(numbers)

    @torch.no_grad()
    def render(self, numbers: Sequence[int]) -> FaceBatch:
        """The scenes with these numbers, before the camera simulation."""
        samples = self._population.sample_faces([np.random.default_rng((self.seed, 2, number)) for number in numbers])
        surface = build_surface(self.model, samples.coefficients)
        base = texel_face(self.atlas, self.model, samples.coefficients, surface)
        maps = self._make_maps(samples, base.albedo)
        texture = self._darkened(samples, base.colours(maps.texture_offset, maps.displacement), maps)
        images, coverage = self._rasterized(samples, surface, maps, texture)
        batch = compose_batch(
            self.model,
            samples,
            vertices_camera=surface.vertices_camera,
            images=images,
            coverage=coverage,
            names=tuple(f"detailed-{self.seed}-{number}" for number in numbers),
        )
        return replace(batch, maps=maps)

    def _make_maps(self, samples: FaceSamples, albedo: Float[Tensor, "B 3 S S"]) -> DetailMaps:
        """The ground-truth maps; offsets are limited so that albedo plus offset stays within `ALBEDO_RANGE`."""
        expressions = samples.coefficients.expression
        skins = DetailMaps.join(
            [
                self._painter.paint(rng, expression=expression)
                for rng, expression in zip(samples.rngs, expressions, strict=True)
            ]
        )
        tone = (self._tone(albedo) / self._mean_tone).clamp(*TONE_RANGE)
        blemishes = skins.texture_offset * tone[:, None, None, None]
        real = self._without_fine_structure(self.atlas.interpolate(samples.albedo_offset))
        coloured = (albedo + real + blemishes).clamp(*ALBEDO_RANGE)
        return DetailMaps((coloured - albedo) * self.atlas.valid, skins.displacement)

    def _tone(self, albedo: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B"]:
        """Mean brightness of plain skin."""
        plain = self._plain_skin
        return (albedo * plain).sum((1, 2, 3)) / (3 * plain.sum())

    def _without_fine_structure(self, offset: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """Only the broad part of the offset on plain skin, all of it in brows, lips and eyes."""
        plain = self._plain_skin
        step = max(round(SKIN_BLUR_MM / 2 / self._texel_mm), 1)
        broad = _low_pass(offset * plain, step) / _low_pass(plain, step).clamp(min=1e-3)
        return torch.lerp(offset, broad, plain)

    def _darkened(
        self, samples: FaceSamples, lit: Float[Tensor, "B 3 S S"], maps: DetailMaps
    ) -> Float[Tensor, "B 3 S S"]:
        """The lit texture, darker in hollows, and extended beyond the border of the UV map."""
        darkening = [rng.uniform(0, MAX_DARKENING) * (rng.random() < DARKENED_SHARE) for rng in samples.rngs]
        height_mm = maps.displacement * 1000
        depth_mm = _low_pass(height_mm, max(round(HOLLOW_RADIUS_MM / 2 / self._texel_mm), 1)) - height_mm
        hollow = (depth_mm / HOLLOW_DEPTH_MM).clamp(0, 1)
        return self.atlas.dilate(lit * (1 - torch.tensor(darkening, dtype=torch.float32).view(-1, 1, 1, 1) * hollow))

    def _rasterized(
        self, samples: FaceSamples, surface: FaceSurface, maps: DetailMaps, texture: Float[Tensor, "B 3 S S"]
    ) -> tuple[Float[Tensor, "B 3 C C"], Float[Tensor, "B C C"]]:
        """The colours of the faces, and the share of each pixel that they cover."""
        height = sample_map(maps.displacement, self.model.uv)
        outwards = to_camera_axes(surface.normals)
        displaced = surface.vertices_camera + samples.coefficients.pose.scale[:, None, None] * height * outwards
        fine = samples.camera.resized(SUPERSAMPLING * self.size)
        image, covered = draw_texture(self.model, displaced, fine, texture=texture)
        image, coverage = F.avg_pool2d(image, SUPERSAMPLING), F.avg_pool2d(covered[:, None], SUPERSAMPLING)
        return image / coverage.clamp(min=1e-3), coverage[:, 0]


def _low_pass(maps: Float[Tensor, "B C S S"], step: int) -> Float[Tensor, "B C S S"]:
    """Maps averaged over blocks of `step` × `step` texels and their neighbours, at the same size."""
    coarse = F.avg_pool2d(maps, step, ceil_mode=True)
    coarse = F.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
    return F.interpolate(coarse, size=maps.shape[-2:], mode="bilinear", align_corners=False)
