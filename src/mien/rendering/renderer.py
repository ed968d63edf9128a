"""Image formation, the only place where its steps are composed: coefficients, camera and light become an image.

coefficients ── morphable model ──► vertices, albedo          (eq. 1, 2)
vertices ── displacement along the normal ──► detailed vertices
normals, lighting ── spherical harmonics ──► shading           (eq. 3)
vertices ── pose ──► camera space ── pinhole ──► screen
screen, albedo · shading ── soft rasterizer ──► image, alpha, depth
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.camera import Camera
from mien.errors import FitDiverged
from mien.geometry import vertex_normals
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rasterizer import interpolate, rasterize, rasterize_hard
from mien.rasterizer import texture as sample_texture
from mien.rendering.posed_surface import posed_surface
from mien.typing import Float, Int, Tensor

DEPTH_REACH_M = 0.25
"""Half of the rasterizer's depth range, around the origin of the model. A head is 0.2 m deep; a narrow range keeps the
depth softness (gamma times the range) at 0.05 mm for every distance."""

NEAREST_M = 0.01
"""Smallest depth that is rendered, metres."""


@dataclass(frozen=True)
class VertexDetail:
    """Detail beyond the linear model, per vertex."""

    displacement: Float[Tensor, "B V"] | None
    """Metres along the vertex normal of the linear model's surface; None for no such displacement."""
    albedo_offset: Float[Tensor, "B V 3"]
    """Added to the albedo of the linear model."""
    shift: Float[Tensor, "B V 3"] | None = None
    """Metres along x, y and z of model space (the paper's displacement), added to the displacement along the normal."""


@dataclass(frozen=True)
class FaceSurface:
    """The surface of each face in model space and in camera space, with albedo and shading, before rasterization."""

    vertices: Float[Tensor, "B V 3"]
    """Model space, metres."""
    vertices_camera: Float[Tensor, "B V 3"]
    """Camera space, metres."""
    normals: Float[Tensor, "B V 3"]
    """Unit normals in view axes, see `Pose.to_view_axes`."""
    albedo: Float[Tensor, "B V 3"]
    """RGB; not clamped."""
    shading: Float[Tensor, "B V 3"]
    """Light per colour channel, eq. 3; not clamped."""

    @property
    def colours(self) -> Float[Tensor, "B V 3"]:
        """Vertex colours under the light, eq. 3: albedo times shading; not clamped."""
        return self.albedo * self.shading


@dataclass(frozen=True)
class RenderOutput:
    """Rendered images of a batch, and the surfaces that they show."""

    image: Float[Tensor, "B 3 H W"]
    """Colour of the face where `alpha` > 0, of the background elsewhere; not clamped; differentiable."""
    alpha: Float[Tensor, "B H W"]
    """Soft coverage, 0 to 1; differentiable."""
    depth: Float[Tensor, "B H W"]
    """Depth of the hard z-buffer, metres; 0 where there is no face. Not differentiable."""
    triangle_ids: Int[Tensor, "B H W"]
    """Number of the frontmost triangle; -1 where there is none."""
    barycentrics: Float[Tensor, "B H W 3"]
    """Perspective-correct barycentric coordinates in that triangle; not differentiable."""
    surface: FaceSurface
    """The rendered surfaces."""
    vertices_px: Float[Tensor, "B V 2"]
    """Projection of each vertex, pixels; differentiable."""

    @property
    def coverage(self) -> Float[Tensor, "B H W"]:
        """1 inside the face, `alpha` around it; `alpha` alone is lower along inner edges, where two surfaces meet."""
        return torch.where(self.triangle_ids >= 0, torch.ones_like(self.alpha), self.alpha)


