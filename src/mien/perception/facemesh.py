"""FaceMesh: 468 surface points from a face crop, with the attention heads for lips and eyes.

The network and its weights are MediaPipe's (Kartynnik et al. 2019; Grishchenko et al., Attention Mesh, 2020;
Apache-2.0). A trunk gives a first mesh; three heads look again at the trunk's 48-pixel feature map, each in a
turned 16×16 window around the lips or an eye, and place their own points (and the irises) more exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mien.assets import load_weights
from mien.morphable.landmark_tables import MEDIAPIPE_EYE_CORNERS, MEDIAPIPE_MOUTH_CORNERS
from mien.perception.layers import BlazeBlock, PointwiseConv2d, SameConv2d, as_inference
from mien.typing import Float, Tensor

MESH_SIZE = 192
FEATURE_STRIDE = 4
WINDOW_SIZE = 16
# A head's window spans 1.5 times the box of its points, as its graph says (scale_x, scale_y).
WINDOW_SCALE = 1.5


@dataclass(frozen=True)
class _Region:
    """What an attention head looks at; `name` is the weight file's."""

    name: str
    points: int
    """How many mesh points the head refines."""
    ends: tuple[int, int]
    """The two mesh points whose connecting line is made horizontal in the window."""


# The eyes last: they have irises too.
REGIONS = (
    _Region("lips", 80, MEDIAPIPE_MOUTH_CORNERS),
    _Region("right_eye", 71, MEDIAPIPE_EYE_CORNERS[0]),
    _Region("left_eye", 71, MEDIAPIPE_EYE_CORNERS[1]),
)
TAILS = (*(f"{region.name}.points" for region in REGIONS), *(f"{region.name}.iris" for region in REGIONS[1:]))
TAIL_REGIONS, TAIL_POINTS = (0, 1, 2, 1, 2), (80, 71, 71, 5, 5)
BODY_WIDTHS = ((32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2))
TAIL_WIDTHS = ((128, 1), (128, 1), (128, 2), (128, 1), (128, 1))
# What follows the layers of `tail_layers` in the weight file: the coordinates, of as many points as the tail has.
COORDINATES = "8."


def _blocks(widths: tuple[tuple[int, int], ...], inputs: int, *, groups: int = 1) -> list[nn.Module]:
    """Blocks of these output channels and strides; with `groups`, so many chains of them side by side."""
    blocks: list[nn.Module] = []
    for outputs, stride in widths:
        blocks.append(BlazeBlock(groups * inputs, groups * outputs, stride=stride, groups=groups, activation="prelu"))
        inputs = outputs
    return blocks


def tail_layers(groups: int) -> nn.Sequential:
    """Blocks at the last resolution, a narrowing to 32 channels and one more block; `groups` tails side by side."""
    return nn.Sequential(
        *_blocks(TAIL_WIDTHS, 128, groups=groups),
        PointwiseConv2d(groups * 128, groups * 32, groups=groups),
        nn.PReLU(groups * 32),
        BlazeBlock(groups * 32, groups * 32, groups=groups, activation="prelu"),
    )


class RegionHeads(nn.Module):
    """The attention heads: for each region a body over its window, then one tail a group of points.

    All bodies have the same layers, and so have all tails: each kind is computed at once, as groups of channels.
    `indices` (3,80) are the mesh points that each region refines, in the order of its outputs, the last one repeated.
    """

    indices: Tensor
    ends: Tensor

    def __init__(self) -> None:
        super().__init__()
        most = max(region.points for region in REGIONS)
        self.register_buffer("indices", torch.zeros(len(REGIONS), most, dtype=torch.int64))
        self.register_buffer("ends", torch.tensor([region.ends for region in REGIONS]), persistent=False)
        self.bodies = nn.Sequential(*_blocks(BODY_WIDTHS, 32, groups=len(REGIONS)))
        self.tails = tail_layers(len(TAILS))
        self.coordinates = nn.ModuleList(nn.Conv2d(32, 2 * points, 2) for points in TAIL_POINTS)

    def windows(self, mesh: Float[Tensor, "B 468 3"]) -> Float[Tensor, "B 3 2 3"]:
        """Return the matrices from window pixels (0…16) to crop pixels (0…192) of each mesh."""
        first, second = mesh[:, self.ends, :2].unbind(2)
        along = F.normalize(second - first, dim=-1)
        across = torch.stack([-along[..., 1], along[..., 0]], -1)
        axes = torch.stack([along, across], -1)
        turned = mesh[:, self.indices, :2] @ axes
        low, high = turned.amin(2), turned.amax(2)
        centre = axes @ ((low + high) / 2)[..., None]
        linear = axes * ((high - low) * (WINDOW_SCALE / WINDOW_SIZE))[:, :, None]
        return torch.cat([linear, centre - linear.sum(-1, keepdim=True) * (WINDOW_SIZE / 2)], -1)

    def forward(
        self, features: Float[Tensor, "B 32 48 48"], mesh: Float[Tensor, "B 468 3"]
    ) -> tuple[Float[Tensor, "B 468 3"], Float[Tensor, "B 2 5 2"]]:
        """Return the mesh with refined points, and the irises, in crop pixels."""
        matrices = self.windows(mesh)
        shared = self.bodies(_read_windows(features, matrices))
        # The tails of the irises look at the eyes' windows, which come after the lips', once more.
        codes = self.tails(torch.cat([shared, shared[:, 128:]], 1)).split(32, 1)
        found = []
        for layer, code, region in zip(self.coordinates, codes, TAIL_REGIONS, strict=True):
            # Coordinates come out in a window of 64; the matrix speaks of 16.
            points, matrix = layer(code).flatten(1).unflatten(1, (-1, 2)) / FEATURE_STRIDE, matrices[:, region]
            found.append(points @ matrix[:, :, :2].mT + matrix[:, None, :, 2])
        refined = mesh.clone()
        for indices, points in zip(self.indices, found, strict=False):
            refined[:, indices[: points.shape[1]], :2] = points
        return refined, torch.stack(found[len(REGIONS) :], 1)


