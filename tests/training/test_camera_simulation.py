"""The simulated camera: each step does what its name says, in the right direction, and stays in range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mien.training.data.camera_simulation import simulate_camera
from tests.training.scripted import ScriptedRng

SIZE = 32
NEVER = 0.99
"""A probability that lets no step happen."""
NEUTRAL = (4 / 7, 0.5, 3 / 7, 5 / 9, 0.5)
"""Shares at which saturation, exposure, gamma, contrast and brightness change nothing."""


def picture() -> torch.Tensor:
    ramp = torch.linspace(0.3, 0.6, SIZE).expand(SIZE, SIZE)
    return torch.stack([ramp, 0.8 * ramp.T, 0.5 * ramp])


def simulated(**changes: float) -> torch.Tensor:
    """The picture after a camera that differs from a neutral one in one setting, given as a share of its range."""
    names = ("saturation", "exposure", "gamma", "contrast", "brightness")
    shares = tuple(changes.get(name, share) for name, share in zip(names, NEUTRAL, strict=True))
    return simulate_camera(
        ScriptedRng(random=(NEVER,), uniform=shares, normal=(changes.get("balance", 0.0),)), picture()
    )


def test_a_neutral_camera_changes_nothing() -> None:
    torch.testing.assert_close(simulated(), picture(), atol=1e-5, rtol=0)


def test_exposure_brightness_and_gamma_have_their_directions_and_ranges() -> None:
    torch.testing.assert_close(simulated(exposure=1.0), picture() * 1.25, atol=1e-5, rtol=0)
    torch.testing.assert_close(simulated(exposure=0.0), picture() * 0.75, atol=1e-5, rtol=0)
    torch.testing.assert_close(simulated(brightness=1.0), picture() + 0.05, atol=1e-5, rtol=0)
    torch.testing.assert_close(simulated(brightness=0.0), picture() - 0.05, atol=1e-5, rtol=0)
    torch.testing.assert_close(simulated(gamma=1.0), picture() ** 1.4, atol=1e-5, rtol=0)
    torch.testing.assert_close(simulated(gamma=0.0), picture() ** 0.7, atol=1e-5, rtol=0)


def test_contrast_is_about_middle_grey() -> None:
    torch.testing.assert_close(simulated(contrast=1.0) - 0.5, (picture() - 0.5) * 1.2, atol=1e-5, rtol=0)
    torch.testing.assert_close(simulated(contrast=0.0) - 0.5, (picture() - 0.5) * 0.75, atol=1e-5, rtol=0)


def test_white_balance_scales_each_channel() -> None:
    torch.testing.assert_close(simulated(balance=1.0), picture() * 1.05, atol=1e-5, rtol=0)


def test_saturation_is_the_distance_to_grey_of_the_same_luma() -> None:
    luma = (picture() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    for share, saturation in ((0.0, 0.6), (1.0, 1.3)):
        expected = luma + saturation * (picture() - luma)
        torch.testing.assert_close(simulated(saturation=share), expected, atol=1e-5, rtol=0)
    grey = simulate_camera(ScriptedRng(random=(0.07, NEVER), uniform=NEUTRAL[1:]), picture())
    torch.testing.assert_close(grey, luma.expand(3, -1, -1), atol=1e-5, rtol=0)


def test_a_small_camera_loses_fine_structure_and_no_brightness() -> None:
    checks = 0.5 + 0.2 * ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 * 2 - 1).float().expand(3, SIZE, SIZE)
    shrunk = simulate_camera(ScriptedRng(random=(NEVER, 0.34, NEVER), uniform=(*NEUTRAL, 0.0)), checks)
    assert shrunk.std() < 0.05
    torch.testing.assert_close(shrunk.mean(), checks.mean(), atol=1e-3, rtol=0)
    assert simulate_camera(ScriptedRng(random=(NEVER, 0.36, NEVER), uniform=(*NEUTRAL, 0.0)), checks).std() > 0.19


def test_noise_has_a_standard_deviation_of_at_most_four_hundredths() -> None:
    class Noisy(ScriptedRng):
        def normal(self, loc: object = 0.0, scale: object = 1.0, size: object = None) -> object:
            if np.prod(np.asarray(size)) > 3:
                return np.random.default_rng(0).normal(loc, scale, size)  # pyright: ignore[reportArgumentType]
            return super().normal(loc, scale, size)

    noisy = simulate_camera(Noisy(random=(NEVER, NEVER, 0.49, NEVER), uniform=(*NEUTRAL, 1.0)), picture())
    assert float((noisy - picture()).std()) == pytest.approx(0.04, rel=0.05)
    clean = simulate_camera(Noisy(random=(NEVER, NEVER, 0.51, NEVER), uniform=(*NEUTRAL, 1.0)), picture())
    torch.testing.assert_close(clean, picture(), atol=1e-5, rtol=0)


def test_jpeg_loses_more_at_low_quality() -> None:
    def error(quality: int, probability: float = 0.49) -> float:
        rng = ScriptedRng(random=(NEVER, NEVER, NEVER, probability), uniform=NEUTRAL, integers=(quality,))
        return float((simulate_camera(rng, image) - image).abs().mean())

    image = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1)
    image = 0.35 + 0.3 * image  # grey: JPEG halves the resolution of colours at any quality
    assert error(0) > 3 * error(94) > 0.003
    assert error(0) == error(25)  # qualities are at least 25
    assert error(0, probability=0.51) < 1e-5


def test_images_stay_in_range() -> None:
    image = torch.linspace(0, 1, SIZE).expand(3, SIZE, SIZE)
    shots = [simulate_camera(np.random.default_rng(k), image) for k in range(20)]
    assert all(((shot >= 0) & (shot <= 1)).all() for shot in shots)
    assert torch.stack(shots).std(0).mean() > 0.03
