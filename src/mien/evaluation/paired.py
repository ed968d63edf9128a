"""Compares two runs on the same photos: paired differences with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 4000


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two runs, this one minus the other."""

    photos: int
    """Number of photos that both runs measured."""
    difference: float
    """Mean of the differences; negative if this run is better."""
    low: float
    """2.5 % quantile of the bootstrap."""
    high: float
    """97.5 % quantile of the bootstrap."""
    better: float
    """Share of the photos on which this run is better."""


def paired_difference(values: Mapping[str, float], other: Mapping[str, float]) -> PairedDifference | None:
    """Compare the errors of two runs photo by photo; None if they have no photo in common.

    The interval is that of 4,000 bootstrap samples of the photos (Efron 1979), with a fixed seed.

    Args:
        values: Error per photo.
        other: Error per photo of the run to compare with.
    """
    shared = [name for name in values if name in other]
    if not shared:
        return None
    differences = np.array([values[name] - other[name] for name in shared])
    means = np.random.default_rng(0).choice(differences, (_RESAMPLES, len(differences))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    better = float((differences < 0).mean())
    return PairedDifference(len(shared), float(differences.mean()), float(low), float(high), better)
