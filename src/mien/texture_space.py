"""The UV chart as an image: which point of the surface each texel shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.arrays import Bool, Float, Int, Tensor
from mien.geometry import mix_corners, vertex_normals
from mien.lighting import shading, shading_gradient
from mien.morphable import MorphableModel
from mien.rasterizer import rasterize_hard

_LAYERS = 1e-2
"""Depth between layers of a chart while it is drawn, relative to the distance; within the rasterizer's range."""
_INWARDS = -0.3
"""Cosine to the horizontal direction out of the head below which a surface counts as facing inwards."""
_FLAT_UV = 1e-12
"""Twice the area of a triangle in the chart, far below that of a texel."""
_DARKEST = 0.15
"""Light below this says nothing of the surface."""

_CLOSED = 1e-12
"""Squared area in square metres per unit of u and v; an open triangle of a head has some 1e-3."""


@dataclass(frozen=True)
class TexelAtlas:
    """For every texel of a square map the triangle it lies in and where in it; row 0 is v = 1."""

    triangle_ids: Int[Tensor, "S S"]
    """-1 outside the chart."""
    barycentrics: Float[Tensor, "S S 3"]
    corners: Int[Tensor, "S S 3"]
    """Vertices of the texel's triangle; those of triangle 0 outside the chart."""

    @classmethod
    def of(cls, model: MorphableModel, size: int) -> TexelAtlas:
        """Draw the model's UV chart at `size` × `size` texels."""
        u, v = model.uv.unbind(-1)
        depth = 1 + _LAYERS * _layers(model)
        flat = torch.stack([2 * u - 1, 1 - 2 * v, depth], dim=-1)[None]
        drawn = rasterize_hard(flat, model.triangles, image_size=(size, size), near=0.5, far=1.5)
        ids = drawn.triangle_ids[0].long()
        corners = model.triangles[ids.clamp(min=0)]
        # The rasterizer's barycentrics are perspective-correct; those of the flat chart are these times the depth.
        weights = drawn.barycentrics[0] * depth[corners]
        return cls(ids, weights / weights.sum(-1, keepdim=True).clamp(min=1e-9), corners)

    @property
    def valid(self) -> Bool[Tensor, "S S"]:
        """Texels inside the chart."""
        return self.triangle_ids >= 0

    def interpolate(self, values: Float[Tensor, "B V C"]) -> Float[Tensor, "B C S S"]:
        """Spread vertex values over the chart, linearly in each triangle; zero outside; differentiable."""
        table = values.transpose(0, 1).flatten(1)
        weights = (self.barycentrics * self.valid[..., None]).to(values)
        mixed = mix_corners(table, self.corners, weights)
        return mixed.unflatten(2, (len(values), -1)).permute(2, 3, 0, 1)

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


def _surface_gradient(tangents: Float[Tensor, "B T 3 2"]) -> Float[Tensor, "B T 3 2"]:
    """J (JᵀJ)⁻¹, which takes ∂d/∂u and ∂d/∂v to the gradient of d on the surface; J has the tangents as columns."""
    j_u, j_v = tangents.unbind(-1)
    uu, uv, vv = ((a * b).sum(-1, keepdim=True) for a, b in ((j_u, j_u), (j_u, j_v), (j_v, j_v)))
    # A triangle that an expression closes to a line has no gradient to speak of; it must stay finite.
    determinant = (uu * vv - uv * uv).clamp(min=_CLOSED)
    return torch.stack([vv * j_u - uv * j_v, uu * j_v - uv * j_u], dim=-1) / determinant[..., None]


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


def _pull_push(maps: Float[Tensor, "B C S S"], weights: Float[Tensor, "1 1 S S"]) -> Float[Tensor, "B C S S"]:
    """`maps` where the weight is 1, smooth continuations of it where it is 0; maps come multiplied by weights."""
    size = maps.shape[-1]
    known = maps / weights.clamp(min=1e-6)
    if size == 1:
        return known
    halved = (F.avg_pool2d(m, 2, ceil_mode=True) for m in (maps, weights))
    coarse, coarse_weights = halved
    share = coarse_weights.clamp(max=1.0).sign()
    beyond = _pull_push(coarse / coarse_weights.clamp(min=1e-6) * share, share)
    beyond = F.interpolate(beyond, size=(size, size), mode="bilinear", align_corners=False)
    return weights * known + (1 - weights) * beyond


