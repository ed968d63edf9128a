"""The packaged albedo: people of every tone, and nothing that no person has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mien.morphable import MorphableModel, load_model

SAMPLES = 400
_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(encoded: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB-encoded colours (..., 3)."""
    encoded = np.clip(encoded, 0, 1)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    t = linear @ _RGB_TO_XYZ.T / [0.95047, 1.0, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def samples(model: MorphableModel) -> np.ndarray:
    """Random people (N, V, 3), every coefficient within 2.5 standard deviations."""
    draw = torch.randn(SAMPLES, model.albedo_basis.shape[0], generator=torch.Generator().manual_seed(5))
    return model.albedo(draw.clamp(-2.5, 2.5)).numpy()


@pytest.fixture(scope="module")
def cheeks(model: MorphableModel) -> np.ndarray:
    """Vertices beside the nose, below the eyes: plain skin."""
    return _near(model, between=(30, 1, 0.55), radius_mm=9.0) | _near(model, between=(30, 15, 0.55), radius_mm=9.0)


def _near(model: MorphableModel, *, between: tuple[int, int, float], radius_mm: float) -> np.ndarray:
    points = model.mean.numpy()
    first, second, share = between
    marks = points[model.landmarks68.numpy()]
    centre = (1 - share) * marks[first, :2] + share * marks[second, :2]
    near = np.linalg.norm(points[:, :2] - centre, axis=1) < radius_mm / 1000
    return near & (model.masks.skin.numpy() > 0.5)


@pytest.fixture(scope="module")
def tones(samples: np.ndarray, cheeks: np.ndarray) -> np.ndarray:
    """CIELAB (N, 3) of every sample's cheeks."""
    return lab(np.median(samples[:, cheeks], axis=1))


def test_colours_stay_colours(samples: np.ndarray) -> None:
    outside = ((samples < 0) | (samples > 1)).mean()
    assert outside < 0.005, f"{outside:.2%} of the sampled values lie outside [0, 1]"


def test_mean_is_mirror_symmetric(model: MorphableModel) -> None:
    torch.testing.assert_close(model.albedo_mean, model.albedo_mean[model.mirror.long()], atol=1e-6, rtol=0)


def test_mean_is_a_middle_tone(model: MorphableModel, cheeks: np.ndarray) -> None:
    lightness, red, yellow = lab(np.median(model.albedo_mean.numpy()[cheeks], axis=0))
    assert 52 < lightness < 68
    assert 8 < red < 20
    assert 12 < yellow < 26


def test_components_are_orthogonal_and_sorted(model: MorphableModel) -> None:
    flat = model.albedo_basis.double().flatten(1)
    gram = (flat @ flat.T).numpy()
    size = np.sqrt(np.diag(gram))
    assert np.all(np.diff(size) < 1e-6 * size[0])
    # float16 storage leaves the smallest components a little aslant
    assert np.abs(gram / np.outer(size, size) - np.eye(len(gram))).max() < 0.02


def test_first_component_is_tone(model: MorphableModel, cheeks: np.ndarray) -> None:
    basis = model.albedo_basis.numpy()
    variance = (basis**2).sum((1, 2))
    assert variance[0] > 0.6 * variance.sum()
    assert basis[0, cheeks].min() > 0


def test_tones_reach_from_dark_to_very_light(tones: np.ndarray) -> None:
    angle = np.degrees(np.arctan2(tones[:, 0] - 50, tones[:, 2]))  # individual typology angle
    assert (angle < -30).mean() > 0.04, "too few dark samples"
    assert (angle > 55).mean() > 0.04, "too few very light samples"
    counts, _ = np.histogram(angle, [-90, -30, 10, 28, 41, 55, 90])
    assert counts.min() >= 0.04 * len(angle), f"a class of skin is missing: {counts}"


def test_dark_skin_is_not_orange(tones: np.ndarray) -> None:
    """Dark facial skin measures hue angles of 40 to 48 degrees and chroma of 21 to 23 (IADR 2009, abstract 120461).

    The darkest participants of the London set have 46 to 62 degrees; orange starts at about 65.
    """
    dark = tones[tones[:, 0] < 42]
    hue = np.degrees(np.arctan2(dark[:, 2], dark[:, 1]))
    chroma = np.hypot(dark[:, 1], dark[:, 2])
    assert len(dark) > 20
    assert 40 < np.median(hue) < 62
    assert np.mean((hue > 33) & (hue < 70)) > 0.95
    assert np.median(chroma) < 23
    assert np.quantile(chroma, 0.95) < 31


def test_lips_are_redder_than_cheeks(model: MorphableModel, samples: np.ndarray, tones: np.ndarray) -> None:
    lips = lab(np.median(samples[:, model.masks.lips.numpy() > 0.8], axis=1))
    assert np.mean(lips[:, 1] > tones[:, 1]) > 0.75
    fair = tones[:, 0] > 55
    assert np.mean(lips[fair, 1] > tones[fair, 1]) > 0.97


def test_eyes_look_straight_ahead(model: MorphableModel, samples: np.ndarray) -> None:
    """White beside a darker iris of the right width, in the mean and in every sample."""
    points = model.mean.numpy()
    caps = model.masks.eyes.numpy() > 0.5
    for side in (1, -1):
        mine = np.flatnonzero(caps & (np.sign(points[:, 0]) == side))
        light = lab(samples[:, mine])[..., 0]
        # the pupil's centre, from the mean face: the darkest vertices' middle
        mean_light = lab(model.albedo_mean.numpy()[mine])[:, 0]
        centre = points[mine[mean_light <= np.quantile(mean_light, 0.05)], :2].mean(0)
        away = 1000 * np.linalg.norm(points[mine, :2] - centre, axis=1)
        iris, white = (away > 2.8) & (away < 4.8), (away > 7.0) & (away < 9.0)
        assert iris.sum() > 5
        assert white.sum() > 5
        assert np.all(np.median(light[:, white], 1) > np.median(light[:, iris], 1) + 10)
        marks = points[model.landmarks68.numpy()[36:48], 0]
        corners = np.sort(marks[np.sign(marks) == side])
        assert abs(centre[0] - 0.5 * (corners[0] + corners[-1])) < 0.004


def test_brows_are_darker_than_the_forehead(model: MorphableModel) -> None:
    mean = lab(model.albedo_mean.numpy())
    brows = model.masks.brows.numpy() > 0.6
    points = model.mean.numpy()
    top = points[brows, 1].max()
    forehead = (points[:, 1] > top + 0.010) & (points[:, 1] < top + 0.030) & (np.abs(points[:, 0]) < 0.04)
    assert np.median(mean[brows, 0]) < np.median(mean[forehead, 0]) - 6
