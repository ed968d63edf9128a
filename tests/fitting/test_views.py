"""What photos of one person count for, from the turns of the head."""

from __future__ import annotations

import torch

from mien.fitting.views import HIDDEN_WEIGHT, SAME_SIDE_DEG, Views
from mien.geometry import rotvec_to_rotmat
from mien.morphable import MorphableModel
from tests.fitting.test_energy import ground_truth, targets_of


def turned(*yaws_deg: float) -> Views:
    """Views of a head with these turns about the vertical axis."""
    rotations = torch.zeros(len(yaws_deg), 3, dtype=torch.float64)
    rotations[:, 1] = torch.tensor(yaws_deg, dtype=torch.float64).deg2rad()
    return Views(rotvec_to_rotmat(rotations))


def test_photos_from_one_side_count_as_one() -> None:
    for count in (1, 2, 5):
        influence = turned(*[20.0] * count).influence(torch.ones(count))
        torch.testing.assert_close(influence, torch.full((count,), 1 / count))
    assert abs(turned(20.0, 20.0).count_of_sides() - 1) < 1e-5


def test_views_from_several_sides_count_each() -> None:
    assert turned(0.0, 60.0, -60.0).count_of_sides() > 2.98
    apart = turned(0.0, SAME_SIDE_DEG).influence(torch.ones(2))
    torch.testing.assert_close(apart, torch.full((2,), 1 / (1 + 0.60653)), rtol=0, atol=1e-4)
    # The lonely view keeps its influence beside two that share theirs.
    influence = turned(0.0, 0.0, 60.0).influence(torch.ones(3))
    torch.testing.assert_close(influence, torch.tensor([0.5, 0.5, 1.0]), rtol=0, atol=2e-3)


def test_a_photo_without_weight_takes_nothing_from_the_others() -> None:
    influence = turned(0.0, 0.0).influence(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(influence, torch.tensor([1.0, 0.0]))


def test_the_turn_of_a_head_is_found_and_its_far_side_counts_little(tiny: MorphableModel) -> None:
    face = ground_truth(tiny)
    views = Views.of(tiny, targets_of(tiny, face))
    cosine = ((views.rotations[0] * face.pose.rotmat()[0]).sum() - 1) / 2
    assert float(cosine.arccos().rad2deg()) < 8
    points, weights = tiny.mediapipe_points(tiny.mean[None])[0], turned(60.0, -60.0).point_weights(tiny)
    left, right = points[:, 0] > 0.04, points[:, 0] < -0.04
    near = {0: left, 1: right} if weights[0, left].mean() > weights[0, right].mean() else {0: right, 1: left}
    for k, side in near.items():
        far = right if side is left else left
        assert weights[k, side].mean() > 0.8
        assert weights[k, far].mean() < 0.3
    assert weights.min() >= HIDDEN_WEIGHT
    assert weights.max() <= 1
