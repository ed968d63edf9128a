"""The physics of the whole system in one place: coefficients + camera + light → picture.

    coefficients ── morphable model ──► vertices, albedo          (eq. 1, 2)
    vertices ── displacement along the normal ──► detailed vertices
    normals, lighting ── spherical harmonics ──► shading           (eq. 3)
    vertices ── pose ──► camera space ── pinhole ──► screen
    screen, albedo · shading ── soft rasterizer ──► image, alpha, depth

Nothing else in the package composes these steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.camera import Camera
from mien.errors import FitDiverged
from mien.geometry import vertex_normals
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rasterizer import interpolate, rasterize, rasterize_hard
from mien.rasterizer import texture as sample_texture
from mien.typing import Float, Int, Tensor

DEPTH_REACH_M = 0.25
"""The rasterizer's depth range lies this far before and behind the model's origin: a head is 0.2 m deep, and a
narrow range keeps the depth softness (gamma times the range) at 0.05 mm whatever the distance."""

NEAREST_M = 0.01


@dataclass(frozen=True)
class VertexDetail:
    """What a linear model cannot hold, given per vertex."""

    displacement: Float[Tensor, "B V"] | None
    """Metres along the vertex normal of the linear model's surface; None leaves the surface as it is."""
    albedo_offset: Float[Tensor, "B V 3"]
    """Added to the linear model's albedo."""
    shift: Float[Tensor, "B V 3"] | None = None
    """Metres along x, y and z of model space, the paper's displacement; on top of the one along the normal."""


@dataclass(frozen=True)
class FaceSurface:
    """A batch of faces in model space and before the camera, not yet drawn."""

    vertices: Float[Tensor, "B V 3"]
    """Model space, metres."""
    vertices_camera: Float[Tensor, "B V 3"]
    """Camera space, metres."""
    normals: Float[Tensor, "B V 3"]
    """Unit normals in view axes, see `Pose.to_view_axes`."""
    albedo: Float[Tensor, "B V 3"]
    shading: Float[Tensor, "B V 3"]

    @property
    def colours(self) -> Float[Tensor, "B V 3"]:
        """Lit vertex colours, eq. 3; not clamped."""
        return self.albedo * self.shading


@dataclass(frozen=True)
class RenderOutput:
    """A rendered batch: the picture and everything it was made from."""

    image: Float[Tensor, "B 3 H W"]
    """The face's colour where `alpha` > 0, the background elsewhere; not clamped."""
    alpha: Float[Tensor, "B H W"]
    depth: Float[Tensor, "B H W"]
    """Metres, 0 where there is no face; from the hard z-buffer, not differentiable."""
    triangle_ids: Int[Tensor, "B H W"]
    """The triangle in front, -1 where there is none."""
    barycentrics: Float[Tensor, "B H W 3"]
    surface: FaceSurface
    vertices_px: Float[Tensor, "B V 2"]
    """Where each vertex projects to, differentiable."""

    @property
    def coverage(self) -> Float[Tensor, "B H W"]:
        """1 inside the face, alpha around it: alpha alone dips along every inner edge, where two halves meet."""
        return torch.where(self.triangle_ids >= 0, torch.ones_like(self.alpha), self.alpha)


def build_surface(
    model: MorphableModel, coefficients: FaceCoefficients, *, detail: VertexDetail | None = None
) -> FaceSurface:
    """Evaluate model, detail, pose and light at every vertex; differentiable in all of them."""
    vertices = model.vertices(coefficients.identity, coefficients.expression)
    normals = vertex_normals(vertices, model.triangles)
    albedo = model.albedo(coefficients.albedo)
    if detail is not None:
        albedo = albedo + detail.albedo_offset
    moves = () if detail is None else _moves(detail, normals)
    if moves:
        vertices = vertices + sum(moves)
        normals = vertex_normals(vertices, model.triangles)
    normals_view = coefficients.pose.to_view_axes(normals)
    return FaceSurface(
        vertices=vertices,
        vertices_camera=coefficients.pose.to_camera(vertices),
        normals=normals_view,
        albedo=albedo,
        shading=shading(normals_view, coefficients.lighting),
    )


def _moves(detail: VertexDetail, normals: Float[Tensor, "B V 3"]) -> list[Float[Tensor, "B V 3"]]:
    along = [] if detail.displacement is None else [detail.displacement[..., None] * normals]
    return along if detail.shift is None else [*along, detail.shift]


def depth_range(coefficients: FaceCoefficients) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Nearest and farthest depth that the rasterizer resolves for each face, metres.

    FitDiverged for a face behind the camera, or nowhere: an optimisation or a network lost it.
    """
    distance = coefficients.pose.translation[:, 2].detach()
    reach = DEPTH_REACH_M * coefficients.pose.scale.detach()
    near, far = (distance - reach).clamp(min=NEAREST_M), distance + reach
    lost = [k for k, fine in enumerate(((far > near) & far.isfinite()).tolist()) if not fine]
    if lost:
        raise FitDiverged(
            f"face {lost[0]} of the batch ended {float(distance[lost[0]]):.3g} m before the camera, where it cannot be "
            "drawn; try another mode or a sharper photo."
        )
    return near, far


def render(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    detail: VertexDetail | None = None,
    sigma: float = 1e-5,
    gamma: float = 1e-4,
) -> RenderOutput:
    """Draw each face of the batch with its camera; differentiable in coefficients, camera and detail."""
    surface = build_surface(model, coefficients, detail=detail)
    near, far = depth_range(coefficients)
    drawn = rasterize(
        camera.to_ndc(surface.vertices_camera),
        model.triangles,
        surface.colours,
        image_size=camera.image_size,
        sigma=sigma,
        gamma=gamma,
        near=near,
        far=far,
    )
    return RenderOutput(
        image=drawn.image,
        alpha=drawn.alpha,
        depth=drawn.depth,
        triangle_ids=drawn.triangle_ids,
        barycentrics=drawn.barycentrics,
        surface=surface,
        vertices_px=camera.project(surface.vertices_camera),
    )


def draw_texture(
    model: MorphableModel,
    vertices_camera: Float[Tensor, "B V 3"],
    camera: Camera,
    *,
    texture: Float[Tensor, "B 3 S S"],
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B H W"]]:
    """The mesh with a ready-lit texture map, and where it covers the image; hard edges, not differentiable."""
    depth = vertices_camera[..., 2]
    drawn = rasterize_hard(
        camera.to_ndc(vertices_camera),
        model.triangles,
        image_size=camera.image_size,
        near=(depth.amin(1) - DEPTH_REACH_M / 10).clamp(min=NEAREST_M),
        far=depth.amax(1) + DEPTH_REACH_M / 10,
    )
    image = sample_texture(texture, interpolate(model.uv, model.triangles, drawn), drawn)
    return image, (drawn.triangle_ids >= 0).to(image)
