"""Wrinkles: every family lies where its landmarks are, has its depth, and depends on age and blendshapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mien.morphable import MorphableModel, load_model
from mien.texture import TexelAtlas
from mien.training.synthetic.canvas import LandmarkOffset, SkinCanvas
from mien.training.synthetic.wrinkle_atlas import PILLOW, WRINKLES, Lobe, Wrinkle
from mien.training.synthetic.wrinkles import WrinkleFamily, taper
from tests.training.scripted import ScriptedRng

SIZE = 96
BY_NAME = {wrinkle.name: wrinkle for wrinkle in WRINKLES}
# Name: where the wrinkles of a full-grown face have their centre of mass, millimetres from the middle between the outer
# eye corners (away from the midline, up), and how deep (bags: high) they get. After Lemperle et al. 2001, as measured
# on `mien-face`: a wrinkle that moves by 1.5 mm is another wrinkle.
ATLAS = {
    "forehead": (13.8, 57.5, 0.20),
    "glabella": (7.2, 25.5, 0.31),
    "nasal root": (2.2, 8.4, 0.11),
    "crow's feet": (54.7, -2.3, 0.15),
    "lower lid": (33.4, -12.0, 0.13),
    "bag": (32.3, -12.4, 0.92),
    "tear trough": (24.9, -16.9, 0.40),
    "nasolabial": (26.4, -50.0, 0.53),
    "cheek": (45.6, -60.0, 0.16),
    "marionette": (29.1, -80.2, 0.41),
    "upper lip": (14.6, -55.5, 0.08),
    "lower lip": (13.0, -81.2, 0.06),
    "chin": (4.6, -87.7, 0.45),
    "bunny lines": (9.1, -14.0, 0.13),
    "jowl": (34.9, -94.7, 0.85),
    "neck": (6.3, -122.0, 0.38),
}
EYE_CORNER = LandmarkOffset(36)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def canvas(model: MorphableModel) -> SkinCanvas:
    return SkinCanvas(model, TexelAtlas.of(model, SIZE))


def painted(canvas: SkinCanvas, name: str, *, age: float, blendshapes: dict[str, float], seeds: int = 8) -> np.ndarray:
    """The mean height map of one kind of wrinkle over some faces."""
    family = WrinkleFamily(canvas, BY_NAME[name])
    total = np.zeros((canvas.size, canvas.size), np.float32)
    for seed in range(seeds):
        family.paint(np.random.default_rng(seed), total, age=age, blendshapes=blendshapes, strength=1.0)
    return total / seeds


def still(wrinkle: Wrinkle, **changes: object) -> Wrinkle:
    """The same wrinkle without random deviations: its lines run from end to end."""
    return replace(wrinkle, wander_mm=0.0, max_trim=0.0, gap_probability=0.0, **changes)  # pyright: ignore[reportArgumentType]


def test_every_family_lies_at_its_landmarks(model: MorphableModel, canvas: SkinCanvas) -> None:
    """All strong texels of a family lie between its first and its last curve, on both sides."""
    spacing = 4.0
    for wrinkle in WRINKLES:
        family = WrinkleFamily(canvas, still(wrinkle, section=(Lobe(-1.0),)))
        total = np.zeros((SIZE, SIZE), np.float32)
        for seed in range(4):
            family.paint(np.random.default_rng(seed), total, age=1.0, blendshapes={}, strength=1.0)
        sides = [False, True]
        between = []
        for left in sides:
            first, last = (
                np.stack([canvas.landmark_position(offset, left=left) for offset in offsets])
                for offsets in (wrinkle.first, wrinkle.last)
            )
            along = np.linspace(0, 1, 12)
            first, last = (
                np.stack([np.interp(along * (len(c) - 1), np.arange(len(c)), c[:, k]) for k in range(3)], -1)
                for c in (first, last)
            )
            between += [first + (last - first) * share for share in np.linspace(0, 1, 9)]
        places = np.concatenate(between)[:, :2]
        strong = canvas.positions[total < 0.5 * total.min()][:, :2]
        distance = np.linalg.norm(strong[:, None] - places[None], axis=-1).min(1)
        # Curves bulge beyond their polygon, and depth in profile is not counted: a few millimetres.
        assert np.quantile(distance, 0.9) < spacing + wrinkle.width_mm[1], (wrinkle.name, np.quantile(distance, 0.9))


def test_families_are_where_the_atlas_has_them(canvas: SkinCanvas) -> None:
    eyes = (canvas.landmark_position(EYE_CORNER) + canvas.landmark_position(EYE_CORNER, left=True)) / 2
    for wrinkle in WRINKLES:
        height = painted(canvas, wrinkle.name, age=1.0, blendshapes={}, seeds=6)
        height = height if wrinkle.section == PILLOW else -height
        weight = np.where(height > 0.3 * height.max(), height, 0) * canvas.texel_mm**2
        x, y = np.abs(canvas.positions[..., 0]), canvas.positions[..., 1] - eyes[1]
        x, y = ((value * weight).sum() / weight.sum() for value in (x, y))
        out, up, peak = ATLAS[wrinkle.name]
        assert (x, y) == (pytest.approx(out, abs=1.0), pytest.approx(up, abs=1.0)), wrinkle.name
        assert height.max() == pytest.approx(peak, rel=0.1), wrinkle.name


def test_age_and_blendshapes_deepen_their_wrinkles(canvas: SkinCanvas) -> None:
    for name, blendshape in (
        ("nasolabial", "mouthSmile"),
        ("crow's feet", "cheekSquint"),
        ("forehead", "browOuterUp"),
        ("glabella", "browDown"),
        ("bunny lines", "noseSneer"),
    ):
        active = {blendshape + side: 1.0 for side in ("Left", "Right")}
        young, moved = (-painted(canvas, name, age=0.1, blendshapes=b).min() for b in ({}, active))
        old = -painted(canvas, name, age=1.0, blendshapes={}).min()
        assert moved > young + 0.02, name
        assert old > young + 0.05, name


def test_a_blendshape_of_one_side_wrinkles_that_side(canvas: SkinCanvas) -> None:
    height = np.abs(painted(canvas, "nasolabial", age=0.1, blendshapes={"mouthSmileLeft": 1.0}))
    right, left = height[:, : SIZE // 2].sum(), height[:, SIZE // 2 :].sum()  # the map shows the face as we see it
    assert left > 5 * right


def test_strength_grows_with_age_from_the_onset_and_with_blendshapes(canvas: SkinCanvas) -> None:
    family = WrinkleFamily(canvas, BY_NAME["glabella"])  # onset 0.3, 0.8 at full age, browDown adds 0.9
    assert family._strength(0.3, {}, left=False) == 0
    assert family._strength(1.0, {}, left=False) == pytest.approx(0.8)
    assert family._strength(0.65, {}, left=True) == pytest.approx(0.8 * 0.5**1.2)
    assert family._strength(0.0, {"browDownLeft": 1.0}, left=True) == pytest.approx(0.9 * 0.3)
    assert family._strength(0.0, {"browDownLeft": 1.0}, left=False) == 0
    assert family._strength(1.0, {"browDown": 0.5}, left=False) == pytest.approx(0.8 + 0.45)
    across = WrinkleFamily(canvas, BY_NAME["chin"])
    assert across.sides == 1 and family.sides == 2
    assert across._strength(0.0, {"mouthFrownRight": 1.0}, left=False) == pytest.approx(0.4 * 0.3)
    assert across._strength(0.0, {"mouthFrownLeft": 1.0}, left=False) == pytest.approx(0.4 * 0.3)


def test_the_bulge_of_an_overhang_is_on_the_cheeks_side(canvas: SkinCanvas) -> None:
    """Away from the midline the skin beside a nasolabial wrinkle is above, towards the mouth below."""
    wrinkle = still(BY_NAME["nasolabial"], section=(Lobe(1.0, 2.0, 4.0),))  # the bulge alone
    family = WrinkleFamily(canvas, wrinkle)
    bulge = np.zeros((SIZE, SIZE), np.float32)
    family.paint(np.random.default_rng(0), bulge, age=1.0, blendshapes={}, strength=1.0)
    groove = np.zeros_like(bulge)
    WrinkleFamily(canvas, replace(wrinkle, section=(Lobe(1.0),))).paint(
        np.random.default_rng(0), groove, age=1.0, blendshapes={}, strength=1.0
    )
    for half in (slice(0, SIZE // 2), slice(SIZE // 2, SIZE)):
        x = np.abs(canvas.positions[:, half, 0])
        outwards = (x * bulge[:, half]).sum() / bulge[:, half].sum() - (x * groove[:, half]).sum() / groove[
            :, half
        ].sum()
        assert 2 < outwards < 10


def test_a_line_has_its_depth_and_fades_at_its_ends(canvas: SkinCanvas) -> None:
    """A straight cross-section through a bag of 4 mm, which no texel blurs away."""
    wrinkle = still(BY_NAME["bag"], width_mm=(4.0, 4.0), depth_mm=(1.0, 1.0), taper_share=0.3)
    family = WrinkleFamily(canvas, wrinkle)
    height = np.zeros((SIZE, SIZE), np.float32)
    family.paint(ScriptedRng(uniform=(0.5,), normal=(0.0,)), height, age=1.0, blendshapes={}, strength=0.5)
    assert height.max() == pytest.approx(0.5, rel=0.06)
    doubled = np.zeros_like(height)
    family.paint(ScriptedRng(uniform=(0.5,), normal=(0.0,)), doubled, age=1.0, blendshapes={}, strength=1.0)
    np.testing.assert_allclose(doubled, 2 * height, atol=1e-6)


def test_weak_wrinkles_are_left_out(canvas: SkinCanvas) -> None:
    height = painted(canvas, "glabella", age=0.3, blendshapes={})
    assert (height == 0).all()


def test_a_taper_is_smooth_and_symmetric() -> None:
    along = np.linspace(0, 1, 101)
    factor = taper(along, 0.25)
    assert factor[[0, 100]].tolist() == [0, 0]
    assert (factor[25:76] == 1).all()
    assert taper(np.array([0.125]), 0.25)[0] == pytest.approx(0.5)
    np.testing.assert_allclose(factor, factor[::-1])


def test_counts_trims_and_gaps_stay_in_the_ranges_of_the_family(canvas: SkinCanvas) -> None:
    wrinkle = replace(BY_NAME["forehead"], gap_probability=0.0)
    family = WrinkleFamily(canvas, wrinkle)
    for share, expected in ((0.0, 2.0), (1.0, 6.0)):
        counts = [len(family.sample_curves(np.random.default_rng(k), 0, share=share)) for k in range(60)]
        assert min(counts) >= 2 and max(counts) <= 6
        assert np.mean(counts) == pytest.approx(expected, abs=0.5)
    broken = WrinkleFamily(canvas, replace(wrinkle, gap_probability=1.0, count=(1, 1)))
    assert len(broken.sample_curves(np.random.default_rng(0), 0, share=0.0)) == 2


def test_maps_of_two_sizes_show_one_wrinkle(model: MorphableModel) -> None:
    coarse, fine = (SkinCanvas(model, TexelAtlas.of(model, size)) for size in (96, 192))
    maps = [painted(c, "nasolabial", age=1.0, blendshapes={}, seeds=1) for c in (coarse, fine)]
    halved = maps[1].reshape(96, 2, 96, 2).mean((1, 3))
    assert np.corrcoef(maps[0].ravel(), halved.ravel())[0, 1] > 0.97
    assert maps[0].min() == pytest.approx(halved.min(), rel=0.2)
