"""Triangles that cross the near plane, against ray casting, finite differences and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from mien.rasterizer import RasterSettings, rasterize, rasterize_hard
from mien.rasterizer.clipping import clip_near
from tests.rasterizer.raster_scenes import bumpy_sphere

NEAR, FAR = 1.0, 5.0
SIZE = 24


def to_ndc(points: torch.Tensor) -> torch.Tensor:
    return torch.cat([points[..., :2] / points[..., 2:], points[..., 2:]], -1)


def soup(triangles: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles in space on all sides of the camera: in front, behind, and across all planes."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 3 * triangles, 3, generator=generator, dtype=torch.float64)
    points = (points - 0.5) * torch.tensor([6.0, 6.0, 7.0]) + torch.tensor([0.0, 0.0, 1.5])
    return points.float().double(), torch.arange(3 * triangles, dtype=torch.int32).reshape(-1, 3)


def cast_rays(points: torch.Tensor, triangles: torch.Tensor):
    """The nearest triangle between near and far on the ray through each pixel centre: ids, barycentrics, depth."""
    centre = (2 * torch.arange(SIZE, dtype=torch.float64) + 1 - SIZE) / SIZE
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    ray = torch.stack([x, y, torch.ones_like(x)], -1)  # reaches z = 1
    a, b, c = points[0][triangles.long()].unbind(1)
    # z ray = a + u (b - a) + v (c - a)
    matrix = torch.stack(torch.broadcast_tensors(ray[:, :, None], a - b, a - c), -1)
    z, u, v = torch.linalg.solve(matrix, a.expand(SIZE, SIZE, -1, -1)).unbind(-1)
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (z >= NEAR) & (z <= FAR)
    depth, ids = torch.where(hit, z, math.inf).min(-1)
    found = depth.isfinite()
    at = ids[..., None]
    barycentrics = torch.stack([1 - u - v, u, v], -1).gather(2, at[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    zero = torch.zeros((), dtype=torch.float64)
    return (
        torch.where(found, ids, -1),
        torch.where(found[..., None], barycentrics, zero),
        torch.where(found, depth, zero),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_is_seen_is_what_rays_hit(seed, backend):
    points, triangles = soup(12, seed)
    before = points[0, triangles.long(), 2] < NEAR
    assert (before.sum(-1) == 1).any()
    assert (before.sum(-1) == 2).any()
    dtype = torch.float64 if backend == "reference" else torch.float32
    out = rasterize_hard(
        to_ndc(points).to(dtype), triangles, image_size=(SIZE, SIZE), near=NEAR, far=FAR, backend=backend
    )
    ids, barycentrics, depth = cast_rays(points, triangles)
    same = out.triangle_ids[0] == ids
    assert int((~same).sum()) <= (0 if backend == "reference" else 1)  # a centre on an edge may go either way
    assert float(((out.barycentrics[0] - barycentrics) * same[..., None]).abs().max()) <= 2e-5
    assert float(((out.depth[0] - depth) * same).abs().max()) <= 2e-5


# As fans around a corner: one corner before the plane, two, one behind the camera, and the plane through a corner.
CROSSING = torch.tensor(
    [[[-0.61, 0.55, 0.5], [0.03, -0.72, 1.6], [0.58, 0.41, 3.1], [0.9, -0.8, -2.0], [-0.8, 0.9, -1.0]]],
    dtype=torch.float64,
)
FANS = torch.tensor([[0, 1, 2], [1, 3, 2], [0, 2, 4]])


@pytest.mark.parametrize("clip", ["softras", "pytorch3d"])
def test_gradcheck_through_the_cut(clip):
    generator = torch.Generator().manual_seed(0)
    attributes = torch.rand(1, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def picture(vertices, attributes):
        out = rasterize(
            vertices,
            FANS,
            attributes,
            image_size=(5, 6),
            sigma=1e-2,
            gamma=1e-1,
            dist_eps=1e-9,
            near=NEAR,
            far=FAR,
            barycentric_clip=clip,
            backend="reference",
        )
        assert clip == "pytorch3d" or bool((out.triangle_ids >= 0).any())
        return out.image, out.alpha

    vertices = CROSSING.clone().requires_grad_()
    assert torch.autograd.gradcheck(picture, (vertices, attributes), eps=1e-7, atol=1e-5, rtol=1e-4)
    out = picture(vertices, attributes)
    (gradient,) = torch.autograd.grad(out[1].sum(), vertices)
    assert bool((gradient[0, 0].abs() > 1e-3).all())  # the corner before the plane moves the cut


@pytest.mark.parametrize("clip", ["softras", "pytorch3d"])
@pytest.mark.parametrize("shapes_only", [False, True])
def test_pulling_gradients_back_is_what_autograd_does(clip, shapes_only):
    settings = RasterSettings((8, 8), barycentric_clip=clip)
    generator = torch.Generator().manual_seed(0)
    vertices = torch.cat([CROSSING, CROSSING.flip(1)]).requires_grad_()
    attributes = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    near = torch.tensor([1.0, 1.3], dtype=torch.float64)
    mesh = clip_near(vertices, FANS, attributes, near, settings, shapes_only=shapes_only)
    assert mesh is not None and mesh.attributes is not None
    used = torch.zeros(mesh.vertices.shape[:2], dtype=torch.float64)  # kernels send nothing to vertices of no triangle
    used.scatter_(1, mesh.triangles.flatten(1).long(), 1.0)
    to_mesh = [
        torch.randn(t.shape, generator=generator, dtype=t.dtype) * used[..., None]
        for t in (mesh.vertices, mesh.attributes)
    ]
    expected = torch.autograd.grad((mesh.vertices, mesh.attributes), (vertices, attributes), to_mesh)
    found = mesh.pull_back(*to_mesh)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_clipping_by_shapes_only_gives_the_same_image():
    """As on a GPU, where reading values to find out what crosses would wait for the device."""
    points, triangles = soup(40, 7)
    vertices = to_ndc(points).float()
    near = torch.tensor([NEAR])
    drawn = []
    for shapes_only in (False, True):
        mesh = clip_near(vertices, triangles, None, near, RasterSettings((SIZE, SIZE)), shapes_only=shapes_only)
        assert mesh is not None
        assert len(mesh.cut) == 40 or not shapes_only
        out = rasterize_hard(
            mesh.vertices, mesh.triangles, image_size=(SIZE, SIZE), near=NEAR, far=FAR, near_clipping=False
        )
        drawn.append((*mesh.restore(out.triangle_ids, out.barycentrics), out.depth))
    assert len(set(drawn[0][0].flatten().tolist())) > 10
    assert torch.equal(drawn[0][0], drawn[1][0])
    for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True):
        assert torch.allclose(one, other, atol=1e-6)  # kernels round by the triangles beside which they prepare one


def test_corners_that_are_no_vertices_stay_for_the_gpu_to_leave_out():
    triangles = torch.tensor([[0, 1, 2], [0, 1, 99], [-1, 1, 2]], dtype=torch.int32)
    mesh = clip_near(CROSSING, triangles, None, torch.ones(1).double(), RasterSettings((8, 8)), shapes_only=True)
    assert mesh is not None
    assert mesh.triangles[0, 1:3].tolist() == [[0, 1, 99], [-1, 1, 2]]
    assert all(len(set(second)) == 1 for second in mesh.triangles[0, 4:].tolist())


def test_without_clipping_what_crosses_is_dropped():
    points, triangles = soup(40, 7)
    settings = {"image_size": (SIZE, SIZE), "near": NEAR, "far": FAR}
    vertices = to_ndc(points).float()
    whole = (vertices[0, triangles.long(), 2] >= NEAR).all(-1)
    assert not whole.all()
    without = rasterize_hard(vertices, triangles, near_clipping=False, **settings)
    expected = rasterize_hard(vertices, triangles[whole], **settings)
    assert torch.allclose(without.depth, expected.depth, rtol=1e-5)
    reference = rasterize_hard(vertices, triangles, near_clipping=False, backend="reference", **settings)
    assert torch.equal(reference.triangle_ids, without.triangle_ids)


@pytest.mark.parametrize("corner", range(3))
@pytest.mark.parametrize("step", [1e-4, 1e-8])
def test_nothing_jumps_as_a_corner_passes_the_plane(corner, step):
    """Except near the new edge within the triangle, which acts like every edge between two triangles of a mesh: alpha
    rises there by a quarter at most, and the outer colours are those of a sliver."""
    size, sigma = 48, 1e-3
    triangle = torch.tensor([[[-0.61, 0.55, 2.0], [0.03, -0.72, 1.6], [0.58, 0.41, 3.1]]], dtype=torch.float64)

    def draw(z: float):
        vertices = triangle.clone()
        vertices[0, corner, 2] = z
        colours = torch.eye(3, dtype=torch.float64)[None]
        return rasterize(
            vertices, torch.tensor([[0, 1, 2]]), colours, image_size=(size, size), sigma=sigma, gamma=1e-2, near=NEAR,
            far=FAR, backend="reference",
        )  # fmt: skip

    behind, before = draw(NEAR + step), draw(NEAR - step)
    assert torch.equal(behind.triangle_ids, before.triangle_ids)
    assert float((behind.barycentrics - before.barycentrics).abs().max()) <= 2 * step
    assert float((behind.depth - before.depth).abs().max()) <= 4 * step
    centre = (2 * torch.arange(size, dtype=torch.float64) + 1 - size) / size
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    pixel = torch.stack([x, y], -1)
    start, end = triangle[0, corner, :2], triangle[0, (corner + 2) % 3, :2]
    along = (((pixel - start) @ (end - start)) / (end - start).square().sum()).clamp(0, 1)
    distance = (pixel - start - along[..., None] * (end - start)).norm(dim=-1)
    away = distance > math.sqrt(math.log(1e4) * sigma) + 1e-3
    assert float((behind.image - before.image).abs().amax(1)[0][away].max()) <= 200 * step
    rise = (before.alpha - behind.alpha)[0]
    assert float(rise[away].abs().max()) <= 200 * step
    assert float(rise.min()) >= -200 * step
    assert float(rise.max()) <= 0.25 + 200 * step


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    sphere, triangles = bumpy_sphere(60)
    vertices = torch.cat([sphere, sphere]).float() * torch.tensor([1.0, 1.0, 0.8])
    near = torch.tensor([2.0, 2.1])  # through the middle, in different places
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        moving, colours = vertices.clone().requires_grad_(), vertices.sin().requires_grad_()
        out = rasterize(moving, triangles, colours, image_size=(40, 50), near=near, far=FAR)
        gradients = torch.autograd.grad(out.image.square().sum() + out.alpha.sum(), (moving, colours))
        results.append(
            (out.image.detach(), out.alpha.detach(), out.triangle_ids, out.barycentrics, out.depth, *gradients)
        )
    assert bool((vertices[..., 2] < near[:, None]).any())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
