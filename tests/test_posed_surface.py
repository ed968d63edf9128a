"""The native pass over a surface against PyTorch in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from mien.camera import Pose
from mien.morphable import MorphableModel
from mien.rendering.posed_surface import PosedSurface, posed_surface, reference
from mien.typing import Tensor


def values_and_gradients(place: Callable[..., PosedSurface], model: MorphableModel, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, then the gradients of their weighted sum by vertices, pose and light."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    vertices = model.mean.to(dtype) + 1e-3 * draw(2, *model.mean.shape)
    rotation, translation, scale, light = draw(2, 3), draw(2, 3), draw(2).exp(), draw(2, 9, 3)
    inputs = [tensor.requires_grad_() for tensor in (vertices, rotation, translation, scale, light)]
    placed = place(model, inputs[0], Pose(*inputs[1:4]), inputs[4])
    outputs = [placed.camera, placed.normals, placed.shading]
    total = sum((output * draw(*output.shape)).sum() for output in outputs)
    assert isinstance(total, Tensor)
    return [*outputs, *torch.autograd.grad(total, inputs)]


def test_the_native_pass_agrees_with_pytorch(tiny: MorphableModel) -> None:
    double = copy.deepcopy(tiny).double()
    expected = values_and_gradients(reference, double, torch.float64)
    found = values_and_gradients(posed_surface, tiny, torch.float32)
    for theirs, ours in zip(expected, found, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * scale)


def test_other_types_take_the_path_of_pytorch(tiny: MorphableModel) -> None:
    double = copy.deepcopy(tiny).double()
    for theirs, ours in zip(
        values_and_gradients(reference, double, torch.float64),
        values_and_gradients(posed_surface, double, torch.float64),
        strict=True,
    ):
        assert torch.equal(theirs, ours)


def test_the_result_does_not_depend_on_the_number_of_threads(tiny: MorphableModel) -> None:
    alone = values_and_gradients(posed_surface, tiny, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = values_and_gradients(posed_surface, tiny, torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_surface_without_area_has_no_normals_and_finite_gradients(tiny: MorphableModel) -> None:
    vertices = torch.zeros(1, *tiny.mean.shape, requires_grad=True)
    pose = Pose(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
    placed = posed_surface(tiny, vertices, pose, torch.ones(1, 9, 3))
    assert placed.normals.abs().max() == 0
    (gradient,) = torch.autograd.grad(placed.shading.sum() + placed.camera.sum(), vertices)
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0, -1.0]).expand_as(gradient))


@pytest.mark.parametrize("name", ["normals", "shading", "camera"])
def test_each_output_alone_has_a_gradient(tiny: MorphableModel, name: str) -> None:
    vertices = tiny.mean[None].clone().requires_grad_()
    pose = Pose(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
    light = torch.linspace(0.2, 1, 27).view(1, 9, 3)
    gradients = []
    for place in (posed_surface, reference):
        total = (getattr(place(tiny, vertices, pose, light), name) * torch.tensor([1.0, 2, 3])).sum()
        gradients += torch.autograd.grad(total, vertices)
    found, expected = gradients
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
