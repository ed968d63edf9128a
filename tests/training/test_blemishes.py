"""Skin blemishes: they change the albedo and no shape, each at its place, and some follow the curves of wrinkles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mien.morphable import MorphableModel, load_model
from mien.texture import TexelAtlas
from mien.training.synthetic.blemishes import BLOOD, MELANIN, BlemishPainter
from mien.training.synthetic.canvas import SkinCanvas
from mien.training.synthetic.wrinkle_atlas import WRINKLES
from mien.training.synthetic.wrinkles import WrinkleFamily
from tests.training.scripted import ScriptedRng

SIZE = 96


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def canvas(model: MorphableModel) -> SkinCanvas:
    return SkinCanvas(model, TexelAtlas.of(model, SIZE))


@pytest.fixture(scope="module")
def painter(canvas: SkinCanvas) -> BlemishPainter:
    return BlemishPainter(canvas, [WrinkleFamily(canvas, wrinkle) for wrinkle in WRINKLES])


def painted(add: Callable[[np.random.Generator, np.ndarray], None], seed: int) -> np.ndarray:
    offset = np.zeros((3, SIZE, SIZE), np.float32)
    add(np.random.default_rng(seed), offset)
    return offset


def test_pigment_darkens_and_blood_reddens() -> None:
    assert (MELANIN < 0).all() and (BLOOD < 0).all()
    assert MELANIN[2] <= MELANIN[1] < MELANIN[0]
    assert BLOOD[0] > 5 * BLOOD[1:].max()  # red stays


def test_blemishes_stay_on_skin(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    for seed in range(12):
        offset = painter.paint(np.random.default_rng(seed))
        assert offset.shape == (3, SIZE, SIZE)
        assert (offset[:, ~canvas.valid] == 0).all()
        inside = (canvas.parts["eyes"] > 0.99) | (canvas.parts["mouth"] > 0.99)
        assert np.abs(offset[:, inside & (canvas.parts["lips"] == 0)]).max() < 0.02
        assert np.abs(offset).max() > 0.01


def test_hair_is_on_brows_and_where_beards_grow(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    offsets = np.stack([painted(painter._add_hair, seed) for seed in range(40)])
    brows, beard = canvas.parts["brows"] > 0.5, painter._beard_region > 0.5
    assert offsets[:, :, brows].mean() < -0.05
    shadows = offsets[:, :, beard].mean((1, 2))
    assert 0.2 < (np.abs(shadows) > 1e-4).mean() < 0.5  # 35 % have a beard
    assert shadows[np.abs(shadows) > 1e-4].mean() < -0.01
    elsewhere = (canvas.parts["brows"] == 0) & (painter._beard_region == 0)
    assert (offsets[:, :, elsewhere] == 0).all()
    assert canvas.positions[beard][:, 1].max() < canvas.positions[brows][:, 1].min()


def test_lipstick_is_on_lips_alone(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    colours = [painter._lipstick(np.random.default_rng(seed)) for seed in range(40)]
    lips = canvas.parts["lips"]
    assert all((colour[:, lips == 0] == 0).all() for colour in colours)
    means = np.stack([colour[:, lips > 0.9].mean(1) for colour in colours])
    strong = means[:, 1] < -0.08
    assert 0.1 < strong.mean() < 0.45  # 30 % wear lipstick, red of some strength
    assert (means[strong, 0] > means[strong, 1]).all()


def test_make_up_is_on_lids_and_cheeks(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    none = ScriptedRng(random=(0.26, 0.16))
    offset = np.zeros((3, SIZE, SIZE), np.float32)
    painter._add_make_up(none, offset)
    assert (offset == 0).all()
    painter._add_make_up(ScriptedRng(random=(0.24, 0.16), normal=(0.0,)), offset)
    np.testing.assert_allclose(offset, -0.08 * np.broadcast_to(painter._lids, offset.shape), atol=1e-5)
    blush = np.zeros_like(offset)
    painter._add_make_up(ScriptedRng(random=(0.26, 0.14), uniform=(1.0,)), blush)
    expected = np.multiply.outer(np.array([0.03, -0.1, -0.06]) * 1.5, painter._blush_region)
    np.testing.assert_allclose(blush, expected, atol=1e-5)


def test_freckles_and_dark_circles_have_their_places(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    eye, mouth = (canvas.positions[canvas.parts[part] > 0.5][:, 1] for part in ("eyes", "mouth"))
    for region in (painter._under_eyes, painter._freckle_region, painter._blush_region):
        y = canvas.positions[..., 1][region > 0.8]
        assert y.max() < eye.max() + 3 and y.min() > mouth.mean()
    lids = canvas.positions[..., 1][painter._lids > 0.8]
    assert lids.mean() > canvas.positions[..., 1][painter._under_eyes > 0.8].mean() + 8


def test_coloured_lines_are_where_wrinkles_are(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    """Many skins have dark or light lines where others have nasolabial wrinkles, whether they have wrinkles or not."""
    family = WrinkleFamily(canvas, next(wrinkle for wrinkle in WRINKLES if wrinkle.name == "nasolabial"))
    depth = np.zeros((SIZE, SIZE), np.float32)
    for seed in range(8):
        family.paint(np.random.default_rng(seed), depth, age=1.0, blendshapes={}, strength=1.0)
    region = np.abs(depth / 8) > 0.2
    assert region.sum() > 30
    lines = [painted(painter._add_wrinkle_lines, seed).mean(0)[region] for seed in range(24)]
    assert sum(values.min() < -0.05 for values in lines) >= 4
    assert sum(values.max() > 0.02 for values in lines) >= 2


def test_stage_make_up_has_a_highlight_beside_the_shadow(painter: BlemishPainter, canvas: SkinCanvas) -> None:
    curve = np.stack([np.full(14, 30.0), np.linspace(45, 60, 14)], -1).astype(np.float32)
    tone = np.array([-1.0, -1.0, -1.0], np.float32)
    shadow, staged = np.zeros((3, SIZE, SIZE), np.float32), np.zeros((3, SIZE, SIZE), np.float32)
    rng = np.random.default_rng(0)
    painter._paint_line(rng, shadow, curve, tone, width_mm=1.5, beside=0.0)
    painter._paint_line(rng, staged, curve, tone, width_mm=1.5, beside=-0.5)
    assert shadow.max() == 0 and shadow.min() < -0.55
    assert staged.max() > 0.15 and staged.min() < -0.5


def test_four_in_ten_skins_have_lines_and_fifteen_in_a_hundred_a_tattoo(
    painter: BlemishPainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"lines": 0, "tattoo": 0}

    def count(name: str) -> Callable[..., None]:
        def called(self: BlemishPainter, rng: np.random.Generator, lines: np.ndarray) -> None:
            calls[name] += 1

        return called

    monkeypatch.setattr(BlemishPainter, "_add_wrinkle_lines", count("lines"))
    monkeypatch.setattr(BlemishPainter, "_add_tattoo", count("tattoo"))
    for seed in range(100):
        painter.paint(np.random.default_rng(seed))
    assert calls["lines"] / 100 == pytest.approx(0.4, abs=0.1)
    assert calls["tattoo"] / 100 == pytest.approx(0.15, abs=0.08)


def test_a_tattoo_is_some_strokes_of_one_ink(painter: BlemishPainter) -> None:
    tattoo = painted(painter._add_tattoo, 3)
    marked = np.abs(tattoo).max(0) > 0.05
    assert 0.001 < marked.mean() < 0.2
    ratios = tattoo[:, marked] / tattoo[0, marked]
    np.testing.assert_allclose(ratios, ratios[:, :1].repeat(ratios.shape[1], 1), rtol=1e-3)
