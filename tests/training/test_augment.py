"""Backgrounds, bodies, occluders and light: where they are placed, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mien.training.data import augment
from mien.training.data.augment import (
    FaceFrame,
    Occluder,
    add_body,
    compose_scene,
    replace_background,
    sample_background,
    sample_occluders,
    uneven_light,
)
from tests.training.golden_statistics import FRAME, face_points
from tests.training.scripted import ScriptedRng

RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, FRAME, FRAME)
SKIN = torch.tensor([0.7, 0.5, 0.4])[:, None, None]


@pytest.fixture
def frame() -> FaceFrame:
    return FaceFrame.of(face_points(), FRAME)


def at(image: torch.Tensor, frame: FaceFrame, u: float, v: float) -> torch.Tensor:
    """The pixel nearest to a point of the face's coordinates."""
    nearest = int(((frame.u - u).square() + (frame.v - v).square()).argmin())
    return image.flatten(-2)[..., nearest]


def test_the_frame_follows_a_turned_face() -> None:
    mesh = torch.zeros(468, 2)
    mesh[10], mesh[152], mesh[234], mesh[454] = (torch.tensor(p) for p in ((30.0, 20), (10, 20), (20, 12), (20, 28)))
    frame = FaceFrame.of(mesh, 40)  # the head's top is on the right
    assert frame.v[19, 29] == pytest.approx(0.95, abs=0.02)
    assert frame.v[19, 10] == pytest.approx(-0.95, abs=0.02)
    assert frame.u[11, 19].abs() == pytest.approx(1.06, abs=0.03)


def test_the_frame_has_the_eyes_where_they_are(frame: FaceFrame) -> None:
    right, left = frame.eyes.tolist()
    assert right == pytest.approx([-0.45, 4 / 13], abs=0.01)
    assert left == pytest.approx([0.45, 3.5 / 13], abs=0.01)


def test_a_portrait_leaves_its_plain_wall_and_a_busy_image_stays(frame: FaceFrame) -> None:
    face = (frame.u.square() + frame.v.square() < 0.9).float()
    plain = torch.lerp(torch.full((3, FRAME, FRAME), 0.8), torch.full((3, FRAME, FRAME), 0.3), face)
    moved = replace_background(np.random.default_rng(1), plain, frame)
    assert (moved - plain).abs()[:, face == 1].max() < 1e-6
    assert (moved - plain).abs()[:, :8].mean() > 0.02
    busy = torch.rand(3, FRAME, FRAME)
    assert torch.equal(replace_background(np.random.default_rng(1), busy, frame), busy)


def test_skin_of_the_walls_colour_stays_inside_the_face(frame: FaceFrame) -> None:
    plain = torch.full((3, FRAME, FRAME), 0.6)
    moved = replace_background(np.random.default_rng(1), plain, frame)
    inside = frame.u.square() + frame.v.square() < 1
    assert torch.equal(moved[:, inside], plain[:, inside])
    assert (moved - plain).abs()[:, ~inside].mean() > 0.05


