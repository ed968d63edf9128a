"""What the errors of two photos have in common: sums of benchmarks/joint_shares.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.joint_shares import Moments, Shape, Shares

COUNT = 40_000


def signals(*sigmas: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [sigma * torch.randn(COUNT, generator=generator, dtype=torch.float64) for sigma in sigmas]


def test_common_and_own_errors_are_told_apart() -> None:
    face, change, common, a, b = signals(3.0, 1.0, 2.0, 1.0, 1.0)
    true = [face + change, face - change]
    alone = [true[0] + common + a, true[1] + common + b]
    shares = Shares.of("face", [Moments.of(alone, true, true)])
    assert shares.correlation == pytest.approx(4 / 5, abs=0.01)
    of_mean = (common + (a + b) / 2).square().mean().sqrt() / (common + a).square().mean().sqrt()
    assert shares.bound == pytest.approx(float(of_mean), abs=0.01)


def test_the_best_weight_of_the_change_removes_noise_alone() -> None:
    face, change, common, noise = signals(3.0, 2.0, 1.0, 2.0)
    true, half_seen = [face + change / 2, face - change / 2], change / 4
    seen = [face + common + half_seen, face + common - half_seen]
    shares = Shares.of("face", [Moments.of(seen, true, true)])
    assert shares.change_seen == pytest.approx(1.0)
    assert shares.joint_change_seen == pytest.approx(1.0)
    assert shares.noise == pytest.approx(0.5**2 / (1 + 0.5**2), abs=0.01)  # twice the change has no error
    noisy = [true[0] + common + noise / 2, true[1] + common - noise / 2]
    shares = Shares.of("face", [Moments.of(noisy, true, true)])
    assert shares.change_seen == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert shares.noise == pytest.approx(0.25, abs=0.01)  # half of the change halves the noise, which is half of all
    best = [true_face + common for true_face in true]
    assert Shares.of("face", [Moments.of(best, true, true)]).noise == pytest.approx(0.0, abs=1e-9)


def test_shapes_are_mixed_and_moved() -> None:
    a, b = (Shape(torch.full((1, 2), i), torch.full((1, 3), e)) for i, e in ((1.0, 0.0), (3.0, 1.0)))
    mixed = a.towards(b, 0.25)
    assert mixed.identity.tolist() == [[1.5, 1.5]]
    assert mixed.expression.tolist() == [[0.25] * 3]
    changed = a.moved(b, a, 0.5)
    assert changed.identity.tolist() == [[0.0, 0.0]]
    assert changed.expression.tolist() == [[-0.5] * 3]
