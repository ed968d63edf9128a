"""The soft rasterizer in plain PyTorch: the specification that every kernel is tested against.

Liu et al. 2019, "Soft Rasterizer" (arXiv 1901.05567). For a pixel centre and a triangle at squared screen distance d²
(to the triangle's boundary) the coverage is

    D = sigmoid(+d²/sigma) inside,  sigmoid(-d²/sigma) outside,      pairs with D < dist_eps are dropped
    alpha = 1 - product over pairs of (1 - D)

and colours blend by a softmax over normalised depth, in which the background takes part:

    z_norm = (far - z) / (far - near)
    weight = D exp(z_norm / gamma) / (sum over pairs of D exp(z_norm / gamma) + exp(BACKGROUND_DEPTH / gamma))

Outside a triangle its barycentric coordinates are clamped to [0, 1] and renormalised. They interpolate the depth
perspectively (1/z is linear on the screen) and the attributes linearly, as in the paper's code. With
`barycentric_clip="pytorch3d"` barycentrics are clamped at 0 only and the depth, too, is interpolated linearly, as in
PyTorch3D without `perspective_correct`. The fragments follow the same rule: their barycentrics are then linear on the
screen.

Where the paper leaves a choice:

- A triangle that crosses `near` is first cut there, into one or two triangles (see `mien.rasterizer.clipping`).
- A triangle that crosses `far` is clipped pixel by pixel, for alpha as well as for colour.
- A triangle of less than MINIMUM_AREA is dropped.
- Of equal depths the lower triangle index wins; second parts of cut triangles come last.

The code is written to be read and differentiated (any float dtype, any device), not to be fast. Each square of pixels
meets only the triangles whose bounding box reaches it. This is exact, because `dist_eps` drops all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from mien.rasterizer.clipping import clip_near
from mien.rasterizer.settings import RasterSettings
from mien.typing import Float, Int, Tensor

__all__ = ["Fragments", "RasterOutput", "rasterize_hard_reference", "rasterize_reference"]

BACKGROUND_DEPTH = 1e-3
"""Normalised depth of the background in the softmax (the paper's epsilon)."""

MINIMUM_AREA = 1e-12
"""Twice the smallest screen area, in NDC², of a triangle that is drawn."""

_SQUARE = 16  # pixels; the side of the squares that the image is cut into


@dataclass(frozen=True)
class RasterOutput:
    """Result of `rasterize`: soft image and alpha, and the nearest triangle under each pixel centre.

    `image` and `alpha` are differentiable, the others are not.
    """

    image: Float[Tensor, "B C H W"]
    """Attributes blended over all surfaces near the pixel and over the background."""
    alpha: Float[Tensor, "B H W"]
    """Coverage of the pixel by any surface, 0 to 1; lower along inner edges, where two coverages of 0.5 meet."""
    triangle_ids: Int[Tensor, "B H W"]
    """int32; -1 where no triangle covers the pixel centre."""
    barycentrics: Float[Tensor, "B H W 3"]
    """Weights of the triangle's corners, in the order of its indices; zeros where empty. Perspective-correct (they
    interpolate what is linear on the surface), unless `barycentric_clip` is "pytorch3d"."""
    depth: Float[Tensor, "B H W"]
    """Camera depth in the unit of the vertices; 0 where empty."""


@dataclass(frozen=True)
class Fragments:
    """Result of `rasterize_hard`: the nearest triangle under each pixel centre. Not differentiable."""

    triangle_ids: Int[Tensor, "B H W"]
    """int32; -1 where no triangle covers the pixel centre."""
    barycentrics: Float[Tensor, "B H W 3"]
    """Weights of the triangle's corners, in the order of its indices; perspective-correct, zeros where empty."""
    depth: Float[Tensor, "B H W"]
    """Camera depth in the unit of the vertices; 0 where empty."""


def rasterize_reference(  # noqa: PLR0917
    vertices_ndc: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "*b T 3"],
    attributes: Float[Tensor, "B V C"],
    near: Float[Tensor, "B"],
    far: Float[Tensor, "B"],
    background: Float[Tensor, "C"],
    settings: RasterSettings,
) -> RasterOutput:
    """Rasterize softly: the definition of `mien.rasterizer.rasterize`, for any float dtype and device; no checks."""
    mesh = clip_near(vertices_ndc, triangles, attributes, near, settings)
    if mesh is not None and mesh.attributes is not None:
        vertices_ndc, triangles, attributes = mesh.vertices, mesh.triangles, mesh.attributes
    images, alphas, fragments = [], [], []
    for b in range(len(attributes)):
        corners, ids = _drawable(vertices_ndc[b], _triangles_of(triangles, b), float(near[b]), settings.cull_backfaces)
        colours = attributes[b][_triangles_of(triangles, b)[ids]]
        depth_range = (float(near[b]), float(far[b]))
        image, alpha, hard = [], [], []
        for pixels, reached in _squares(corners, settings.image_size, math.sqrt(settings.reach_sq)):
            # Recomputed for the backward pass: what autograd would keep grows with pixels times triangles.
            soft = checkpoint(
                _soft_square,
                pixels,
                corners[reached],
                colours[reached],
                background,
                depth_range=depth_range,
                settings=settings,
                use_reentrant=False,
            )
            image.append(soft[0])
            alpha.append(soft[1])
            hard.append(_hard_square(pixels, corners[reached], ids[reached], depth_range, settings))
        images.append(_assemble(image, settings.image_size))
        alphas.append(_assemble(alpha, settings.image_size)[0])
        fragments.append(_fragments(hard, settings.image_size))
    ids, barycentrics, depth = (torch.stack(parts) for parts in zip(*fragments, strict=True))
    if mesh is not None:
        ids, barycentrics = mesh.restore(ids, barycentrics)
    return RasterOutput(torch.stack(images), torch.stack(alphas), ids, barycentrics, depth)


