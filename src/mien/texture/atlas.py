"""The UV atlas as an image: the surface point of each texel."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_CONTOUR_ENDS
from mien.morphable.per_model import per_model
from mien.rasterizer import Fragments, rasterize_hard
from mien.rendering import sample_image
from mien.texture.fill import halved, pull_push
from mien.typing import Bool, Float, Int, Tensor

_LAYERS = 1e-2
"""Depth between overlapping layers of the UV atlas while it is rasterized, relative to the distance."""

_INWARDS = -0.3
"""A surface faces inwards if the cosine of its normal and the horizontal direction out of the head is below this."""

_FLAT_UV = 1e-12
"""A triangle counts as flat in UV space if twice its area is below this; a texel is far larger."""


@dataclass(frozen=True)
class TexelAtlas:
    """The point of the mesh at each texel of a square UV map; row 0 is v = 1."""

    fragments: Fragments
    """Triangle and barycentric coordinates at each texel, a batch of one; the coordinates are linear in u and v."""
    triangles: Int[Tensor, "T 3"]
    """Triangles of the mesh."""

    @classmethod
    def of(cls, model: MorphableModel, size: int) -> TexelAtlas:
        """Rasterize the UV layout of the model at `size` × `size` texels."""
        u, v = model.uv.unbind(-1)
        depth = 1 + _LAYERS * _layer_depth(model)
        flat = torch.stack([2 * u - 1, 1 - 2 * v, depth], dim=-1)[None]
        raster = rasterize_hard(flat, model.triangles, image_size=(size, size), near=0.5, far=1.5)
        # The rasterizer's barycentrics are perspective-correct; times the depth they are those of the flat layout.
        weights = raster.barycentrics * depth[model.triangles[raster.triangle_ids.clamp(min=0)]]
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
        return cls(replace(raster, barycentrics=weights), model.triangles)

    @property
    def triangle_ids(self) -> Int[Tensor, "S S"]:
        """Triangle at each texel; -1 outside the UV layout."""
        return self.fragments.triangle_ids[0]

    @property
    def valid(self) -> Bool[Tensor, "S S"]:
        """Texels inside the UV layout."""
        return self.triangle_ids >= 0

    def interpolate(self, values: Float[Tensor, "B V C"]) -> Float[Tensor, "B C S S"]:
        """Interpolate vertex values at the texels, linearly in each triangle.

        Args:
            values: Values per vertex.

        Returns:
            UV maps, zero outside the UV layout; differentiable.
        """
        table = values.transpose(0, 1).flatten(1)
        mixed = F.embedding_bag(self._corners, table, per_sample_weights=self._weights.to(table), mode="sum")
        # Filters and products of maps are several times as fast where each channel is contiguous.
        maps = mixed.view(*self.triangle_ids.shape, -1).movedim(-1, 0).contiguous()
        return maps.unflatten(0, (len(values), -1))

    def tangents(self, model: MorphableModel, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B S S 3 2"]:
        """∂p/∂u and ∂p/∂v at each texel, metres per unit of u and v; constant within a triangle, zero outside."""
        return triangle_tangents(model, vertices)[:, self.triangle_ids.clamp(min=0)] * self.valid[..., None, None]

    def dilate(self, maps: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
        """Continue maps beyond the UV layout by `pull_push`, so that filters at its border read no background."""
        valid = self.valid.to(maps)[None, None]
        total = halved(valid)
        coarse = pull_push(halved(maps * valid) / total.clamp(min=1e-6), (4 * total).clamp(max=1))
        # The last enlargement at the texels outside the layout alone; they are few.
        rows, columns = (~self.valid).nonzero().unbind(-1)
        places = torch.stack([columns, rows], dim=-1).to(maps) + 0.5
        filled = maps.clone()
        filled[:, :, rows, columns] = sample_image(
            coarse, (places * (coarse.shape[-1] / maps.shape[-1]))[None].expand(len(maps), -1, -1)
        ).mT
        return filled

    @functools.cached_property
    def _corners(self) -> Int[Tensor, "P 3"]:
        """Vertices of the triangle at each texel, of triangle 0 outside; 32 bits are read at twice the speed of 64."""
        return self.triangles.int().index_select(0, self.triangle_ids.clamp(min=0).flatten())

    @functools.cached_property
    def _weights(self) -> Float[Tensor, "P 3"]:
        """Barycentric coordinates at each texel; 0 outside the UV layout."""
        return self.fragments.barycentrics.reshape(-1, 3)


def triangle_tangents(model: MorphableModel, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B T 3 2"]:
    """∂p/∂u and ∂p/∂v of each triangle, metres per unit of u and v."""
    return along_uv(model, vertices).permute(0, 3, 2, 1)


def along_uv(model: MorphableModel, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B 2 3 T"]:
    """∂p/∂u and ∂p/∂v of each triangle, metres per unit of u and v, by component."""
    corners, inverse = model.triangles.T, per_model(model, _uv_inverse)
    a, b, c = (vertices.mT.index_select(2, corner) for corner in corners)
    first, second = b - a, c - a
    return torch.stack([first * inverse[0, k] + second * inverse[1, k] for k in range(2)], dim=1)


def _uv_inverse(model: MorphableModel) -> Float[Tensor, "2 2 T"]:
    """From an edge's u and v back to its share of the triangle's two edges: [k, 0] is the k-th share of u."""
    a, b, c = (model.uv[model.triangles[:, k]] for k in range(3))
    edges = torch.stack([b - a, c - a], dim=-1)
    # A triangle without area in UV space covers no texel; the identity keeps its inverse finite.
    flat = torch.linalg.det(edges).abs() < _FLAT_UV
    edges = torch.where(flat[:, None, None], torch.eye(2).to(edges), edges)
    return torch.linalg.inv(edges).permute(1, 2, 0).contiguous()


def _layer_depth(model: MorphableModel) -> Float[Tensor, "V"]:
    """Order of the vertices where the UV layout overlaps itself, as in some converted models: 0 in front, 2 behind.

    Surfaces that face inwards (nostrils, the inside of the lips) lie behind those that face outwards; among equals, the
    back of the head lies behind the face.
    """
    height = model.mean[:, 2]
    behind = (height.amax() - height) / (height.amax() - height.amin()).clamp(min=1e-9)
    normals = vertex_normals(model.mean[None], model.triangles)[0]
    between_ears = model.mean[model.landmarks68[list(IBUG_CONTOUR_ENDS)]].mean(0)
    outwards = F.normalize((model.mean - between_ears)[:, [0, 2]], dim=-1)
    inwards = (outwards * normals[:, [0, 2]]).sum(-1) < _INWARDS
    return behind + inwards
