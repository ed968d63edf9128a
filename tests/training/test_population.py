"""Sampled people: twins move together, but for one-sided expressions; poses and crops stay in their ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import FormatError, ModelMismatch
from mien.morphable import MorphableModel, load_model
from mien.training.synthetic.population import (
    ONE_SIDED,
    ONE_SIDED_SHARE,
    SMILE,
    Population,
    SkinBank,
    ViewDistribution,
    _expression_pairs,
    _is_sided,
    _sample_expression,
    _sample_lighting,
    _with_one_sided,
)
from tests.tiny import tiny_model
from tests.training.scripted import ScriptedRng

NAMES = (
    "jawOpen", "mouthSmileLeft", "jawLeft", "mouthSmileRight", "jawRight", "mouthLeft", "eyeBlinkRight", "mouthRight",
    "eyeBlinkLeft",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng((11, k)) for k in range(count)]


def test_left_and_right_twins_are_one_group_and_sideways_movements_are_not() -> None:
    assert _expression_pairs(NAMES) == [[0], [1, 3], [2], [4], [5], [6, 8], [7]]
    assert [name for name in NAMES if _is_sided(name)] == [NAMES[k] for k in (1, 3, 6, 8)]


def test_every_sided_blendshape_of_the_packaged_model_has_its_twin(model: MorphableModel) -> None:
    names = model.expression_names
    pairs = [[names[k] for k in group] for group in _expression_pairs(names) if len(group) > 1]
    assert len(pairs) == 18  # as ARKit has them
    assert all(
        len(pair) == 2 and pair[0].replace("Left", "Right") == pair[1].replace("Left", "Right") for pair in pairs
    )
    assert not any(name in ("jawLeft", "mouthLeft") for pair in pairs for name in pair)


def test_strengths_have_the_mean_of_their_distribution() -> None:
    """Beta(1.2, 2) has the mean 0.375; times 0.9, or 0.15 in nearly neutral faces, times 0.85 for unequal twins.

    18 % of the active groups are in nearly neutral faces (0.25 · 0.1 against 0.75 · 0.15).
    """
    groups = [[k] for k in range(8)]
    samples = torch.stack([_sample_expression(rng, 8, groups, ["blendshape"] * 8) for rng in rngs(2000)])
    expected = 0.375 * 0.85 * (0.182 * 0.15 + 0.818 * 0.9)
    assert float(samples[samples > 0].mean()) == pytest.approx(expected, abs=0.015)


def test_twins_move_together_and_at_least_seven_tenths_alike() -> None:
    groups = _expression_pairs(NAMES)
    samples = torch.stack([_sample_expression(rng, len(NAMES), groups, NAMES) for rng in rngs(300)])
    for left, right in ((1, 3), (8, 6)):
        active = samples[:, left] > 0
        assert torch.equal(active, samples[:, right] > 0)
        ratio = samples[active, left] / samples[active, right]
        assert 0.69 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.45
    assert not torch.equal(samples[:, 2] > 0, samples[:, 4] > 0)
    assert not torch.equal(samples[:, 5] > 0, samples[:, 7] > 0)
    assert ((samples >= 0) & (samples <= 1)).all()


def test_a_smile_moves_the_blendshapes_of_a_smile_alone() -> None:
    names = (*NAMES, "cheekSquintLeft", "mouthUpperUpLeft")
    # Not neutral, no group active, and the smile at the upper end of its ranges.
    rng = ScriptedRng(random=(0.26, 0.99, 0.34), uniform=(0.5, 1.0))
    smile = _sample_expression(rng, len(names), [[k] for k in range(len(names))], names)
    expected = {"mouthSmile": 1.0, "cheekSquint": 0.7, "jawOpen": 0.3, "mouthUpperUp": 0.4}
    assert SMILE.keys() == expected.keys()
    for name, strength in zip(names, smile.tolist(), strict=True):
        assert strength == pytest.approx(next((v for k, v in expected.items() if name.startswith(k)), 0.0)), name


def test_neutral_faces_do_not_smile() -> None:
    rng = ScriptedRng(random=(0.24, 0.99, 0.0))
    assert (_sample_expression(rng, len(NAMES), _expression_pairs(NAMES), NAMES) == 0).all()


def mirrored(strengths: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """The strengths on the other side of the face."""
    swap = {"Left": "Right", "Right": "Left"}
    twins = [re.sub("(Left|Right)$", lambda side: swap[side[0]], name) for name in names]
    return strengths[..., [names.index(name) for name in twins]]


def test_every_one_sided_blendshape_exists_on_both_sides(model: MorphableModel) -> None:
    for expression in ONE_SIDED:
        assert {name + side for name in expression for side in ("Left", "Right")} <= set(model.expression_names)


def test_one_sided_expressions_have_their_share_and_each_kind_both_sides(model: MorphableModel) -> None:
    names, neutral = list(model.expression_names), torch.zeros(model.counts[1])
    samples = torch.stack([_with_one_sided(rng, neutral, names) for rng in rngs(4000)])
    share = float((samples > 0).any(1).float().mean())
    assert share == pytest.approx(ONE_SIDED_SHARE, abs=0.017)  # three standard errors
    for leading in ("eyeBlink", "mouthSmile", "browOuterUp", "browDown", "mouth", "noseSneer"):
        sides = samples[:, [names.index(leading + side) for side in ("Left", "Right")]]
        left, right = sides.argmax(1)[sides.amax(1) > 0.4].bincount(minlength=2).tolist()
        assert min(left, right) >= 25 and abs(left - right) < 3.5 * (left + right) ** 0.5, leading


def test_the_other_side_of_a_one_sided_expression_moves_little(model: MorphableModel) -> None:
    names, before = list(model.expression_names), torch.full((model.counts[1],), 0.5)
    before[names.index("jawOpen")] = 0.7
    left, right = (
        _with_one_sided(ScriptedRng(random=(0.0, side), uniform=(1.0,), integers=(0,)), before, names)
        for side in (0.4, 0.6)
    )
    assert left[names.index("eyeBlinkLeft")] == 1 and left[names.index("eyeBlinkRight")] == 0.25
    assert left[names.index("jawOpen")] == before[names.index("jawOpen")]
    torch.testing.assert_close(mirrored(left, names), right)
    assert torch.equal(_with_one_sided(ScriptedRng(random=(ONE_SIDED_SHARE,)), before, names), before)


def test_one_sided_expressions_change_nothing_else_of_a_face(
    model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = Population(model, size=32, skins=None, jitter=1.0)
    samples = population.sample_faces(rngs(20))
    monkeypatch.setattr("mien.training.synthetic.population.ONE_SIDED_SHARE", 0.0)
    symmetric = population.sample_faces(rngs(20))
    one, other = samples.coefficients, symmetric.coefficients
    changed = (one.expression != other.expression).any(1)
    assert 1 <= changed.sum() <= 10
    assert torch.equal(one.identity, other.identity) and torch.equal(one.lighting, other.lighting)
    assert torch.equal(samples.albedo_offset, symmetric.albedo_offset)
    assert torch.equal(one.pose.translation, other.pose.translation)
    assert torch.equal(samples.camera.focal_px[~changed], symmetric.camera.focal_px[~changed])
    assert [rng.random() for rng in samples.rngs] == [rng.random() for rng in symmetric.rngs]


def test_poses_are_clipped_to_their_ranges(tiny: MorphableModel) -> None:
    population = Population(tiny, size=32, skins=None, jitter=0.0, view=ViewDistribution(max_yaw_rad=0.9))
    for sign in (-1.0, 1.0):
        pose = population._sample_pose(ScriptedRng(normal=(9 * sign,), uniform=(1.0, 1.0)))
        torch.testing.assert_close(pose.rotation, sign * torch.tensor([[0.6, 0.9, 0.5]]))
    small = population._sample_pose(ScriptedRng(normal=(1.0,), uniform=(0.0, 0.0)))
    torch.testing.assert_close(small.rotation, torch.tensor([[0.2, 0.38, 0.15]]))
    torch.testing.assert_close(small.translation, torch.tensor([[0.3 * np.tan(-0.2), 0.3 * np.tan(-0.2), 0.3]]).float())


def test_light_comes_from_above_and_in_front_and_has_the_exposure_of_a_photo() -> None:
    """One light straight at the mean direction: its brightest normal is that direction."""
    rng = ScriptedRng(uniform=(0.5, 0.0), random=(0.99,))
    lighting = _sample_lighting(rng, ViewDistribution()).mean(-1)[0]
    y, z, x = lighting[1:4].tolist()
    assert x == pytest.approx(0, abs=1e-6)
    assert (y / z, y > 0) == (pytest.approx(0.5 / 0.8), True)
    # Exposure 0.9 × (ambient + what a cosine adds to the mean over the sphere, 1/4 of 0.45 / 0.6).
    assert float(lighting[0]) == pytest.approx(0.9 * (0.55 + 0.45 / 0.6 / 4), rel=1e-3)


def test_directional_views_have_half_the_ambient_light() -> None:
    dark, bright = (
        _sample_lighting(
            ScriptedRng(uniform=(0.5, 0.0), random=(chance, 0.99)), ViewDistribution(directional_share=0.5)
        )
        for chance in (0.49, 0.51)
    )
    assert float(dark[0, 0].mean()) == pytest.approx(0.9 * (0.275 + 0.725 / 2.4), rel=1e-3)
    assert float(bright[0, 0].mean()) == pytest.approx(0.9 * (0.55 + 0.45 / 2.4), rel=1e-3)


def test_crops_hold_the_faces_as_face_crop_cuts_them(model: MorphableModel) -> None:
    """Without jitter the points' box is centred and fills 1 / 1.6 of the crop; jitter moves and scales it."""
    for jitter, slack in ((0.0, 1e-4), (1.0, 0.1)):
        samples = Population(model, size=64, skins=None, jitter=jitter).sample_faces(rngs(30))
        face = samples.coefficients
        vertices = face.pose.to_camera(model.vertices(face.identity, face.expression))
        points = samples.camera.project(model.mediapipe_points(vertices)) / 64
        low, high = points.amin(1), points.amax(1)
        middle, side = (low + high) / 2, (high - low).amax(-1)
        assert (middle - 0.5).abs().max() < slack
        assert (side - 1 / 1.6).abs().max() < slack
    assert middle.std(0).tolist() == pytest.approx([0.02, 0.02], rel=0.4)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert float((side * 1.6).std()) == pytest.approx(0.03, rel=0.4)  # pyright: ignore[reportPossiblyUnboundVariable]


