"""A second look at a face: the crop unwrapped onto the chart by a first answer, and what that shows to be wrong.

    first answer ── model, pose, camera ──► places of texels ── crop ──► chart ── convolutions ──┐
    first answer, found points against the answer's ─────────────────────────────────────────────┴──► correction

In a crop a brow may lie anywhere; on the chart of a right answer it lies where the chart has it. So the convolutions
look for small displacements in one place each instead of for faces, and learn that from few faces: the idea of
shape-indexed features (Cao et al. 2012) with the chart as the index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mien.camera import Camera, Pose, to_camera_axes
from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.texture import TexelAtlas
from mien.typing import Float, Tensor

REFINER_SIZE = 128
"""Side of the crop that is unwrapped, pixels; the face is some 85 of them wide."""
ATLAS_SIZE = 64
WIDTHS = (32, 64, 128, 128)
"""Channels after each halving of the chart."""
NORM_GROUPS = 8
HIDDEN = 512
POINT_UNIT = 0.02
"""About how far found points lie from those of a first answer, in sides of the crop."""
FARTHEST = 4.0
"""Coefficients are told up to this many units: photographs hold expressions that no drawn face taught."""
LARGEST = 0.4
"""Longest correction, as the root mean square of its units. Of 512 held-out drawn faces one asked for clearly more; on
heads of another model, bare and seen straight on, 0.5 to 1.6 came out and told of identities that are nobody's."""
DARKEST = 0.02
"""Added to the contrast of the chart, so that a black crop stays finite."""


def crop_size(image_size: int, *, refiner: bool) -> int:
    """Side in pixels below which a crop shows an encoder less than it could see; `image_size` is its first look's."""
    return max(image_size, REFINER_SIZE) if refiner else image_size


class Refiner(nn.Module):
    """Corrections of shape and pose, from the crop on the chart of a first answer.

    `units` (N,) are those of the shape's and the pose's coefficients, in the order in which `forward` takes them.
    Starts with hardly any correction. The chart is not differentiated: the correction is, in the weights.
    """

    basis: Tensor
    normals: Tensor
    inside: Tensor
    units: Tensor

    def __init__(self, model: MorphableModel, *, units: Float[Tensor, "N"], dropout: float = 0.0) -> None:
        super().__init__()
        self._keep_geometry(model)
        self.register_buffer("units", units, persistent=False)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((4, *WIDTHS), WIDTHS, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.GroupNorm(NORM_GROUPS, outputs),
                nn.SiLU(),
            ]
        side = ATLAS_SIZE // 2 ** len(WIDTHS)
        self.convolutions = nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(WIDTHS[-1] * side**2))
        self.dropout = nn.Dropout(dropout)
        self.seen = nn.Linear(WIDTHS[-1] * side**2, HIDDEN)
        self.told = nn.Linear(len(units) + 2 * len(model.mediapipe_triangles), HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, len(units))
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def _keep_geometry(self, model: MorphableModel) -> None:
        """The model at the texels of the chart and at the 468 points, linear in the coefficients as at the vertices."""
        atlas = TexelAtlas.of(model, ATLAS_SIZE)
        bases = torch.cat([model.mean[None], model.identity_basis, model.expression_basis])
        inside = atlas.valid.flatten().nonzero()[:, 0]
        texels = atlas.interpolate(bases).flatten(2)[:, :, inside].transpose(1, 2)
        self.register_buffer("basis", torch.cat([texels, model.mediapipe_points(bases)], dim=1), persistent=False)
        normals = atlas.interpolate(vertex_normals(model.mean[None], model.triangles))[0]
        self.register_buffer("normals", normals.flatten(1)[:, inside].T.contiguous(), persistent=False)
        self.register_buffer("inside", inside, persistent=False)

    def forward(
        self,
        crops: Float[Tensor, "B 3 S S"],
        *,
        shape: Float[Tensor, "B N"],
        pose: Pose,
        camera: Camera,
        said: Float[Tensor, "B M"],
        points: Float[Tensor, "B 468 2"],
    ) -> Float[Tensor, "B M"]:
        """What to add to `said`, the first answer's shape and pose as the encoder's heads put them.

        `shape` holds identity and expression and `pose` is metric, both as `said` has them under the crops' cameras;
        `points` are found, in sides of the crop from its centre.
        """
        # In half precision a texel would be read a pixel beside its place.
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            chart, places = self._unwrapped(crops, shape, pose, camera)
            off = (points - (places / crops.shape[-1] - 0.5)) / POINT_UNIT
            told = (said / self.units).clamp(-FARTHEST, FARTHEST)
        hidden = self.seen(self.dropout(self.convolutions(chart))) + self.told(torch.cat([told, off.flatten(1)], dim=1))
        hidden = hidden + self.second(F.silu(hidden))
        correction = self.head(F.silu(hidden))
        length = correction.square().mean(1, keepdim=True).clamp(min=LARGEST**2).sqrt()
        return correction * (LARGEST / length) * self.units

    def _unwrapped(
        self, crops: Float[Tensor, "B 3 S S"], shape: Float[Tensor, "B N"], pose: Pose, camera: Camera
    ) -> tuple[Float[Tensor, "B 4 C C"], Float[Tensor, "B 468 2"]]:
        """The chart's colours, evened, with how much each texel faces the camera; and the 468 points in pixels."""
        count = len(self.normals)
        weights = torch.cat([torch.ones_like(shape[:, :1]), shape], dim=1)
        surface = pose.to_camera((weights @ self.basis.flatten(1)).unflatten(1, (-1, 3)))
        places = camera.project(surface)
        grid = (places[:, :count] * (2 / crops.shape[-1]) - 1)[:, None]
        colours = F.grid_sample(crops, grid, padding_mode="border", align_corners=False)[:, :, 0]
        even = colours - colours.mean(2, keepdim=True)
        even = even / (even.square().mean((1, 2), keepdim=True).sqrt() + DARKEST)
        # The mean face's normals, turned with the head: an answer's own differ by little and cost as much as all else.
        normals = to_camera_axes(self.normals @ pose.rotmat().mT)
        facing = -(normals * F.normalize(surface[:, :count], dim=-1)).sum(-1, keepdim=True)
        chart = crops.new_zeros(crops.shape[0], 4, ATLAS_SIZE**2)
        chart = chart.index_copy(2, self.inside, torch.cat([even, facing.transpose(1, 2)], dim=1))
        return chart.unflatten(2, (ATLAS_SIZE, ATLAS_SIZE)), places[:, count:]
