"""Landmarks that a user places move the points around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mien.errors import ConfigError
from mien.perception import FaceDetection, Pin, pinned


@pytest.fixture
def detection() -> FaceDetection:
    rng = np.random.default_rng(0)
    points = rng.uniform(100, 300, (468, 3))
    return FaceDetection(
        1.0, np.array([100.0, 100, 300, 300]), points[:6, :2], points, points[:10, :2].reshape(2, 5, 2), 1.0
    )


def test_pinned_landmarks_lie_at_their_pins(detection: FaceDetection) -> None:
    before = detection.landmarks68_px
    pins = [Pin(k, float(before[k, 0]) + 5, float(before[k, 1]) - 3) for k in (30, 36, 48)]
    pins.append(Pin(60, float(before[60, 0]), float(before[60, 1])))  # one that stays
    after = pinned(detection, pins).landmarks68_px
    for pin in pins:
        np.testing.assert_allclose(after[pin.landmark], [pin.x_px, pin.y_px], atol=1e-6)


def test_a_closed_mouth_is_opened_by_two_pins(detection: FaceDetection) -> None:
    """Both lips are at the same place and move apart; nothing moves farther than they do."""
    rows = [int(np.flatnonzero((detection.landmarks468_px[:, :2] == p).all(1))[0]) for p in lips_of(detection)]
    points = detection.landmarks468_px.copy()
    points[rows[1]] = points[rows[0]] + [0.0, 0.5, 0.0]
    shut = replace(detection, landmarks468_px=points)
    (x, top), (_, bottom) = lips_of(shut).tolist()
    opened = pinned(shut, [Pin(62, x, top - 10), Pin(66, x, bottom + 10)])
    np.testing.assert_allclose(lips_of(opened), [[x, top - 10], [x, bottom + 10]], atol=1e-6)
    shift = np.linalg.norm((opened.landmarks468_px - points)[:, :2], axis=1)
    assert shift.max() < 10.01
    together = pinned(shut, [Pin(62, x, top - 10), Pin(66, x, bottom - 10)])
    near = np.linalg.norm(points[:, :2] - [x, top], axis=1) < 12
    assert near.sum() > 2
    assert (points - together.landmarks468_px)[near, 1].min() > 5  # what is around them follows


def lips_of(detection: FaceDetection) -> np.ndarray:
    """The middle of the upper and of the lower lip."""
    return detection.landmarks68_px[[62, 66]]


def test_distant_points_and_depth_stay(detection: FaceDetection) -> None:
    x, y = map(float, detection.landmarks68_px[30])
    moved = pinned(detection, [Pin(30, x + 8, y)])
    shift = np.abs(moved.landmarks468_px - detection.landmarks468_px)
    distance = np.linalg.norm(detection.landmarks468_px[:, :2] - [x, y], axis=1)
    assert shift[distance > 120].max() < 0.1
    assert shift[:, 2].max() == 0
    near = shift[distance < 15, 0]
    assert len(near) and near.min() > 4


def test_without_pins_nothing_changes(detection: FaceDetection) -> None:
    assert pinned(detection, []) is detection


@pytest.mark.parametrize(
    "pins", [[Pin(5, 1.0, 1.0)], [Pin(68, 1.0, 1.0)], [Pin(30, 1.0, 1.0), Pin(30, 2.0, 2.0)], [Pin(30, np.nan, 1.0)]]
)
def test_wrong_pins_are_refused(detection: FaceDetection, pins: list[Pin]) -> None:
    with pytest.raises(ConfigError):
        pinned(replace(detection), pins)
