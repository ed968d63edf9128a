"""Convolutions with fixed weights on a CPU, whose weights are kept in the layout that oneDNN computes with.

`torch.nn.Conv2d` arranges its weights anew at each call. For the small images of the identity network this takes longer
than the convolution; and the fit computes that network and its gradient at every step.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from mien.typing import Float, Tensor


def convolve(layer: nn.Conv2d, x: Float[Tensor, "B C H W"], *, relu: bool = False) -> Float[Tensor, "B c h w"]:
    """`layer(x)`, with packed weights where it is possible: float32 on a CPU, and weights that are not trained.

    Args:
        layer: A convolution.
        x: Its input; the result is differentiable in it, once.
        relu: Whether negative results become zero.
    """
    trained = layer.weight.requires_grad or torch.jit.is_tracing() or torch.compiler.is_compiling()
    float32 = x.dtype == torch.float32 and layer.weight.dtype == torch.float32
    if trained or not float32 or x.device.type != "cpu" or not _can_pack():
        return layer(x).relu() if relu else layer(x)
    return _Convolution.apply(x, _packed_layer(layer), relu)


@functools.cache
def _can_pack() -> bool:
    """Whether this PyTorch has oneDNN and its operators, which are not part of PyTorch's public interface."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


class _Packed:
    """Weights of a convolution in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int) -> None:
        self.bias, self.places = bias, ([padding] * 2, [stride] * 2, [1, 1], 1)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.places)

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.places, then, [], "")


class _PackedLayer:
    """A convolution and its transpose."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.weight, self.version = layer.weight.detach(), layer.weight._version
        self.stride, self.padding = layer.stride[0], int(layer.padding[0])
        bias = None if layer.bias is None else layer.bias.detach()
        self.forward = _Packed(self.weight, bias, stride=self.stride, padding=self.padding)

    @functools.cached_property
    def transposed(self) -> _Packed | None:
        """The transpose of a convolution that keeps the size of the image: it has the turned weights."""
        if self.stride > 1 or 2 * self.padding + 1 != self.weight.shape[-1]:
            return None
        turned = self.weight.flip(2, 3).transpose(0, 1).contiguous()
        return _Packed(turned, None, stride=1, padding=self.padding)

    def backward(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Gradient by the input, of which rows and columns are given."""
        if self.transposed is not None:
            return self.transposed(gradient.contiguous(memory_format=torch.channels_last))
        rest = [
            n + 2 * self.padding - (m - 1) * self.stride - k
            for n, m, k in zip(size, gradient.shape[2:], self.weight.shape[2:], strict=True)
        ]
        return F.conv_transpose2d(gradient, self.weight, stride=self.stride, padding=self.padding, output_padding=rest)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _PackedLayer, relu: bool) -> Tensor:
        y = layer.forward(x.contiguous(memory_format=torch.channels_last), "relu" if relu else "none")
        ctx.layer, ctx.size = layer, x.shape[2:]
        ctx.save_for_backward(*([y] if relu else []))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for y in ctx.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        return ctx.layer.backward(gradient, ctx.size), None, None


_layers: weakref.WeakKeyDictionary[nn.Conv2d, _PackedLayer] = weakref.WeakKeyDictionary()


def _packed_layer(layer: nn.Conv2d) -> _PackedLayer:
    """The packed weights of a layer, made at its first call and again after its weights have changed."""
    known = _layers.get(layer)
    if known is None or known.weight.data_ptr() != layer.weight.data_ptr() or known.version != layer.weight._version:
        known = _layers[layer] = _PackedLayer(layer)
    return known
