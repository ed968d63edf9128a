"""The encoder's losses: 0 at ground truth, each term its own equation, gradients where they belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mien.errors import ConfigError
from mien.geometry import remove_similarity
from mien.losses import photometric_loss
from mien.morphable import MorphableModel
from mien.networks import FaceEncoder, save_encoder
from mien.networks.crop_space import HEAD_UNITS
from mien.networks.refiner import REFINER_SIZE
from mien.perception import IdentityNetwork
from mien.rendering import render
from mien.training.coarse import CoarseObjective
from mien.training.config import CoarseConfig, CoarseLossSettings, EncoderSettings
from mien.training.config_file import load_config
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.image_terms import KeptFeatures
from mien.training.initial_networks import evaluation_modules, make_encoder
from mien.training.run import make_coarse_objective
from mien.training.shape_distance import aligned_distance_mm
from mien.training.synthetic.faces import SyntheticFaces

SIZE = 48
EVERYTHING = CoarseLossSettings(
    points=1.0, vertices=1.0, vertex_albedo=1.0, lighting=1.0, pose=1.0, coefficients=1.0, render_size=SIZE
)


@pytest.fixture(scope="module")
def faces() -> FaceBatch:
    from tests.tiny import tiny_model

    return SyntheticFaces(tiny_model(), size=SIZE, seed=3).render(range(3))


def objective_of(tiny: MorphableModel, weights: CoarseLossSettings) -> CoarseObjective:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE)
    recognition = IdentityNetwork.from_assets() if weights.identity else None
    return CoarseObjective(encoder, tiny, weights=weights, recognition=recognition)


def gt_of(faces: FaceBatch) -> dict[str, torch.Tensor]:
    return {name: getattr(faces.gt, name).clone().requires_grad_() for name in HEAD_UNITS}


def terms_of(objective: CoarseObjective, faces: FaceBatch, pred: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        term.name: float(term.value.detach())
        for term in objective.losses([pred], objective.prepare(faces), progress=1.0)
    }


def test_ground_truth_has_no_loss_but_its_priors(tiny: MorphableModel, faces: FaceBatch) -> None:
    objective = objective_of(tiny, replace(EVERYTHING, photometric=0.0, identity=0.0))
    terms = terms_of(objective, faces, gt_of(faces))
    for name in ("landmark", "points", "lighting", "pose", "coefficients"):
        assert terms[name] < 1e-4, name
    assert terms["vertices"] < 1e-5
    assert terms["identity_prior"] == pytest.approx(float(gt_of(faces)["identity"].detach().square().mean()), rel=1e-5)


def test_every_head_gets_a_gradient(tiny: MorphableModel, faces: FaceBatch) -> None:
    """From the paper's three losses alone: eq. 4 and 6 reach every group, eq. 5 shape and pose."""
    weights = CoarseLossSettings(
        render_size=SIZE,
        identity_prior=0.0,
        expression_prior=0.0,
        albedo_prior=0.0,
        lighting_prior=0.0,
    )
    objective = objective_of(tiny, weights)
    photos = replace(faces, gt=None)
    pred = {name: (value.detach() + 0.05).requires_grad_() for name, value in gt_of(faces).items()}
    terms = {term.name: term.value for term in objective.losses([pred], objective.prepare(photos), progress=1.0)}
    assert set(terms) == {"photometric", "landmark", "identity"}
    for name in ("photometric", "identity"):
        found = torch.autograd.grad(terms[name], list(pred.values()), retain_graph=True)
        assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in found), name
    shape = [pred[name] for name in ("identity", "expression", "rotation", "translation", "scale")]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(terms["landmark"], shape))


def test_the_photometric_term_is_eq4_of_the_rendering(tiny: MorphableModel, faces: FaceBatch) -> None:
    objective = objective_of(tiny, CoarseLossSettings(render_size=SIZE, identity=0.0))
    pred = gt_of(faces)
    terms = terms_of(objective, replace(faces, gt=None), pred)
    with torch.no_grad():
        rendered = render(tiny, objective.network.parameters_of(pred).coefficients(faces.camera), faces.camera)
        expected = photometric_loss(rendered.image, faces.images, mask=faces.mask * rendered.coverage)
    assert terms["photometric"] == pytest.approx(float(expected), rel=1e-5)