def build_surface(
    model: MorphableModel, coefficients: FaceCoefficients, *, detail: VertexDetail | None = None
) -> FaceSurface:
    """Evaluate model, detail, pose and light at every vertex.

    Args:
        model: The morphable model.
        coefficients: Identity, expression, albedo, light and pose per face.
        detail: Detail beyond the linear model; None for the linear model alone.

    Returns:
        The surfaces; differentiable in coefficients and detail.
    """
    vertices = model.vertices(coefficients.identity, coefficients.expression)
    albedo = model.albedo(coefficients.albedo)
    if detail is not None:
        albedo = albedo + detail.albedo_offset
        vertices = vertices + sum(_vertex_offsets(detail, vertices, model))
    posed = posed_surface(model, vertices, coefficients.pose, coefficients.lighting)
    return FaceSurface(vertices, posed.camera, posed.normals, albedo, posed.shading)


def _vertex_offsets(
    detail: VertexDetail, vertices: Float[Tensor, "B V 3"], model: MorphableModel
) -> list[Float[Tensor, "B V 3"]]:
    if detail.displacement is None:
        along = []
    else:
        along = [detail.displacement[..., None] * vertex_normals(vertices, model.triangles)]
    return along if detail.shift is None else [*along, detail.shift]


def depth_range(coefficients: FaceCoefficients) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Depth range in which the rasterizer draws each face.

    Args:
        coefficients: The faces, of which position and scale are used.

    Returns:
        Nearest and farthest depth, metres; not differentiable.

    Raises:
        FitDiverged: A face is behind the camera or its position is not finite, because an optimisation or a network
            failed.
    """
    distance = coefficients.pose.translation[:, 2].detach()
    reach = DEPTH_REACH_M * coefficients.pose.scale.detach()
    near, far = (distance - reach).clamp(min=NEAREST_M), distance + reach
    lost = [k for k, fine in enumerate(((far > near) & far.isfinite()).tolist()) if not fine]
    if lost:
        raise FitDiverged(
            f"translation of face {lost[0]} puts it {float(distance[lost[0]]):.3g} m in front of the camera, where it "
            "cannot be rendered; use another mode or a sharper photo."
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
    """Render each face of the batch with its camera.

    Args:
        model: The morphable model.
        coefficients: Identity, expression, albedo, light and pose per face.
        camera: One camera per face; its `image_size` is the size of the rendering.
        detail: Detail beyond the linear model; None for the linear model alone.
        sigma: Softness of the edges in squared NDC units, see `mien.rasterizer.rasterize`.
        gamma: Softness of the choice between depths in parts of the depth range, see `mien.rasterizer.rasterize`.

    Returns:
        Images, coverage, depth and surfaces; image, alpha and projected vertices are differentiable in coefficients,
        camera and detail.

    Raises:
        FitDiverged: A face is behind the camera or its position is not finite.

    Example:
        >>> import mien
        >>> model = mien.load_model()
        >>> identity, expression, albedo = model.counts
        >>> face = mien.FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo)
        >>> mien.render(model, face, mien.Camera.from_fov(30.0, image_size=(256, 256))).image.shape
        torch.Size([1, 3, 256, 256])
    """
    surface = build_surface(model, coefficients, detail=detail)
    near, far = depth_range(coefficients)
    raster = rasterize(
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
        image=raster.image,
        alpha=raster.alpha,
        depth=raster.depth,
        triangle_ids=raster.triangle_ids,
        barycentrics=raster.barycentrics,
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
    """Render meshes with a texture that already includes the light, with hard edges.

    Args:
        model: Gives triangles and UV coordinates.
        vertices_camera: Camera space, metres.
        camera: One camera per mesh.
        texture: Colours; row 0 is v = 1.

    Returns:
        The images, black outside the mesh, and the mask of the pixels that the mesh covers (0 or 1). Not
        differentiable.
    """
    depth = vertices_camera[..., 2]
    raster = rasterize_hard(
        camera.to_ndc(vertices_camera),
        model.triangles,
        image_size=camera.image_size,
        near=(depth.amin(1) - DEPTH_REACH_M / 10).clamp(min=NEAREST_M),
        far=depth.amax(1) + DEPTH_REACH_M / 10,
    )
    image = sample_texture(texture, interpolate(model.uv, model.triangles, raster), raster)
    return image, (raster.triangle_ids >= 0).to(image)
