from __future__ import annotations

import numpy as np
import pytest

from benchmarks.skin_tone import tone_group, typology_angle_deg


def test_tones_are_named_by_their_angle() -> None:
    angles = (70.0, 50.0, 30.0, 20.0, 0.0, -50.0)
    assert [tone_group(a) for a in angles] == ["very light", "light", "intermediate", "tan", "brown", "dark"]
    assert tone_group(41.0) == "intermediate"


def test_the_angle_is_measured_from_medium_lightness() -> None:
    lab = np.array([[50.0 + 10, 10.0, 10.0], [50.0 - 17.3205, 10.0, 10.0]])
    assert typology_angle_deg(lab).tolist() == pytest.approx([45.0, -60.0], abs=1e-3)
