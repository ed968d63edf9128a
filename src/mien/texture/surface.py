"""A posed and lit face in UV space, and the normals of its displaced surface."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.lighting import shading, shading_gradient
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface
from mien.texture.atlas import TexelAtlas, triangle_tangents
from mien.typing import Float, Tensor

_DARKEST = 0.15
"""Smallest shading that a change of shading is divided by; below it the photo shows noise."""

_LEAST_DETERMINANT = 1e-12
"""Lower bound of det(JᵀJ), the squared area per unit of u and v in m⁴; triangles of a head have about 1e-3."""


def _surface_gradient(tangents: Float[Tensor, "B T 3 2"]) -> Float[Tensor, "B T 3 2"]:
    """J (JᵀJ)⁻¹, where J has the tangents as columns: it turns (∂d/∂u, ∂d/∂v) into the gradient of d on the surface."""
    j_u, j_v = tangents.unbind(-1)
    uu, uv, vv = ((a * b).sum(-1, keepdim=True) for a, b in ((j_u, j_u), (j_u, j_v), (j_v, j_v)))
    # An expression can close a triangle to a line, which has no gradient; the bound keeps the result finite.
    determinant = (uu * vv - uv * uv).clamp(min=_LEAST_DETERMINANT)
    return torch.stack([vv * j_u - uv * j_v, uu * j_v - uv * j_u], dim=-1) / determinant[..., None]


class DisplacedNormals:
    """Unit normals of the displaced surface p + d·n, for displacement maps d on a fixed surface.

    To first order in d the normal is n − ∇d, where ∇ is the gradient on the surface. Everything that does not depend on
    d is computed once, because a fit calls the object many times.

    Args:
        atlas: UV atlas of the size of the maps.
        model: Gives triangles and UV coordinates.
        vertices: Model space, metres.
        normals: Unit normals of the vertices in view axes.
        rotmat: Rotation of each head, from model axes to view axes.
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
        # The gradient is constant within a triangle, and there are fewer triangles than texels.
        tangents = triangle_tangents(model, vertices)
        gradient = rotmat[:, None] @ _surface_gradient(tangents)
        self.gradient = gradient[:, atlas.triangle_ids.clamp(min=0)]
        inner = -F.max_pool2d(-atlas.valid.float()[None, None], 3, stride=1, padding=1)
        self.inner = inner[0, 0, :, :, None]

    def __call__(self, displacement: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B S S 3"]:
        """Normals of the displaced surface.

        Args:
            displacement: Metres along the normal.

        Returns:
            Unit normals in view axes; differentiable.
        """
        padded = F.pad(displacement, (1, 1, 1, 1), mode="replicate")[:, 0]
        d_u = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (self.size / 2)
        d_v = (padded[:, :-2, 1:-1] - padded[:, 2:, 1:-1]) * (self.size / 2)  # v grows upwards
        slope = (self.gradient * torch.stack([d_u, d_v], dim=-1)[..., None, :]).sum(-1)
        return F.normalize(self.normals - slope * self.inner, dim=-1)

    def directions(self) -> Float[Tensor, "B S S 3 2"]:
        """Unit vectors along the surface, in view axes, in which u and v grow fastest; zero outside the layout."""
        squared = self.gradient.square().sum(-2, keepdim=True)
        return self.gradient * squared.clamp(min=1e-12).rsqrt() * self.inner[..., None]


class TexelFace:
    """Eq. 3 at every texel of a posed and lit face, as a function of its detail maps.

    The attributes `albedo` and `shading` (B,3,S,S) are those of the linear model.

    Args:
        atlas: UV atlas of the size of the maps.
        model: Gives triangles and UV coordinates.
        vertices: Model space, metres.
        normals: Unit normals of the vertices in view axes.
        albedo: Albedo of the vertices.
        rotmat: Rotation of each head, from model axes to view axes.
        lighting: Spherical-harmonics coefficients per colour channel.
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
        self.displaced_normals = DisplacedNormals(atlas, model, vertices=vertices, normals=normals, rotmat=rotmat)
        self.albedo = atlas.interpolate(albedo)
        self.shading = self._shading(self.displaced_normals.normals)

    def colours(
        self,
        texture_offset: Float[Tensor, "B 3 S S"],
        displacement: Float[Tensor, "B 1 S S"],
        *,
        matte: Float[Tensor, "B 1 S S"] | None = None,
    ) -> Float[Tensor, "B 3 S S"]:
        """Colours with detail: (albedo + offset) · shading(normals of the displaced surface).

        Args:
            texture_offset: Added to the albedo.
            displacement: Metres along the normal.
            matte: 0 where the photo shows gloss, 1 elsewhere; scales the derivative by the displacement, not the
                colours. None for 1.

        Returns:
            Colours, not clamped; differentiable in both maps.
        """
        shade = self._shading(self.displaced_normals(displacement))
        if matte is not None:
            shade = matte * shade + (1 - matte) * shade.detach()
        return (self.albedo + texture_offset) * shade

    def slope_response(self) -> Float[Tensor, "B 2 S S"]:
        """Relative change of the shading per slope of the surface along u and along v, as shape-from-shading uses it.

        Returns:
            Derivative of the shading by the slope (metres per metre), averaged over the colour channels and divided by
            the shading.
        """
        gradient = shading_gradient(self.displaced_normals.normals, self.lighting.mean(-1))
        change = -(gradient[..., None] * self.displaced_normals.directions()).sum(-2)
        level = self.shading.mean(1, keepdim=True).clamp(min=_DARKEST)
        return change.permute(0, 3, 1, 2) / level

    def _shading(self, normals: Float[Tensor, "B S S 3"]) -> Float[Tensor, "B 3 S S"]:
        return shading(normals, self.lighting).permute(0, 3, 1, 2)


def texel_face(
    atlas: TexelAtlas, model: MorphableModel, coefficients: FaceCoefficients, surface: FaceSurface
) -> TexelFace:
    """The coarse face in UV space: a `TexelFace` from coefficients and the surface built from them."""
    return TexelFace(
        atlas,
        model,
        vertices=surface.vertices,
        normals=surface.normals,
        albedo=surface.albedo,
        rotmat=coefficients.pose.rotmat(),
        lighting=coefficients.lighting,
    )
