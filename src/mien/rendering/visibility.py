"""Vertices that the camera sees."""

from __future__ import annotations

from torch.nn import functional as F

from mien.camera import Camera
from mien.morphable import MorphableModel
from mien.rasterizer import rasterize_hard
from mien.rendering.renderer import FaceSurface
from mien.rendering.sampling import sample_nearest
from mien.typing import Float, Tensor


def visible_vertices(
    surface: FaceSurface,
    vertices_px: Float[Tensor, "B V 2"],
    depth: Float[Tensor, "B H W"],
    *,
    slack_m: float,
) -> Float[Tensor, "B V"]:
    """1 for vertices that the camera sees: facing it, inside the image and no deeper than the z-buffer plus slack."""
    height, width = depth.shape[-2:]
    x, y = vertices_px.detach().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    front = sample_nearest(depth, vertices_px.detach())
    behind = surface.vertices_camera.detach()[..., 2] > front + slack_m
    return (inside & (facing_camera(surface) > 0) & (front > 0) & ~behind).float()


def facing_camera(surface: FaceSurface) -> Float[Tensor, "B V"]:
    """Cosine between each vertex's normal and the way to the camera; not differentiable."""
    to_camera = F.normalize(-surface.vertices_camera.detach(), dim=-1)
    return (to_camera * to_camera.new_tensor([1.0, -1.0, -1.0]) * surface.normals.detach()).sum(-1)


VISIBILITY_SLACK_M = 3e-3
"""How far behind the z-buffer a vertex may lie and still be seen: about a triangle's depth at a grazing angle."""


def vertex_visibility(model: MorphableModel, surface: FaceSurface, camera: Camera) -> Float[Tensor, "B V"]:
    """1 for vertices that the camera sees; draws the mesh without softness, not differentiable."""
    depth = surface.vertices_camera[..., 2]
    drawn = rasterize_hard(
        camera.to_ndc(surface.vertices_camera),
        model.triangles,
        image_size=camera.image_size,
        near=depth.amin(1) * 0.9,
        far=depth.amax(1) * 1.1,
    )
    return visible_vertices(surface, camera.project(surface.vertices_camera), drawn.depth, slack_m=VISIBILITY_SLACK_M)
