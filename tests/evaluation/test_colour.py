"""Colour differences against the published test data and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from mien.evaluation.colour import delta_e_2000, lab_of, tone_group, typology_angle_deg

# Sharma, Wu and Dalal 2005, table 1: both colours and their difference.
PUBLISHED = torch.tensor(
    [
        [50.0, 2.6772, -79.7751, 50.0, 0.0, -82.7485, 2.0425],
        [50.0, 3.1571, -77.2803, 50.0, 0.0, -82.7485, 2.8615],
        [50.0, 2.8361, -74.0200, 50.0, 0.0, -82.7485, 3.4412],
        [50.0, -1.3802, -84.2814, 50.0, 0.0, -82.7485, 1.0000],
        [50.0, -1.1848, -84.8006, 50.0, 0.0, -82.7485, 1.0000],
        [50.0, -0.9009, -85.5211, 50.0, 0.0, -82.7485, 1.0000],
        [50.0, 0.0, 0.0, 50.0, -1.0, 2.0, 2.3669],
        [50.0, -1.0, 2.0, 50.0, 0.0, 0.0, 2.3669],
        [50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0009, 7.1792],
        [50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0010, 7.1792],
        [50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0011, 7.2195],
        [50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0012, 7.2195],
        [50.0, -0.0010, 2.4900, 50.0, 0.0009, -2.4900, 4.8045],
        [50.0, -0.0010, 2.4900, 50.0, 0.0010, -2.4900, 4.8045],
        [50.0, -0.0010, 2.4900, 50.0, 0.0011, -2.4900, 4.7461],
        [50.0, 2.5, 0.0, 50.0, 0.0, -2.5, 4.3065],
        [50.0, 2.5, 0.0, 73.0, 25.0, -18.0, 27.1492],
        [50.0, 2.5, 0.0, 61.0, -5.0, 29.0, 22.8977],
        [50.0, 2.5, 0.0, 56.0, -27.0, -3.0, 31.9030],
        [50.0, 2.5, 0.0, 58.0, 24.0, 15.0, 19.4535],
        [50.0, 2.5, 0.0, 50.0, 3.1736, 0.5854, 1.0000],
        [50.0, 2.5, 0.0, 50.0, 3.2972, 0.0, 1.0000],
        [50.0, 2.5, 0.0, 50.0, 1.8634, 0.5757, 1.0000],
        [50.0, 2.5, 0.0, 50.0, 3.2592, 0.3350, 1.0000],
        [60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644],
        [63.0109, -31.0961, -5.8663, 62.8187, -29.7946, -4.0864, 1.2630],
        [61.2901, 3.7196, -5.3901, 61.4292, 2.2480, -4.9620, 1.8731],
        [35.0831, -44.1164, 3.7933, 35.0232, -40.0716, 1.5901, 1.8645],
        [22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373],
        [36.4612, 47.8580, 18.3852, 36.2715, 50.5065, 21.2231, 1.4146],
        [90.8027, -2.0831, 1.4410, 91.1528, -1.6435, 0.0447, 1.4441],
        [90.9257, -0.5406, -0.9208, 88.6381, -0.8985, -0.7239, 1.5381],
        [6.7747, -0.2908, -2.4247, 5.8714, -0.0985, -2.2286, 0.6377],
        [2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082],
    ],
    dtype=torch.float64,
)


def test_delta_e_is_the_published_one() -> None:
    first, second, expected = PUBLISHED[:, :3], PUBLISHED[:, 3:6], PUBLISHED[:, 6]
    torch.testing.assert_close(delta_e_2000(first, second), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(delta_e_2000(second, first), expected, atol=1e-4, rtol=0)
    assert (delta_e_2000(first, first) == 0).all()


def test_delta_e_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.uniform((0, -90, -90), (100, 90, 90), (400, 3)) for _ in range(2))
    found = delta_e_2000(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(found, deltaE_ciede2000(first, second), atol=1e-6)


def test_lab_agrees_with_scikit_image() -> None:
    colours = np.random.default_rng(1).uniform(0, 1, (5, 40, 3)) ** 2
    found = lab_of(torch.from_numpy(colours)).numpy()
    np.testing.assert_allclose(found, rgb2lab(colours), atol=2e-3)
    white = lab_of(torch.ones(3, dtype=torch.float64))
    assert white.tolist() == pytest.approx([100, 0, 0], abs=1e-2)


def test_tones_are_named_by_their_angle() -> None:
    angles = (70.0, 50.0, 30.0, 20.0, 0.0, -50.0)
    assert [tone_group(a) for a in angles] == ["very light", "light", "intermediate", "tan", "brown", "dark"]
    assert tone_group(41.0) == "intermediate"
    lab = torch.tensor([[50.0 + 10, 10.0, 10.0], [50.0 - 17.3205, 10.0, 10.0]])
    assert typology_angle_deg(lab).tolist() == pytest.approx([45.0, -60.0], abs=1e-3)
