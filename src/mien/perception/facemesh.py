"""FaceMesh: 468 surface points from a face crop, with attention heads for lips and eyes.

The network and its weights are MediaPipe's (Kartynnik et al. 2019; Grishchenko et al., Attention Mesh, 2020;
Apache-2.0). A trunk predicts a first mesh. Three heads each read a rotated 16×16 window of the trunk's 48-pixel feature
map, around the lips or an eye, and predict the points there (and the irises) more precisely.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mien.assets import load_weights
from mien.morphable.landmark_tables import MEDIAPIPE_EYE_CORNERS, MEDIAPIPE_MOUTH_CORNERS
from mien.perception.fused import Program
from mien.perception.layers import BlazeBlock, PointwiseConv2d, SameConv2d, as_inference
from mien.perception.occluder_head import OccluderHead
from mien.typing import Float, Tensor

MESH_SIZE = 192
FEATURE_STRIDE = 4
WINDOW_SIZE = 16
# A head's window spans 1.5 times the box of its points: scale_x, scale_y of MediaPipe's graph.
WINDOW_SCALE = 1.5


@dataclass(frozen=True)
class _Region:
    """The region of one attention head."""

    name: str
    """Its name in the weight file."""
    points: int
    """Number of mesh points that the head refines."""
    ends: tuple[int, int]
    """Two mesh points; the line between them is horizontal in the window."""


# The eyes come last, because they have irises too.
REGIONS = (
    _Region("lips", 80, MEDIAPIPE_MOUTH_CORNERS),
    _Region("right_eye", 71, MEDIAPIPE_EYE_CORNERS[0]),
    _Region("left_eye", 71, MEDIAPIPE_EYE_CORNERS[1]),
)
TAILS = (*(f"{region.name}.points" for region in REGIONS), *(f"{region.name}.iris" for region in REGIONS[1:]))
TAIL_REGIONS, TAIL_POINTS = (0, 1, 2, 1, 2), (80, 71, 71, 5, 5)
BODY_WIDTHS = ((32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2))
TAIL_WIDTHS = ((128, 1), (128, 1), (128, 2), (128, 1), (128, 1))
# Blocks of the trunk's two parts that end with its last map of 96 pixels, and of 48, 24, 12, 6 and 3 pixels.
FINE_BLOCKS = 2
MAP_BLOCKS = ((0, 2), (2, 5), (5, 8), (8, 11), (11, 14))
# Index, in the weight file, of the layer after those of `tail_layers`: it outputs the coordinates of the tail's points.
COORDINATES = "8."


def _blocks(widths: tuple[tuple[int, int], ...], inputs: int, *, groups: int = 1) -> list[nn.Module]:
    """A chain of blocks with the given output channels and strides; `groups` such chains are computed in parallel."""
    blocks: list[nn.Module] = []
    for outputs, stride in widths:
        blocks.append(BlazeBlock(groups * inputs, groups * outputs, stride=stride, groups=groups, activation="prelu"))
        inputs = outputs
    return blocks


def tail_layers(groups: int) -> nn.Sequential:
    """Blocks at the last resolution, a projection to 32 channels and one more block; `groups` tails in parallel."""
    return nn.Sequential(
        *_blocks(TAIL_WIDTHS, 128, groups=groups),
        PointwiseConv2d(groups * 128, groups * 32, groups=groups),
        nn.PReLU(groups * 32),
        BlazeBlock(groups * 32, groups * 32, groups=groups, activation="prelu"),
    )


class RegionHeads(nn.Module):
    """The attention heads: one body per region, then one tail per group of points.

    All bodies have the same layers, and so have all tails, so each kind is computed at once as groups of channels.
    """

    indices: Tensor
    """(3, 80) mesh points that each region refines, in the order of its outputs; the last one is repeated."""
    ends: Tensor
    """(3, 2) mesh points on the horizontal axis of each window."""

    def __init__(self) -> None:
        super().__init__()
        most = max(region.points for region in REGIONS)
        self.register_buffer("indices", torch.zeros(len(REGIONS), most, dtype=torch.int64))
        self.register_buffer("ends", torch.tensor([region.ends for region in REGIONS]), persistent=False)
        self.bodies = nn.Sequential(*_blocks(BODY_WIDTHS, 32, groups=len(REGIONS)))
        self.tails = tail_layers(len(TAILS))
        self.coordinates = nn.ModuleList(nn.Conv2d(32, 2 * points, 2) for points in TAIL_POINTS)
        self.body_program: Program | None = None
        self.tail_program: Program | None = None

    def build_programs(self) -> None:
        """Prepare the native calls; later changes of the weights have no effect on them."""
        for name, layers, channels, size in (
            ("body_program", self.bodies, 32 * len(REGIONS), WINDOW_SIZE),
            ("tail_program", self.tails, 128 * len(TAILS), WINDOW_SIZE // 4),
        ):
            program = Program(channels, size)
            setattr(self, name, program.give(program.add(layers)))

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
        shared = run_layers(self.bodies, self.body_program, _read_windows(features, matrices))
        # The tails of the irises use the eyes' windows, which follow those of the lips.
        codes = run_layers(self.tails, self.tail_program, torch.cat([shared, shared[:, 128:]], 1)).split(32, 1)
        found = []
        for layer, code, region in zip(self.coordinates, codes, TAIL_REGIONS, strict=True):
            # The network's coordinates span a window of 64; the matrix expects 16.
            points, matrix = _whole(layer, code).unflatten(1, (-1, 2)) / FEATURE_STRIDE, matrices[:, region]
            found.append(points @ matrix[:, :, :2].mT + matrix[:, None, :, 2])
        refined = mesh.clone()
        for indices, points in zip(self.indices, found, strict=False):
            refined[:, indices[: points.shape[1]], :2] = points
        return refined, torch.stack(found[len(REGIONS) :], 1)


def run_layers(layers: nn.Sequential, program: Program | None, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
    """Apply the layers, by their program where it fits."""
    return program.run(x)[0] if program is not None and program.fits(x) else layers(x)


def _through(layers: Iterable[nn.Module], x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
    for layer in layers:
        x = layer(x)
    return x


def _whole(convolution: nn.Module, map_: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c"]:
    """A convolution whose kernel is as large as the map, as a matrix product: a third of the time."""
    assert isinstance(convolution, nn.Conv2d)
    matrix = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(map_.permute(0, 2, 3, 1).flatten(1), matrix, convolution.bias)


def _read_windows(features: Float[Tensor, "B C H W"], matrices: Float[Tensor, "B R 2 3"]) -> Float[Tensor, "B R*C S S"]:
    """Sample the windows of all regions and stack them as channels."""
    # Features are sampled at integer coordinates, without half-pixel offsets, as in the original.
    matrices = matrices * (2 / (FEATURE_STRIDE * (features.shape[-1] - 1)))
    steps = torch.arange(WINDOW_SIZE, device=matrices.device, dtype=matrices.dtype)[:, None]
    along_x, along_y, origin = (matrices[:, :, None, :, k] for k in range(3))
    grid = (steps * along_y + (origin - 1))[:, :, :, None] + (steps * along_x)[:, :, None]
    sampled = F.grid_sample(features, grid.flatten(1, 2), padding_mode="zeros", align_corners=True)
    windows = sampled.permute(0, 2, 3, 1).unflatten(1, (-1, WINDOW_SIZE)).permute(0, 2, 3, 1, 4)
    return windows.flatten(3).permute(0, 3, 1, 2)


def _side_by_side(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the weights of single heads, as the file stores them, into the layers of `RegionHeads`."""
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
    """Predicts 468 points of a face from a 192-pixel crop; differentiable, though its loaded weights are frozen."""

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
        self.program: Program | None = None
        self.occluder_program: Program | None = None
        self.occluder_head: OccluderHead | None = None

    @classmethod
    def from_assets(cls) -> FaceMesh:
        """The network with the packaged weights, ready for inference.

        Raises:
            AssetError: The weights are missing or damaged.
        """
        network = cls()
        load_weights(network, "facemesh.safetensors", arrange=_side_by_side)
        network.heads.build_programs()
        network.occluder_head = OccluderHead()
        load_weights(network.occluder_head, "occluders.safetensors")
        program = Program(3, MESH_SIZE)
        features, maps = network.add_trunk(program)
        network.program = program.give(features, program.add(network.narrow, maps[-1]))
        program = Program(3, MESH_SIZE)
        features, maps = network.add_trunk(program)
        code, occluders = program.add(network.narrow, maps[-1]), network.occluder_head.add_to(program, maps)
        network.occluder_program = program.give(features, code, occluders)
        return as_inference(network)

    def trunk(self, x: Float[Tensor, "B 3 192 192"]) -> tuple[Tensor, list[Tensor]]:
        """Return the features of the attention heads, and the last maps of 96, 48, 24, 12, 6 and 3 pixels."""
        fine, coarse = list(self.fine), list(self.coarse)
        finest = _through(fine[:FINE_BLOCKS], self.stem(x))
        features = _through(fine[FINE_BLOCKS:], finest)
        maps, values = [finest], features
        for first, last in MAP_BLOCKS:
            values = _through(coarse[first:last], values)
            maps.append(values)
        return features, maps

    def add_trunk(self, program: Program) -> tuple[int, list[int]]:
        """Append the layers of `trunk` to a program; return the numbers of its maps."""
        fine, coarse = list(self.fine), list(self.coarse)
        finest = program.add([*self.stem, *fine[:FINE_BLOCKS]])
        features = program.add(fine[FINE_BLOCKS:], finest)
        maps, source = [finest], features
        for first, last in MAP_BLOCKS:
            source = program.add(coarse[first:last], source)
            maps.append(source)
        return features, maps

    def forward(
        self, x: Float[Tensor, "B 3 192 192"]
    ) -> tuple[Float[Tensor, "B 468 3"], Float[Tensor, "B 2 5 2"], Float[Tensor, "B"]]:
        """Predict the landmarks of each crop.

        Args:
            x: RGB in [0, 1].

        Returns:
            Mesh: x, y in crop pixels, z in the same unit, smaller towards the camera. Irises: right eye first; centre,
            then four points on the rim, crop pixels. Logit of the probability that the crop shows a face.
        """
        if self.program is not None and self.program.fits(x):
            features, code = self.program.run(x)
        else:
            features, maps = self.trunk(x)
            code = self.narrow(maps[-1])
        return self._read(features, code)

    def with_occluders(
        self, x: Float[Tensor, "B 3 192 192"]
    ) -> tuple[Float[Tensor, "B 468 3"], Float[Tensor, "B 2 5 2"], Float[Tensor, "B"], Float[Tensor, "B 96 96"]]:
        """Predict the landmarks of each crop, and what hides the face.

        Args:
            x: RGB in [0, 1].

        Returns:
            As `forward`, and per pixel of the halved crop the logit of the probability that it shows an occluder.

        Raises:
            ValueError: The network is not that of `from_assets`.
        """
        if self.occluder_head is None:
            raise ValueError("this FaceMesh has no occluder head; use FaceMesh.from_assets().")
        if self.occluder_program is not None and self.occluder_program.fits(x):
            features, code, occluders = self.occluder_program.run(x)
            occluders = occluders[:, 0]
        else:
            features, maps = self.trunk(x)
            code, occluders = self.narrow(maps[-1]), self.occluder_head(maps)
        return *self._read(features, code), occluders

    def _read(
        self, features: Float[Tensor, "B 32 48 48"], code: Float[Tensor, "B 32 3 3"]
    ) -> tuple[Float[Tensor, "B 468 3"], Float[Tensor, "B 2 5 2"], Float[Tensor, "B"]]:
        mesh = _whole(self.points, code).unflatten(1, (468, 3))
        refined, irises = self.heads(features, mesh)
        return refined, irises, _whole(self.presence, code).flatten()
