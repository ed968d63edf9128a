"""What PyTorch3D's limits do to an image: it blends the `faces_per_pixel` nearest triangles and drops the smallest.

    python benchmarks/rasterizer_pytorch3d.py [--sides 51,96,189] [--sigma 1e-4] [--faces 50,100]

PyTorch3D has no package for current versions of torch. So its rule is written here in float64, after
`csrc/rasterize_meshes/rasterize_meshes_cpu.cpp` and `renderer/blending.py` of its repository: of the triangles whose
blurred area holds a pixel, the K nearest count; triangles of twice the area 1e-8 or less do not. The scene is that of
`benchmarks/rasterizer.py`. The table compares with the definition (`backend="reference"` in float64 with
`barycentric_clip="pytorch3d"`), in which all triangles count, and compares the kernel with the definition.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import torch
from rasterizer import face_like_mesh
from rasterizer_peers import FAR, NEAR
from torch import Tensor

from mien.evaluation.report import markdown_table
from mien.rasterizer import rasterize

SIZE, GAMMA, DIST_EPS = 224, 1e-4, 1e-4
SMALLEST_AREA = 1e-8
"""Twice the area in NDC², `kEpsilon` of PyTorch3D."""
BACKGROUND_DEPTH = 1e-3
"""As in mien; PyTorch3D's 1e-10 is visible only where no surface is near."""
NOTABLE = 1e-3
"""Differences that are counted."""
_ROWS = 4


@dataclass(frozen=True)
class Blended:
    """Image (3, H, W) and alpha (H, W) of a scene, and how many triangles count at each pixel."""

    image: Tensor
    alpha: Tensor
    triangles: Tensor


def blend_nearest(vertices: Tensor, triangles: Tensor, colours: Tensor, *, sigma: float, faces: int) -> Blended:
    """Blend as PyTorch3D does.

    Args:
        vertices: (V, 3) in NDC, y down, z is the depth.
        triangles: (T, 3) vertex indices.
        colours: (V, 3).
        sigma: Softness of edges, NDC².
        faces: Number of triangles per pixel that count, the nearest ones.
    """
    corners, colours = vertices[triangles.long()], colours[triangles.long()]
    reach = math.sqrt(math.log(1 / DIST_EPS - 1) * sigma)
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    corners, colours = corners[area.abs() > SMALLEST_AREA], colours[area.abs() > SMALLEST_AREA]
    low, high = corners[..., :2].amin(1) - reach, corners[..., :2].amax(1) + reach
    middles = ((2 * torch.arange(SIZE) + 1 - SIZE) / SIZE).to(vertices)
    images, alphas, counts = [], [], []
    for rows in middles.split(_ROWS):
        pixels = torch.stack(torch.meshgrid(middles, rows, indexing="xy"), -1).reshape(-1, 1, 2)
        near_rows = ((low[:, 1] <= rows[-1]) & (high[:, 1] >= rows[0])).nonzero()[:, 0]
        boxes = ((low[near_rows] <= pixels) & (high[near_rows] >= pixels)).all(-1)
        pixel, triangle = boxes.nonzero().unbind(-1)
        pairs = _Pairs.of(pixels[pixel, 0], corners[near_rows[triangle]], sigma=sigma)
        counted = pairs.kept.nonzero()[:, 0]
        counts.append(torch.bincount(pixel[counted], minlength=len(pixels)))
        counted = _nearest(counted, pixel, pairs.depth, faces)
        colour = (pairs.weights[counted, :, None] * colours[near_rows[triangle[counted]]]).sum(1)
        depth = ((FAR - pairs.depth) / (FAR - NEAR))[counted]
        top = depth.new_full((len(pixels),), BACKGROUND_DEPTH)
        top = top.scatter_reduce(0, pixel[counted], depth, "amax")
        weight = pairs.coverage[counted] * ((depth - top[pixel[counted]]) / GAMMA).exp()
        total = ((BACKGROUND_DEPTH - top) / GAMMA).exp().index_add(0, pixel[counted], weight)
        image = colour.new_zeros(len(pixels), 3).index_add(0, pixel[counted], weight[:, None] * colour)
        images.append(image / total[:, None])
        hidden = depth.new_zeros(len(pixels)).index_add(0, pixel[counted], (-pairs.coverage[counted]).log1p())
        alphas.append(-torch.expm1(hidden))
    image = torch.cat(images).view(SIZE, SIZE, 3).permute(2, 0, 1)
    return Blended(image, torch.cat(alphas).view(SIZE, SIZE), torch.cat(counts).view(SIZE, SIZE))


