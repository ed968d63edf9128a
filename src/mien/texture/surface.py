"""A posed and lit face on its UV atlas, and the normals of its displaced surface."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.lighting import shading, shading_gradient
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface
from mien.texture.atlas import TexelAtlas, _tangents
from mien.typing import Float, Tensor

_DARKEST = 0.15
"""Light below this says nothing of the surface."""

_CLOSED = 1e-12
"""Squared area in square metres per unit of u and v; an open triangle of a head has some 1e-3."""


def _surface_gradient(tangents: Float[Tensor, "B T 3 2"]) -> Float[Tensor, "B T 3 2"]:
    """J (JᵀJ)⁻¹, which takes ∂d/∂u and ∂d/∂v to the gradient of d on the surface; J has the tangents as columns."""
    j_u, j_v = tangents.unbind(-1)
    uu, uv, vv = ((a * b).sum(-1, keepdim=True) for a, b in ((j_u, j_u), (j_u, j_v), (j_v, j_v)))
    # A triangle that an expression closes to a line has no gradient to speak of; it must stay finite.
    determinant = (uu * vv - uv * uv).clamp(min=_CLOSED)
    return torch.stack([vv * j_u - uv * j_v, uu * j_v - uv * j_u], dim=-1) / determinant[..., None]


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


def texel_face(
    atlas: TexelAtlas, model: MorphableModel, coefficients: FaceCoefficients, surface: FaceSurface
) -> TexelFace:
    """The base reconstruction on its chart."""
    return TexelFace(
        atlas,
        model,
        vertices=surface.vertices,
        normals=surface.normals,
        albedo=surface.albedo,
        rotmat=coefficients.pose.rotmat(),
        lighting=coefficients.lighting,
    )
