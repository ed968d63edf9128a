"""Chains of layers of the mobile networks, each chain in one native call.

The networks have hundreds of small layers, and torch needs more time to call an operator than the layer needs. A
`Chain` computes the same as `nn.Sequential`. Once `pack` has been called, it does so natively where nobody asks for
gradients: csrc/layers.hpp says how. Elsewhere, on a GPU and in training, its layers run one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mien.perception import layers
from mien.perception.layers import BlazeBlock, Network, SameConv2d
from mien.rasterizer.cpu import native
from mien.typing import Float, Tensor

# As in csrc/layers.hpp.
PANEL = 16
PIXEL, DEPTHWISE, DENSE = range(3)


@dataclass(frozen=True)
class _Layer:
    """One layer of a program: a convolution, the shortcut and the activation."""

    convolution: nn.Conv2d
    depthwise: SameConv2d | None
    """Runs before `convolution`, which is pointwise then."""
    activation: nn.Module | None
    adds: int
    """Number of layers back to the one whose input is added before the activation; -1 for no shortcut."""


class Chain(nn.Sequential):
    """Convolutions, activations and blocks in a row; see the module.

    The layers are `BlazeBlock`, `PointwiseConv2d`, `SameConv2d` and 1×1 `nn.Conv2d`, the last three with or without an
    activation behind them.
    """

    packed: Tensor | None
    """All weights in the order of csrc/layers.hpp, once they are packed."""
    program: Tensor
    """(layers, 10) int64, the rows of csrc/layers.hpp."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("packed", None, persistent=False)

    def pack(self) -> None:
        """Prepare the native call; later changes of the weights have no effect on it."""
        rows, parts, offset = [], [], 0
        own = _layers_of(self)
        for number, layer in enumerate(own):
            weights = _packed(layer)
            parts.append(weights)
            rows.append(_row(layer, number, offset))
            offset += len(weights)
        last = own[-1].convolution
        self.program, self.packed, self.outputs = torch.tensor(rows), torch.cat(parts), last.out_channels
        self.strides = [row[5] for row in rows]

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Apply the layers in order."""
        if not self._is_native(input):
            return super().forward(input)
        height, width = input.shape[2:]
        for stride in self.strides:
            height, width = height // stride, width // stride
        output = input.new_empty(len(input), height, width, self.outputs)
        pixels = input.permute(0, 2, 3, 1).contiguous()
        native().run_layers(*(x.numpy() for x in (self.program, self.packed, pixels, output)))
        return output.permute(0, 3, 1, 2)

    def _is_native(self, input: Tensor) -> bool:
        """Whether the native call can replace the layers: they are packed, and nobody asks for gradients."""
        needs_gradient = torch.is_grad_enabled() and input.requires_grad
        if self.packed is None or needs_gradient or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        plain = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (input, self.packed))
        # A window of stride 2 begins at its pixel where sizes are even.
        total = 1
        for stride in self.strides:
            total *= stride
        return plain and input.shape[2] % total == 0 and input.shape[3] % total == 0


def as_inference(network: Network) -> Network:
    """Freeze the network, pack its chains and store the other weights in NHWC order, the fastest on a CPU."""
    network = layers.as_inference(network)
    for module in network.modules():
        if isinstance(module, Chain):
            module.pack()
    return network


def _layers_of(chain: Sequence[nn.Module] | nn.Sequential) -> list[_Layer]:
    layers: list[_Layer] = []
    for module in chain:
        if isinstance(module, BlazeBlock):
            layers += _layers_of_block(module)
        elif isinstance(module, nn.Conv2d):
            layers.append(_Layer(module, None, None, -1))
        elif isinstance(module, (nn.ReLU, nn.PReLU)) and layers and layers[-1].activation is None:
            layers[-1] = _Layer(layers[-1].convolution, layers[-1].depthwise, module, -1)
        else:
            raise TypeError(f"{type(module).__name__} cannot stand here in a chain")
    return layers


def _layers_of_block(block: BlazeBlock) -> list[_Layer]:
    first, *others = block.residual
    assert isinstance(first, SameConv2d)
    if len(others) == 1:
        return [_Layer(others[0], first, block.activation, 0)]
    narrow, activation, second, wide = others
    return [_Layer(narrow, first, activation, -1), _Layer(wide, second, block.activation, 1)]


def _row(layer: _Layer, number: int, offset: int) -> list[int]:
    """The row of the program; layer k reads the buffer k % 3 and writes the next."""
    convolution = layer.convolution
    window = layer.depthwise or convolution
    kind = DEPTHWISE if layer.depthwise else DENSE if convolution.kernel_size[0] > 1 else PIXEL
    shortcut = -1 if layer.adds < 0 else (number - layer.adds) % 3
    groups = convolution.groups
    channels = convolution.in_channels // groups, convolution.out_channels // groups
    return [number % 3, (number + 1) % 3, shortcut, kind, window.kernel_size[0], window.stride[0], groups, *channels, offset]


def _packed(layer: _Layer) -> Float[Tensor, "N"]:
    """The weights of one layer, channels padded to whole panels."""
    convolution, depthwise = layer.convolution, layer.depthwise
    groups = convolution.groups
    if groups > 1 and (convolution.in_channels // groups % PANEL or convolution.out_channels // groups % PANEL):
        raise ValueError(f"groups of {convolution.in_channels // groups} channels; a chain needs multiples of {PANEL}")
    # outputs, then ky, kx and inputs: the order of the numbers in a window of pixels.
    matrix = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1)
    bias = convolution.bias.detach() if convolution.bias is not None else matrix.new_zeros(len(matrix))
    parts = []
    if depthwise is not None:
        parts.append(_padded(depthwise.weight.detach()[:, 0].flatten(1).T).flatten())
        if depthwise.bias is not None:  # constant per channel, so the next layer's bias takes it
            shares = matrix.double().unflatten(0, (groups, -1)) @ depthwise.bias.detach().double().view(groups, -1, 1)
            bias = (bias.double() + shares.flatten()).to(bias)
    panels = _padded(matrix.T).unflatten(1, (-1, PANEL)).transpose(0, 1)
    return torch.cat([*parts, panels.flatten(), _padded(bias), _padded(_slopes(layer.activation, bias))])


def _slopes(activation: nn.Module | None, bias: Tensor) -> Float[Tensor, "C"]:
    """Factor of negative values."""
    if activation is None:
        return torch.ones_like(bias)
    return activation.weight.detach() if isinstance(activation, nn.PReLU) else torch.zeros_like(bias)


def _padded(values: Float[Tensor, "*B C"]) -> Float[Tensor, "*B c"]:
    return F.pad(values, (0, -values.shape[-1] % PANEL))
