"""The base branch's losses: nothing at the truth, each term its own equation, and gradients where they belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mien.errors import ConfigError
from mien.losses import photometric_loss
from mien.morphable import MorphableModel
from mien.networks import FaceEncoder, save_encoder
from mien.networks.crop_space import HEAD_UNITS
from mien.networks.refiner import REFINER_SIZE
from mien.perception import IdentityNetwork
from mien.rendering import render
from mien.training.coarse import CoarseObjective, aligned_distance_mm, beyond_similarity, make_encoder
from mien.training.config import BaseLossSettings, EncoderSettings
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.synthetic.faces import SyntheticFaces

SIZE = 48
EVERYTHING = BaseLossSettings(
    points=1.0, vertices=1.0, vertex_albedo=1.0, lighting=1.0, pose=1.0, coefficients=1.0, render_size=SIZE
)


@pytest.fixture(scope="module")
def faces() -> FaceBatch:
    from tests.tiny import tiny_model

    return SyntheticFaces(tiny_model(), size=SIZE, seed=3).draw(range(3))


def objective_of(tiny: MorphableModel, faces: FaceBatch, weights: BaseLossSettings) -> CoarseObjective:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE)
    recognition = IdentityNetwork.from_assets() if weights.recognition else None
    return CoarseObjective(encoder, tiny, weights=weights, recognition=recognition, validation=faces)


def truth_of(faces: FaceBatch) -> dict[str, torch.Tensor]:
    return {name: getattr(faces.gt, name).clone().requires_grad_() for name in HEAD_UNITS}


def terms_of(objective: CoarseObjective, faces: FaceBatch, said: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        term.name: float(term.value.detach()) for term in objective.losses(said, objective.prepare(faces), progress=1.0)
    }


def test_the_truth_costs_nothing_but_its_priors(tiny: MorphableModel, faces: FaceBatch) -> None:
    objective = objective_of(tiny, faces, replace(EVERYTHING, pixel=0.0, recognition=0.0))
    terms = terms_of(objective, faces, truth_of(faces))
    for name in ("landmark", "points", "lighting", "pose", "coefficients"):
        assert terms[name] < 1e-4, name
    assert terms["vertices"] < 1e-5
    assert terms["identity_prior"] == pytest.approx(
        float(truth_of(faces)["identity"].detach().square().mean()), rel=1e-5
    )


def test_every_head_is_reached(tiny: MorphableModel, faces: FaceBatch) -> None:
    """By the paper's three losses alone: eq. 4 and 6 reach every group, eq. 5 shape and pose."""
    weights = BaseLossSettings(
        render_size=SIZE,
        identity_prior=0.0,
        expression_prior=0.0,
        albedo_prior=0.0,
        lighting_prior=0.0,
    )
    objective = objective_of(tiny, faces, weights)
    photographs = replace(faces, gt=None)
    said = {name: (value.detach() + 0.05).requires_grad_() for name, value in truth_of(faces).items()}
    terms = {term.name: term.value for term in objective.losses(said, objective.prepare(photographs), progress=1.0)}
    assert set(terms) == {"pixel", "landmark", "recognition"}
    for name in ("pixel", "recognition"):
        found = torch.autograd.grad(terms[name], list(said.values()), retain_graph=True)
        assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in found), name
    shape = [said[name] for name in ("identity", "expression", "rotation", "translation", "scale")]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(terms["landmark"], shape))


def test_the_pixel_term_is_eq4_of_the_drawing(tiny: MorphableModel, faces: FaceBatch) -> None:
    objective = objective_of(tiny, faces, BaseLossSettings(render_size=SIZE, recognition=0.0))
    said = truth_of(faces)
    terms = terms_of(objective, replace(faces, gt=None), said)
    with torch.no_grad():
        drawn = render(tiny, objective.network.regression(said).coefficients(faces.camera), faces.camera)
        expected = photometric_loss(drawn.image, faces.images, mask=faces.mask * drawn.coverage)
    assert terms["pixel"] == pytest.approx(float(expected), rel=1e-5)


def test_drawing_joins_late_and_only_for_photographs(tiny: MorphableModel, faces: FaceBatch) -> None:
    weights = BaseLossSettings(render_size=SIZE, recognition=0.0, render_from=0.5)
    objective = objective_of(tiny, faces, weights)
    photographs = replace(faces, gt=None)
    mixed = join_batches([photographs, faces])
    said = {name: torch.cat([value, value]) for name, value in truth_of(faces).items()}
    early = {term.name for term in objective.losses(said, objective.prepare(mixed), progress=0.49)}
    late = {
        term.name: float(term.value.detach()) for term in objective.losses(said, objective.prepare(mixed), progress=0.5)
    }
    assert "pixel" not in early
    assert late["pixel"] == pytest.approx(terms_of(objective, photographs, truth_of(faces))["pixel"], rel=1e-4)


def test_several_answers_cost_their_mean(tiny: MorphableModel, faces: FaceBatch) -> None:
    objective = objective_of(tiny, faces, replace(EVERYTHING, pixel=0.0, recognition=0.0))
    right = truth_of(faces)
    wrong = {name: value.detach() + 0.1 for name, value in right.items()}
    both = {name: torch.cat([value, wrong[name]]) for name, value in right.items()}
    each = [terms_of(objective, faces, said) for said in (right, wrong)]
    for name, value in terms_of(objective, faces, both).items():
        assert value == pytest.approx((each[0][name] + each[1][name]) / 2, rel=1e-5), name