def rasterize_hard_reference(
    vertices_ndc: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "*b T 3"],
    near: Float[Tensor, "B"],
    far: Float[Tensor, "B"],
    settings: RasterSettings,
) -> Fragments:
    """Find the nearest triangle under each pixel centre: the definition of `mien.rasterizer.rasterize_hard`."""
    mesh = clip_near(vertices_ndc, triangles, None, near, settings)
    if mesh is not None:
        vertices_ndc, triangles = mesh.vertices, mesh.triangles
    fragments = []
    for b in range(len(vertices_ndc)):
        corners, ids = _drawable(vertices_ndc[b], _triangles_of(triangles, b), float(near[b]), settings.cull_backfaces)
        depth_range = (float(near[b]), float(far[b]))
        hard = [
            _hard_square(pixels, corners[reached], ids[reached], depth_range, settings)
            for pixels, reached in _squares(corners, settings.image_size, 0.0)
        ]
        fragments.append(_fragments(hard, settings.image_size))
    ids, barycentrics, depth = (torch.stack(parts) for parts in zip(*fragments, strict=True))
    if mesh is not None:
        ids, barycentrics = mesh.restore(ids, barycentrics)
    return Fragments(ids, barycentrics, depth)


def _triangles_of(triangles: Tensor, b: int) -> Tensor:
    return (triangles[b] if triangles.ndim == 3 else triangles).long()


def _drawable(vertices: Tensor, triangles: Tensor, near: float, cull_backfaces: bool) -> tuple[Tensor, Tensor]:
    """Corners (K,3,3) of the triangles that can be visible, and their indices (K,)."""
    corners = vertices[triangles]
    with torch.no_grad():
        area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        # With y pointing down, a triangle that runs counter-clockwise for the viewer has a negative area.
        drawn = (area < -MINIMUM_AREA) if cull_backfaces else (area.abs() > MINIMUM_AREA)
        drawn &= (corners[..., 2] >= near).all(-1)
        ids = drawn.nonzero()[:, 0]
    return corners[ids], ids


