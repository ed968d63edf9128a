"""The UV atlas as an image: the surface point of each texel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.rasterizer import Fragments, interpolate, rasterize_hard
from mien.texture.fill import _pull_push
from mien.typing import Bool, Float, Int, Tensor

_LAYERS = 1e-2
"""Depth between layers of a chart while it is drawn, relative to the distance; within the rasterizer's range."""

_INWARDS = -0.3
"""Cosine to the horizontal direction out of the head below which a surface counts as facing inwards."""

_FLAT_UV = 1e-12
"""Twice the area of a triangle in the chart, far below that of a texel."""


@dataclass(frozen=True)
class TexelAtlas:
    """For every texel of a square map the triangle it lies in and where in it; row 0 is v = 1."""

    fragments: Fragments
    """Triangle and barycentrics of each texel, a batch of one; barycentrics are linear in u and v."""
    triangles: Int[Tensor, "T 3"]

    @classmethod
    def of(cls, model: MorphableModel, size: int) -> TexelAtlas:
        """Draw the model's UV chart at `size` × `size` texels."""
        u, v = model.uv.unbind(-1)
        depth = 1 + _LAYERS * _layers(model)
        flat = torch.stack([2 * u - 1, 1 - 2 * v, depth], dim=-1)[None]
        drawn = rasterize_hard(flat, model.triangles, image_size=(size, size), near=0.5, far=1.5)
        # The rasterizer's barycentrics are perspective-correct; those of the flat chart are these times the depth.
        weights = drawn.barycentrics * depth[model.triangles[drawn.triangle_ids.clamp(min=0)]]
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
        return cls(replace(drawn, barycentrics=weights), model.triangles)

    @property
    def triangle_ids(self) -> Int[Tensor, "S S"]:
        """-1 outside the chart."""
        return self.fragments.triangle_ids[0]

    @property
    def valid(self) -> Bool[Tensor, "S S"]:
        """Texels inside the chart."""
        return self.triangle_ids >= 0

    def interpolate(self, values: Float[Tensor, "B V C"]) -> Float[Tensor, "B C S S"]:
        """Spread vertex values over the chart, linearly in each triangle; zero outside; differentiable."""
        table = values.transpose(0, 1).flatten(1)
        return interpolate(table, self.triangles, self.fragments)[0].unflatten(0, (len(values), -1))

    def tangents(self, model: MorphableModel, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B S S 3 2"]:
        """∂p/∂u and ∂p/∂v at each texel in metres per unit of u and v; constant within a triangle."""
        return _tangents(model, vertices)[:, self.triangle_ids.clamp(min=0)] * self.valid[..., None, None]

    def dilate(self, maps: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
        """Continue a map beyond the chart, so that filtering at its border reads no background.

        Pull-push (Gortler et al. 1996): averages over ever larger blocks of the chart fill what is outside.
        """
        filled = self.valid.to(maps)[None, None]
        return _pull_push(maps * filled, filled)


def _tangents(model: MorphableModel, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B T 3 2"]:
    """∂p/∂u and ∂p/∂v of each triangle."""
    a, b, c = (model.triangles[:, k] for k in range(3))
    edges = torch.stack([vertices[:, b] - vertices[:, a], vertices[:, c] - vertices[:, a]], dim=-1)
    edges_uv = torch.stack([model.uv[b] - model.uv[a], model.uv[c] - model.uv[a]], dim=-1)
    # A triangle without area in the chart covers no texel; the identity there keeps the inverse finite.
    flat = torch.linalg.det(edges_uv).abs() < _FLAT_UV
    edges_uv = torch.where(flat[:, None, None], torch.eye(2).to(edges_uv), edges_uv)
    return edges @ torch.linalg.inv(edges_uv)


def _layers(model: MorphableModel) -> Float[Tensor, "V"]:
    """Which vertices give way where a chart overlaps, as those of converted models may: 0 the front, 2 the back.

    What faces inwards (nostrils, the inside of lips) gives way to what faces outwards, and then the back to the front.
    """
    height = model.mean[:, 2]
    behind = (height.amax() - height) / (height.amax() - height.amin()).clamp(min=1e-9)
    normals = vertex_normals(model.mean[None], model.triangles)[0]
    between_ears = model.mean[model.landmarks68[[0, 16]]].mean(0)
    outwards = F.normalize((model.mean - between_ears)[:, [0, 2]], dim=-1)
    inwards = (outwards * normals[:, [0, 2]]).sum(-1) < _INWARDS
    return behind + inwards
