"""Sees what hides a face: a small decoder on the features of the mesh network.

The features of FaceMesh already tell faces from what is in front of them. A decoder goes back up through its maps, from
3 × 3 to 96 × 96 pixels, and gives the probability that a pixel shows an occluder: a mask, sunglasses or the frame of
glasses, a hand, hair, a microphone. `models/train_occluders.py` trains it on portraits under free licences with
occluders drawn on them; the mesh network itself stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from mien.perception.layers import BlazeBlock, PointwiseConv2d

if TYPE_CHECKING:
    from mien.perception.fused import Program
    from mien.typing import Float, Tensor

WIDTH = 32
"""Channels of the decoder up to 48 × 48 pixels."""
FINE_WIDTH = 16
"""Channels at 96 × 96 pixels."""
TAPPED_CHANNELS = (16, 32, 64, 128, 128, 128)
"""Channels of the maps that the decoder reads, from 96 × 96 to 3 × 3 pixels."""
MAP_SIZE = 96
"""Side of the result, half of the mesh network's window."""


class OccluderHead(nn.Module):
    """Decoder from six maps of the mesh network to the logit of an occluder per pixel."""

    def __init__(self) -> None:
        super().__init__()
        fine, *others = TAPPED_CHANNELS
        self.sides = nn.ModuleList(
            [PointwiseConv2d(fine, FINE_WIDTH), *(PointwiseConv2d(channels, WIDTH) for channels in others)]
        )
        self.levels = nn.ModuleList(nn.Sequential(BlazeBlock(WIDTH, WIDTH), BlazeBlock(WIDTH, WIDTH)) for _ in others)
        self.narrow = PointwiseConv2d(WIDTH, FINE_WIDTH)
        self.finest = nn.Sequential(BlazeBlock(FINE_WIDTH, FINE_WIDTH), PointwiseConv2d(FINE_WIDTH, 1))

    def forward(self, maps: list[Float[Tensor, "B C H W"]]) -> Float[Tensor, "B 96 96"]:
        """Decode the maps, from the finest to the coarsest, to logits."""
        sides = [side(tapped) for side, tapped in zip(self.sides, maps, strict=True)]
        decoded = self.levels[-1](sides[-1])
        for side, level in zip(sides[-2:0:-1], list(self.levels)[-2::-1], strict=True):
            decoded = level(_upsampled(decoded) + side)
        return self.finest(_upsampled(self.narrow(decoded)) + sides[0])[:, 0]

    def add_to(self, program: Program, maps: list[int]) -> int:
        """Append the layers to a program, whose `maps` are the head's inputs; return the map of logits."""
        sides = [program.add([side], source) for side, source in zip(self.sides, maps, strict=True)]
        levels = [list(level.children()) for level in self.levels]
        decoded = program.add(levels[-1], sides[-1])
        for side, level in zip(sides[-2:0:-1], levels[-2::-1], strict=True):
            decoded = program.add(level, program.add_upsampled(decoded, side))
        decoded = program.add([self.narrow], decoded)
        return program.add(self.finest, program.add_upsampled(decoded, sides[0]))


def _upsampled(values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
