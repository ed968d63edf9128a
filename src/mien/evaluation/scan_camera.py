"""The camera of a photo that was taken together with a scan: which point of the scan is seen at a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mien.geometry import Surface
from mien.morphable.landmark_tables import MEDIAPIPE_EYES, MEDIAPIPE_MOUTH, MEDIAPIPE_OVAL
from mien.rasterizer import rasterize_hard
from mien.typing import Bool, Float, Int, Tensor

_MOST_MATCHES = 4000
_DEPTH_OFFSET_MM = 1e4
"""Added to depths for the rasterizer: so far away, depth is almost linear across a triangle, as in an affine camera."""
_BEYOND = 0.05
"""A pixel centre may lie outside of its triangle by this share of it, because the triangle was found at the centre."""


@dataclass(frozen=True)
class ScanCamera:
    """A projection of millimetres of the scan to pixels whose first centre is (0, 0)."""

    matrix: Float[np.ndarray, "3 4"]
    """Projection matrix."""
    image_size: tuple[int, int]
    """Width and height of the photo."""
    landmarks468_px: Float[np.ndarray, "468 2"]
    """MediaPipe's points, detected in the photo."""

    def project(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        """Pixels (u, v) of points, and the homogeneous coordinate by which they were divided."""
        matrix = torch.from_numpy(self.matrix)
        projected = points @ matrix[:, :3].mT + matrix[:, 3]
        return torch.cat([projected[:, :2] / projected[:, 2:], projected[:, 2:]], dim=-1)

    def matches(
        self, face: Surface, pixels: Float[Tensor, "V 2"], scan: Surface
    ) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
        """Vertices of a prediction and the points of the scan that the photo shows at their pixels.

        Vertices outside of the face's oval, or in an opening of the eyes or mouth, are left out. Vertices at the back
        of the head are matched too, wrongly; a robust start ignores them.

        Args:
            face: The prediction.
            pixels: Position of each of its vertices in the photo.
            scan: The scan.
        """
        places = pixels.numpy()
        inside = np.zeros(len(places), bool)
        inside[face.triangles.unique().numpy()] = True
        inside &= np.isfinite(places).all(-1)
        inside[inside] = inside_polygon(places[inside], self.landmarks468_px[list(MEDIAPIPE_OVAL)])
        for opening in (*MEDIAPIPE_EYES, MEDIAPIPE_MOUTH):
            inside[inside] = ~inside_polygon(places[inside], self.landmarks468_px[list(opening)])
        chosen = np.flatnonzero(inside)
        if len(chosen) > _MOST_MATCHES:
            chosen = np.random.default_rng(0).choice(chosen, _MOST_MATCHES, replace=False)
        points = self.points_at(pixels[chosen], scan)
        seen = points.isfinite().all(-1)
        return face.vertices[chosen][seen], points[seen]

    def points_at(self, pixels: Float[Tensor, "P 2"], scan: Surface) -> Float[Tensor, "P 3"]:
        """The point of the scan at each pixel; NaN where the photo shows none."""
        width, height = self.image_size
        near = pixels.round().long()
        hit = ((near >= 0) & (near < torch.tensor([width, height]))).all(-1)
        ids = torch.full((len(pixels),), -1)
        ids[hit] = self._triangle_ids(scan)[near[hit, 1], near[hit, 0]]
        hit &= ids >= 0
        points = torch.full((len(pixels), 3), torch.nan, dtype=torch.float64)
        corners = scan.triangles[ids[hit]]
        image = self.project(scan.vertices)[corners]
        weights = _barycentrics_2d(pixels[hit], image[..., :2]).clamp(-_BEYOND, 1 + _BEYOND) / image[..., 2]
        weights = weights / weights.sum(-1, keepdim=True)
        points[hit] = (weights[..., None] * scan.vertices[corners]).sum(1)
        return points

    def _triangle_ids(self, scan: Surface) -> Int[Tensor, "H W"]:
        """The scan's triangle at each pixel; -1 for none."""
        width, height = self.image_size
        image = self.project(scan.vertices)[:, :2] + 0.5
        ndc = (2 * image - torch.tensor([width, height])) / min(width, height)
        forward = np.cross(self.matrix[0, :3], self.matrix[1, :3])
        depth = scan.vertices @ torch.from_numpy(forward / np.linalg.norm(forward))
        depth = depth - depth.min() + _DEPTH_OFFSET_MM
        fragments = rasterize_hard(
            torch.cat([ndc, depth[:, None]], dim=-1)[None].float(),
            scan.triangles,
            image_size=(height, width),
            near=_DEPTH_OFFSET_MM / 2,
            far=float(depth.max()) + 1,
        )
        return fragments.triangle_ids[0].long()


def _barycentrics_2d(points: Float[Tensor, "P 2"], corners: Float[Tensor, "P 3 2"]) -> Float[Tensor, "P 3"]:
    a, b, c = corners.unbind(1)
    total = _cross(b - a, c - a)
    second, third = _cross(points - a, c - a) / total, _cross(b - a, points - a) / total
    return torch.stack([1 - second - third, second, third], dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def inside_polygon(points: Float[np.ndarray, "P 2"], polygon: Float[np.ndarray, "K 2"]) -> Bool[np.ndarray, "P"]:
    """Whether points lie inside a closed polygon: a ray to the right crosses its sides an odd number of times."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    spans = (start[:, 1] > y) != (end[:, 1] > y)
    rise = end[:, 1] - start[:, 1]
    crossing = start[:, 0] + (y - start[:, 1]) * (end[:, 0] - start[:, 0]) / np.where(rise == 0, 1, rise)
    return (spans & (x < crossing)).sum(1) % 2 == 1
