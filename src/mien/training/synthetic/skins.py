"""Collects the skin colours of photo faces, for synthetic faces to use.

Pose, shape, light and albedo are fitted quickly (landmarks and colours, no gradient descent). The colours of the photo
divided by the fitted light, minus the fitted albedo, are the skin of that person at each vertex.
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
"""Darker shading is raised to this value before the division, which would otherwise amplify noise."""
LARGEST_OFFSET = 0.35
"""Offsets are clamped to this magnitude."""
CLEAR_VIEW = (0.35, 0.65)
"""Cosines between normal and viewing direction: a colour counts from the first, and fully from the second."""


def collect_skins(
    store: FaceStore, model: MorphableModel, *, progress: Callable[[int, int], None] | None = None
) -> SkinBank:
    """The skin colours of all faces of a store.

    Args:
        store: The photo faces.
        model: The face model that is fitted to them.
        progress: Called with the number of finished faces and the total number.

    Raises:
        ConfigError: The store has no faces.
    """
    if not len(store):
        raise ConfigError(f"the store {store.address} has no faces in this split; prepare more photos.")
    albedos, offsets = [], []
    for start in range(0, len(store), BATCH):
        targets = _targets(store, range(start, min(start + BATCH, len(store))))
        fitted = fit(model, targets, settings=FitSettings(photometric_steps=0))
        with torch.no_grad():
            rendered = render(model, fitted.coefficients, fitted.camera)
            albedos.append(fitted.coefficients.albedo)
            offsets.append(_albedo_offsets(model, rendered, targets))
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


def _albedo_offsets(model: MorphableModel, rendered: RenderOutput, targets: FitTargets) -> Float[Tensor, "B V 3"]:
    """Offsets at visible vertices, else those of the mirrored vertex, else 0."""
    surface = rendered.surface
    colours, mask = sample_vertex_colours(rendered, targets)
    visible = visible_vertices(surface, rendered.vertices_px, rendered.depth, slack_m=VISIBILITY_SLACK_M)
    low, high = CLEAR_VIEW
    clear = ((surface.normals[..., 2] - low) / (high - low)).clamp(0, 1)
    weight = (visible * mask * clear)[..., None]
    offset = (colours / surface.shading.clamp(min=LEAST_LIGHT) - surface.albedo).clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
    known, mirrored = offset * weight, (offset * weight)[:, model.mirror]
    return known + (1 - weight) * mirrored
