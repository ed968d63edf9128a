"""The native kernels of perception against torch, Pillow and NumPy, for every instruction set of this machine."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mien.perception import FaceMesh
from mien.perception import skin_mask as skin
from mien.perception.blazeface import FullRangeBlazeFace, ShortRangeBlazeFace
from mien.perception.crops import Padding
from mien.perception.fused import Program
from mien.perception.layers import BlazeBlock, PointwiseConv2d, SameConv2d
from mien.perception.windows import PhotoPyramid, _sampled, window_matrix
from mien.rasterizer.cpu import native


@pytest.fixture(params=native().available_isas().split(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native().current_isa()
    native().select_isa(request.param)
    yield request.param
    native().select_isa(before)


def check(layers: list[nn.Module], channels: int, size: int) -> None:
    for parameter in nn.ModuleList(layers).parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    program = Program(channels, size)
    program.give(program.add(layers))
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        (found,), expected = program.run(images), nn.Sequential(*layers)(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [4, 16, 30, 50])
def test_convolutions_equal_torch(outputs: int) -> None:
    check([PointwiseConv2d(5, outputs), nn.PReLU(outputs)], 5, 7)
    check([SameConv2d(3, outputs, 5, stride=2), nn.ReLU(), PointwiseConv2d(outputs, 3)], 3, 12)
    check([nn.Conv2d(16, outputs, 1)], 16, 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("outputs", [20, 40])
def test_blocks_equal_torch(outputs: int, stride: int) -> None:
    for bottleneck in (0, 6):
        block = BlazeBlock(20, outputs, stride=stride, bottleneck=bottleneck, activation="prelu")
        check([block, BlazeBlock(outputs, outputs)], 20, 10)


def test_grouped_blocks_equal_torch() -> None:
    check([BlazeBlock(48, 96, stride=2, groups=3), PointwiseConv2d(96, 48, groups=3)], 48, 4)


def test_upsampled_maps_equal_torch() -> None:
    coarse, fine = PointwiseConv2d(3, 20), PointwiseConv2d(3, 20)
    half = BlazeBlock(20, 20, stride=2)
    program = Program(3, 8)
    own = program.add([fine])
    program.give(program.add_upsampled(program.add([half], program.add([coarse])), own), own)
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        up = nn.functional.interpolate(half(coarse(images)), scale_factor=2.0, mode="bilinear", align_corners=False)
        for found, expected in zip(program.run(images), (up + fine(images), fine(images)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("network", "size"), [(ShortRangeBlazeFace, 128), (FullRangeBlazeFace, 192), (FaceMesh, 192)])
def test_networks_equal_their_layers(network: type, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, images = network.from_assets(), torch.rand(2, 3, size, size)
    restored = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    found = loaded(images)
    assert all(torch.equal(a, b) for a, b in zip(found, restored(images), strict=True))
    monkeypatch.setattr(Program, "fits", lambda *_: False)
    # A thousandth of a pixel; points move less than the fiftieth of what they may.
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, loaded(images), strict=True))


def test_only_what_programs_can_do_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = FaceMesh.from_assets(), torch.rand(1, 3, 192, 192)
    network(images.requires_grad_())[0].sum().backward()
    assert images.grad is not None
    assert network.double()(images.detach().double())[0].dtype == torch.float64
    with pytest.raises(ValueError, match="multiples of 16"):
        Program(24, 4).add([PointwiseConv2d(24, 24, groups=3)])
    with pytest.raises(ValueError, match="does not divide"):
        Program(16, 5).add([BlazeBlock(16, 16, stride=2)])
    with pytest.raises(TypeError, match="SiLU"):
        Program(16, 5).add([PointwiseConv2d(16, 16), nn.SiLU()])


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [33, 64])
def test_windows_equal_torchs_sampler(size: int, padding: Padding) -> None:
    rng = np.random.default_rng(0)
    photo = PhotoPyramid(rng.integers(0, 256, (61, 90, 3), dtype=np.uint8), device=torch.device("cpu"))
    for side in (10.0, 40.0, 200.0):
        for centre in ((45.0, 30.0), (0.0, 0.0), (85.0, 58.0)):
            matrix = window_matrix(np.array(centre), side, size, angle=float(rng.uniform(-3, 3)))
            number = int(np.log2(max(side / size, 1)))
            own = torch.from_numpy(matrix / 2**number)
            colours, covered = _sampled(photo.level(number), own, size, padding=padding)
            found, inside = photo.sample(matrix, size, padding=padding)
            torch.testing.assert_close(found, colours, rtol=0, atol=5e-4)
            decided = (covered - 0.5).abs() > 1e-3
            assert torch.equal(inside[decided], (covered > 0.5).float()[decided])


@pytest.mark.parametrize(("height", "width"), [(8, 6), (9, 7), (1, 5), (4, 1)])
def test_halved_photos_equal_pillows(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    halved = PhotoPyramid(pixels, device=torch.device("cpu")).level(1)
    assert np.array_equal(halved, np.asarray(Image.fromarray(pixels).reduce(2)))


@pytest.mark.parametrize("size", [20, 33])
def test_blurred_masks_are_means_of_squares(size: int) -> None:
    values = np.random.default_rng(0).random((size, size)).astype(np.float32)
    expected = torch.from_numpy(values)[None, None]
    for _ in range(2):
        expected = nn.functional.avg_pool2d(expected, 5, stride=1, padding=2, count_include_pad=False)
    np.testing.assert_allclose(skin._smooth(values, size, share=4 / size), expected[0, 0].numpy(), atol=1e-6)
