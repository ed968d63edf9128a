"""A scene for rasterizer.py, rasterized by mien and by other packages, each through its binding for torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from mien.rasterizer import rasterize

NEAR, FAR = 5.0, 15.0


@dataclass(frozen=True)
class Scene:
    vertices: Tensor
    triangles: Tensor
    attributes: Tensor
    size: tuple[int, int]
    sigma: float

    def forward(self):
        return rasterize(
            self.vertices, self.triangles, self.attributes, image_size=self.size, sigma=self.sigma, near=NEAR, far=FAR
        )

    def both(self) -> None:
        out = self.forward()
        (out.image.mean() + out.alpha.mean()).backward()
        self.vertices.grad = self.attributes.grad = None


def with_deodr(scene: Scene) -> Callable[[], None]:
    """Hard surfaces in float64, antialiased at silhouettes; their edges are found once, beforehand."""
    from deodr.differentiable_renderer import Scene2DBase  # noqa: PLC0415
    from deodr.pytorch.differentiable_renderer_pytorch import TorchDifferentiableRender2D  # noqa: PLC0415

    (height, width), triangles = scene.size, scene.triangles.numpy()
    count, (vertices, channels) = len(triangles), scene.attributes.shape[1:]
    corners = scene.vertices[0].detach().double()
    xy = (0.5 * (corners[:, :2] * min(scene.size) + torch.tensor([width, height]) - 1)).requires_grad_()
    colours = scene.attributes[0].detach().double().requires_grad_()
    flat = Scene2DBase(
        faces=triangles.astype("uint32"),
        faces_uv=triangles.astype("uint32"),
        ij=xy.detach().numpy(),
        depths=corners[:, 2].numpy().copy(),
        textured=torch.zeros(count, dtype=torch.bool).numpy(),
        uv=torch.zeros(vertices, 2).double().numpy(),
        shade=torch.zeros(vertices).double().numpy(),
        colors=colours.detach().numpy(),
        shaded=torch.zeros(count, dtype=torch.bool).numpy(),
        edgeflags=boundary_edges(scene.triangles).numpy(),
        height=height,
        width=width,
        nb_colors=channels,
        texture=torch.zeros(0, 0, channels).double().numpy(),
        background_color=torch.zeros(channels).double().numpy(),
        clockwise=True,
    )
    owner = SimpleNamespace(scene_2d=flat)

    def both() -> None:
        TorchDifferentiableRender2D(xy, colours, owner).mean().backward()
        xy.grad = colours.grad = None

    return both


def boundary_edges(triangles: Tensor) -> Tensor:
    """(T, 3): whether only one triangle has the edge from corner k to k + 1; this mesh has no other silhouette."""
    edges = torch.stack([triangles, triangles.roll(-1, 1)], -1).sort(-1).values.reshape(-1, 2)
    _, index, counts = edges.unique(dim=0, return_inverse=True, return_counts=True)
    return (counts[index] == 1).reshape(-1, 3)


def with_pytorch3d(scene: Scene) -> Callable[[], None]:
    """Its soft blending with 50 faces a pixel: fewer lose faces at this density."""
    from pytorch3d.ops import interpolate_face_attributes  # noqa: PLC0415
    from pytorch3d.renderer.blending import BlendParams, softmax_rgb_blend  # noqa: PLC0415
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes  # noqa: PLC0415
    from pytorch3d.renderer.mesh.rasterizer import Fragments  # noqa: PLC0415
    from pytorch3d.structures import Meshes  # noqa: PLC0415

    triangles = scene.triangles.long()
    flip = torch.tensor([-1.0, -1.0, 1.0], device=scene.vertices.device)  # x to the left, y up
    blend = BlendParams(scene.sigma, 1e-4, (0.0, 0.0, 0.0))

    def both() -> None:
        meshes = Meshes(list(scene.vertices * flip), [triangles] * len(scene.vertices))
        fragments = Fragments(
            *rasterize_meshes(
                meshes,
                image_size=scene.size,
                blur_radius=math.log(1 / 1e-4 - 1) * scene.sigma,
                faces_per_pixel=50,
                clip_barycentric_coords=True,
            )
        )
        colours = interpolate_face_attributes(
            fragments.pix_to_face, fragments.bary_coords, scene.attributes.flatten(0, 1)[meshes.faces_packed()]
        )
        softmax_rgb_blend(colours, fragments, blend, znear=NEAR, zfar=FAR).mean().backward()
        scene.vertices.grad = scene.attributes.grad = None

    return both


def with_nvdiffrast(scene: Scene) -> Callable[[], None]:
    """Rasterization, interpolation and antialiasing: hard surfaces with gradients at silhouettes only."""
    import nvdiffrast.torch as dr  # noqa: PLC0415

    context = dr.RasterizeCudaContext()
    depth = 2 * (scene.vertices[..., 2:] - NEAR) / (FAR - NEAR) - 1

    def both() -> None:
        clip = torch.cat([scene.vertices[..., :2], depth.detach(), torch.ones_like(depth)], -1)
        fragments, _ = dr.rasterize(context, clip, scene.triangles, resolution=scene.size)
        image, _ = dr.interpolate(scene.attributes, fragments, scene.triangles)
        dr.antialias(image, fragments, clip, scene.triangles).mean().backward()
        scene.vertices.grad = scene.attributes.grad = None

    return both
