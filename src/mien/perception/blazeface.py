"""BlazeFace: two detection networks, as PyTorch modules (Bazarevsky et al., 2019; weights Apache-2.0).

Each takes a square picture and predicts, for every anchor, a box, six keypoints and a score. The keypoints are right
eye, left eye, nose tip, middle of the mouth, right and left tragion (at the ear); right and left are the person's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mien.assets import load_weights
from mien.perception.fused import Program
from mien.perception.layers import BlazeBlock, PointwiseConv2d, SameConv2d, as_inference
from mien.typing import Float, Tensor


def anchor_centres(size: int, layers: tuple[tuple[int, int], ...]) -> Float[Tensor, "P 2"]:
    """Return anchor centres in pixels of the input, for (stride, anchors per cell) of each output layer."""
    centres = []
    for stride, count in layers:
        steps = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centres.append(torch.stack([x, y], -1).reshape(-1, 1, 2).expand(-1, count, 2).reshape(-1, 2))
    return torch.cat(centres)


class BlazeFace(nn.Module):
    """Base class of the detectors.

    forward(x) takes RGB in [0, 1] of shape (B, 3, size, size) and returns `regressions` (B, P, 16) and `logits` (B, P).
    A regression is box centre x y, box width height, then six keypoints x y, in input pixels; all but width and height
    are relative to the anchor.
    """

    size: ClassVar[int]
    """Side of the square input, pixels."""
    anchor_layers: ClassVar[tuple[tuple[int, int], ...]]
    """(stride, anchors per cell) of each output layer."""
    asset: ClassVar[str]
    """File name of the packaged weights."""
    anchors: Tensor
    """(P, 2) anchor centres, input pixels."""
    program: Program | None = None
    """`maps` in native code, where the weights are final."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", anchor_centres(self.size, self.anchor_layers), persistent=False)

    @classmethod
    def from_assets(cls) -> BlazeFace:
        """The network with the packaged weights, ready for inference.

        Raises:
            AssetError: The weights are missing or damaged.
        """
        network = cls()
        load_weights(network, cls.asset)
        network.program = network.native_program(Program(3, cls.size))
        return as_inference(network)

    def maps(self, x: Float[Tensor, "B 3 S S"]) -> list[Float[Tensor, "B C H W"]]:
        """Regressions of each output layer, then logits of each; x is RGB in [-1, 1]."""
        raise NotImplementedError

    def native_program(self, program: Program) -> Program:
        """The same as `maps`, as a program."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B P 16"], Float[Tensor, "B P"]]:
        """Return regressions and logits of every anchor, as the class defines them."""
        x = 2 * x - 1
        maps = self.program.run(x) if self.program is not None and self.program.fits(x) else self.maps(x)
        count = len(self.anchor_layers)
        regressions, logits = [_cells(m, 16) for m in maps[:count]], [_cells(m, 1) for m in maps[count:]]
        return torch.cat(regressions, 1), torch.cat(logits, 1)[..., 0]

    @staticmethod
    def decode(
        regressions: Float[Tensor, "N 16"], anchors: Float[Tensor, "N 2"]
    ) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N 6 2"]]:
        """Convert regressions at anchors to boxes (left, top, right, bottom) and keypoints, in input pixels."""
        points = regressions.unflatten(-1, (8, 2))
        centre = points[:, 0] + anchors
        half = points[:, 1] / 2
        return torch.cat([centre - half, centre + half], -1), points[:, 2:] + anchors[:, None]


def _cells(x: Float[Tensor, "B C H W"], values: int) -> Float[Tensor, "B P c"]:
    """Reorder a map of C = anchors·values channels to one row per anchor, in the order of `anchors`."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