def test_rendering_starts_late(tiny: MorphableModel, faces: FaceBatch) -> None:
    weights = CoarseLossSettings(render_size=SIZE, identity=0.0, render_from=0.5)
    objective = objective_of(tiny, weights)
    photos = replace(faces, gt=None)
    mixed = join_batches([photos, faces])
    pred = {name: torch.cat([value, value]) for name, value in gt_of(faces).items()}
    early = {term.name for term in objective.losses([pred], objective.prepare(mixed), progress=0.49)}
    late = {
        term.name: float(term.value.detach())
        for term in objective.losses([pred], objective.prepare(mixed), progress=0.5)
    }
    assert "photometric" not in early
    assert late["photometric"] == pytest.approx(terms_of(objective, photos, gt_of(faces))["photometric"], rel=1e-4)


def test_losses_are_the_mean_over_refinement_steps(tiny: MorphableModel, faces: FaceBatch) -> None:
    objective = objective_of(tiny, replace(EVERYTHING, photometric=0.0, identity=0.0))
    steps = [gt_of(faces), {name: value.detach() + 0.1 for name, value in gt_of(faces).items()}]
    each = [terms_of(objective, faces, step) for step in steps]
    for term in objective.losses(steps, objective.prepare(faces), progress=1.0):
        mean = (each[0][term.name] + each[1][term.name]) / 2
        assert float(term.value.detach()) == pytest.approx(mean, rel=1e-5), term.name


def test_eq4_counts_photos_alone(tiny: MorphableModel, faces: FaceBatch) -> None:
    """A wrong prediction for the synthetic faces of a batch changes neither eq. 4 nor its gradient."""
    objective = objective_of(tiny, CoarseLossSettings(render_size=SIZE, identity=0.0))
    mixed = join_batches([replace(faces, gt=None), faces])
    count, values = len(faces.images), []
    for error in (0.0, 0.5):
        pred = {name: torch.cat([v.detach(), v.detach() + error]).requires_grad_() for name, v in gt_of(faces).items()}
        terms = {t.name: t.value for t in objective.losses([pred], objective.prepare(mixed), progress=1.0)}
        (gradient,) = torch.autograd.grad(terms["photometric"], pred["albedo"])
        assert not gradient[count:].any()
        assert gradient[:count].abs().sum() > 0
        values.append(float(terms["photometric"].detach()))
    assert values[0] == values[1]


def test_objectives_neither_move_nor_change_what_they_are_given(tiny: MorphableModel, faces: FaceBatch) -> None:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True)
    modes = {name: module.training for name, module in encoder.named_modules()}
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    objective = CoarseObjective(encoder, tiny, weights=replace(EVERYTHING, identity=0.0), recognition=None)
    assert objective.model is tiny
    assert objective.network is encoder
    objective.losses(
        objective.predict(encoder.eval(), objective.prepare(faces).inputs), objective.prepare(faces), progress=1.0
    )
    encoder.train()
    assert modes == {name: module.training for name, module in encoder.named_modules()}
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "learning", "fixed"),
    [
        (EncoderSettings(weights="random", frozen_blocks=3), "backbone._blocks.3._bn1", "backbone._blocks.2._bn1"),
        (EncoderSettings(weights="random", batchnorm="frozen"), "dropout", "backbone._blocks.3._bn1"),
        (
            EncoderSettings(weights="random", points=True, refiner=True, learn="refiner"),
            "refiner.dropout",
            "backbone._blocks.3._bn1",
        ),
    ],
)
def test_frozen_parts_stay_in_evaluation_mode(
    tiny: MorphableModel, settings: EncoderSettings, learning: str, fixed: str
) -> None:
    encoder = make_encoder(settings, tiny)
    objective = CoarseObjective(
        encoder,
        tiny,
        weights=CoarseLossSettings(identity=0.0),
        recognition=None,
        evaluation_modules=evaluation_modules(encoder, settings),
    )
    objective.train_mode()
    assert encoder.get_submodule(learning).training
    assert not encoder.get_submodule(fixed).training


def test_frozen_blocks_keep_weights_and_statistics(tiny: MorphableModel) -> None:
    settings = EncoderSettings(weights="random", image_size=SIZE, frozen_blocks=3)
    encoder = make_encoder(settings, tiny)
    modules = evaluation_modules(encoder, settings)
    weights = CoarseLossSettings(identity=0.0)
    CoarseObjective(encoder, tiny, weights=weights, recognition=None, evaluation_modules=modules).train_mode()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    engine = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    sum(v.square().sum() for v in encoder(torch.rand(2, 3, SIZE, SIZE))[-1].values()).backward()  # pyright: ignore
    engine.step()
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if k.startswith(("backbone._conv_stem", "backbone._bn0", "backbone._blocks.2."))}
    assert "backbone._blocks.3._depthwise_conv.weight" in changed
    assert "backbone._blocks.3._bn1.running_mean" in changed


