"""Metrics of maps against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.detail_metrics import (
    common_share,
    laplacian_energy,
    lower_face_share,
    map_saturation,
    relief_rms,
    symmetry_noise,
)
from mien.errors import ConfigError
from mien.evaluation.detail import relief_correlation
from mien.geometry import unique_edges
from mien.morphable import MorphableModel

SIZE = 64


def waves(period: float) -> torch.Tensor:
    """A map with waves of a period in texels along its rows."""
    steps = torch.arange(SIZE, dtype=torch.float64) + 0.5
    return torch.cos(2 * math.pi * steps / period).expand(1, 1, SIZE, SIZE)


def test_equal_relief_correlates_fully_whatever_its_scale_and_level() -> None:
    everywhere = torch.ones(1, 1, SIZE, SIZE, dtype=torch.float64)
    found = relief_correlation(3 * waves(8) + 0.5, waves(8), weights=everywhere, broadest_texels=6.0)
    assert float(found.whole.correlation) == pytest.approx(1)
    assert float(found.fine.correlation) == pytest.approx(1, abs=1e-6)
    against = relief_correlation(-waves(8), waves(8), weights=everywhere, broadest_texels=6.0)
    assert float(against.fine.correlation) == pytest.approx(-1, abs=1e-6)
    other = relief_correlation(waves(8).mT, waves(8), weights=everywhere, broadest_texels=6.0)
    assert float(other.whole.correlation) == pytest.approx(0, abs=1e-6)


def test_moments_distinguish_deep_from_shallow_relief() -> None:
    """Faces of twice the depth have four times the moments: so they weigh in a sum over faces."""
    both = torch.cat([waves(8), 2 * waves(8)])
    whole = relief_correlation(both, 3 * both, weights=torch.ones_like(both), broadest_texels=6.0).whole
    torch.testing.assert_close(whole.predicted_variance, torch.tensor([0.5, 2.0]).double())
    torch.testing.assert_close(whole.gt_variance, torch.tensor([4.5, 18.0]).double())
    torch.testing.assert_close(whole.covariance, torch.tensor([1.5, 6.0]).double())


def test_broad_form_changes_the_whole_correlation_only() -> None:
    """Broad waves agree and fine ones oppose: the sums correlate with 9 − 1 over 9 + 1."""
    everywhere = torch.ones(1, 1, SIZE, SIZE, dtype=torch.float64)
    found = relief_correlation(
        3 * waves(64) + waves(4), 3 * waves(64) - waves(4), weights=everywhere, broadest_texels=3.0
    )
    assert float(found.whole.correlation) == pytest.approx(0.8, abs=1e-6)
    assert float(found.fine.correlation) < -0.9


def test_invisible_texels_do_not_count() -> None:
    left = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    left[..., : SIZE // 2] = 1
    spoiled = torch.where(left > 0, waves(8), 100 * torch.ones_like(left))
    found = relief_correlation(spoiled, waves(8), weights=left, broadest_texels=6.0)
    assert float(found.whole.correlation) == pytest.approx(1)
    assert float(found.fine.correlation) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError):
        relief_correlation(spoiled, waves(8), weights=torch.zeros_like(left), broadest_texels=6.0)


def test_flat_relief_correlates_with_nothing() -> None:
    everywhere = torch.ones(1, 1, SIZE, SIZE, dtype=torch.float64)
    found = relief_correlation(torch.zeros_like(everywhere), waves(8), weights=everywhere, broadest_texels=6.0)
    assert found.whole.correlation.isnan().all() and found.fine.correlation.isnan().all()


def test_saturation_counts_values_at_the_limits() -> None:
    maps = torch.tensor([[[[-1.0, -0.2], [0.5, 2.0]]]])
    even = torch.ones(1, 1, 2, 2)
    assert map_saturation(maps, low=-1.0, high=1.0, weights=even).item() == pytest.approx(0.5)
    upper = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert map_saturation(maps, low=-1.0, high=1.5, weights=upper).item() == pytest.approx(0.5)
    assert map_saturation(maps, low=-3.0, high=3.0, weights=even).item() == 0


def test_relief_is_measured_on_visible_texels() -> None:
    maps = torch.tensor([[[[3.0, 4.0], [100.0, 100.0]]]])
    upper = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert relief_rms(maps, weights=upper).item() == pytest.approx(math.sqrt(12.5))


def test_laplacian_energy_matches_a_hand_computed_value() -> None:
    """Two triangles; one corner of degree 2 is lifted by 3, its neighbours feel a third of it."""
    edges = unique_edges(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    values = torch.zeros(1, 4, 2)
    values[0, 0, 1] = 3.0
    expected = (3.0**2 + 1.0**2 + 1.0**2 + 0.0) / 4
    assert laplacian_energy(values, edges).item() == pytest.approx(expected)
    assert laplacian_energy(torch.ones(2, 4, 3), edges).tolist() == pytest.approx([0.0, 0.0])
    lonely = torch.full((1, 5, 1), 7.0)
    assert laplacian_energy(lonely, edges).item() == pytest.approx(0.0)


def test_symmetry_noise_matches_a_hand_computed_value() -> None:
    mirror = torch.tensor([1, 0, 2])
    values = torch.tensor([[[1.0], [4.0], [9.0]]])
    assert symmetry_noise(values, mirror).item() == pytest.approx(math.sqrt(18 / 3))
    assert symmetry_noise(torch.tensor([[[2.0], [2.0], [9.0]]]), mirror).item() == 0


def test_a_displacement_that_all_faces_have_is_common() -> None:
    one = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    assert common_share(one.expand(3, -1, -1)) == pytest.approx(1)
    assert common_share(torch.stack([one, -one])) == 0
    # Means 1.5 and 0.5 of 2, 1 and 1, 0: (1.5² + 0.5²) / ((4 + 1 + 1 + 0) / 2).
    halves = torch.tensor([[[2.0], [1.0]], [[1.0], [0.0]]])
    assert common_share(halves) == pytest.approx(2.5 / 3)


def test_the_share_below_the_mouth_weighs_squares(tiny: MorphableModel) -> None:
    below = tiny.mean[:, 1] < tiny.mean[tiny.landmarks68[57], 1]
    shift = torch.zeros(2, len(tiny.mean), 3)
    shift[0, below.nonzero()[0]] = torch.tensor([3.0, 0.0, 0.0])
    shift[0, (~below).nonzero()[0]] = torch.tensor([0.0, 4.0, 0.0])
    share = lower_face_share(tiny, shift, torch.ones(len(tiny.mean)))
    torch.testing.assert_close(share, torch.tensor([9 / 25, 0.0]))
