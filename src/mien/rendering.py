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
from torch.nn import functional as F

from mien.arrays import Float, Int, Shaped, Tensor
from mien.camera import Camera
from mien.errors import FitDiverged
from mien.geometry import mix_corners, vertex_normals
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rasterizer import rasterize, rasterize_hard

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


def sample_image(image: Float[Tensor, "B C H W"], points_px: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P C"]:
    """Bilinear samples of images at pixel positions (corner convention); differentiable, edges are continued."""
    height, width = image.shape[-2:]
    grid = 2 * points_px / points_px.new_tensor([width, height]) - 1
    sampled = F.grid_sample(image, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].mT


def sample_nearest(values: Shaped[Tensor, "B H W"], points_px: Float[Tensor, "B P 2"]) -> Shaped[Tensor, "B P"]:
    """The value of the pixel that each position lies in, or of the nearest one of the image."""
    height, width = values.shape[-2:]
    column, row = points_px.floor().long().unbind(-1)
    return values.flatten(1).gather(1, row.clamp(0, height - 1) * width + column.clamp(0, width - 1))


def sample_map(maps: Float[Tensor, "B C S S"], uv: Float[Tensor, "V 2"]) -> Float[Tensor, "B V C"]:
    """Bilinear samples of UV maps at each vertex's UV, v upwards; the paper's sampling of its offset maps."""
    size = maps.shape[-1]
    points = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=-1) * size
    return sample_image(maps, points.expand(len(maps), -1, 2))


def sample_map_hyperbolic(
    maps: Float[Tensor, "B C S S"],
    uv: Float[Tensor, "V 2"],
    *,
    depth: Float[Tensor, "B 1 S S"],
) -> Float[Tensor, "B V C"]:
    """Perspective-correct samples of UV maps: each texel's weight is divided by its depth before the camera.

    The variant that the paper gave up. The derivative by a depth z is the weight's times (sample − texel)/z, so that
    small depths blow the gradients up; `depth` must be positive everywhere. Differentiable in maps and depth.
    """
    weighed = sample_map(torch.cat([maps / depth, 1 / depth], dim=1), uv)
    return weighed[..., :-1] / weighed[..., -1:]


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
    covered = drawn.triangle_ids >= 0
    corners = model.triangles[drawn.triangle_ids.clamp(min=0)]
    u, v = mix_corners(model.uv, corners, drawn.barycentrics).unbind(-1)
    points = torch.stack([u, 1 - v], dim=-1) * texture.shape[-1]
    image = sample_image(texture, points.flatten(1, 2)).mT.unflatten(-1, covered.shape[1:])
    return image * covered[:, None], covered.to(image)


CHIN = 8
"""The contour point that has no side; 0 to 7 are the subject's right, 9 to 16 the left."""


def landmark_vertices(
    model: MorphableModel, vertices_px: Float[Tensor, "B V 2"], rotmat: Float[Tensor, "B 3 3"]
) -> Int[Tensor, "B 68"]:
    """The vertex of each of the 68 points; contour points slide along their strips to the visible outline.

    Annotators put the contour where the face ends in the picture. In each strip that is the candidate farthest out
    across the head's own up direction in the image.
    """
    up = torch.stack([rotmat[:, 0, 1], -rotmat[:, 1, 1]], dim=-1)
    rightwards = torch.stack([-up[:, 1], up[:, 0]], dim=-1)
    candidates = model.contour_candidates
    side = torch.where(torch.arange(len(candidates), device=up.device) < CHIN, -1.0, 1.0)
    outwards = torch.einsum("bkcd,bd->bkc", vertices_px[:, candidates.clamp(min=0)], rightwards) * side[:, None]
    farthest = outwards.masked_fill(candidates < 0, -torch.inf).argmax(dim=-1)
    chosen = candidates.expand(len(vertices_px), -1, -1).gather(2, farthest[..., None])[..., 0]
    chosen[:, CHIN] = model.landmarks68[CHIN]
    return torch.cat([chosen, model.landmarks68[len(candidates) :].expand(len(vertices_px), -1)], dim=1)
