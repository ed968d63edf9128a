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
    """The surface in the pixels of a picture: one sample in a smooth pixel, up to four in a pixel that has an edge.

    The samples are in the order of `smooth`, then of `edges`.
    """

    smooth: Int[Tensor, "P"]
    """Pixels with one sample, in their middle; pixels count row by row."""
    edges: Int[Tensor, "E"]
    """Pixels with more samples, or partly covered ones."""
    owners: Int[Tensor, "M"]
    """Position in `edges` of the pixel of each further sample."""
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
        triangles = torch.from_numpy(reconstruction.triangles.astype(np.int32))
        return cls.of_mesh(vertices_camera, triangles, torch.from_numpy(reconstruction.uv), camera=camera)

    @classmethod
    def of_mesh(
        cls,
        vertices_camera: Float[Tensor, "V 3"],
        triangles: Int[Tensor, "T 3"],
        uv: Float[Tensor, "V 2"],
        *,
        camera: Camera,
    ) -> FaceView:
        """`of` for any mesh.

        Args:
            vertices_camera: Its vertices in camera space, metres.
            triangles: Vertex indices, int32, counter-clockwise seen from outside.
            uv: Texture coordinates, v up.
            camera: The camera, of the size of the picture.
        """
        box = _box(vertices_camera, camera)
        fine = _fragments(vertices_camera, triangles, box.camera(camera))
        ids = fine.triangle_ids.flatten()
        smooth, edges = (kind.flatten().nonzero()[:, 0] for kind in _smooth_and_edges(fine))
        further = box.first_samples(edges)[:, None] + box.steps()
        covered = ids[further] >= 0
        samples = torch.cat([box.first_samples(smooth), further[covered]])
        corners = triangles.index_select(0, ids[samples])
        barycentrics = fine.barycentrics.view(-1, 3).index_select(0, samples)
        return cls(
            smooth=box.in_picture(smooth, camera),
            edges=box.in_picture(edges, camera),
            owners=covered.nonzero()[:, 0],
            corners=corners,
            barycentrics=barycentrics,
            uv=_mixed(uv, corners, barycentrics),
        )

    def vertex_values(self, values: Float[np.ndarray, "V C"] | Float[Tensor, "V C"]) -> Float[Tensor, "N C"]:
        """Interpolate values per vertex at the samples."""
        return _mixed(torch.as_tensor(values), self.corners, self.barycentrics)

    def map_values(self, values: Float[Tensor, "C S S"]) -> Float[Tensor, "N C"]:
        """Sample a UV map at the samples."""
        return sample_map(values[None], self.uv)[0]

    def over(self, colours: Float[Tensor, "N 3"], background: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Composite the coloured mesh over a picture of the camera's size."""
        picture, smooth, edges = background.reshape(-1, 3).copy(), self.smooth.numpy(), self.edges.numpy()
        picture[smooth] = to_uint8(colours[: len(smooth)])
        further = F.pad(colours[len(smooth) :].clamp(0, 1), (0, 1), value=1.0) / _FINE**2
        layer = torch.zeros(len(edges), 4).index_add_(0, self.owners, further)  # colour and coverage
        behind = torch.from_numpy(picture[edges]) / 255
        picture[edges] = to_uint8(layer[:, :3] + behind * (1 - layer[:, 3:]))
        return picture.reshape(background.shape)


@dataclass(frozen=True)
class _Box:
    """The part of a picture that a mesh can cover, pixels."""

    left: int
    top: int
    width: int
    height: int

    def camera(self, camera: Camera) -> Camera:
        """The camera of the samples of this part: the first sample of a pixel is in its middle.

        So the others are up to half a pixel further right and down, which moves edges by a quarter of a pixel.
        """
        left, top = _FINE * self.left + (_FINE - 1) / 2, _FINE * self.top + (_FINE - 1) / 2
        return camera.cropped(
            scale=torch.full((1,), float(_FINE)),
            shift_px=-torch.tensor([[left, top]]),
            image_size=(self.height * _FINE, self.width * _FINE),
        )

    def first_samples(self, pixels: Int[Tensor, "P"]) -> Int[Tensor, "P"]:
        """The number of the first sample of pixels of the part."""
        return _FINE * (pixels + (_FINE - 1) * (pixels // self.width) * self.width)

    def steps(self) -> Int[Tensor, "4"]:
        """From the number of the first sample of a pixel to those of all its samples."""
        steps = torch.arange(_FINE)
        return (steps[:, None] * (_FINE * self.width) + steps).flatten()

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


def _smooth_and_edges(fine: Fragments) -> tuple[Bool[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Pixels whose samples all see the same piece of surface, and the other pixels that the mesh covers."""
    depth = fine.depth[0]
    parts = [depth[row::_FINE, column::_FINE] for row in range(_FINE) for column in range(_FINE)]
    nearest, farthest = parts[0], parts[0]
    for part in parts[1:]:
        nearest, farthest = torch.minimum(nearest, part), torch.maximum(farthest, part)
    # The depth is zero where there is no face.
    smooth = (nearest > 0) & (farthest - nearest < _EDGE_M)
    return smooth, (farthest > 0) & ~smooth


def _mixed(
    values: Float[Tensor, "V C"], corners: Int[Tensor, "N 3"], barycentrics: Float[Tensor, "N 3"]
) -> Float[Tensor, "N C"]:
    """Weighted sums of the values at three vertices."""
    return F.embedding_bag(corners, values, per_sample_weights=barycentrics, mode="sum")
