"""The UV map as a canvas: widths, volumes and places are those on the face, in millimetres."""

from __future__ import annotations

import numpy as np
import pytest

from mien.morphable import MorphableModel, load_model
from mien.texture import TexelAtlas
from mien.training.synthetic.canvas import LandmarkOffset, SkinCanvas, gaussian, smooth_curve

SIZE = 96


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def canvas(model: MorphableModel) -> SkinCanvas:
    return SkinCanvas(model, TexelAtlas.of(model, SIZE))


def test_an_offset_is_outwards_up_and_forwards_on_both_halves(model: MorphableModel, canvas: SkinCanvas) -> None:
    corner = (model.mean[model.landmarks68[48]] * 1000).numpy()
    twin = (model.mean[model.mirror[model.landmarks68[48]]] * 1000).numpy()
    step = LandmarkOffset(48, 2.0, 3.0, 5.0)
    np.testing.assert_allclose(canvas.landmark_position(step) - corner, np.array([-2, 3, 5]) * canvas.unit, atol=1e-3)
    np.testing.assert_allclose(
        canvas.landmark_position(step, left=True) - twin, np.array([2, 3, 5]) * canvas.unit, atol=1e-3
    )
    assert canvas.unit == pytest.approx(1.0, abs=0.05)  # offsets are given for this model


def test_a_curve_across_the_midline_is_its_own_mirror_image(canvas: SkinCanvas) -> None:
    offsets = [LandmarkOffset(18, -2.0, 14.0), LandmarkOffset(20, 0.0, 13.0), LandmarkOffset(27, 0.0, 34.0)]
    curve = canvas.curve(offsets, crosses_midline=True)
    mirrored = curve[::-1] * [-1, 1] + [SIZE, 0]
    assert np.abs(curve - mirrored).max() < 1.0  # texels
    right = canvas.curve(offsets)
    assert right[:, 0].max() <= SIZE / 2 + 1
    assert curve[:, 0].max() > SIZE / 2 + 10


def test_places_in_the_map_are_positions_on_the_mean(canvas: SkinCanvas) -> None:
    centres = np.array([[30.5, 40.5], [60.5, 50.5]], np.float32)
    columns, rows = canvas.texel_indices(centres).T
    assert (columns.tolist(), rows.tolist()) == ([30, 60], [40, 50])
    np.testing.assert_allclose(canvas.positions_at(centres), canvas.positions[rows, columns], atol=1e-4)
    between = canvas.positions_at(np.array([[31.0, 40.5]], np.float32))[0]
    np.testing.assert_allclose(between, canvas.positions[40, 30:32].mean(0), atol=1e-4)


def test_a_stroke_measures_distance_side_and_progress(canvas: SkinCanvas) -> None:
    start = canvas.curve([LandmarkOffset(48, 20.0, 10.0)] * 2)[0]
    curve = (start + np.linspace(-6, 6, 14)[:, None] * np.array([0.0, 1.0])).astype(np.float32)  # downwards
    stroke = canvas.stroke(curve, reach_mm=8.0)
    assert stroke is not None
    window = canvas.positions[stroke.rows, stroke.columns]
    line = canvas.positions_at(curve)
    dense = np.stack([np.interp(np.linspace(0, 13, 400), np.arange(14), line[:, k]) for k in range(3)], -1)
    distance = np.linalg.norm(window[:, :, None] - dense, axis=-1).min(-1)
    np.testing.assert_allclose(np.abs(stroke.across_mm), distance, atol=0.15)
    columns = np.arange(SIZE)[stroke.columns] + 0.5
    beside = (stroke.along > 0.1) & (stroke.along < 0.9)
    right_of_it = np.broadcast_to(columns > start[0] + 0.01, beside.shape)
    # Downwards in the map, the left of the curve is where columns grow.
    assert (stroke.across_mm[beside & right_of_it] > 0).all()
    assert (stroke.across_mm[beside & ~right_of_it] < 0.2).all()
    middle = np.abs(stroke.across_mm) < 1
    rows = np.broadcast_to((np.arange(SIZE)[stroke.rows] + 0.5)[:, None], middle.shape)
    assert np.corrcoef(stroke.along[middle], rows[middle])[0, 1] > 0.97
    assert (distance.max(), stroke.along.min(), stroke.along.max()) == (pytest.approx(distance.max()), 0, 1)
    assert distance[0].min() > 8 and distance[:, 0].min() > 8 and distance[:, -1].min() > 8  # all in reach is inside


def test_a_point_is_no_stroke(canvas: SkinCanvas) -> None:
    point = np.full((14, 2), 40.0, np.float32)
    assert canvas.stroke(point, reach_mm=5.0) is None


