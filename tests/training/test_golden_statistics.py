"""Samples for training keep their distributions, number for number.

A store of synthetic faces, a resumed run and the packaged networks were made from these samples. A changed constant, a
changed order of random numbers or a lost step shows here; `golden_statistics.py` says how to accept an intended change.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.training.golden_statistics import GOLDEN, GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_samples_have_their_golden_statistics(group: str) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[group]
    found = GROUPS[group]()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # 2e-4 covers other libjpegs, vector units and summation orders.
        np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-4 * max(map(abs, values)), err_msg=name)