def test_clothes_that_differ_from_the_wall_stay(frame: FaceFrame) -> None:
    image = torch.full((3, FRAME, FRAME), 0.6)
    image[0, FRAME // 2 :] = 0.6 + 0.21  # farther from the wall's colour than the second WALL_DISTANCE
    image[1, FRAME // 2 :, : FRAME // 4] = 0.6 + 0.02
    moved = replace_background(np.random.default_rng(1), image, frame)
    assert torch.equal(moved[:, FRAME // 2 :], image[:, FRAME // 2 :])


def test_uneven_light_is_a_slope_of_log_brightness() -> None:
    lit = uneven_light(ScriptedRng(normal=(1.0,)), torch.full((3, FRAME, FRAME), 0.5))
    assert float(lit[0, 0, 0]) == pytest.approx(0.5 * np.exp(-0.5), rel=1e-4)  # standard deviations of 0.25 in x and y
    assert float(lit[0, -1, -1]) == pytest.approx(0.5 * np.exp(0.5), rel=1e-4)
    assert float(lit[0, 0, -1]) == pytest.approx(0.5, rel=1e-4)


def test_a_body_is_below_and_beside_the_face_and_hair_above(frame: FaceFrame) -> None:
    """Twenty bodies before a black background; neck and ears have the hue of the skin unless long hair covers them."""
    scene, filled, hues = torch.zeros(3, FRAME, FRAME), np.zeros(4), np.zeros(4)
    places = ((1.1, 0.1), (0.0, -1.1), (0.0, 1.2), (-2.2, 1.6))  # ear, neck, above the forehead, beside the head
    for seed in range(20):
        body = add_body(np.random.default_rng(seed), frame, scene, skin=SKIN)
        colours = torch.stack([at(body, frame, u, v) for u, v in places])
        filled += (colours.sum(1) > 0.05).numpy()
        hues += ((colours / colours[:, :1] - SKIN[:, 0, 0] / SKIN[0, 0, 0]).abs().amax(1) < 1e-4).numpy()
    ear, neck, top, beside = filled
    assert ear > 15 and neck == 20 and 8 <= top <= 20 and beside == 0
    assert 8 <= hues[1] < 20 and hues[2] < 6


def test_occluders_are_hair_glasses_and_ellipses_with_their_probabilities(frame: FaceFrame) -> None:
    counts = [len(sample_occluders(np.random.default_rng(k), frame)) for k in range(300)]
    assert np.mean(counts) == pytest.approx(0.75 + 0.15 + 0.15, abs=0.08)
    hair = sample_occluders(ScriptedRng(random=(0.74, 0.31, 0.99), integers=(0,)), frame)
    assert len(hair) == 1
    # The hair line is at 0.95 to 1.3 half heights without a fringe, lower with one.
    assert at(hair[0].opacity, frame, 0.0, 0.7) < 0.1
    assert at(hair[0].opacity, frame, 0.0, 1.6) > 0.9
    fringe = sample_occluders(ScriptedRng(random=(0.74, 0.29, 0.99), uniform=(0.0,), integers=(0,)), frame)
    assert at(fringe[0].opacity, frame, 0.0, 0.9) > 0.9


def test_glasses_have_rims_around_the_eyes_and_clear_lenses(frame: FaceFrame) -> None:
    (glasses,) = sample_occluders(ScriptedRng(random=(0.76, 0.14, 0.21, 0.99), uniform=(1.0,)), frame)
    for u, v in frame.eyes.tolist():
        assert at(glasses.opacity, frame, u, v) < 0.2
        assert at(glasses.opacity, frame, u, v - 0.26) > 0.45  # the largest half height, to half a pixel
        assert at(glasses.opacity, frame, u, v - 0.8) < 0.05
    assert at(glasses.opacity, frame, 0.0, float(frame.eyes[:, 1].mean())) > 0.9  # the bridge
    (sunglasses,) = sample_occluders(ScriptedRng(random=(0.76, 0.14, 0.19, 0.99), uniform=(0.0,)), frame)
    assert float(at(sunglasses.opacity, frame, *frame.eyes[0].tolist())) == pytest.approx(0.7, abs=0.01)


def test_an_occluder_hides_skin_in_image_and_mask() -> None:
    opacity = torch.zeros(FRAME, FRAME)
    opacity[:10], opacity[10:20] = 1.0, 0.25
    image, mask = torch.full((3, FRAME, FRAME), 0.4), torch.full((FRAME, FRAME), 0.8)
    covered, left = Occluder(RED, opacity).over(image, mask)
    assert torch.equal(covered[:, :10], RED[:, :10]) and (left[:10] == 0).all()
    assert covered[:, 15, 0].tolist() == pytest.approx([0.55, 0.3, 0.3])
    assert left[15, 0] == pytest.approx(0.6)
    assert torch.equal(covered[:, 20:], image[:, 20:]) and torch.equal(left[20:], mask[20:])


def test_a_scene_shows_the_face_under_occluders_which_are_not_in_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = FaceFrame.of(face_points(), FRAME)
    coverage = (frame.u.square() + frame.v.square() < 1).float()
    hand = (frame.v < -0.3).float()
    monkeypatch.setattr(augment, "sample_occluders", lambda rng, frame: [Occluder(RED, hand)])
    image, mask = compose_scene(np.random.default_rng(0), SKIN * torch.ones(3, FRAME, FRAME), coverage, face_points())
    seen, hidden = (coverage == 1) & (hand == 0), hand == 1
    torch.testing.assert_close(image[:, seen], SKIN[..., 0].expand(3, int(seen.sum())))
    assert torch.equal(image[:, hidden], RED[:, hidden])
    assert torch.equal(mask, coverage * (1 - hand))


def test_backgrounds_fill_the_range_of_colours() -> None:
    images = torch.stack([sample_background(np.random.default_rng(k), 24) for k in range(60)])
    assert images.min() == 0 and images.max() == 1
    walls = images.std((2, 3)).mean(1) < 0.02
    assert 0.1 < float(walls.float().mean()) < 0.3  # a fifth