def test_four_in_five_faces_have_a_real_skin_and_half_of_these_are_mirrored(model: MorphableModel) -> None:
    offset = torch.where(model.mean[:, :1] > 0, 1.0, -1.0).expand(-1, 3).contiguous()  # the left half is bright
    bank = SkinBank(torch.full((1, model.counts[2]), 50.0), offset[None])
    samples = Population(model, size=32, skins=bank, jitter=0.0).sample_faces(rngs(120))
    real = samples.coefficients.albedo.mean(1) > 40
    assert float(real.float().mean()) == pytest.approx(0.8, abs=0.08)
    left = samples.albedo_offset[:, model.mean[:, 0] > 0.01].mean((1, 2))
    assert (left[real].abs() > 0.5).all()
    assert float((left[real] > 0).float().mean()) == pytest.approx(0.5, abs=0.15)
    assert (left[~real].abs() < 0.5).all()


def test_a_skin_bank_comes_back_and_belongs_to_its_model(tiny: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "skins.safetensors"
    bank = SkinBank(torch.rand(2, tiny.counts[2]), torch.rand(2, len(tiny.mean), 3) - 0.5)
    bank.save(path, tiny)
    back = SkinBank.load(path, tiny)
    assert torch.equal(back.albedo, bank.albedo)
    torch.testing.assert_close(back.albedo_offset.float(), bank.albedo_offset, atol=1e-3, rtol=0)
    with pytest.raises(ModelMismatch):
        SkinBank.load(path, tiny_model(seed=1))
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="skins"):
        SkinBank.load(path, tiny)
