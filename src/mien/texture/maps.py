"""Maps of texture offset and displacement."""

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
    """UV maps of the detail beyond the linear model."""

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
    """Sample detail maps at the vertices.

    Args:
        model: Gives the UV coordinates.
        texture_offset: Added to the albedo.
        displacement: Metres; one channel is along the normal, three are x, y and z of model space.
        depth: Depth of the texels in camera space. With it the sampling is perspective-correct, without it bilinear.

    Returns:
        Detail per vertex; differentiable in the maps.
    """
    both = torch.cat([displacement, texture_offset], dim=1)
    sampled = sample_map(both, model.uv) if depth is None else sample_map_hyperbolic(both, model.uv, depth=depth)
    shift, offset = sampled.split([displacement.shape[1], 3], dim=-1)
    if displacement.shape[1] == 1:
        return VertexDetail(displacement=shift[..., 0], albedo_offset=offset)
    return VertexDetail(displacement=None, albedo_offset=offset, shift=shift)


def along_normal(
    atlas: TexelAtlas, surface: FaceSurface, displacement: Float[Tensor, "B N S S"], model: MorphableModel
) -> Float[Tensor, "B 1 S S"]:
    """Component of a displacement map along the normal of the surface.

    Args:
        atlas: UV atlas of the size of the map.
        surface: The undisplaced surfaces.
        displacement: Metres; one channel is along the normal already, three are x, y and z of model space.
        model: Gives the triangles.

    Returns:
        Metres along the normal; differentiable in `displacement`.
    """
    if displacement.shape[1] == 1:
        return displacement
    normals = atlas.interpolate(vertex_normals(surface.vertices, model.triangles))
    return (displacement * normals).sum(1, keepdim=True)
