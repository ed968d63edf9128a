"""Visibility of vertices."""

from __future__ import annotations

from torch.nn import functional as F

from mien.camera import Camera, to_model_axes
from mien.morphable import MorphableModel
from mien.rasterizer import rasterize_hard
from mien.rendering.renderer import FaceSurface
from mien.rendering.sampling import sample_nearest
from mien.typing import Float, Tensor

VISIBILITY_SLACK_M = 3e-3
"""A vertex is visible up to this distance behind the z-buffer: about the depth of a triangle at a grazing angle."""


def visible_vertices(
    surface: FaceSurface,
    vertices_px: Float[Tensor, "B V 2"],
    depth: Float[Tensor, "B H W"],
    *,
    slack_m: float,
) -> Float[Tensor, "B V"]:
    """Which vertices face the camera, project into the image and are not occluded; not differentiable.

    Args:
        surface: The surfaces.
        vertices_px: Projection of each vertex, pixels.
        depth: Z-buffer in metres, 0 where there is no face.
        slack_m: A vertex counts as visible up to this distance behind the z-buffer, metres.

    Returns:
        1 for visible vertices, 0 for the others.
    """
    height, width = depth.shape[-2:]
    x, y = vertices_px.detach().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    front = sample_nearest(depth, vertices_px.detach())
    behind = surface.vertices_camera.detach()[..., 2] > front + slack_m
    return (inside & (facing_camera(surface) > 0) & (front > 0) & ~behind).float()


def facing_camera(surface: FaceSurface) -> Float[Tensor, "B V"]:
    """Cosine of the angle between the normal of each vertex and the direction to the camera; not differentiable."""
    to_camera = to_model_axes(F.normalize(-surface.vertices_camera.detach(), dim=-1))
    return (to_camera * surface.normals.detach()).sum(-1)


def vertex_visibility(model: MorphableModel, surface: FaceSurface, camera: Camera) -> Float[Tensor, "B V"]:
    """Which vertices are visible, from a z-buffer with hard edges; not differentiable.

    Args:
        model: Gives the triangles.
        surface: The surfaces.
        camera: One camera per face; its `image_size` is that of the z-buffer.

    Returns:
        1 for visible vertices, 0 for the others.
    """
    depth = surface.vertices_camera[..., 2]
    raster = rasterize_hard(
        camera.to_ndc(surface.vertices_camera),
        model.triangles,
        image_size=camera.image_size,
        near=depth.amin(1) * 0.9,
        far=depth.amax(1) * 1.1,
    )
    return visible_vertices(surface, camera.project(surface.vertices_camera), raster.depth, slack_m=VISIBILITY_SLACK_M)