def test_a_soft_region_is_one_at_its_points_and_falls_off_on_the_face(canvas: SkinCanvas) -> None:
    cheek = LandmarkOffset(48, 20.0, 24.0)
    region = canvas.soft_region([cheek], sigma_mm=10.0, sides=[False])
    assert region.max() == pytest.approx(1.0, abs=1e-3)
    row, column = np.unravel_index(region.argmax(), region.shape)
    away = np.linalg.norm(canvas.positions - canvas.positions[row, column], axis=-1) / canvas.unit
    ring = canvas.valid & (np.abs(away - 10) < 0.5)
    np.testing.assert_allclose(region[ring], np.exp(-0.5), atol=0.04)
    assert column < SIZE / 2
    both = canvas.soft_region([cheek], sigma_mm=10.0)
    assert both[:, SIZE // 2 :].max() == pytest.approx(1.0, abs=1e-3)


def test_points_are_spread_by_area_and_density(canvas: SkinCanvas) -> None:
    rng = np.random.default_rng(0)
    upper = (canvas.positions[..., 1] > 0).astype(np.float32)
    points = canvas.sample_points(rng, 4000, 0.25 + 0.75 * upper)
    columns, rows = canvas.texel_indices(points).T
    assert canvas.valid[rows, columns].all()
    area = canvas.texel_mm**2 * canvas.valid
    share = (area * upper).sum() / (area * (0.25 + 0.75 * upper)).sum()
    assert upper[rows, columns].mean() == pytest.approx(share, abs=0.03)
    assert canvas.sample_points(rng, 0, upper).shape == (0, 2)
    assert canvas.sample_points(rng, 5, np.zeros_like(upper)).shape == (0, 2)


def test_rough_skin_ends_at_holes_and_fades_to_the_border(model: MorphableModel, canvas: SkinCanvas) -> None:
    skin = canvas.rough_skin
    assert (skin[~canvas.valid] == 0).all()
    assert (skin[np.maximum(canvas.parts["eyes"], canvas.parts["mouth"]) > 0.5] == 0).all()
    nose = canvas.soft_region([LandmarkOffset(30)], sigma_mm=4.0) > 0.9
    assert (skin[nose] == 1).all()
    assert 0.6 < skin[canvas.valid].mean() < 0.95


def test_lines_have_their_width_on_the_face_wherever_the_uv_map_stretches_it(canvas: SkinCanvas) -> None:
    for offset in (LandmarkOffset(27, 0.0, 40.0), LandmarkOffset(48, 20.0, 10.0), LandmarkOffset(4, -10.0, 5.0)):
        start = canvas.curve([offset, offset])[0]
        curve = np.clip(start + np.linspace(-8, 8, 14)[:, None] * np.array([1.0, 0.2]), 0, SIZE - 1).astype(np.float32)
        stroke = canvas.stroke(curve, reach_mm=12.0)
        assert stroke is not None
        profile = gaussian(stroke.across_mm, 3.0, stroke.texel_mm) * ((stroke.along > 0) & (stroke.along < 1))
        area = (profile * stroke.texel_mm**2).sum()
        length = np.linalg.norm(np.diff(canvas.positions_at(curve), axis=0), axis=-1).sum()
        assert area / length == pytest.approx(3.0 * np.sqrt(2 * np.pi), rel=0.04)


def test_spots_have_the_volume_of_their_height_and_size(canvas: SkinCanvas) -> None:
    middle = canvas.curve([LandmarkOffset(48, 20.0, 15.0)] * 2)[:1]
    spot = canvas.spots(middle, np.array([4.0], np.float32), np.array([0.5], np.float32))
    volume = (spot * canvas.texel_mm**2).sum()
    assert volume == pytest.approx(2 * np.pi * 16 * 0.5, rel=0.15)


def test_noise_has_unit_variance_at_every_grain(canvas: SkinCanvas) -> None:
    for grain in (1.0, 5.0, 15.0):
        field = canvas.noise(np.random.default_rng(0), grain, channels=8)
        assert field.std() == pytest.approx(1.0, abs=0.2)


def test_a_smooth_curve_passes_its_points() -> None:
    points = np.array([[0, 0], [4, 1], [8, 6]], np.float32)
    curve = smooth_curve(points, count=5)
    np.testing.assert_allclose(curve[[0, 2, 4]], points, atol=1e-5)


def test_narrow_lines_weigh_the_same_wherever_they_lie_in_a_texel() -> None:
    """0.4 mm on texels of 1.2 mm: sampled at texel centres alone, it would come and go."""
    texel = 1.2
    for shift in (0.0, 0.3, 0.6):
        distance = (np.arange(-8, 9) + shift / texel) * texel
        weight = gaussian(distance, 0.4, np.full_like(distance, texel)).sum() * texel
        assert weight == pytest.approx(0.4 * np.sqrt(2 * np.pi), rel=0.03)
