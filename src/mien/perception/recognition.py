"""The identity network: a face chip in, a 128-vector out; near vectors are one person.

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
from mien.typing import Float, Tensor

CHIP_SIZE = 150
# Share of the chip's side added around the mean face, on every side.
CHIP_PADDING = 0.25
# Vectors nearer than this (Euclidean) belong to one person, as the network was trained to say.
SAME_PERSON_DISTANCE = 0.6
# Mean colour of the training photos, of 255, red green blue.
MEAN_COLOUR = (122.782, 117.001, 104.298)

# The mean face of the chips: nose 27-35, eyes 36-47, upper lip 48-54 and 60-64 of the 68 points, in the frame
# where [0,1]² is the chip without its padding. Own measurement: the mean of this package's landmarks on 242
# CC-BY portraits (PROVENANCE.md), upright and symmetrised, placed so that the middle of the outer eye corners
# and the base of the nose lie where dlib's chips have them, (0.490, 0.214) and (0.490, 0.628).
CHIP_FACE = (
    (0.490, 0.217), (0.490, 0.337), (0.490, 0.428), (0.490, 0.503), (0.375, 0.586), (0.422, 0.615),
    (0.490, 0.618), (0.558, 0.615), (0.605, 0.586),
    (0.102, 0.224), (0.155, 0.189), (0.246, 0.182), (0.343, 0.238), (0.257, 0.255), (0.168, 0.256),
    (0.637, 0.238), (0.735, 0.182), (0.825, 0.189), (0.878, 0.224), (0.812, 0.256), (0.724, 0.255),
    (0.262, 0.789), (0.357, 0.736), (0.422, 0.719), (0.490, 0.731), (0.558, 0.719), (0.623, 0.736), (0.718, 0.789),
    (0.283, 0.788), (0.434, 0.781), (0.490, 0.784), (0.546, 0.781), (0.698, 0.788),
)  # fmt: skip


def chip_template() -> Float[Tensor, "P 2"]:
    """Return where the chip's landmarks lie, in pixels of the chip."""
    return (torch.tensor(CHIP_FACE) + CHIP_PADDING) / (1 + 2 * CHIP_PADDING) * CHIP_SIZE


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and the input; narrowing blocks halve the picture and pad what is missing with zeros."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.halve = halve

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Map B C H W to B outputs H' W'."""
        y = self.second(F.relu(self.first(x)))
        if self.halve:
            x = F.avg_pool2d(x, 2, 2)
            # Pooling and the unpadded convolution differ by a row and a column at some sizes.
            height, width = max(x.shape[2], y.shape[2]), max(x.shape[3], y.shape[3])
            x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2]))
        return F.relu(x + y)


class IdentityNetwork(nn.Module):
    """Describe a face by a vector of 128 numbers; differentiable in the picture.

    `crop` cuts the chips the network expects; two photos of one person lie nearer than SAME_PERSON_DISTANCE.
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
    template: Tensor

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
        """Load the packaged weights; raises AssetError if they are missing or damaged."""
        network = cls()
        load_weights(network, "identity.safetensors")
        return network.eval().requires_grad_(False)

    def forward(self, faces: Float[Tensor, "B 3 150 150"]) -> Float[Tensor, "B 128"]:
        """Return the vectors of face chips, RGB in [0,1]."""
        x = (faces - self.mean_colour) * (255 / 256)
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        return self.project(self.blocks(x).mean((2, 3)))

    def crop(
        self, image: Float[Tensor, "B 3 H W"], landmarks68_px: Float[Tensor, "B 68 2"]
    ) -> Float[Tensor, "B 3 150 150"]:
        """Cut the chip of one face out of each image by its 68 landmarks (pixels of the image).

        Differentiable in the image and in the landmarks. A least-squares similarity takes the inner landmarks
        onto a mean face that fills the chip less its padding.
        """
        photo_from_chip = similarity_between(
            self.template.expand(len(image), -1, -1).to(image.dtype), landmarks68_px[:, list(IBUG_CHIP_POINTS)]
        )
        return sample_affine(image, photo_from_chip, size=(CHIP_SIZE, CHIP_SIZE), padding="zeros")
