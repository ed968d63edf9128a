"""Skins drawn on the chart: measured in millimetres, zero where skin is smooth, and never told by their colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.morphable import MorphableModel, load_model
from mien.texture import TexelAtlas
from mien.training.synthetic.blemishes import BlemishPainter
from mien.training.synthetic.canvas import LandmarkOffset, SkinCanvas, gaussian, smooth_curve
from mien.training.synthetic.relief import DEEPEST_MM, ReliefPainter, ReliefSettings
from mien.training.synthetic.wrinkle_atlas import WRINKLES
from mien.training.synthetic.wrinkles import WrinkleFamily

SIZE = 96
FOLDED = ReliefSettings(
    flat_share=0.0, unmarked_share=0.0, young_share=0.0, bumps_share=0.0, pits_share=0.0, scar_share=0.0
)
SMOOTH = replace(FOLDED, texture_mm=(0.0, 0.0), fullness_mm=0.0)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def atlas(model: MorphableModel) -> TexelAtlas:
    return TexelAtlas.of(model, SIZE)


@pytest.fixture(scope="module")
def canvas(model: MorphableModel, atlas: TexelAtlas) -> SkinCanvas:
    return SkinCanvas(model, atlas)


@pytest.fixture(scope="module")
def painter(model: MorphableModel, atlas: TexelAtlas) -> ReliefPainter:
    return ReliefPainter(model, atlas)


def relief_mm(painter: ReliefPainter, seed: int, expression: torch.Tensor | None = None) -> torch.Tensor:
    return painter.draw(np.random.default_rng(seed), expression=expression).displacement[0, 0] * 1000


def drawn_fold(canvas: SkinCanvas, name: str, *, age: float, actions: dict[str, float], seeds: int = 8) -> np.ndarray:
    """The mean depth map of one kind of fold over some faces."""
    family = WrinkleFamily(canvas, next(fold for fold in WRINKLES if fold.name == name))
    total = np.zeros((canvas.size, canvas.size), np.float32)
    for seed in range(seeds):
        family.draw(np.random.default_rng(seed), total, age=age, actions=actions, strength=1.0)
    return total / seeds


def test_a_skin_is_a_function_of_its_generator(painter: ReliefPainter) -> None:
    one, same = (painter.draw(np.random.default_rng(4), expression=None) for _ in range(2))
    assert torch.equal(one.displacement, same.displacement)
    assert torch.equal(one.texture_offset, same.texture_offset)
    other = painter.draw(np.random.default_rng(5), expression=None)
    assert not torch.equal(one.texture_offset, other.texture_offset)
    assert one.displacement.shape == (1, 1, SIZE, SIZE)
    assert one.texture_offset.shape == (1, 3, SIZE, SIZE)


def test_eyes_mouth_and_border_stay_smooth(model: MorphableModel, atlas: TexelAtlas, painter: ReliefPainter) -> None:
    parts = model.masks
    holes = atlas.interpolate(torch.maximum(parts.eyes, parts.mouth)[None, :, None])[0, 0] > 0.5
    inner = -torch.nn.functional.max_pool2d(-atlas.valid.float()[None, None], 3, 1, 1)[0, 0]
    border = atlas.valid & (inner == 0)
    assert holes.sum() > 50 and border.sum() > 100
    for seed in range(12):
        height = relief_mm(painter, seed)
        assert (height[holes] == 0).all()
        assert height[border].abs().max() < 0.05
        assert (height[~atlas.valid] == 0).all()


def test_depths_are_those_of_real_skin(model: MorphableModel, atlas: TexelAtlas) -> None:
    painter = ReliefPainter(model, atlas, FOLDED)
    depths = torch.stack([relief_mm(painter, seed).aminmax().min for seed in range(30)])
    assert (depths > -DEEPEST_MM).all()
    assert 0.3 < float(-depths.median()) < 1.6


def test_settings_decide_what_happens(model: MorphableModel, atlas: TexelAtlas) -> None:
    flat = ReliefPainter(model, atlas, ReliefSettings(flat_share=1.0, unmarked_share=0.0))
    plain = ReliefPainter(model, atlas, ReliefSettings(flat_share=0.0, unmarked_share=1.0))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        marked = flat.draw(rng, expression=None)
        assert (marked.displacement == 0).all()
        assert marked.texture_offset.abs().max() > 0.02
        bare = plain.draw(np.random.default_rng(seed), expression=None)
        assert (bare.texture_offset == 0).all()
        assert bare.displacement.abs().max() > 1e-4


def test_some_faces_have_only_marks_some_only_relief_and_some_neither(painter: ReliefPainter) -> None:
    skins = [painter.draw(np.random.default_rng(seed), expression=None) for seed in range(60)]
    flat = np.array([float(skin.displacement.abs().max()) == 0 for skin in skins])
    unmarked = np.array([float(skin.texture_offset.abs().max()) == 0 for skin in skins])
    assert 0.08 < flat.mean() < 0.35
    assert 0.04 < unmarked.mean() < 0.3
    assert (~flat & ~unmarked).mean() > 0.5


def test_age_and_actions_deepen_the_folds_that_they_should(canvas: SkinCanvas) -> None:
    for name, action in (
        ("nasolabial", "mouthSmile"),
        ("crow's feet", "cheekSquint"),
        ("forehead", "browOuterUp"),
        ("glabella", "browDown"),
        ("bunny lines", "noseSneer"),
    ):
        moved = {action + side: 1.0 for side in ("Left", "Right")}
        young, acting = (-drawn_fold(canvas, name, age=0.1, actions=a).min() for a in ({}, moved))
        old = -drawn_fold(canvas, name, age=1.0, actions={}).min()
        assert acting > young + 0.02, name
        assert old > young + 0.05, name


def test_an_action_of_one_side_folds_that_side(canvas: SkinCanvas) -> None:
    folded = np.abs(drawn_fold(canvas, "nasolabial", age=0.1, actions={"mouthSmileLeft": 1.0}))
    right, left = folded[:, : SIZE // 2].sum(), folded[:, SIZE // 2 :].sum()  # the chart shows the face as we see it
    assert left > 5 * right


def test_folds_lie_where_anatomy_has_them(model: MorphableModel, canvas: SkinCanvas) -> None:
    """The deepest texel of a kind of fold, as a point of the mean."""
    corner = {k: (model.mean[model.landmarks68[k]] * 1000).numpy() for k in (27, 36, 45, 48, 54, 57, 8)}
    expected = {
        "nasolabial": (abs(corner[48][0]) + 3, corner[48][1] + 12, 14),
        "crow's feet": (abs(corner[36][0]) + 10, corner[36][1], 15),
        "glabella": (7, corner[27][1] + 22, 12),
        "chin": (0, (corner[57][1] + corner[8][1]) / 2 + 4, 14),
        "forehead": (0, corner[27][1] + 50, 45),
    }
    for name, (out, up, within) in expected.items():
        depth = -drawn_fold(canvas, name, age=1.0, actions={}, seeds=4)
        x, y, _ = canvas.positions.reshape(-1, 3)[depth.argmax()]
        assert np.hypot(abs(x) - out, y - up) < within, (name, x, y)


def test_skins_lean_to_no_side(model: MorphableModel) -> None:
    """Folds differ from side to side in a face, and on average do not."""
    painter = ReliefPainter(model, TexelAtlas.of(model, 48), SMOOTH)
    maps = torch.stack([relief_mm(painter, seed) for seed in range(60)])
    single = (maps - maps.flip(-1)).abs().mean() / maps.abs().mean()
    common = (maps.mean(0) - maps.mean(0).flip(-1)).abs().mean() / maps.mean(0).abs().mean()
    assert single > 0.3
    assert common < 0.25 * single  # of 60 faces about 1 / sqrt(60) is left


def test_lines_have_their_width_on_the_face_wherever_the_chart_stretches_it(canvas: SkinCanvas) -> None:
    for place in (LandmarkOffset(27, 0.0, 40.0), LandmarkOffset(48, 20.0, 10.0), LandmarkOffset(4, -10.0, 5.0)):
        start = canvas.curve([place, place])[0]
        curve = np.clip(start + np.linspace(-8, 8, 14)[:, None] * np.array([1.0, 0.2]), 0, SIZE - 1).astype(np.float32)
        stroke = canvas.stroke(curve, reach_mm=12.0)
        assert stroke is not None
        profile = gaussian(stroke.across_mm, 3.0, stroke.texel_mm) * ((stroke.along > 0) & (stroke.along < 1))
        area = (profile * stroke.texel_mm**2).sum()
        length = np.linalg.norm(np.diff(canvas.between(curve), axis=0), axis=-1).sum()
        assert area / length == pytest.approx(3.0 * np.sqrt(2 * np.pi), rel=0.04)


def test_maps_of_two_sizes_show_one_fold(model: MorphableModel) -> None:
    coarse, fine = (SkinCanvas(model, TexelAtlas.of(model, size)) for size in (96, 192))
    maps = [drawn_fold(c, "nasolabial", age=1.0, actions={}, seeds=1) for c in (coarse, fine)]
    halved = maps[1].reshape(96, 2, 96, 2).mean((1, 3))
    assert np.corrcoef(maps[0].ravel(), halved.ravel())[0, 1] > 0.97
    assert maps[0].min() == pytest.approx(halved.min(), rel=0.2)


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


def test_lines_of_colour_take_the_places_of_folds(
    painter: ReliefPainter, canvas: SkinCanvas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many skins have dark or light lines where others have nasolabial folds, whether they are folded or flat."""
    region = np.abs(drawn_fold(canvas, "nasolabial", age=1.0, actions={})) > 0.2
    assert region.sum() > 30
    drawn: list[np.ndarray] = []
    paint = BlemishPainter._drawn_wrinkles

    def watched(self: BlemishPainter, rng: np.random.Generator, lines: np.ndarray) -> None:
        paint(self, rng, lines)
        drawn.append(lines.mean(0)[region])

    monkeypatch.setattr(BlemishPainter, "_drawn_wrinkles", watched)
    for seed in range(60):
        painter.draw(np.random.default_rng(seed), expression=None)
    assert 15 < len(drawn) < 35
    assert sum(values.min() < -0.05 for values in drawn) >= 4
    assert sum(values.max() > 0.02 for values in drawn) >= 2


def test_narrow_lines_weigh_the_same_wherever_they_lie_in_a_texel() -> None:
    """0.4 mm on texels of 1.2 mm: sampled at texel centres alone, it would come and go."""
    texel = 1.2
    for shift in (0.0, 0.3, 0.6):
        distance = (np.arange(-8, 9) + shift / texel) * texel
        weight = gaussian(distance, 0.4, np.full_like(distance, texel)).sum() * texel
        assert weight == pytest.approx(0.4 * np.sqrt(2 * np.pi), rel=0.03)
