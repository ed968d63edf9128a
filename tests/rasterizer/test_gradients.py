"""Gradients against finite differences, of the specification and of the rendered area."""

from __future__ import annotations

import math

import pytest
import torch

from mien.rasterizer import rasterize
from tests.rasterizer.raster_scenes import bumpy_sphere, mesh


@pytest.mark.parametrize("clip", ["softras", "pytorch3d"])
def test_gradcheck_of_the_specification(clip):
    # Two triangles that share an edge, behind a third. No degenerate triangle: it would appear when its corners move.
    vertices, _ = mesh(
        (-0.71, -0.52, 2.0), (0.63, -0.57, 2.2), (0.52, 0.66, 2.4), (-0.59, 0.61, 2.1),
        (-0.31, -0.83, 1.9), (0.77, 0.13, 2.3),
    )  # fmt: skip
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 3]])
    generator = torch.Generator().manual_seed(0)
    attributes = torch.rand(1, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def picture(v, a):
        out = rasterize(
            v,
            triangles,
            a,
            image_size=(5, 6),
            sigma=1e-2,
            gamma=1e-1,
            dist_eps=1e-9,
            near=1.0,
            far=5.0,
            barycentric_clip=clip,
            backend="reference",
        )
        return out.image, out.alpha

    assert torch.autograd.gradcheck(picture, (vertices.requires_grad_(), attributes), eps=1e-7, atol=1e-5, rtol=1e-4)


def rendered_area(vertices: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
    """Area of the soft silhouette in NDC²."""
    size = 128
    out = rasterize(
        vertices,
        triangles,
        torch.ones_like(vertices[..., :1]),
        image_size=(size, size),
        sigma=5e-4,  # edges 1.4 pixels soft, so that the pixel grid sees them evenly
        dist_eps=1e-6,
        near=1.0,
        far=5.0,
    )
    return out.alpha.double().sum() * (2 / size) ** 2


def disc(corners: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.arange(corners) * (2 * math.pi / corners)
    rim = torch.stack([0.61 * torch.cos(angle), 0.61 * torch.sin(angle), torch.full_like(angle, 2.0)], -1)
    vertices = torch.cat([torch.tensor([[0.0, 0.0, 2.0]]), rim])
    k = torch.arange(corners)
    return vertices[None], torch.stack([torch.zeros_like(k), 1 + k, 1 + (k + 1) % corners], -1)


SHAPES = {
    "triangle": mesh((-0.61, 0.55, 2.0), (0.03, -0.72, 2.6), (0.58, 0.41, 3.1)),
    "disc": disc(),
    "bumpy sphere": bumpy_sphere(12),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", ["growing", "stretching", "shearing"])
def test_silhouette_gradient_is_that_of_the_area(shape, motion):
    vertices, triangles = SHAPES[shape]
    vertices = vertices.float()
    x, y = vertices[..., 0], vertices[..., 1]
    still = torch.zeros_like(x)
    step = {
        "growing": torch.stack([x, y, still], -1),
        "stretching": torch.stack([x * (x > 0), still, still], -1),
        "shearing": torch.stack([torch.sin(3 * y) * (x > 0.1), 0.3 * y, still], -1),
    }[motion]
    moving = vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rendered_area(moving, triangles), moving)
    predicted = float((gradient.double() * step).sum())
    size = 2e-3
    higher, lower = (float(rendered_area(vertices + sign * size * step, triangles)) for sign in (1, -1))
    measured = (higher - lower) / (2 * size)
    assert predicted == pytest.approx(measured, rel=0.02)
    if shape == "triangle" and motion == "growing":
        (ax, ay), (bx, by), (cx, cy) = vertices[0, :, :2].tolist()
        area = 0.5 * abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay))
        assert predicted == pytest.approx(2 * area, rel=0.02)  # d area / d log(scale)


def test_optimising_finds_a_lost_triangle():
    target_vertices, triangles = mesh((-0.5, 0.5, 2.0), (0.0, -0.6, 2.0), (0.6, 0.4, 2.0))
    target_vertices = target_vertices.float()

    def silhouette(vertices: torch.Tensor) -> torch.Tensor:
        return rasterize(
            vertices, triangles, torch.ones_like(vertices), image_size=(48, 48), sigma=3e-3, near=1.0, far=5.0
        ).alpha

    target = silhouette(target_vertices).detach()
    vertices = (target_vertices * torch.tensor([0.7, 0.7, 1.0]) + torch.tensor([0.1, 0.05, 0.0])).requires_grad_()
    optimiser = torch.optim.Adam([vertices], lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (silhouette(vertices) - target).square().mean().backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] *= 0.985
    assert float((vertices.detach() - target_vertices)[..., :2].abs().max()) < 2e-3


def test_only_what_is_asked_for_is_differentiated():
    vertices, triangles = bumpy_sphere(4)
    vertices = vertices.float()
    attributes = torch.rand(vertices.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = rasterize(vertices, triangles, attributes, image_size=(9, 9), near=1.0, far=5.0)
    assert not out.depth.requires_grad
    assert not out.barycentrics.requires_grad
    (from_image,) = torch.autograd.grad(out.image.sum(), attributes, retain_graph=True)
    assert float(from_image.abs().sum()) > 0
    (from_alpha,) = torch.autograd.grad(out.alpha.sum(), attributes)
    assert float(from_alpha.abs().sum()) == 0


def test_hidden_surfaces_far_behind_cost_no_accuracy():
    """Weights of e^-1000 and less must become zeros, not numbers that are not finite."""
    vertices, triangles = mesh(
        (-0.8, -0.8, 1.2), (0.9, -0.7, 1.2), (0.0, 0.8, 1.2), (-0.8, -0.8, 4.9), (0.9, -0.7, 4.9), (0.0, 0.8, 4.9)
    )
    vertices = vertices.float().requires_grad_()
    out = rasterize(vertices, triangles, torch.ones(1, 6, 3), image_size=(16, 16), gamma=1e-5, near=1.0, far=5.0)
    (gradient,) = torch.autograd.grad(out.image.sum() + out.alpha.sum(), vertices)
    assert gradient.isfinite().all()
    assert (out.triangle_ids <= 0).all()
