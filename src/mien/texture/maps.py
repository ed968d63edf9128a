"""Texture offset and displacement maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.batched import Batched
from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.rendering import FaceSurface, VertexDetail, sample_map, sample_map_hyperbolic
from mien.texture.atlas import TexelAtlas
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class DetailMaps(Batched):
    """What the linear model cannot hold."""

    texture_offset: Float[Tensor, "B 3 S S"]
    """Added to the albedo."""
    displacement: Float[Tensor, "B 1 S S"]
    """Metres along the normal."""


def vertex_detail(
    model: MorphableModel,
    *,
    texture_offset: Float[Tensor, "B 3 S S"],
    displacement: Float[Tensor, "B N S S"],
    depth: Float[Tensor, "B 1 S S"] | None = None,
) -> VertexDetail:
    """The maps at each vertex's UV; one channel of displacement is along the normal, three are x, y, z.

    Bilinear, or perspective-correct where the texels' `depth` before the camera is given.
    """
    both = torch.cat([displacement, texture_offset], dim=1)
    sampled = sample_map(both, model.uv) if depth is None else sample_map_hyperbolic(both, model.uv, depth=depth)
    moved, offset = sampled.split([displacement.shape[1], 3], dim=-1)
    if displacement.shape[1] == 1:
        return VertexDetail(displacement=moved[..., 0], albedo_offset=offset)
    return VertexDetail(displacement=None, albedo_offset=offset, shift=moved)


def along_normal(
    atlas: TexelAtlas, surface: FaceSurface, displacement: Float[Tensor, "B N S S"], model: MorphableModel
) -> Float[Tensor, "B 1 S S"]:
    """A displacement map's part along the normal, metres; all of it where it has one channel."""
    if displacement.shape[1] == 1:
        return displacement
    normals = atlas.interpolate(vertex_normals(surface.vertices, model.triangles))
    return (displacement * normals).sum(1, keepdim=True)