@dataclass(frozen=True)
class _Pairs:
    """Pixels and triangles near them, one by one."""

    kept: Tensor
    coverage: Tensor
    depth: Tensor
    weights: Tensor
    """Of the corners; clamped at 0 and renormalised."""

    @classmethod
    def of(cls, pixels: Tensor, corners: Tensor, *, sigma: float) -> _Pairs:
        to_corners = [corners[:, k, :2] - pixels for k in range(3)]
        edges = [corners[:, (k + 1) % 3, :2] - corners[:, k, :2] for k in range(3)]
        area = _cross(edges[0], -edges[2])
        shares = torch.stack([_cross(to_corners[(k + 1) % 3], to_corners[(k + 2) % 3]) for k in range(3)], -1)
        shares = shares / area[:, None]
        inside = (shares > 0).all(-1)
        squared = []
        for corner, edge in zip(to_corners, edges, strict=True):
            along = (-(corner * edge).sum(-1) / edge.square().sum(-1)).clamp(0, 1)
            squared.append((corner + along[:, None] * edge).square().sum(-1))
        distance_sq = torch.stack(squared, -1).amin(-1)
        weights = shares.clamp(min=0)
        weights = weights / weights.sum(-1, keepdim=True)
        kept = inside | (distance_sq < math.log(1 / DIST_EPS - 1) * sigma)
        coverage = torch.sigmoid(torch.where(inside, distance_sq, -distance_sq) / sigma)
        return cls(kept, coverage, (weights * corners[..., 2]).sum(-1), weights)


def _nearest(counted: Tensor, pixel: Tensor, depth: Tensor, faces: int) -> Tensor:
    """Of each pixel, the pairs with the smallest depths."""
    order = counted[depth[counted].argsort(stable=True)]
    order = order[pixel[order].argsort(stable=True)]
    owner = pixel[order]
    first = torch.searchsorted(owner, owner)
    return order[torch.arange(len(order)) - first < faces]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sides", default="51,96,189", help="numbers of vertices along a side of the mesh")
    parser.add_argument("--sigma", type=float, default=1e-4)
    parser.add_argument("--faces", default="50,100", help="numbers of triangles per pixel")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = []
    for side in map(int, options.sides.split(",")):
        vertices, triangles, colours = face_like_mesh(side)
        scene = {"image_size": (SIZE, SIZE), "near": NEAR, "far": FAR, "sigma": options.sigma}
        kernel = rasterize(vertices[None], triangles, colours[None], barycentric_clip="pytorch3d", **scene)
        exact, sigma = (vertices.double(), triangles, colours.double()), options.sigma
        every = blend_nearest(*exact, sigma=sigma, faces=len(triangles))
        most = int(every.triangles.max())
        lines.append([len(vertices), most, "all, kernel", *differences(kernel.image[0], kernel.alpha[0], every)])
        for faces in map(int, options.faces.split(",")):
            some = blend_nearest(*exact, sigma=sigma, faces=faces)
            lines.append([len(vertices), most, f"{faces} nearest", *differences(some.image, some.alpha, every)])
    header = ["vertices", "most triangles at a pixel", "which count", "image", "alpha", f"pixels above {NOTABLE:g}"]
    print(markdown_table(header, lines))
    return 0


def differences(image: Tensor, alpha: Tensor, every: Blended) -> tuple[str, str, int]:
    """Largest differences of image and alpha, and the number of pixels where one of them is notable."""
    of_image, of_alpha = (image - every.image).abs().amax(0), (alpha - every.alpha).abs()
    notable = torch.maximum(of_image, of_alpha) > NOTABLE
    return f"{float(of_image.max()):.1e}", f"{float(of_alpha.max()):.1e}", int(notable.sum())


if __name__ == "__main__":
    sys.exit(main())
