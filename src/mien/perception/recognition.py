"""The identity network: maps a face chip to a vector of 128 numbers that is similar for photos of one person.

The network is dlib's face recognition ResNet (Davis King, 2017; weights CC0), a cut-down ResNet-34 (He et al.,
2016). Its batch normalisations are merged into the convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mien.assets import load_weights
from mien.morphable.landmark_tables import IBUG_CHIP_POINTS
from mien.perception.crops import sample_affine, similarity_between
from mien.perception.packed_convolution import convolve
from mien.typing import Float, Tensor

CHIP_SIZE = 150
# Share of the chip's side added around the mean face, on every side.
CHIP_PADDING = 0.25
# Two vectors closer than this (Euclidean) belong to one person; the threshold that the network was trained for.
SAME_PERSON_DISTANCE = 0.6
# Mean colour of the training photos: red, green, blue of 255.
MEAN_COLOUR = (122.782, 117.001, 104.298)

# Positions of IBUG_CHIP_POINTS on the mean face, where [0, 1]² is the chip without its padding. Measured as the mean of
# this package's landmarks on 242 CC-BY portraits (PROVENANCE.md), upright and symmetrised, placed so that the middle of
# the outer eye corners and the base of the nose lie as in dlib's chips, at (0.490, 0.214) and (0.490, 0.628).
CHIP_FACE = (
    (0.490, 0.217), (0.490, 0.337), (0.490, 0.428), (0.490, 0.503), (0.375, 0.586), (0.422, 0.615),
    (0.490, 0.618), (0.558, 0.615), (0.605, 0.586),
    (0.102, 0.224), (0.155, 0.189), (0.246, 0.182), (0.343, 0.238), (0.257, 0.255), (0.168, 0.256),
    (0.637, 0.238), (0.735, 0.182), (0.825, 0.189), (0.878, 0.224), (0.812, 0.256), (0.724, 0.255),
    (0.262, 0.789), (0.357, 0.736), (0.422, 0.719), (0.490, 0.731), (0.558, 0.719), (0.623, 0.736), (0.718, 0.789),
    (0.283, 0.788), (0.434, 0.781), (0.490, 0.784), (0.546, 0.781), (0.698, 0.788),
)  # fmt: skip


def chip_template() -> Float[Tensor, "P 2"]:
    """Return the positions of IBUG_CHIP_POINTS in a chip, pixels."""
    return (torch.tensor(CHIP_FACE) + CHIP_PADDING) / (1 + 2 * CHIP_PADDING) * CHIP_SIZE


class ResidualBlock(nn.Module):
    """Residual block of two 3×3 convolutions; with `halve`, it halves the resolution and zero-pads the shortcut."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.halve = halve

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Map B C H W to B outputs H' W'."""
        y = convolve(self.second, convolve(self.first, x, relu=True))
        if self.halve:
            x = F.avg_pool2d(x, 2, 2)
            # At some sizes the results of pooling and of the unpadded convolution differ by a row and a column.
            height, width = max(x.shape[2], y.shape[2]), max(x.shape[3], y.shape[3])
            x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2]))
        return F.relu(x + y)


class IdentityNetwork(nn.Module):
    """Describes a face by a vector of 128 numbers; differentiable in the picture.

    `crop` makes the chips that the network expects. The vectors of two photos of one person are closer than
    SAME_PERSON_DISTANCE.
    """

    # (output channels, halves the picture) of every block.
    BLOCKS = (
        *([(32, False)] * 3),
        (64, True), *([(64, False)] * 3),
        (128, True), *([(128, False)] * 2),
        (256, True), *([(256, False)] * 2),
        (256, True),
    )  # fmt: skip
    mean_colour: Tensor
    """(3, 1, 1) mean colour of the training photos, 0 to 1."""
    template: Tensor
    """(P, 2) `chip_template`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        blocks, inputs = [], 32
        for outputs, halve in self.BLOCKS:
            blocks.append(ResidualBlock(inputs, outputs, halve=halve))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(inputs, 128, bias=False)
        mean = torch.tensor(MEAN_COLOUR).div(255).reshape(3, 1, 1)
        self.register_buffer("mean_colour", mean, persistent=False)
        self.register_buffer("template", chip_template(), persistent=False)

    @classmethod
    def from_assets(cls) -> IdentityNetwork:
        """The network with the packaged weights, ready for inference.

        Raises:
            AssetError: The weights are missing or damaged.
        """
        network = cls()
        load_weights(network, "identity.safetensors")
        return network.eval().requires_grad_(False)

    def forward(self, faces: Float[Tensor, "B 3 150 150"]) -> Float[Tensor, "B 128"]:
        """Return the identity vector of each face chip, RGB in [0, 1]."""
        x = (faces - self.mean_colour) * (255 / 256)
        x = F.max_pool2d(convolve(self.stem, x, relu=True), 3, 2)
        return self.project(self.blocks(x).mean((2, 3)))

    def crop(
        self, image: Float[Tensor, "B 3 H W"], landmarks68_px: Float[Tensor, "B 68 2"]
    ) -> Float[Tensor, "B 3 150 150"]:
        """Cut the chip of one face out of each image.

        A least-squares similarity maps IBUG_CHIP_POINTS onto the mean face, which fills the chip without its padding.

        Args:
            image: RGB in [0, 1].
            landmarks68_px: iBUG landmarks in image pixels.

        Returns:
            Chips, differentiable in image and landmarks.
        """
        photo_from_chip = similarity_between(
            self.template.expand(len(image), -1, -1).to(image.dtype), landmarks68_px[:, list(IBUG_CHIP_POINTS)]
        )
        return sample_affine(image, photo_from_chip, size=(CHIP_SIZE, CHIP_SIZE), padding="zeros")
