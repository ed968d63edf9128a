"""Colours of photographed faces, taken off them for drawn ones to wear.

Pose, shape, light and albedo are fitted quickly (landmarks and colours, no descent); what the photo's colours then
have beyond the lit albedo model, divided by the light, is the skin of that person at each vertex.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mien.camera import Camera
from mien.errors import ConfigError
from mien.fitting import FitSettings, FitTargets, fit, sample_vertex_colours
from mien.morphable import MorphableModel
from mien.rendering import VISIBILITY_SLACK_M, RenderOutput, render, visible_vertices
from mien.training.data.store import FaceStore
from mien.training.synthetic.population import SkinBank
from mien.typing import Float, Tensor

BATCH = 8
LEAST_LIGHT = 0.25
"""Darker shading than this amplifies noise."""
LARGEST_OFFSET = 0.35
CLEAR_VIEW = (0.35, 0.65)
"""Cosines between normal and line of sight from which and up to which a colour gains trust."""


def collect_skins(
    store: FaceStore, model: MorphableModel, *, progress: Callable[[int, int], None] | None = None
) -> SkinBank:
    """The skins of a store's faces; `progress` is told how many of how many are done. ConfigError without any."""
    if not len(store):
        raise ConfigError(f"the store {store.address} has no faces in this split; prepare more photos.")
    albedos, offsets = [], []
    for start in range(0, len(store), BATCH):
        targets = _targets(store, range(start, min(start + BATCH, len(store))))
        found = fit(model, targets, settings=FitSettings(photometric_steps=0))
        with torch.no_grad():
            drawn = render(model, found.coefficients, found.camera)
            albedos.append(found.coefficients.albedo)
            offsets.append(_offsets(model, drawn, targets))
        if progress is not None:
            progress(start + len(targets.crops), len(store))
    return SkinBank(torch.cat(albedos), torch.cat(offsets))


def _targets(store: FaceStore, numbers: range) -> FitTargets:
    records = [store[number] for number in numbers]
    size = records[0].crop.shape[-1]
    camera = Camera(
        torch.tensor([record.focal_px for record in records]),
        torch.tensor([record.centre_px for record in records]),
        image_size=(size, size),
    )
    mask = torch.stack([record.mask for record in records])
    return FitTargets(
        crops=torch.stack([record.crop for record in records]),
        mask=mask,
        outline=mask,
        exposure=torch.tensor([record.exposure for record in records]),
        camera=camera,
        landmarks468_px=torch.stack([record.landmarks468_px for record in records]),
        landmarks68_px=torch.stack([record.landmarks68_px for record in records]),
    )


def _offsets(model: MorphableModel, drawn: RenderOutput, targets: FitTargets) -> Float[Tensor, "B V 3"]:
    """What the albedo lacks where the camera sees it, else what it lacks on the other side, else nothing."""
    surface = drawn.surface
    colours, mask = sample_vertex_colours(drawn, targets)
    seen = visible_vertices(surface, drawn.vertices_px, drawn.depth, slack_m=VISIBILITY_SLACK_M)
    low, high = CLEAR_VIEW
    clear = ((surface.normals[..., 2] - low) / (high - low)).clamp(0, 1)
    trust = (seen * mask * clear)[..., None]
    offset = (colours / surface.shading.clamp(min=LEAST_LIGHT) - surface.albedo).clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
    known, mirrored = offset * trust, (offset * trust)[:, model.mirror]
    return known + (1 - trust) * mirrored
