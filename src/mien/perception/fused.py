"""Whole mobile networks in one native call.

The networks have hundreds of small layers, and torch needs more time to call an operator than the layer needs. A
`Program` lists the layers of a frozen network, or of a part of it, and runs them natively: csrc/perception.hpp says
how. It replaces `forward` where nobody asks for gradients, on a CPU; elsewhere the layers run one by one in torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mien.perception.layers import BlazeBlock
from mien.rasterizer.cpu import native
from mien.typing import Float, Tensor

# As in csrc/perception.hpp.
PANEL = 16
PIXEL, DEPTHWISE, DENSE, UPSAMPLED = range(4)


@dataclass(frozen=True)
class _Layer:
    """One row of csrc/perception.hpp: a convolution, the shortcut and the activation."""

    input: int
    """Number of a map: 0 is the input of the program, and each layer writes the next one."""
    shortcut: int
    """The map that is added; -1 for none."""
    kind: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    inputs: int = 0
    outputs: int = 0
    """Channels per group."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The middle of the row."""
        return self.kind, self.kernel, self.stride, self.groups, self.inputs, self.outputs

    @property
    def channels(self) -> int:
        """Channels of the map that the layer writes."""
        return self.groups * self.outputs


class Program:
    """A list of layers with packed weights, built once from modules whose weights do not change any more.

    Args:
        channels: Channels of the input.
        size: Its height and width, pixels.
    """

    def __init__(self, channels: int, size: int) -> None:
        self.input_shape = (channels, size, size)
        self._sizes = [size]
        self._layers: list[_Layer] = []
        self._weights: list[Tensor] = []
        self._results: list[int] = []

    def add(self, modules: Iterable[nn.Module], source: int = 0) -> int:
        """Append layers in a row.

        Args:
            modules: `BlazeBlock` and convolutions, each of the latter with or without an activation behind it.
            source: The map that the first one reads.

        Returns:
            The map that the last one writes.
        """
        for module in modules:
            if isinstance(module, BlazeBlock):
                source = self._add_block(module, source)
            elif isinstance(module, nn.Conv2d):
                source = self._add_convolution(module, None, source)
            else:
                self._activate_last(module)
        return source

    def add_upsampled(self, coarse: int, fine: int) -> int:
        """Append the sum of a map and of another one of half its size, upsampled bilinearly; return the sum."""
        channels = self._layers[coarse - 1].channels
        return self._append(_Layer(coarse, fine, UPSAMPLED, inputs=channels, outputs=channels), torch.zeros(0))

    def give(self, *results: int) -> Program:
        """Finish the program.

        Args:
            results: The maps that `run` returns.

        Returns:
            The program itself.
        """
        self._results = list(results)
        offsets = torch.tensor([0, *map(len, self._weights)]).cumsum(0).tolist()
        buffers = self._buffers()
        rows = [
            (buffers[x.input], buffers[n + 1], buffers[x.shortcut] if x.shortcut >= 0 else -1, *x.numbers, offset)
            for n, (x, offset) in enumerate(zip(self._layers, offsets[:-1], strict=True))
        ]
        self._rows, self._packed = torch.tensor(rows), torch.cat(self._weights)
        self._result_buffers = torch.tensor([buffers[result] for result in results])
        self._result_shapes = [(self._sizes[n], self._sizes[n], self._layers[n - 1].channels) for n in results]
        self._weights.clear()
        return self

    def fits(self, x: Tensor) -> bool:
        """Whether `run` can replace the layers: it needs a CPU and the right shape, and gives no gradients."""
        in_torch = (
            (torch.is_grad_enabled() and x.requires_grad) or torch.compiler.is_compiling() or torch.jit.is_tracing()
        )
        return not in_torch and x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1:] == self.input_shape

    def run(self, x: Float[Tensor, "B C S S"]) -> list[Float[Tensor, "B c s s"]]:
        """Apply the layers and return the maps that `give` names."""
        results = [x.new_empty(len(x), *shape) for shape in self._result_shapes]
        pixels, outputs = x.detach().permute(0, 2, 3, 1).numpy(), [y.numpy() for y in results]
        native().run_layers(self._rows.numpy(), self._packed.numpy(), self._result_buffers.numpy(), pixels, outputs)
        return [y.permute(0, 3, 1, 2) for y in results]

    def _buffers(self) -> list[int]:
        """The buffer of each map; it is used again after the last layer that reads the map."""
        last_reader = [len(self._layers)] * (len(self._layers) + 1)
        for number in range(len(last_reader)):
            readers = [n for n, layer in enumerate(self._layers) if number in {layer.input, layer.shortcut}]
            if readers and number not in self._results:
                last_reader[number] = readers[-1]
        buffers, holds = [0], [0]  # the map that each buffer holds
        for number in range(len(self._layers)):
            free = [buffer for buffer, held in enumerate(holds) if last_reader[held] < number] or [len(holds)]
            holds[free[0] : free[0] + 1] = [number + 1]
            buffers.append(free[0])
        return buffers

    def _add_block(self, block: BlazeBlock, source: int) -> int:
        first, *others = block.residual
        between = source
        if len(others) > 1:  # a bottleneck
            narrow, activation, *others = others
            between = self._add_convolution(narrow, first, source)
            self._activate_last(activation)
            first, *others = others
        made = self._add_convolution(others[0], first, between, shortcut=source)
        self._activate_last(block.activation)
        return made

    def _add_convolution(
        self, convolution: nn.Module, depthwise: nn.Module | None, source: int, *, shortcut: int = -1
    ) -> int:
        assert isinstance(convolution, nn.Conv2d)
        assert depthwise is None or isinstance(depthwise, nn.Conv2d)
        window = depthwise or convolution
        kind = DEPTHWISE if depthwise else DENSE if convolution.kernel_size[0] > 1 else PIXEL
        groups = convolution.groups
        channels = convolution.in_channels // groups, convolution.out_channels // groups
        layer = _Layer(source, shortcut, kind, window.kernel_size[0], window.stride[0], groups, *channels)
        return self._append(layer, _packed(convolution, depthwise))

    def _append(self, layer: _Layer, weights: Tensor) -> int:
        size = self._sizes[layer.input]
        if layer.stride > 1 and size % layer.stride:
            raise ValueError(f"a map of {size} pixels has a stride of {layer.stride}, which does not divide it")
        self._sizes.append(2 * size if layer.kind == UPSAMPLED else size // layer.stride)
        self._layers.append(layer)
        self._weights.append(weights)
        return len(self._layers)

    def _activate_last(self, activation: nn.Module) -> None:
        """Set the slopes of the last layer, its last numbers, which are ones so far."""
        layer, weights = self._layers[-1], self._weights[-1]
        slopes = weights[len(weights) - _up(layer.channels) :]
        if isinstance(activation, nn.PReLU):
            slopes[: layer.channels] = activation.weight.detach()
        elif isinstance(activation, nn.ReLU):
            slopes.zero_()
        else:
            raise TypeError(f"{type(activation).__name__} is not known to programs")


def _up(channels: int) -> int:
    return -(-channels // PANEL) * PANEL


def _packed(convolution: nn.Conv2d, depthwise: nn.Conv2d | None) -> Float[Tensor, "N"]:
    """The weights of one layer without activation, channels padded to whole panels."""
    groups = convolution.groups
    if groups > 1 and (convolution.in_channels // groups % PANEL or convolution.out_channels // groups % PANEL):
        raise ValueError(f"groups of {convolution.in_channels // groups} channels; programs need multiples of {PANEL}")
    # outputs, then ky, kx and inputs: the order of the numbers in a window of pixels.
    matrix = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1)
    bias = convolution.get_parameter("bias").detach()
    parts = []
    if depthwise is not None:
        parts.append(_padded(depthwise.weight.detach()[:, 0].flatten(1).T).flatten())
        # A number per channel, so the next layer's bias takes it.
        own = depthwise.get_parameter("bias").detach().double().view(groups, -1, 1)
        bias = (bias + (matrix.double().unflatten(0, (groups, -1)) @ own).flatten()).float()
    panels = _padded(matrix.T).unflatten(1, (-1, PANEL)).transpose(0, 1)
    return torch.cat([*parts, panels.flatten(), _padded(bias), torch.ones(_up(len(bias)))])


def _padded(values: Float[Tensor, "*B C"]) -> Float[Tensor, "*B c"]:
    return F.pad(values, (0, -values.shape[-1] % PANEL))
