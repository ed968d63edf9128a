"""The published formulas of SoftRas and PyTorch3D, written out again, pixel by pixel and pair by pair."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mien.rasterizer import rasterize
from tests.rasterizer.raster_scenes import bumpy_sphere, mesh

SIZE = 12
SIGMA, GAMMA, DIST_EPS = 1e-3, 1e-2, 1e-4
NEAR, FAR = 1.0, 9.0

Point = tuple[float, float]


def barycentrics(p: Point, corners: list[Point]) -> list[float]:
    """By areas, signed."""

    def area(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])

    a, b, c = corners
    whole = area(a, b, c)
    return [area(p, b, c) / whole, area(a, p, c) / whole, area(a, b, p) / whole]


def squared_distance(p: Point, corners: list[Point]) -> float:
    """To the nearest point of the three edges."""

    def to_segment(a: Point, b: Point) -> float:
        length_sq = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
        t = ((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / length_sq
        t = min(max(t, 0.0), 1.0)
        return (a[0] + t * (b[0] - a[0]) - p[0]) ** 2 + (a[1] + t * (b[1] - a[1]) - p[1]) ** 2

    return min(to_segment(corners[k], corners[(k + 1) % 3]) for k in range(3))


def softras_fragment(w: list[float], z: list[float]) -> tuple[list[float], float]:
    """Liu et al. 2019, and barycentric_clip and the depth in soft_rasterize_cuda_kernel.cu: 1 / sum(w / z)."""
    clipped = [max(min(x, 1.0), 0.0) for x in w]
    total = max(sum(clipped), 1e-5)
    clipped = [x / total for x in clipped]
    return clipped, 1 / sum(x / depth for x, depth in zip(clipped, z, strict=True))


def pytorch3d_fragment(w: list[float], z: list[float]) -> tuple[list[float], float]:
    """BarycentricClipForward and CheckPixelInsideFace in rasterize_meshes: clipped at 0 only, z = sum(w z)."""
    clipped = [max(x, 0.0) for x in w]
    total = max(sum(clipped), 1e-5)
    clipped = [x / total for x in clipped]
    return clipped, sum(x * depth for x, depth in zip(clipped, z, strict=True))


def published(vertices, triangles, colours, *, fragment, background_depth: float):
    """Colour (eq. 2 and 3 of SoftRas, softmax_rgb_blend of PyTorch3D) and silhouette (eq. 4), no background colour."""
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.float64)
    alpha = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    reach_sq = SIGMA * math.log(1 / DIST_EPS - 1)  # PyTorch3D's blur_radius
    for row, column in itertools.product(range(SIZE), range(SIZE)):
        p = ((2 * column + 1 - SIZE) / SIZE, (2 * row + 1 - SIZE) / SIZE)
        pairs = []
        for face in triangles.tolist():
            corners = [tuple(vertices[k, :2].tolist()) for k in face]
            w = barycentrics(p, corners)
            inside = min(w) >= 0
            distance_sq = squared_distance(p, corners)
            if not inside and distance_sq >= reach_sq:
                continue
            clipped, z = fragment(w, [float(vertices[k, 2]) for k in face])
            coverage = 1 / (1 + math.exp(-(1 if inside else -1) * distance_sq / SIGMA))
            colour = sum(x * colours[k] for x, k in zip(clipped, face, strict=True))
            pairs.append((coverage, (FAR - z) / (FAR - NEAR), colour))
        peak = max([background_depth] + [depth for _, depth, _ in pairs])
        weights = [coverage * math.exp((depth - peak) / GAMMA) for coverage, depth, _ in pairs]
        total = sum(weights) + math.exp((background_depth - peak) / GAMMA)
        alpha[row, column] = 1 - math.prod(1 - coverage for coverage, _, _ in pairs)
        for weight, (_, _, colour) in zip(weights, pairs, strict=True):
            image[:, row, column] += weight / total * colour
    return image, alpha


def without_batch(vertices: torch.Tensor, triangles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Also without the triangles of zero area at the poles of the sphere: the formulas would divide by zero."""
    x, y = vertices[0, triangles.long(), :2].unbind(-1)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    return vertices[0], triangles[area.abs() > 1e-6]


MESHES = {
    "sphere": without_batch(*bumpy_sphere(4)),
    "steep triangle": without_batch(*mesh((-0.6, 0.5, 1.3), (0.1, -0.7, 4.6), (0.6, 0.4, 2.2))),
}


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize(
    ("clip", "fragment", "background_depth"),
    # PyTorch3D's background lies at depth 1e-10 instead of 1e-3, which only matters where nothing else is.
    [("softras", softras_fragment, 1e-3), ("pytorch3d", pytorch3d_fragment, 1e-10)],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_pictures_are_those_of_the_published_formulas(shape, clip, fragment, background_depth, backend):
    vertices, triangles = MESHES[shape]
    vertices = vertices.float().double()
    colours = (0.5 + 0.5 * torch.sin(7 * vertices)).float().double()
    dtype = torch.float64 if backend == "reference" else torch.float32
    out = rasterize(
        vertices[None].to(dtype),
        triangles,
        colours[None].to(dtype),
        image_size=(SIZE, SIZE),
        sigma=SIGMA,
        gamma=GAMMA,
        dist_eps=DIST_EPS,
        near=NEAR,
        far=FAR,
        barycentric_clip=clip,
        backend=backend,
    )
    image, alpha = published(vertices, triangles, colours, fragment=fragment, background_depth=background_depth)
    tolerance = 1e-9 if backend == "reference" else 1e-5
    assert float((out.image[0] - image).abs().max()) <= tolerance
    assert float((out.alpha[0] - alpha).abs().max()) <= tolerance


def test_the_two_definitions_differ():
    """Otherwise the tests above could not distinguish them."""
    vertices, triangles = MESHES["steep triangle"]
    colours = (0.5 + 0.5 * torch.sin(7 * vertices))[None]
    softras, pytorch3d = (
        rasterize(
            vertices[None],
            triangles,
            colours,
            image_size=(SIZE, SIZE),
            sigma=SIGMA,
            gamma=0.1,
            near=NEAR,
            far=FAR,
            barycentric_clip=clip,
            backend="reference",
        ).image
        for clip in ("softras", "pytorch3d")
    )
    assert float((softras - pytorch3d).abs().max()) > 1e-3
