"""Small meshes, each with one difficulty for rasterizers; in float64, NDC and metres."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scene:
    name: str
    vertices: Tensor  # B V 3
    triangles: Tensor
    image_size: tuple[int, int] = (24, 24)
    sigma: float = 1e-3
    gamma: float = 1e-2
    near: float = 1.0
    far: float = 5.0
    cull_backfaces: bool = False
    near_clipping: bool = True
    barycentric_clip: str = "softras"
    channels: int = 3
    expects_pixels: bool = True
    kwargs: dict = field(init=False)

    def __post_init__(self) -> None:
        names = ("image_size", "sigma", "gamma", "near", "far", "cull_backfaces", "near_clipping", "barycentric_clip")
        object.__setattr__(self, "kwargs", {name: getattr(self, name) for name in names})


def mesh(*corners: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """A soup of triangles: every three corners are one."""
    count = len(corners) // 3
    return torch.tensor(corners, dtype=torch.float64)[None], torch.arange(3 * count, dtype=torch.int32).reshape(-1, 3)


def bumpy_sphere(rings: int, *, seed: int = 0, depth: float = 2.5) -> tuple[Tensor, Tensor]:
    """A closed, non-convex, perspectively projected surface: front and back, silhouettes and self-occlusion."""
    generator = torch.Generator().manual_seed(seed)
    phi = torch.linspace(0.0, math.pi, rings + 1, dtype=torch.float64)
    theta = torch.arange(2 * rings, dtype=torch.float64) * (math.pi / rings)
    p, t = torch.meshgrid(phi, theta, indexing="ij")
    radius = 0.5 + 0.05 * torch.sin(4 * t) * torch.sin(3 * p)
    radius += 0.01 * torch.rand(radius.shape, generator=generator, dtype=torch.float64) * torch.sin(p)
    xyz = torch.stack([torch.sin(p) * torch.cos(t), torch.cos(p), torch.sin(p) * torch.sin(t)], -1) * radius[..., None]
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    xyz = xyz.reshape(-1, 3) @ rotation.T
    z = depth + xyz[:, 2]
    vertices = torch.stack([1.5 * depth * xyz[:, 0] / z, 1.5 * depth * xyz[:, 1] / z, z], -1)
    row, column = torch.meshgrid(torch.arange(rings), torch.arange(2 * rings), indexing="ij")
    right = (column + 1) % (2 * rings)
    a, b = row * 2 * rings + column, row * 2 * rings + right
    c, d = a + 2 * rings, b + 2 * rings
    triangles = torch.cat([torch.stack([a, b, d], -1).reshape(-1, 3), torch.stack([a, d, c], -1).reshape(-1, 3)])
    return vertices[None], triangles.to(torch.int32)


def scenes() -> list[Scene]:
    left, top, right = (-0.61, 0.55, 2.0), (0.03, -0.72, 2.6), (0.58, 0.41, 3.1)
    here, there, beyond = (0.1, 0.1, 2.0), (0.2, 0.2, 2.0), (0.3, 0.3, 2.0)
    one = mesh(left, top, right)
    quad = (
        torch.tensor(
            [[[-0.6, -0.5, 2.0], [0.55, -0.52, 2.2], [0.5, 0.57, 2.4], [-0.57, 0.6, 2.1]]], dtype=torch.float64
        ),
        torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int64),
    )
    sphere = bumpy_sphere(7)
    _, triangles = bumpy_sphere(6, seed=1)
    batch = torch.cat([bumpy_sphere(6, seed=seed)[0] for seed in (1, 2, 3)])
    towards = torch.tensor([0.0, 0.0, 1.0])
    per_image = torch.stack([triangles, triangles.flip(0), triangles[:, [1, 2, 0]]])
    return [
        Scene("one triangle", *one),
        Scene("shared edge, int64", *quad),
        Scene("sliver", *mesh((-0.7, 0.05, 2.0), (0.1, 0.044, 2.1), (0.71, 0.031, 2.3))),
        Scene("degenerate", *mesh(here, there, beyond, here, here, there, left, top, right)),
        Scene("only degenerate", *mesh(here, here, here), expects_pixels=False),
        Scene("coincident", *mesh(left, top, right, left, top, right)),
        Scene("behind the camera", *mesh(left, top, right, (-0.5, -0.5, -2.0), (0.5, -0.5, 2.0), (0.0, 0.5, 0.0))),
        Scene("crossing near", *mesh((-0.61, 0.55, 0.5), (0.03, -0.72, 1.6), (0.58, 0.41, 3.1))),
        Scene("two corners before near", *mesh((-0.61, 0.55, 0.5), (0.03, -0.72, 0.6), (0.58, 0.41, 3.1))),
        Scene("a corner behind the camera", *mesh((-0.61, 0.55, -1.5), (0.03, -0.72, 1.6), (0.58, 0.41, 3.1))),
        Scene("crossing near, PyTorch3D's clip", *mesh((-0.61, 0.55, -1.5), (0.03, -0.72, 1.6), (0.58, 0.41, 3.1)),
              barycentric_clip="pytorch3d"),
        Scene("crossing near, not clipped", *mesh((-0.61, 0.55, 0.5), (0.03, -0.72, 1.6), (0.58, 0.41, 3.1)),
              near_clipping=False, expects_pixels=False),
        Scene("half a sphere before near", *sphere, image_size=(30, 40), sigma=1e-4, near=2.45),
        Scene("crossing far", *mesh((-0.61, 0.55, 2.0), (0.03, -0.72, 9.0), (0.58, 0.41, 3.1))),
        Scene("before near", *mesh((-0.61, 0.55, 0.5), (0.03, -0.72, 0.6), (0.58, 0.41, 0.7)), expects_pixels=False),
        Scene("off-screen", *mesh((-3.0, 0.5, 2.0), (-2.5, -0.5, 2.0), (-2.0, 0.5, 2.0)), expects_pixels=False),
        Scene("partly off-screen", *mesh((-3.0, 0.5, 2.0), (2.5, -0.5, 2.2), (0.3, 2.5, 2.4))),
        Scene("far corners", *mesh((4.4, 12.0, 1.5), (-12.0, 3.6, 1.5), (0.03, -0.02, 3.0)), image_size=(40, 40)),
        Scene("very far corners", *mesh((220.0, 600.0, 1.5), (-600.0, 180.0, 1.5), (0.03, -0.02, 3.0)),
              image_size=(40, 40), sigma=1e-4),
        Scene("corners at a million", *mesh((4e5, 1e6, 1.5), (-1e6, 3e5, 1.5), (0.03, -0.02, 3.0)),
              image_size=(40, 40), sigma=1e-4),
        Scene("a corner at the camera", *mesh((-0.61, 0.55, 1e-20), (0.03, -0.72, 1.6), (0.58, 0.41, 3.1)),
              expects_pixels=False),
        Scene("empty mesh", quad[0], quad[1][:0], expects_pixels=False),
        Scene("one pixel", *one, image_size=(1, 1)),
        Scene("a row of pixels", *quad, image_size=(1, 7)),
        Scene("wide", *sphere, image_size=(19, 37)),
        Scene("tall", *sphere, image_size=(41, 13)),
        Scene("sharp", *sphere, image_size=(40, 40), sigma=1e-5, gamma=1e-4),
        Scene("very soft", *sphere, sigma=1e-2, gamma=1e-1),
        Scene("back faces culled", *sphere, cull_backfaces=True),
        Scene("PyTorch3D's clip", *sphere, barycentric_clip="pytorch3d"),
        Scene("PyTorch3D's clip, one large triangle", *one, sigma=1e-2, barycentric_clip="pytorch3d"),
        Scene("one large triangle", *one, image_size=(70, 90)),
        Scene("one channel", *sphere, channels=1),
        Scene("four channels", *sphere, channels=4),
        Scene("five channels", *sphere, channels=5),
        Scene("six channels", *sphere, channels=6),
        Scene("batch, shared triangles", batch, triangles),
        Scene("batch, triangles per image", batch, per_image),
        Scene("batch, one image crosses near", batch - torch.tensor([0.0, 1.4, 0.0])[:, None, None] * towards,
              triangles),
        Scene("batch, triangles per image, crossing near", batch, per_image, near=2.2),
    ]  # fmt: skip


def attributes_of(scene: Scene) -> tuple[Tensor, Tensor]:
    """Attributes (B,V,C) and a background (C,), float64."""
    generator = torch.Generator().manual_seed(5)
    batch, count, _ = scene.vertices.shape
    values = torch.rand(batch, count, scene.channels, generator=generator, dtype=torch.float64)
    return values, torch.rand(scene.channels, generator=generator, dtype=torch.float64)