def test_training_uses_the_configured_number_of_refinement_steps(tiny: MorphableModel, faces: FaceBatch) -> None:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True, refiner=True)
    weights = replace(EVERYTHING, photometric=0.0, identity=0.0)
    objective = CoarseObjective(encoder, tiny, weights=weights, recognition=None, refine_steps=2)
    assert len(objective.predict(encoder, objective.prepare(faces).inputs)) == 2


def test_a_refiner_learns_from_landmark_fits(tiny: MorphableModel, faces: FaceBatch) -> None:
    """Its start is the fit and not the heads' prediction; without a fit there is nothing to start from."""
    encoder = FaceEncoder(
        "efficientnet_lite0", tiny, image_size=SIZE, points=True, refiner=True, refine_from="landmarks"
    )
    weights = replace(EVERYTHING, photometric=0.0, identity=0.0)
    objective = CoarseObjective(encoder.eval(), tiny, weights=weights, recognition=None)
    with pytest.raises(ConfigError, match="needs photos with fits"):
        objective.prepare(faces)
    assert faces.gt is not None
    prepared = objective.prepare(replace(faces, landmark_fits=faces.gt))
    (predicted,) = objective.predict(encoder, prepared.inputs)
    torch.testing.assert_close(predicted["identity"], faces.gt.identity, atol=0.1, rtol=0)  # an untrained refiner
    terms = objective.losses([predicted], prepared, progress=1.0)
    sum(term.weight * term.value for term in terms).backward()  # pyright: ignore
    assert all(p.grad is None or not p.grad.any() for n, p in encoder.named_parameters() if "refiner" not in n)
    assert encoder.refiner is not None
    assert encoder.refiner.head.weight.grad.abs().max() > 0  # pyright: ignore[reportOptionalMemberAccess]


def test_vertex_errors_ignore_position_and_size(tiny: MorphableModel) -> None:
    vertices = tiny.mean[None]
    assert aligned_distance_mm(1.3 * vertices + 0.1, vertices, model=tiny) < 1e-3
    bent = vertices.clone()
    bent[..., 2] += 0.01 * (bent[..., 0] > 0)
    assert aligned_distance_mm(bent, vertices, model=tiny) > 1


def test_a_missing_recognition_network_is_named(tiny: MorphableModel, faces: FaceBatch) -> None:
    with pytest.raises(ConfigError, match="needs the recognition network"):
        CoarseObjective(FaceEncoder("efficientnet_lite0", tiny), tiny, weights=EVERYTHING, recognition=None)


def test_the_encoder_gets_detected_points_and_losses_use_ground_truth(tiny: MorphableModel, faces: FaceBatch) -> None:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True)
    weights = replace(EVERYTHING, photometric=0.0, identity=0.0)
    objective = CoarseObjective(encoder, tiny, weights=weights, recognition=None)
    off = replace(faces, detected_px=faces.gt_px + 5.0)
    points = objective.prepare(off).inputs[1]
    torch.testing.assert_close(points, (faces.gt_px + 5.0) / SIZE - 0.5)
    assert terms_of(objective, off, gt_of(faces))["points"] < 1e-4
    moved = replace(faces, gt_px=faces.gt_px + 5.0)
    assert terms_of(objective, moved, gt_of(faces))["points"] > 0.1
    measured = {figure.name: figure.value for figure in objective.evaluate(encoder.eval(), faces)}
    assert measured["vertices"] > 0


def test_points_can_be_added_to_a_start_but_not_removed(tiny: MorphableModel, tmp_path: Path) -> None:
    paths = {}
    for points in (False, True):
        paths[points] = tmp_path / f"{points}.safetensors"
        encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=points)
        save_encoder(encoder, paths[points], notes={})
    settings = EncoderSettings(image_size=SIZE, points=True, frozen_blocks=2)
    for path in paths.values():
        extended = make_encoder(replace(settings, start=str(path)), tiny)
        assert extended.points is not None
        learning = {name for name, p in extended.named_parameters() if p.requires_grad}
        assert {"points.first.weight", "heads.identity.weight", "backbone._conv_head.weight"} <= learning
        assert "backbone._conv_stem.weight" not in learning
    with pytest.raises(ConfigError, match=r"encoder\.points = true"):
        make_encoder(EncoderSettings(image_size=SIZE, start=str(paths[True])), tiny)


