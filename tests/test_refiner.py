"""The refiner: where it reads the crop, what its inputs are, and what it does not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.camera import Camera, Pose
from mien.morphable import MorphableModel
from mien.networks.refiner import ATLAS_SIZE, CONTRAST_FLOOR, MAX_UNITS, POINT_UNIT, REFINER_SIZE, Refiner
from mien.texture import TexelAtlas
from tests.tiny import EXPRESSION, IDENTITY

FACES = 2


def some_shape() -> torch.Tensor:
    return torch.cat([torch.randn(FACES, IDENTITY), torch.rand(FACES, EXPRESSION)], dim=1)


def some_pose() -> Pose:
    turn = torch.tensor([[0.1, -0.4, 0.05], [-0.2, 0.3, 0.0]])
    return Pose(turn, torch.tensor([[0.01, 0.0, 1.0], [0.0, -0.02, 1.4]]), torch.ones(FACES))


def some_camera() -> Camera:
    centre = torch.tensor([[64.0, 60.0], [50.0, 66.0]])
    return Camera(torch.tensor([400.0, 560.0]), centre, image_size=(REFINER_SIZE, REFINER_SIZE))


def ramps() -> torch.Tensor:
    """Crops with red = x and green = y, in sides, and no blue."""
    along = (torch.arange(REFINER_SIZE) + 0.5) / REFINER_SIZE
    x, y = along.expand(REFINER_SIZE, -1), along[:, None].expand(-1, REFINER_SIZE)
    return torch.stack([x, y, torch.zeros_like(x)]).expand(FACES, -1, -1, -1)


@pytest.fixture
def refiner(tiny: MorphableModel) -> Refiner:
    refiner = Refiner(tiny, units=torch.linspace(0.1, 1.0, IDENTITY + EXPRESSION + 6))
    torch.nn.init.normal_(refiner.head.weight, std=0.05)
    return refiner


def correction(refiner: Refiner, crops: torch.Tensor, **changes: torch.Tensor) -> torch.Tensor:
    given = {"state": torch.zeros(FACES, len(refiner.units)), "points": torch.zeros(FACES, 468, 2), **changes}
    return refiner(crops, shape=some_shape(), pose=some_pose(), camera=some_camera(), **given)


def test_texels_are_read_at_their_positions_in_the_prediction(tiny: MorphableModel, refiner: Refiner) -> None:
    shape, pose, camera, atlas = some_shape(), some_pose(), some_camera(), TexelAtlas.of(tiny, ATLAS_SIZE)
    uv_map, points = refiner._unwrap(ramps(), shape, pose, camera)
    vertices = pose.to_camera(tiny.vertices(shape[:, :IDENTITY], shape[:, IDENTITY:]))
    places = camera.project(atlas.interpolate(vertices).flatten(2)[:, :, atlas.valid.flatten()].transpose(1, 2))
    assert places.min() > 0
    assert places.max() < REFINER_SIZE
    expected = torch.cat([places / REFINER_SIZE, torch.zeros(*places.shape[:2], 1)], dim=2)
    expected = expected - expected.mean(1, keepdim=True)
    expected = expected / (expected.square().mean((1, 2), keepdim=True).sqrt() + CONTRAST_FLOOR)
    read = uv_map[:, :3].flatten(2)[:, :, atlas.valid.flatten()].transpose(1, 2)
    torch.testing.assert_close(read, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(points, camera.project(tiny.mediapipe_points(vertices)))


def test_the_uv_map_has_the_angle_to_the_camera_and_is_0_outside(tiny: MorphableModel, refiner: Refiner) -> None:
    straight = Pose(torch.zeros(FACES, 3), some_pose().translation, torch.ones(FACES))
    uv_map, _ = refiner._unwrap(ramps(), torch.zeros_like(some_shape()), straight, some_camera())
    facing, inside = uv_map[0, 3], TexelAtlas.of(tiny, ATLAS_SIZE).valid
    middle = ATLAS_SIZE // 2
    assert facing[middle - 16, middle] > 0.85  # above the nose
    assert facing[middle, 1] < 0.5  # at the side of the head
    assert facing.max() <= 1 + 1e-5
    # A head turned to its left shows its right side.
    turned = replace(straight, rotation=torch.tensor([[0.0, 0.6, 0.0]]).expand(FACES, -1))
    aside = refiner._unwrap(ramps(), torch.zeros_like(some_shape()), turned, some_camera())[0][0, 3]
    left, right = (slice(None), slice(middle + 16, -1)), (slice(None), slice(1, middle - 16))
    assert aside[right].mean() > facing[right].mean() + 0.1
    assert aside[left].mean() < facing[left].mean() - 0.1
    assert not uv_map[:, :, ~inside].any()


def test_brightness_and_contrast_of_a_crop_are_normalised(refiner: Refiner) -> None:
    crops = torch.rand(FACES, 3, REFINER_SIZE, REFINER_SIZE) + ramps()
    shape, pose, camera = some_shape(), some_pose(), some_camera()
    uv_map, dim = (refiner._unwrap(image, shape, pose, camera)[0] for image in (crops, 0.5 * crops + 0.1))
    torch.testing.assert_close(dim, uv_map, atol=0.3, rtol=0)
    assert (uv_map[:, :3].abs().mean() / dim[:, :3].abs().mean()).log().abs() < 0.1
    assert torch.isfinite(correction(refiner, torch.zeros_like(crops))).all()


def test_points_enter_as_residuals_to_those_of_the_prediction(refiner: Refiner) -> None:
    """At the predicted positions they are 0; a point that moves by one unit is 1."""
    torch.manual_seed(0)
    shape, pose, camera = some_shape(), some_pose(), some_camera()
    _, places = refiner._unwrap(ramps(), shape, pose, camera)
    there = places / REFINER_SIZE - 0.5
    seen: list[torch.Tensor] = []
    refiner.state_layer.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    moved = there.clone()
    moved[:, 7, 1] += POINT_UNIT
    far = 100 * refiner.units.expand(FACES, -1)
    for points, state in ((there, torch.zeros_like(far)), (moved, far)):
        refiner(ramps(), shape=shape, pose=pose, camera=camera, state=state, points=points)
    count = len(refiner.units)
    assert seen[0].abs().max() < 1e-4
    assert seen[1][:, :count].eq(MAX_UNITS).all()
    off = seen[1][0, count:]
    assert abs(float(off[2 * 7 + 1]) - 1) < 1e-4
    assert off.count_nonzero() < len(off)
    assert off.abs().sum() < 1.01


def test_positions_are_exact_in_mixed_precision(refiner: Refiner) -> None:
    seen: list[torch.Tensor] = []
    refiner.state_layer.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    for mixed in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            correction(refiner, ramps())
    assert torch.equal(seen[1].float(), seen[0])


def test_every_weight_gets_a_gradient_from_the_crop(refiner: Refiner) -> None:
    """Every weight gets a gradient, and pixels change the correction while all other inputs are equal."""
    torch.manual_seed(1)
    one = correction(refiner, ramps())
    torch.manual_seed(1)
    other = correction(refiner, ramps().flip(-1))
    assert (one - other).abs().max() > 0.01
    one.square().sum().backward()
    for name, weight in refiner.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