def _read_windows(features: Float[Tensor, "B C H W"], matrices: Float[Tensor, "B R 2 3"]) -> Float[Tensor, "B R*C S S"]:
    """Read the windows of all regions; they follow each other in the channels."""
    # Features are sampled at whole coordinates, without half-pixel offsets, as the original does.
    matrices = matrices * (2 / (FEATURE_STRIDE * (features.shape[-1] - 1)))
    steps = torch.arange(WINDOW_SIZE, device=matrices.device, dtype=matrices.dtype)[:, None]
    along_x, along_y, origin = (matrices[:, :, None, :, k] for k in range(3))
    grid = (steps * along_y + (origin - 1))[:, :, :, None] + (steps * along_x)[:, :, None]
    sampled = F.grid_sample(features, grid.flatten(1, 2), padding_mode="zeros", align_corners=True)
    windows = sampled.permute(0, 2, 3, 1).unflatten(1, (-1, WINDOW_SIZE)).permute(0, 2, 3, 1, 4)
    return windows.flatten(3).permute(0, 3, 1, 2)


def _side_by_side(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join what the weight file keeps for each head into the layers of `RegionHeads`."""
    heads = tuple(f"{region.name}." for region in REGIONS)
    arranged = {name: value for name, value in stored.items() if not name.startswith(heads)}
    for kind, parts in (("bodies", [f"{head}body." for head in heads]), ("tails", [f"{tail}." for tail in TAILS])):
        for layer in [name.removeprefix(parts[0]) for name in stored if name.startswith(parts[0])]:
            values = [stored[f"{part}{layer}"] for part in parts]
            if layer.startswith(COORDINATES):
                arranged |= {layer.replace(COORDINATES, f"heads.coordinates.{k}."): v for k, v in enumerate(values)}
            else:
                arranged[f"heads.{kind}.{layer}"] = torch.cat(values)
    indices = [stored[f"{head}indices"] for head in heads]
    most = max(region.points for region in REGIONS)
    arranged["heads.indices"] = torch.stack([torch.cat([i, i[-1:].expand(most - len(i))]) for i in indices])
    return arranged


class FaceMesh(nn.Module):
    """468 points of the face in a 192-pixel crop.

    forward(x) takes (B,3,192,192) RGB in [0,1] and returns the refined mesh (B,468,3), the irises (B,2,5,2), right
    eye first, centre then ring, and the face's presence as a logit (B,). x and y are crop pixels, z is in the same
    unit and decreases towards the camera.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv2d(3, 16, 3, stride=2), nn.PReLU(16))
        self.fine = nn.Sequential(*_blocks(((16, 1), (16, 1), (32, 2)), 16))
        self.coarse = nn.Sequential(
            *_blocks(
                (
                    (32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1),
                    (128, 2), (128, 1), (128, 1), (128, 2), (128, 1), (128, 1),
                ),
                32,
            )
        )  # fmt: skip
        self.narrow = nn.Sequential(nn.Conv2d(128, 32, 1), nn.PReLU(32), BlazeBlock(32, 32, activation="prelu"))
        self.points = nn.Conv2d(32, 3 * 468, 3)
        self.presence = nn.Conv2d(32, 1, 3)
        self.heads = RegionHeads()

    @classmethod
    def from_assets(cls) -> FaceMesh:
        """Load the packaged weights; raises AssetError if they are missing or damaged."""
        network = cls()
        load_weights(network, "facemesh.safetensors", arrange=_side_by_side)
        return as_inference(network)

    def forward(
        self, x: Float[Tensor, "B 3 192 192"]
    ) -> tuple[Float[Tensor, "B 468 3"], Float[Tensor, "B 2 5 2"], Float[Tensor, "B"]]:
        """Return mesh, irises and presence logit (see the class)."""
        features = self.fine(self.stem(x))
        code = self.narrow(self.coarse(features))
        mesh = self.points(code).flatten(1).unflatten(1, (468, 3))
        refined, irises = self.heads(features, mesh)
        return refined, irises, self.presence(code).flatten()
