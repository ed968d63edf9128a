"""Skin tone groups by the individual typology angle."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

ToneGroup = Literal["very light", "light", "intermediate", "tan", "brown", "dark"]
TONE_LIMITS_DEG = (55.0, 41.0, 28.0, 10.0, -30.0)
"""Individual typology angles between the groups, from very light to dark."""


def typology_angle_deg(lab: np.ndarray) -> np.ndarray:
    """The individual typology angle of CIELAB colours (..., 3): atan((L* − 50) / b*) in degrees (Chardon et al. 1991).

    It is defined under a known light. For a photograph it describes how light the skin appears in it.
    """
    return np.rad2deg(np.arctan2(lab[..., 0] - 50, lab[..., 2]))


def tone_group(angle_deg: float) -> ToneGroup:
    """The group of a typology angle, with the usual limits (Chardon et al. 1991; Del Bino and Bernerd 2013)."""
    return get_args(ToneGroup)[sum(angle_deg <= limit for limit in TONE_LIMITS_DEG)]
