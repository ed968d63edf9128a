"""Skins on the UV map: relief in millimetres, 0 where skin is smooth, and independent of the blemishes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.morphable import MorphableModel, load_model
from mien.texture import TexelAtlas
from mien.training.synthetic.relief import DEEPEST_MM, ReliefPainter, ReliefSettings

SIZE = 96
WRINKLED = ReliefSettings(
    flat_share=0.0, unblemished_share=0.0, young_share=0.0, bumps_share=0.0, pits_share=0.0, scar_share=0.0
)
SMOOTH = replace(WRINKLED, texture_mm=(0.0, 0.0), fullness_mm=0.0)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def atlas(model: MorphableModel) -> TexelAtlas:
    return TexelAtlas.of(model, SIZE)


@pytest.fixture(scope="module")
def painter(model: MorphableModel, atlas: TexelAtlas) -> ReliefPainter:
    return ReliefPainter(model, atlas)


def relief_mm(painter: ReliefPainter, seed: int, expression: torch.Tensor | None = None) -> torch.Tensor:
    return painter.paint(np.random.default_rng(seed), expression=expression).displacement[0, 0] * 1000


def test_a_skin_is_a_function_of_its_generator(painter: ReliefPainter) -> None:
    one, same = (painter.paint(np.random.default_rng(4), expression=None) for _ in range(2))
    assert torch.equal(one.displacement, same.displacement)
    assert torch.equal(one.texture_offset, same.texture_offset)
    other = painter.paint(np.random.default_rng(5), expression=None)
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
    painter = ReliefPainter(model, atlas, WRINKLED)
    depths = torch.stack([relief_mm(painter, seed).aminmax().min for seed in range(30)])
    assert (depths > -DEEPEST_MM).all()
    assert 0.3 < float(-depths.median()) < 1.6


def test_settings_decide_what_happens(model: MorphableModel, atlas: TexelAtlas) -> None:
    flat = ReliefPainter(model, atlas, ReliefSettings(flat_share=1.0, unblemished_share=0.0))
    plain = ReliefPainter(model, atlas, ReliefSettings(flat_share=0.0, unblemished_share=1.0))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        blemished = flat.paint(rng, expression=None)
        assert (blemished.displacement == 0).all()
        assert blemished.texture_offset.abs().max() > 0.02
        bare = plain.paint(np.random.default_rng(seed), expression=None)
        assert (bare.texture_offset == 0).all()
        assert bare.displacement.abs().max() > 1e-4


def test_some_faces_have_only_blemishes_some_only_relief_and_some_neither(painter: ReliefPainter) -> None:
    skins = [painter.paint(np.random.default_rng(seed), expression=None) for seed in range(60)]
    flat = np.array([float(skin.displacement.abs().max()) == 0 for skin in skins])
    unblemished = np.array([float(skin.texture_offset.abs().max()) == 0 for skin in skins])
    assert 0.08 < flat.mean() < 0.35
    assert 0.04 < unblemished.mean() < 0.3
    assert (~flat & ~unblemished).mean() > 0.5


def test_skins_lean_to_no_side(model: MorphableModel) -> None:
    """Wrinkles differ from side to side in a face, and on average do not."""
    painter = ReliefPainter(model, TexelAtlas.of(model, 48), SMOOTH)
    maps = torch.stack([relief_mm(painter, seed) for seed in range(60)])
    single = (maps - maps.flip(-1)).abs().mean() / maps.abs().mean()
    common = (maps.mean(0) - maps.mean(0).flip(-1)).abs().mean() / maps.mean(0).abs().mean()
    assert single > 0.3
    assert common < 0.25 * single  # of 60 faces about 1 / sqrt(60) is left


def test_blemishes_change_the_albedo_and_not_the_relief(model: MorphableModel, atlas: TexelAtlas) -> None:
    """The same skin with and without blemishes has the same relief, and with and without relief the same blemishes."""
    plain = replace(WRINKLED, young_share=0.25)
    settings = (plain, replace(plain, unblemished_share=1.0), replace(plain, flat_share=1.0))
    painters = [ReliefPainter(model, atlas, one) for one in settings]
    for seed in range(6):
        both, relief, blemishes = (p.paint(np.random.default_rng(seed), expression=None) for p in painters)
        assert torch.equal(both.displacement, relief.displacement) and relief.displacement.abs().max() > 1e-4
        assert torch.equal(both.texture_offset, blemishes.texture_offset) and both.texture_offset.abs().max() > 0.01
        assert (blemishes.displacement == 0).all() and (relief.texture_offset == 0).all()


def test_bumps_bring_colour_where_they_are(model: MorphableModel, atlas: TexelAtlas) -> None:
    """Pimples are raised and red, raised moles brown; acne scars are pits without colour."""
    painter = ReliefPainter(model, atlas, WRINKLED)
    size = (painter.canvas.size, painter.canvas.size)
    height, colour = np.zeros(size, np.float32), np.zeros((3, *size), np.float32)
    for seed in range(8):
        painter._add_pimples(np.random.default_rng(seed), height, colour)
    assert height.min() >= 0 and 0.05 < height.max() < 2
    red = colour[0] - colour[1]
    assert red.max() > 0.02 and (red[height > 0.05] > 0).all()
    moles, brown = np.zeros(size, np.float32), np.zeros((3, *size), np.float32)
    for seed in range(8):
        painter._add_moles(np.random.default_rng(seed), moles, brown)
    assert moles.min() >= 0 and moles.max() > 0.2
    assert (brown <= 1e-6).all() and brown.min() < -0.05
    pits = ReliefPainter(model, atlas, replace(WRINKLED, pits_share=1.0))
    lowered = [pits._bumps(np.random.default_rng(seed)) for seed in range(4)]
    assert all(height.max() <= 0 and height.min() < -0.05 and (colour == 0).all() for height, colour in lowered)


def test_the_named_blendshapes_of_an_expression_deepen_wrinkles(model: MorphableModel, atlas: TexelAtlas) -> None:
    painter = ReliefPainter(model, atlas, replace(SMOOTH, young_share=1.0))
    smile = torch.tensor([float(name.startswith(("mouthSmile", "cheekSquint"))) for name in model.expression_names])
    neutral = sum(float(-relief_mm(painter, seed).min()) for seed in range(6))
    smiling = sum(float(-relief_mm(painter, seed, expression=smile).min()) for seed in range(6))
    assert smiling > 1.5 * neutral
    assert painter._blendshapes(torch.full_like(smile, 3.0))["mouthSmileLeft"] == 1.0


def test_wrinkle_strength_scales_the_relief(model: MorphableModel, atlas: TexelAtlas) -> None:
    painters = [ReliefPainter(model, atlas, replace(SMOOTH, wrinkle_strength=k)) for k in (0.0, 0.1, 0.2)]
    deepest = []
    for seed in range(6):
        creases, single, double = (relief_mm(painter, seed) for painter in painters)
        deepest.append(float((single - creases).abs().max()))
        torch.testing.assert_close(2 * (single - creases), double - creases, atol=0.01, rtol=0.05)
    assert max(deepest) > 0.02
