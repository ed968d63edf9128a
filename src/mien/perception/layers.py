"""Layers of the mobile networks in this package.

The weights were trained with TensorFlow, whose 'same' padding puts the odd pixel at the bottom and right. The layers
reproduce that exactly, so a converted network gives the results of the original.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from mien.typing import Float, Tensor

Activation = Literal["relu", "prelu"]
Network = TypeVar("Network", bound=nn.Module)


def as_inference(network: Network) -> Network:
    """Freeze the network and store its weights in NHWC order, in which a CPU convolves fastest."""
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network


def pad_same(x: Float[Tensor, "B C H W"], kernel: int, stride: int) -> Float[Tensor, "B C h w"]:
    """Pad with zeros as TensorFlow's 'SAME' does before a kernel of this size and stride."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's 'SAME' padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups)

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Pad, then convolve; equal padding on both sides needs no copy of the input."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1 and kernel % 2:
            return F.conv2d(input, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        return super().forward(pad_same(input, kernel, stride))


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution, computed as a matrix product, which halves its time on a CPU in NHWC order."""

    def __init__(self, inputs: int, outputs: int, *, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 1, groups=groups)

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c H W"]:
        """Multiply the channels of every pixel."""
        pixels, matrix = input.permute(0, 2, 3, 1), self.weight.flatten(1)
        if self.groups == 1:
            return F.linear(pixels, matrix, self.bias).permute(0, 3, 1, 2)
        rows = pixels.reshape(-1, self.groups, matrix.shape[1]).transpose(0, 1)
        matrices, biases = (x.unflatten(0, (self.groups, -1)) for x in (matrix, self.get_parameter("bias")))
        mixed = torch.baddbmm(biases[:, None], rows, matrices.mT).transpose(0, 1)
        return mixed.reshape(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def activation_layer(kind: Activation, channels: int) -> nn.Module:
    """Return the non-linearity; 'prelu' learns one slope per channel."""
    return nn.PReLU(channels) if kind == "prelu" else nn.ReLU(inplace=True)


class BlazeBlock(nn.Module):
    """Residual block of BlazeFace (Bazarevsky et al. 2019): a depthwise 3×3 and a pointwise convolution.

    The shortcut is max-pooled if the stride is 2 and padded with zero channels if it is narrower than the output. With
    `bottleneck`, there are two such pairs with that number of channels between them. With `groups`, this is a number of
    parallel blocks, each with its share of the channels: on small maps, calls cost more than arithmetic.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        bottleneck: int = 0,
        groups: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        middle = bottleneck or outputs
        layers: list[nn.Module] = [
            SameConv2d(inputs, inputs, 3, stride=stride, groups=inputs),
            PointwiseConv2d(inputs, middle, groups=groups),
        ]
        if bottleneck:
            layers += [
                activation_layer(activation, middle),
                SameConv2d(middle, middle, 3, groups=middle),
                PointwiseConv2d(middle, outputs, groups=groups),
            ]
        self.residual = nn.Sequential(*layers)
        self.stride, self.groups = stride, groups
        self.activation = activation_layer(activation, outputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Map B C H W to B outputs H/stride W/stride."""
        skip = F.max_pool2d(x, 2, 2) if self.stride == 2 else x
        y = self.residual(x)
        if y.shape == skip.shape:
            y += skip
        else:
            outputs, inputs = (values.unflatten(1, (self.groups, -1)) for values in (y, skip))
            outputs[:, :, : inputs.shape[2]] += inputs
        return self.activation(y)