def test_vertex_errors_ignore_place_and_size(tiny: MorphableModel) -> None:
    vertices = tiny.mean[None]
    assert aligned_distance_mm(1.3 * vertices + 0.1, vertices, model=tiny) < 1e-3
    bent = vertices.clone()
    bent[..., 2] += 0.01 * (bent[..., 0] > 0)
    assert aligned_distance_mm(bent, vertices, model=tiny) > 1


def test_wrong_starts_are_named(tiny: MorphableModel, faces: FaceBatch) -> None:
    with pytest.raises(ConfigError, match="recognition network is needed"):
        CoarseObjective(
            FaceEncoder("efficientnet_lite0", tiny), tiny, weights=EVERYTHING, recognition=None, validation=faces
        )
    encoder = make_encoder(EncoderSettings(weights="random", batchnorm="frozen"), tiny).train()
    assert not any(m.training for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_encoder_is_told_found_points_and_judged_by_true_ones(tiny: MorphableModel, faces: FaceBatch) -> None:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True)
    weights = replace(EVERYTHING, pixel=0.0, recognition=0.0)
    objective = CoarseObjective(encoder, tiny, weights=weights, recognition=None, validation=faces)
    off = replace(faces, detected_px=faces.gt_px + 5.0)
    told = objective.prepare(off).inputs[1]
    torch.testing.assert_close(told, (faces.gt_px + 5.0) / SIZE - 0.5)
    assert terms_of(objective, off, truth_of(faces))["points"] < 1e-4
    moved = replace(faces, gt_px=faces.gt_px + 5.0)
    assert terms_of(objective, moved, truth_of(faces))["points"] > 0.1
    measured = {figure.name: figure.value for figure in objective.evaluate(encoder.eval())}
    assert measured["vertices"] > 0


def test_a_start_may_be_given_points_but_not_lose_them(tiny: MorphableModel, tmp_path: Path) -> None:
    paths = {}
    for points in (False, True):
        paths[points] = tmp_path / f"{points}.safetensors"
        encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=points)
        save_encoder(encoder, paths[points], notes={})
    settings = EncoderSettings(image_size=SIZE, points=True, frozen_blocks=2)
    for path in paths.values():
        extend_encoder = make_encoder(replace(settings, start=str(path)), tiny)
        assert extend_encoder.points is not None
        learning = {name for name, p in extend_encoder.named_parameters() if p.requires_grad}
        assert {"points.first.weight", "heads.identity.weight", "backbone._conv_head.weight"} <= learning
        assert "backbone._conv_stem.weight" not in learning
    with pytest.raises(ConfigError, match=r"encoder\.points = true"):
        make_encoder(EncoderSettings(image_size=SIZE, start=str(paths[True])), tiny)


def test_a_start_may_be_given_a_second_look_but_not_lose_it(tiny: MorphableModel, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_encoder(FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True), first, notes={})
    settings = EncoderSettings(image_size=SIZE, points=True, refiner=True, learn="refiner", start=str(first))
    settings = replace(settings, dropout=0.25)
    looking = make_encoder(settings, tiny)
    learning = {name.partition(".")[0] for name, p in looking.named_parameters() if p.requires_grad}
    assert learning == {"refiner"}
    save_encoder(looking, second, notes={})
    again = make_encoder(replace(settings, start=str(second), learn="all", refine_steps=2), tiny)
    assert (looking.practice, again.practice) == (1, 2)
    assert all(p.requires_grad for p in again.parameters())
    assert looking.refiner is not None
    assert again.refiner is not None
    # Dropout is the run's, whatever the start was trained with.
    assert [again.dropout.p, again.refiner.dropout.p] == [0.25, 0.25]
    torch.testing.assert_close(again.refiner.seen.weight, looking.refiner.seen.weight.half().float())
    with pytest.raises(ConfigError, match=r"encoder\.refiner = true"):
        make_encoder(EncoderSettings(image_size=SIZE, points=True, start=str(second)), tiny)


def test_the_encoder_is_shown_crops_large_enough_for_its_second_look(tiny: MorphableModel, faces: FaceBatch) -> None:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=32, points=True, refiner=True)
    weights = replace(EVERYTHING, pixel=0.0, recognition=0.0)
    objective = CoarseObjective(encoder, tiny, weights=weights, recognition=None, validation=faces)
    images, points, sharp, lens = objective.prepare(faces).inputs
    assert (images.shape[-1], sharp.shape[-1], encoder.crop_size) == (32, REFINER_SIZE, REFINER_SIZE)
    torch.testing.assert_close(lens * SIZE, torch.cat([faces.camera.focal_px[:, None], faces.camera.centre_px], dim=1))
    assert points.abs().max() < 1
    assert EncoderSettings(image_size=32, points=True, refiner=True).crop_size == REFINER_SIZE
    assert EncoderSettings(image_size=160, points=True, refiner=True).crop_size == 160
    assert EncoderSettings(image_size=32, points=True).crop_size == 32


def test_the_shape_loss_does_not_see_shifts_turns_and_growth(tiny: MorphableModel) -> None:
    mean, weights = tiny.mean, (1 - tiny.masks.neck).sqrt()[:, None]
    turn = torch.linalg.cross(torch.tensor([0.3, -0.5, 0.8]).expand_as(mean), mean)
    moves = torch.stack([mean, turn, torch.ones_like(mean)]) * weights
    assert beyond_similarity(moves, mean, weights=weights).abs().max() < 1e-5 * moves.abs().max()
    bent = torch.randn_like(mean)[None] * weights
    left = beyond_similarity(bent, mean, weights=weights)
    assert left.norm() > 0.5 * bent.norm()
    torch.testing.assert_close(beyond_similarity(left, mean, weights=weights), left)
