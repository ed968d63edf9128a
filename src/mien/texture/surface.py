"""A posed and lit face in UV space, and the normals of its displaced surface."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from mien.lighting import shading, shading_gradient
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import FaceSurface
from mien.texture.atlas import TexelAtlas, along_uv
from mien.typing import Float, Tensor

_DARKEST = 0.15
"""Smallest shading that a change of shading is divided by; below it the photo shows noise."""

_LEAST_DETERMINANT = 1e-12
"""Lower bound of det(JᵀJ), the squared area per unit of u and v in m⁴; triangles of a head have about 1e-3."""


def _surface_gradient(along_uv: Float[Tensor, "B 2 3 T"]) -> Float[Tensor, "B 2 3 T"]:
    """J (JᵀJ)⁻¹, where J has ∂p/∂u and ∂p/∂v as columns: turns (∂d/∂u, ∂d/∂v) into the gradient of d on the surface."""
    j_u, j_v = along_uv.unbind(1)
    uu, uv, vv = (_dot(a, b) for a, b in ((j_u, j_u), (j_u, j_v), (j_v, j_v)))
    # An expression can close a triangle to a line, which has no gradient; the bound keeps the result finite.
    determinant = (uu * vv - uv * uv).clamp(min=_LEAST_DETERMINANT)
    return torch.stack([vv * j_u - uv * j_v, uu * j_v - uv * j_u], dim=1) / determinant[:, None]


def _dot(a: Float[Tensor, "B 3 *s"], b: Float[Tensor, "B 3 *s"]) -> Float[Tensor, "B 1 *s"]:
    """Scalar products; torch's sum over three numbers takes several times as long."""
    (x, y, z), (u, v, w) = a.split(1, dim=1), b.split(1, dim=1)
    return x * u + y * v + z * w


def _unit(vectors: Float[Tensor, "B 3 *s"]) -> Float[Tensor, "B 3 *s"]:
    """Unit vectors; zero for zero."""
    return vectors / _dot(vectors, vectors).clamp(min=1e-24).sqrt()


class DisplacedNormals:
    """Unit normals of the displaced surface p + d·n, for displacement maps d on a fixed surface.

    To first order in d the normal is n − ∇d, where ∇ is the gradient on the surface. Everything that does not depend on
    d is computed once, because a fit calls the object many times. Maps are stored by component, which is several times
    as fast as by texel.

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
        self._atlas, self._model, self._vertices, self._rotmat = atlas, model, vertices, rotmat
        self._normals = _unit(atlas.interpolate(normals))

    @functools.cached_property
    def _gradient(self) -> Float[Tensor, "B 2 3 S S"]:
        """See `gradient`. It is constant within a triangle, and there are fewer triangles than texels."""
        of_triangles = self._rotmat[:, None] @ _surface_gradient(along_uv(self._model, self._vertices))
        ids = self._atlas.triangle_ids.clamp(min=0).flatten().long()
        rows = of_triangles.flatten(0, 2)
        # `gather` takes an eighth of the time of an index (Zen 5, torch 2.13).
        at_texels = rows.gather(1, ids.expand(len(rows), -1))
        return at_texels.view(*of_triangles.shape[:3], self.size, self.size)

    @functools.cached_property
    def _inner(self) -> Float[Tensor, "1 S S"]:
        return -F.max_pool2d(-self._atlas.valid.float()[None, None], 3, stride=1, padding=1)[0]

    @property
    def normals(self) -> Float[Tensor, "B S S 3"]:
        """Unit normals of the surface without displacement, in view axes."""
        return self._normals.movedim(1, -1)

    @property
    def gradient(self) -> Float[Tensor, "B S S 3 2"]:
        """What turns ∂d/∂u and ∂d/∂v into the gradient of d on the surface, in view axes, 1/m."""
        return self._gradient.permute(0, 3, 4, 2, 1)

    @property
    def inner(self) -> Float[Tensor, "S S 1"]:
        """1 where all texels around a texel are in the layout too, 0 at its border."""
        return self._inner.movedim(0, -1)

    def __call__(self, displacement: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B S S 3"]:
        """Normals of the displaced surface.

        Args:
            displacement: Metres along the normal.

        Returns:
            Unit normals in view axes; differentiable.
        """
        padded = F.pad(displacement, (1, 1, 1, 1), mode="replicate")
        d_u = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * (self.size / 2)
        d_v = (padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]) * (self.size / 2)  # v grows upwards
        slope = self._gradient[:, 0] * (d_u * self._inner) + self._gradient[:, 1] * (d_v * self._inner)
        return _unit(self._normals - slope).movedim(1, -1)

    def steepest(self, along: Float[Tensor, "B S S 3"]) -> Float[Tensor, "B 2 S S"]:
        """Components of vectors along the directions on the surface in which u and v grow fastest; 0 outside of it.

        Args:
            along: Vectors in view axes.
        """
        vectors = along.movedim(-1, 1)
        parts = [
            _dot(vectors, gradient) * _dot(gradient, gradient).clamp(min=1e-12).rsqrt()
            for gradient in self._gradient.unbind(1)
        ]
        return torch.cat(parts, dim=1) * self._inner


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
        level = self.shading.mean(1, keepdim=True).clamp(min=_DARKEST)
        return -self.displaced_normals.steepest(gradient) / level

    def _shading(self, normals: Float[Tensor, "B S S 3"]) -> Float[Tensor, "B 3 S S"]:
        return shading(normals, self.lighting).movedim(-1, 1)


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
