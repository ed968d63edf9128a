"""A mesh seen by a camera: the points of the surface that a picture shows, to be coloured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mien.camera import Camera
from mien.io.pixels import to_uint8
from mien.rasterizer import Fragments, rasterize_hard
from mien.rendering import sample_map
from mien.result import Reconstruction
from mien.typing import Bool, Float, Int, Tensor, UInt8

_FINE = 2
"""Samples per side of a pixel at an edge; 3 takes longer for slightly smoother edges."""
_EDGE_M = 5e-3
"""A pixel with a larger range of depths shows an edge. Skin at an angle of 80° has less in a panel of sheet.png."""
_DEPTH_SLACK_M = 0.02


@dataclass(frozen=True)
class FaceView:
    """The surface at N samples in P pixels: one in the middle of a pixel, or up to four in a pixel that has an edge."""

    pixels: Int[Tensor, "P"]
    """The covered pixels, counted row by row."""
    owners: Int[Tensor, "N"]
    """Position of each sample's pixel in `pixels`."""
    weights: Float[Tensor, "N"]
    """Share of the pixel that the sample stands for."""
    corners: Int[Tensor, "N 3"]
    """Vertices of the triangle at each sample."""
    barycentrics: Float[Tensor, "N 3"]
    """Weights of these vertices."""
    uv: Float[Tensor, "N 2"]
    """Texture coordinates at each sample."""

    @classmethod
    def of(cls, reconstruction: Reconstruction, vertices_camera: Float[Tensor, "V 3"], *, camera: Camera) -> FaceView:
        """Rasterize a mesh with hard edges and without back faces.

        Args:
            reconstruction: Triangles and texture coordinates of the mesh.
            vertices_camera: Its vertices in camera space, metres.
            camera: The camera, of the size of the picture.

        Returns:
            The samples.
        """
        triangles = torch.from_numpy(reconstruction.triangles.astype(np.int64))
        box = _box(vertices_camera, camera)
        middle, fine = (_fragments(vertices_camera, triangles, box.camera(camera, scale)) for scale in (1, _FINE))
        edge, smooth = _edges(middle, fine)
        from_middle, from_edge = smooth.flatten().nonzero()[:, 0], edge.flatten().nonzero()[:, 0]
        from_fine, owners = _fine_samples(from_edge, fine, width=box.width)
        ids = torch.cat([middle.triangle_ids.flatten()[from_middle], fine.triangle_ids.flatten()[from_fine]])
        barycentrics = torch.cat(
            [
                part.barycentrics.view(-1, 3).index_select(0, chosen)
                for part, chosen in ((middle, from_middle), (fine, from_fine))
            ]
        )
        corners = triangles.index_select(0, ids)
        return cls(
            pixels=box.in_picture(torch.cat([from_middle, from_edge]), camera),
            owners=torch.cat([torch.arange(len(from_middle)), len(from_middle) + owners]),
            weights=torch.cat([torch.ones(len(from_middle)), torch.full((len(from_fine),), 1 / _FINE**2)]),
            corners=corners,
            barycentrics=barycentrics,
            uv=_mixed(torch.from_numpy(reconstruction.uv), corners, barycentrics),
        )

    def vertex_values(self, values: Float[np.ndarray, "V C"]) -> Float[Tensor, "N C"]:
        """Interpolate values per vertex at the samples."""
        return _mixed(torch.from_numpy(values), self.corners, self.barycentrics)

    def map_values(self, values: Float[np.ndarray, "S S C"]) -> Float[Tensor, "N C"]:
        """Sample a UV map at the samples."""
        maps = torch.from_numpy(values).permute(2, 0, 1)[None]
        return sample_map(maps, self.uv)[0]

    def over(self, colours: Float[Tensor, "N 3"], background: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Composite the coloured mesh over a picture of the camera's size."""
        samples = F.pad(colours.clamp(0, 1), (0, 1), value=1.0) * self.weights[:, None]
        # Colour and coverage of each pixel. scatter_add_ takes a sixth of the time of index_add_.
        layer = torch.zeros(len(self.pixels), 4)
        layer.scatter_add_(0, self.owners[:, None].expand(-1, 4), samples)
        picture = background.reshape(-1, 3).copy()
        behind = torch.from_numpy(picture[self.pixels.numpy()]) / 255
        picture[self.pixels.numpy()] = to_uint8(layer[:, :3] + behind * (1 - layer[:, 3:]))
        return picture.reshape(background.shape)


@dataclass(frozen=True)
class _Box:
    """The part of a picture that a mesh can cover, pixels."""

    left: int
    top: int
    width: int
    height: int

    def camera(self, camera: Camera, scale: int) -> Camera:
        """The camera of this part, with `scale` samples per side of a pixel."""
        return camera.cropped(
            scale=torch.full((1,), float(scale)),
            shift_px=-float(scale) * torch.tensor([[float(self.left), float(self.top)]]),
            image_size=(self.height * scale, self.width * scale),
        )

    def in_picture(self, pixels: Int[Tensor, "P"], camera: Camera) -> Int[Tensor, "P"]:
        """The number of each pixel of the part in the whole picture."""
        rows, columns = pixels // self.width + self.top, pixels % self.width + self.left
        return rows * camera.image_size[1] + columns


def _box(vertices_camera: Float[Tensor, "V 3"], camera: Camera) -> _Box:
    """The box around the vertices in front of the camera, at least one pixel."""
    height, width = camera.image_size
    if float(vertices_camera[:, 2].min()) <= _DEPTH_SLACK_M:
        return _Box(0, 0, width, height)
    points = camera.project(vertices_camera[None])[0]
    size = torch.tensor([width, height])
    low = points.amin(0).floor().long().clamp(min=0).minimum(size - 1)
    high = points.amax(0).ceil().long().minimum(size).maximum(low + 1)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    return _Box(left, top, right - left, bottom - top)


def _fragments(vertices_camera: Float[Tensor, "V 3"], triangles: Int[Tensor, "T 3"], camera: Camera) -> Fragments:
    depth = vertices_camera[:, 2]
    return rasterize_hard(
        camera.to_ndc(vertices_camera[None]),
        triangles,
        image_size=camera.image_size,
        near=max(float(depth.min()) - _DEPTH_SLACK_M, 1e-3),
        far=float(depth.max()) + _DEPTH_SLACK_M,
        cull_backfaces=True,
    )


def _edges(middle: Fragments, fine: Fragments) -> tuple[Bool[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Pixels that have an edge, and pixels that one sample in the middle is enough for."""
    depth = fine.depth[0]
    parts = [depth[row::_FINE, column::_FINE] for row in range(_FINE) for column in range(_FINE)]
    nearest, farthest = parts[0], parts[0]
    for part in parts[1:]:
        nearest, farthest = torch.minimum(nearest, part), torch.maximum(farthest, part)
    # The depth is zero where there is no face.
    smooth = (nearest > 0) & (farthest - nearest < _EDGE_M) & (middle.triangle_ids[0] >= 0)
    return (farthest > 0) & ~smooth, smooth


def _fine_samples(
    pixels: Int[Tensor, "E"], fine: Fragments, *, width: int
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """The covered samples of pixels with an edge: their index in the fine picture, and the position of their pixel."""
    steps = torch.arange(_FINE)
    inside = (steps[:, None] * (_FINE * width) + steps).flatten()
    first = pixels // width * (_FINE * _FINE * width) + pixels % width * _FINE
    samples = (first[:, None] + inside).flatten()
    covered = fine.triangle_ids.flatten()[samples] >= 0
    return samples[covered], torch.arange(len(pixels)).repeat_interleave(_FINE**2)[covered]


def _mixed(
    values: Float[Tensor, "V C"], corners: Int[Tensor, "N 3"], barycentrics: Float[Tensor, "N 3"]
) -> Float[Tensor, "N C"]:
    """Weighted sums of the values at three vertices."""
    return F.embedding_bag(corners, values, per_sample_weights=barycentrics, mode="sum")
