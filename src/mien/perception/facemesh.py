"""FaceMesh: 468 surface points from a face crop, with the attention heads for lips and eyes.

The network and its weights are MediaPipe's (Kartynnik et al. 2019; Grishchenko et al., Attention Mesh, 2020;
Apache-2.0). A trunk gives a first mesh; three heads look again at the trunk's 48-pixel feature map, each in a
turned 16×16 window around the lips or an eye, and place their own points (and the irises) more exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mien.arrays import Float, Tensor
from mien.assets import load_weights
from mien.perception.layers import BlazeBlock, PointwiseConv2d, SameConv2d, as_inference

MESH_SIZE = 192
FEATURE_STRIDE = 4
WINDOW_SIZE = 16
# A head's window spans 1.5 times the box of its points, as its graph says (scale_x, scale_y).
WINDOW_SCALE = 1.5


def _blocks(widths: tuple[tuple[int, int], ...], inputs: int) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for outputs, stride in widths:
        blocks.append(BlazeBlock(inputs, outputs, stride=stride, activation="prelu"))
        inputs = outputs
    return blocks


class PointHead(nn.Sequential):
    """Blocks at the last resolution, a narrowing to 32 channels, one more block, and the coordinates."""

    def __init__(self, inputs: int, widths: tuple[tuple[int, int], ...], *, kernel: int, outputs: int) -> None:
        channels = widths[-1][0] if widths else inputs
        super().__init__(
            *_blocks(widths, inputs),
            PointwiseConv2d(channels, 32),
            nn.PReLU(32),
            BlazeBlock(32, 32, activation="prelu"),
            nn.Conv2d(32, outputs, kernel),
        )


class RegionHead(nn.Module):
    """One attention head: a body over the sampled window, then one head a group of points.

    `indices` (R,) are the mesh points this head refines, in the order of its outputs; `ends` the two whose
    connecting line is made horizontal in the window.
    """

    indices: Tensor

    def __init__(self, points: int, ends: tuple[int, int], *, iris: bool) -> None:
        super().__init__()
        self.register_buffer("indices", torch.zeros(points, dtype=torch.int64))
        self.ends = ends
        self.body = nn.Sequential(*_blocks(((32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2)), 32))
        tail = ((128, 1), (128, 1), (128, 2), (128, 1), (128, 1))
        self.points = PointHead(128, tail, kernel=2, outputs=2 * points)
        self.iris = PointHead(128, tail, kernel=2, outputs=2 * 5) if iris else None

    def window(self, mesh: Float[Tensor, "B 468 3"]) -> Float[Tensor, "B 2 3"]:
        """Return the matrix from window pixels (0…16) to crop pixels (0…192) for each mesh."""
        own = mesh[:, self.indices, :2]
        first, second = mesh[:, self.ends[0], :2], mesh[:, self.ends[1], :2]
        along = F.normalize(second - first, dim=-1)
        across = torch.stack([-along[:, 1], along[:, 0]], -1)
        axes = torch.stack([along, across], -1)
        turned = own @ axes
        low, high = turned.amin(1), turned.amax(1)
        centre = axes @ ((low + high) / 2)[..., None]
        linear = axes * ((high - low) * (WINDOW_SCALE / WINDOW_SIZE))[:, None]
        return torch.cat([linear, centre - linear.sum(-1, keepdim=True) * (WINDOW_SIZE / 2)], -1)

    def forward(
        self, features: Float[Tensor, "B 32 48 48"], mesh: Float[Tensor, "B 468 3"]
    ) -> tuple[Float[Tensor, "B R 2"], Float[Tensor, "B 5 2"] | None]:
        """Return the refined points, and the iris points of an eye, in crop pixels."""
        matrix = self.window(mesh)
        # The window samples features at whole coordinates, without half-pixel offsets, as the original does.
        steps = torch.arange(WINDOW_SIZE, device=mesh.device, dtype=mesh.dtype)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        grid = torch.stack([x, y, torch.ones_like(x)], -1)
        positions = torch.einsum("bij,hwj->bhwi", matrix, grid) / FEATURE_STRIDE
        positions = positions * 2 / (features.shape[-1] - 1) - 1
        sampled = F.grid_sample(features, positions, padding_mode="zeros", align_corners=True)
        shared = self.body(sampled)
        # Coordinates come out in a window of 64; the matrix speaks of 16.
        scale = WINDOW_SIZE / (WINDOW_SIZE * FEATURE_STRIDE)

        def place(flat: Float[Tensor, "B N 1 1"]) -> Float[Tensor, "B n 2"]:
            points = flat.flatten(1).unflatten(1, (-1, 2)) * scale
            return points @ matrix[:, :, :2].mT + matrix[:, None, :, 2]

        return place(self.points(shared)), place(self.iris(shared)) if self.iris is not None else None


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
        self.lips = RegionHead(80, (61, 291), iris=False)
        self.right_eye = RegionHead(71, (33, 133), iris=True)
        self.left_eye = RegionHead(71, (362, 263), iris=True)

    @classmethod
    def from_assets(cls) -> FaceMesh:
        """Load the packaged weights; raises AssetError if they are missing or damaged."""
        network = cls()
        load_weights(network, "facemesh.safetensors")
        return as_inference(network)

    def forward(
        self, x: Float[Tensor, "B 3 192 192"]
    ) -> tuple[Float[Tensor, "B 468 3"], Float[Tensor, "B 2 5 2"], Float[Tensor, "B"]]:
        """Return mesh, irises and presence logit (see the class)."""
        features = self.fine(self.stem(x))
        code = self.narrow(self.coarse(features))
        mesh = self.points(code).flatten(1).unflatten(1, (468, 3))
        refined, irises = mesh.clone(), []
        for head in (self.lips, self.right_eye, self.left_eye):
            points, iris = head(features, mesh)
            refined[:, head.indices, :2] = points
            if iris is not None:
                irises.append(iris)
        return refined, torch.stack(irises, 1), self.presence(code).flatten()
