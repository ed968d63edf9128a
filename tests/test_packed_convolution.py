"""Convolutions with packed weights against `torch.nn.Conv2d`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mien.perception.packed_convolution import _can_pack, _layers, convolve
from mien.typing import Tensor


def layer_of(inputs: int, outputs: int, size: int, stride: int, padding: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding).requires_grad_(False)


def value_and_gradient(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return y, torch.autograd.grad((y * weights).sum(), x)[0]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 7, 2, 0), (16, 16, 3, 1, 1), (8, 16, 3, 2, 0), (8, 4, 3, 1, 0)])
def test_value_and_gradient_are_those_of_the_layer(shape: tuple[int, int, int, int, int], relu: bool) -> None:
    layer = layer_of(*shape)
    x = torch.randn(2, shape[0], 18, 15, requires_grad=True)
    expected = layer(x).relu() if relu else layer(x)
    found = convolve(layer, x, relu=relu)
    assert (layer in _layers) == _can_pack()
    for theirs, ours in zip(value_and_gradient(expected, x), value_and_gradient(found, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_changed_weights_are_packed_again() -> None:
    layer, x = layer_of(4, 4, 3, 1, 1), torch.randn(1, 4, 6, 6)
    convolve(layer, x)
    layer.weight.mul_(2)
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=1e-4, atol=1e-5)
    layer.load_state_dict(layer_of(4, 4, 3, 1, 1).state_dict())
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=1e-4, atol=1e-5)
    assert layer.bias is not None
    layer.bias.add_(1)
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=1e-4, atol=1e-5)


def test_trained_weights_and_other_types_take_the_plain_path() -> None:
    trained = layer_of(4, 4, 3, 1, 1).requires_grad_(True)
    convolve(trained, torch.randn(1, 4, 6, 6), relu=True).sum().backward()
    assert trained.weight.grad is not None
    assert trained not in _layers
    double, x = layer_of(4, 4, 3, 1, 1).double(), torch.randn(1, 4, 6, 6).double()
    assert torch.equal(convolve(double, x), double(x))
    assert double not in _layers