def _squares(corners: Tensor, image_size: tuple[int, int], reach: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixel centres (P,2) in NDC of each square of the image, with the indices of the triangles that may touch it."""
    height, width = image_size
    shorter = min(height, width)
    low = corners[..., :2].detach().amin(1) - reach
    high = corners[..., :2].detach().amax(1) + reach
    for top in range(0, height, _SQUARE):
        y = _centres(top, min(top + _SQUARE, height), height, shorter, corners)
        for left in range(0, width, _SQUARE):
            x = _centres(left, min(left + _SQUARE, width), width, shorter, corners)
            touches = (low[:, 0] <= x[-1]) & (high[:, 0] >= x[0]) & (low[:, 1] <= y[-1]) & (high[:, 1] >= y[0])
            pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
            yield pixels, touches.nonzero()[:, 0]


def _centres(first: int, end: int, size: int, shorter: int, like: Tensor) -> Tensor:
    """NDC of pixel centres: the shorter side of the image spans [-1, 1]."""
    pixel = torch.arange(first, end, dtype=like.dtype, device=like.device)
    return (2 * pixel + 1 - size) / shorter


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _barycentric(pixels: Tensor, corners: Tensor) -> Tensor:
    """Unclamped screen barycentrics (P,K,3) of every pixel in every triangle."""
    xy = corners[..., :2]
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    corner = (xy - pixels[:, None, None, :]).unbind(2)  # from the pixel to each corner: three times P K 2
    opposite = [_cross(corner[(k + 1) % 3], corner[(k + 2) % 3]) for k in range(3)]
    return torch.stack(opposite, -1) / area[:, None]


def _boundary_distance_sq(pixels: Tensor, corners: Tensor) -> Tensor:
    """Squared distance (P,K) of every pixel to the boundary of every triangle."""
    distances = []
    for k in range(3):
        start, end = corners[:, k, :2], corners[:, (k + 1) % 3, :2]
        edge = end - start
        offset = pixels[:, None, :] - start
        along = ((offset * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
        distances.append((offset - along[..., None] * edge).square().sum(-1))
    # min, not amin: amin would share the gradient among equally near edges.
    return torch.stack(distances, -1).min(-1).values


def _clamped(barycentrics: Tensor, settings: RasterSettings) -> Tensor:
    clamped = barycentrics.clamp(0, None if settings.linear_depth else 1)
    return clamped / clamped.sum(-1, keepdim=True)


def _depth(clamped: Tensor, corners: Tensor, settings: RasterSettings) -> Tensor:
    if settings.linear_depth:
        return (clamped * corners[:, :, 2]).sum(-1)
    return 1 / (clamped / corners[:, :, 2]).sum(-1)


def _soft_square(
    pixels: Tensor,
    corners: Tensor,
    colours: Tensor,
    background: Tensor,
    *,
    depth_range: tuple[float, float],
    settings: RasterSettings,
) -> tuple[Tensor, Tensor]:
    """Image (P,C) and alpha (P,1) of P pixels under K triangles."""
    near, far = depth_range
    barycentrics = _barycentric(pixels, corners)
    distance_sq = _boundary_distance_sq(pixels, corners)
    clamped = _clamped(barycentrics, settings)
    depth = _depth(clamped, corners, settings)

    inside = (barycentrics >= 0).all(-1)
    kept = (inside | (distance_sq < settings.reach_sq)) & (depth <= far)
    log_odds = torch.where(inside, distance_sq, -distance_sq) / settings.sigma
    coverage = torch.where(kept, torch.sigmoid(log_odds), 0.0)
    # 1 - D is sigmoid(-log_odds); its logarithm keeps what 1 - D loses where D is near 1.
    alpha = -torch.expm1(torch.where(kept, logsigmoid(-log_odds), 0.0).sum(-1, keepdim=True))

    depth_norm = torch.where(kept, (far - depth) / (far - near), 0.0)
    nearest = torch.cat([depth_norm, torch.full_like(pixels[:, :1], BACKGROUND_DEPTH)], -1).detach().amax(-1, True)
    weight = coverage * torch.exp((depth_norm - nearest) / settings.gamma)
    background_weight = torch.exp((BACKGROUND_DEPTH - nearest) / settings.gamma)
    blended = torch.einsum("pk,pkc,kcn->pn", weight, clamped, colours)
    image = (blended + background_weight * background) / (weight.sum(-1, keepdim=True) + background_weight)
    return image, alpha


@torch.no_grad()
def _hard_square(
    pixels: Tensor, corners: Tensor, ids: Tensor, depth_range: tuple[float, float], settings: RasterSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Triangle id (P,1), barycentrics (P,3) and depth (P,1) of the nearest triangle."""
    _, far = depth_range
    if len(ids) == 0:
        empty = torch.full_like(pixels[:, :1], -1, dtype=torch.int32)
        return empty, pixels.new_zeros(len(pixels), 3), pixels.new_zeros(len(pixels), 1)
    screen = _barycentric(pixels, corners)
    inside = (screen >= 0).all(-1)
    clamped = _clamped(screen, settings)
    depth = _depth(clamped, corners, settings)
    depth = torch.where(inside & (depth <= far), depth, torch.inf)
    nearest = depth.amin(-1, keepdim=True)
    # The first of equal depths: amin finds the depth, argmax of the booleans its first triangle.
    winner = (depth == nearest).to(torch.uint8).argmax(-1, keepdim=True)
    hit = nearest.isfinite()
    if not settings.linear_depth:
        clamped = clamped / corners[:, :, 2] * depth.nan_to_num(posinf=0.0)[..., None]
    chosen = clamped.gather(1, winner[..., None].expand(-1, -1, 3))[:, 0]
    return (
        torch.where(hit, ids[winner], -1).to(torch.int32),
        torch.where(hit, chosen, 0.0),
        torch.where(hit, nearest, 0.0),
    )


def _assemble(squares: list[Tensor], image_size: tuple[int, int]) -> Tensor:
    """Join the squares (P,N) of one image: (N,H,W)."""
    height, width = image_size
    columns = math.ceil(width / _SQUARE)
    rows = []
    for r in range(math.ceil(height / _SQUARE)):
        tall = min(_SQUARE, height - r * _SQUARE)
        row = [square.reshape(tall, -1, square.shape[-1]) for square in squares[r * columns : (r + 1) * columns]]
        rows.append(torch.cat(row, 1))
    return torch.cat(rows, 0).movedim(-1, 0)


def _fragments(
    squares: list[tuple[Tensor, Tensor, Tensor]], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    ids, barycentrics, depth = (_assemble(list(parts), image_size) for parts in zip(*squares, strict=True))
    return ids[0], barycentrics.movedim(0, -1), depth[0]