class ShortRangeBlazeFace(BlazeFace):
    """Input of 128 px, a fine and a coarse output layer: for faces from a fifth of the picture to its whole size."""

    size = 128
    anchor_layers = ((8, 2), (16, 6))
    asset = "blazeface-short.safetensors"
    stem_channels: ClassVar[int] = 24
    # (output channels, stride) of every block, up to the fine layer and from there to the coarse one.
    fine_blocks: ClassVar[tuple[tuple[int, int], ...]] = (
        (24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1),
    )  # fmt: skip
    coarse_blocks: ClassVar[tuple[tuple[int, int], ...]] = ((96, 2), (96, 1), (96, 1), (96, 1), (96, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, self.stem_channels, 5, stride=2)
        self.fine, fine_channels = self._blocks(self.stem_channels, self.fine_blocks)
        self.coarse, coarse_channels = self._blocks(fine_channels, self.coarse_blocks)
        self.fine_logits = PointwiseConv2d(fine_channels, 2)
        self.coarse_logits = PointwiseConv2d(coarse_channels, 6)
        self.fine_regressions = PointwiseConv2d(fine_channels, 2 * 16)
        self.coarse_regressions = PointwiseConv2d(coarse_channels, 6 * 16)

    @staticmethod
    def _blocks(inputs: int, table: tuple[tuple[int, int], ...]) -> tuple[nn.Sequential, int]:
        blocks = []
        for outputs, stride in table:
            blocks.append(BlazeBlock(inputs, outputs, stride=stride))
            inputs = outputs
        return nn.Sequential(*blocks), inputs

    def maps(self, x: Float[Tensor, "B 3 S S"]) -> list[Float[Tensor, "B C H W"]]:
        """See the base class."""
        fine = self.fine(F.relu(self.stem(x)))
        coarse = self.coarse(fine)
        regressions = [self.fine_regressions(fine), self.coarse_regressions(coarse)]
        return [*regressions, self.fine_logits(fine), self.coarse_logits(coarse)]

    def native_program(self, program: Program) -> Program:
        """See the base class."""
        fine = program.add([self.stem, nn.ReLU(), *self.fine])
        coarse = program.add(self.coarse, fine)
        return program.give(
            program.add([self.fine_regressions], fine),
            program.add([self.coarse_regressions], coarse),
            program.add([self.fine_logits], fine),
            program.add([self.coarse_logits], coarse),
        )


class _UpLevel(nn.Module):
    """One level of the feature pyramid's upward path: project both maps, upsample the coarse one, add, refine."""

    def __init__(self, coarse: int, fine: int, width: int, *, blocks: int) -> None:
        super().__init__()
        self.from_coarse = PointwiseConv2d(coarse, width)
        self.from_fine = PointwiseConv2d(fine, width)
        self.refine = nn.Sequential(*[BlazeBlock(width, width, bottleneck=width // 2) for _ in range(blocks)])

    def forward(self, coarse: Float[Tensor, "B C H W"], fine: Float[Tensor, "B c h w"]) -> Float[Tensor, "B o h w"]:
        up = F.interpolate(F.relu(self.from_coarse(coarse)), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.refine(F.relu(self.from_fine(fine)) + up)

    def add_to(self, program: Program, coarse: int, fine: int) -> int:
        """Append the level to a program and return its result."""
        coarse, fine = (
            program.add([self.from_coarse, nn.ReLU()], coarse),
            program.add([self.from_fine, nn.ReLU()], fine),
        )
        return program.add(self.refine, program.add_upsampled(coarse, fine))


class FullRangeBlazeFace(BlazeFace):
    """Input of 192 px, one anchor every 4 px: also for faces of a twentieth of the picture."""

    size = 192
    anchor_layers = ((4, 1),)
    asset = "blazeface-full.safetensors"
    # (output channels, stride, bottleneck channels) of every block, one row per pyramid level.
    levels: ClassVar[tuple[tuple[tuple[int, int, int], ...], ...]] = (
        ((32, 1, 8), (32, 1, 8), (48, 2, 12), (48, 1, 12), (64, 1, 16)),
        ((96, 2, 24), (128, 1, 32), (128, 1, 32)),
        ((144, 2, 36), (192, 1, 48), (256, 1, 64)),
        ((384, 2, 96), (384, 1, 96), (384, 1, 96), (384, 1, 96)),
    )
    stem_channels: ClassVar[int] = 32
    # (width, blocks) of the three levels of the upward path.
    up_levels: ClassVar[tuple[tuple[int, int], ...]] = ((96, 2), (64, 2), (48, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, self.stem_channels, 3, stride=2)
        inputs, widths, levels = self.stem_channels, [], []
        for table in self.levels:
            blocks = []
            for outputs, stride, bottleneck in table:
                blocks.append(BlazeBlock(inputs, outputs, stride=stride, bottleneck=bottleneck))
                inputs = outputs
            levels.append(nn.Sequential(*blocks))
            widths.append(inputs)
        self.down = nn.ModuleList(levels)
        ups = []
        for fine, (width, count) in zip(reversed(widths[:-1]), self.up_levels, strict=True):
            ups.append(_UpLevel(inputs, fine, width, blocks=count))
            inputs = width
        self.up = nn.ModuleList(ups)
        self.logits = PointwiseConv2d(inputs, 1)
        self.regressions = PointwiseConv2d(inputs, 16)

    def maps(self, x: Float[Tensor, "B 3 S S"]) -> list[Float[Tensor, "B C H W"]]:
        """See the base class."""
        x = F.relu(self.stem(x))
        maps = []
        for level in self.down:
            x = level(x)
            maps.append(x)
        for fine, level in zip(reversed(maps[:-1]), self.up, strict=True):
            x = level(x, fine)
        return [self.regressions(x), self.logits(x)]

    def native_program(self, program: Program) -> Program:
        """See the base class."""
        x = program.add([self.stem, nn.ReLU()])
        maps = []
        for level in self.down:
            assert isinstance(level, nn.Sequential)
            x = program.add(level, x)
            maps.append(x)
        for fine, level in zip(reversed(maps[:-1]), self.up, strict=True):
            assert isinstance(level, _UpLevel)
            x = level.add_to(program, x, fine)
        return program.give(program.add([self.regressions], x), program.add([self.logits], x))