class DisplacedNormals:
    """Unit normals, in view axes, of the surface p + d·n for displacement maps d on a fixed surface.

    To first order in d the normal is n − ∇d, with the surface gradient taken through the chart's metric. What does
    not depend on d is computed once, so that a fit can call the object many times; differentiable in d.
    """

    def __init__(
        self,
        atlas: TexelAtlas,
        model: MorphableModel,
        *,
        vertices: Float[Tensor, "B V 3"],
        normals: Float[Tensor, "B V 3"],
        rotmat: Float[Tensor, "B 3 3"],
    ) -> None:
        self.size = len(atlas.triangle_ids)
        self.normals = F.normalize(atlas.interpolate(normals).permute(0, 2, 3, 1), dim=-1)
        # The metric is that of a triangle: there are fewer of them than of texels.
        tangents = _tangents(model, vertices)
        gradient = rotmat[:, None] @ _surface_gradient(tangents)
        self.gradient = gradient[:, atlas.triangle_ids.clamp(min=0)]
        inner = -F.max_pool2d(-atlas.valid.float()[None, None], 3, stride=1, padding=1)
        self.inner = inner[0, 0, :, :, None]

    def __call__(self, displacement: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B S S 3"]:
        """Normals for a displacement map in metres."""
        padded = F.pad(displacement, (1, 1, 1, 1), mode="replicate")[:, 0]
        d_u = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (self.size / 2)
        d_v = (padded[:, :-2, 1:-1] - padded[:, 2:, 1:-1]) * (self.size / 2)  # v grows upwards
        slope = (self.gradient * torch.stack([d_u, d_v], dim=-1)[..., None, :]).sum(-1)
        return F.normalize(self.normals - slope * self.inner, dim=-1)

    def directions(self) -> Float[Tensor, "B S S 3 2"]:
        """Unit vectors along the surface, in view axes, in which u and v grow fastest; zero outside the chart."""
        squared = self.gradient.square().sum(-2, keepdim=True)
        return self.gradient * squared.clamp(min=1e-12).rsqrt() * self.inner[..., None]


class TexelFace:
    """A posed and lit face on its chart, ready to take maps: what eq. 3 says of every texel.

    `albedo` and `shading` (B,3,S,S) are those of the linear model; colours follow the maps.
    """

    def __init__(
        self,
        atlas: TexelAtlas,
        model: MorphableModel,
        *,
        vertices: Float[Tensor, "B V 3"],
        normals: Float[Tensor, "B V 3"],
        albedo: Float[Tensor, "B V 3"],
        rotmat: Float[Tensor, "B 3 3"],
        lighting: Float[Tensor, "B 9 3"],
    ) -> None:
        self.lighting, self.valid = lighting, atlas.valid
        self.normals_of = DisplacedNormals(atlas, model, vertices=vertices, normals=normals, rotmat=rotmat)
        self.albedo = atlas.interpolate(albedo)
        self.shading = self._shading(self.normals_of.normals)

    def colours(
        self, texture_offset: Float[Tensor, "B 3 S S"], displacement: Float[Tensor, "B 1 S S"]
    ) -> Float[Tensor, "B 3 S S"]:
        """(albedo + offset) · shading of the displaced surface; differentiable in both maps, not clamped."""
        return (self.albedo + texture_offset) * self._shading(self.normals_of(displacement))

    def slope_response(self) -> Float[Tensor, "B 2 S S"]:
        """How much brighter a texel becomes, relative to its light, where the surface rises along u and along v.

        The derivative by a slope (metres per metre), averaged over the colours: what shape-from-shading reads.
        """
        gradient = shading_gradient(self.normals_of.normals, self.lighting.mean(-1))
        change = -(gradient[..., None] * self.normals_of.directions()).sum(-2)
        level = self.shading.mean(1, keepdim=True).clamp(min=_DARKEST)
        return change.permute(0, 3, 1, 2) / level

    def _shading(self, normals: Float[Tensor, "B S S 3"]) -> Float[Tensor, "B 3 S S"]:
        return shading(normals, self.lighting).permute(0, 3, 1, 2)