def test_a_refiner_can_be_added_to_a_start_but_not_removed(tiny: MorphableModel, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_encoder(FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True), first, notes={})
    settings = EncoderSettings(image_size=SIZE, points=True, refiner=True, learn="refiner", start=str(first))
    settings = replace(settings, dropout=0.25)
    refining = make_encoder(settings, tiny)
    learning = {name.partition(".")[0] for name, p in refining.named_parameters() if p.requires_grad}
    assert learning == {"refiner"}
    save_encoder(refining, second, notes={})
    again = make_encoder(replace(settings, start=str(second), learn="all", refine_steps=2), tiny)
    assert all(p.requires_grad for p in again.parameters())
    assert refining.refiner is not None
    assert again.refiner is not None
    # Dropout is that of the run, not of the start.
    assert [again.dropout.p, again.refiner.dropout.p] == [0.25, 0.25]
    torch.testing.assert_close(again.refiner.map_layer.weight, refining.refiner.map_layer.weight.half().float())
    with pytest.raises(ConfigError, match=r"encoder\.refiner = true"):
        make_encoder(EncoderSettings(image_size=SIZE, points=True, start=str(second)), tiny)


def test_the_encoder_gets_crops_large_enough_for_its_refiner(tiny: MorphableModel, faces: FaceBatch) -> None:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=32, points=True, refiner=True)
    weights = replace(EVERYTHING, photometric=0.0, identity=0.0)
    objective = CoarseObjective(encoder, tiny, weights=weights, recognition=None)
    images, points, sharp, lens = objective.prepare(faces).inputs
    assert (images.shape[-1], sharp.shape[-1], encoder.crop_size) == (32, REFINER_SIZE, REFINER_SIZE)
    torch.testing.assert_close(lens * SIZE, torch.cat([faces.camera.focal_px[:, None], faces.camera.centre_px], dim=1))
    assert points.abs().max() < 1
    assert EncoderSettings(image_size=32, points=True, refiner=True).crop_size == REFINER_SIZE
    assert EncoderSettings(image_size=160, points=True, refiner=True).crop_size == 160
    assert EncoderSettings(image_size=32, points=True).crop_size == 32


def test_the_shape_loss_ignores_translation_rotation_and_scaling(tiny: MorphableModel) -> None:
    mean, weights = tiny.mean, (1 - tiny.masks.neck).sqrt()[:, None]
    rotation = torch.linalg.cross(torch.tensor([0.3, -0.5, 0.8]).expand_as(mean), mean)
    similarity = torch.stack([mean, rotation, torch.ones_like(mean)]) * weights
    assert remove_similarity(similarity, mean, weights=weights).abs().max() < 1e-5 * similarity.abs().max()
    bent = torch.randn_like(mean)[None] * weights
    left = remove_similarity(bent, mean, weights=weights)
    assert left.norm() > 0.5 * bent.norm()
    torch.testing.assert_close(remove_similarity(left, mean, weights=weights), left)


def test_features_of_unchanged_photos_are_computed_once() -> None:
    calls: list[int] = []

    class Counted(IdentityNetwork):
        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            calls.append(len(faces))
            return super().forward(faces)

    kept = KeptFeatures(Counted())
    photos, points = torch.rand(3, 3, 40, 40), 40 * torch.rand(3, 68, 2)
    first = kept(("a", "b"), photos[:2], points[:2])
    assert torch.equal(kept(("b", "a"), photos[:2], points[:2]), first.flip(0))
    assert calls == [2]
    kept(("a", "c"), photos[::2], points[::2])  # a whole batch: sums depend on its size
    assert calls == [2, 2]


@pytest.mark.parametrize(("changes", "same"), [((), True), (("data.augment=true",), False),
                                               (("data.synthetic_share=0.5",), False)])  # fmt: skip
def test_photos_are_the_same_in_every_epoch_without_augmentation(
    tiny: MorphableModel, changes: tuple[str, ...], same: bool
) -> None:
    plain = ("encoder.weights=random", "data.synthetic_share=0.0", "data.augment=false")
    config = load_config(CoarseConfig, None, changes=[*plain, *changes])
    objective = make_coarse_objective(config, make_encoder(config.encoder, tiny), tiny)
    assert (objective.features is not None) == same
