"""The detail network: its losses, its frozen encoder, and a training that learns, resumes and is divided."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mien.errors import ConfigError
from mien.losses import mesh_smoothness_loss
from mien.morphable import MorphableModel, load_model
from mien.networks import DetailNetwork, FaceEncoder, load_encoder, save_encoder
from mien.perception import IdentityNetwork
from mien.texture import DetailMaps
from mien.training.checkpoint import checkpoints
from mien.training.config import CoarseInputSettings, DetailConfig, DetailLossSettings
from mien.training.config_file import load_config
from mien.training.data.batch import FaceBatch
from mien.training.detail import DetailObjective
from mien.training.initial_networks import make_detail_network
from mien.training.objective import LossTerm
from mien.training.report import report_detail
from mien.training.run import train_detail
from mien.training.sources import held_out_detail_faces
from mien.training.synthetic.detailed_faces import DetailedFaces
from tests.training.tiny_data import undo_last_checkpoint, write_store

SIZE, MAP = 64, 48
NO_ERROR = CoarseInputSettings(
    identity_error=0.0, expression_error=0.0, albedo_error=0.0, lighting_error=0.0, pose_error=0.0
)
NOTHING = DetailLossSettings(**{f.name: 0.0 for f in fields(DetailLossSettings) if f.name != "sampling"})
PAPER = replace(
    NOTHING, photometric=1.0, landmark=1.0, identity=20.0, offset_magnitude=1e-4, offset_symmetry=1e-4,
    displacement_magnitude=1e-4, displacement_symmetry=1e-4, smooth_shape=0.08, smooth_albedo=0.1,
)  # fmt: skip
EVERYTHING = replace(PAPER, texel=1.0, unseen_symmetry=1.0, true_displacement=1.0, true_slope=1.0, true_offset=1.0)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def encoder(model: MorphableModel) -> FaceEncoder:
    return load_encoder(model)


@pytest.fixture(scope="module")
def faces(model: MorphableModel) -> FaceBatch:
    return DetailedFaces(model, size=SIZE, map_size=MAP, seed=4).render(range(3))


def objective_of(
    model: MorphableModel,
    encoder: FaceEncoder,
    weights: DetailLossSettings,
    *,
    coarse: CoarseInputSettings = NO_ERROR,
) -> DetailObjective:
    return DetailObjective(
        DetailNetwork(model.fingerprint, width=2),
        encoder,
        model,
        weights=weights,
        coarse=coarse,
        map_size=MAP,
        recognition=IdentityNetwork.from_assets() if weights.identity else None,
    )


def values_of(terms: list[LossTerm]) -> dict[str, float]:
    return {term.name: float(term.value.detach()) for term in terms}


def test_ground_truth_maps_have_no_loss_where_they_are_known(
    model: MorphableModel, encoder: FaceEncoder, faces: FaceBatch
) -> None:
    assert faces.maps is not None
    objective = objective_of(model, encoder, EVERYTHING)
    prepared = objective.prepare(faces)
    gt = {"texture_offset": faces.maps.texture_offset, "displacement": faces.maps.displacement}
    right = values_of(objective.losses(gt, prepared, progress=0.0))
    nothing = values_of(objective.losses({k: torch.zeros_like(v) for k, v in gt.items()}, prepared, progress=0.0))
    assert right["true_displacement"] < 1e-6
    assert right["true_slope"] < 1e-6
    assert right["true_offset"] < 2e-3
    assert right["texel"] < 0.5 * nothing["texel"]  # the rest comes from covers, blur and dark wrinkles
    assert right["photometric"] < 0.7 * nothing["photometric"]
    assert set(right) == {f.name for f in fields(DetailLossSettings)} - {"sampling"}


def test_each_term_is_its_equation(model: MorphableModel, encoder: FaceEncoder, faces: FaceBatch) -> None:
    """For constant maps eq. 8 is their square, and eq. 9, 10 and 11 are those of the coarse reconstruction."""
    objective = objective_of(model, encoder, EVERYTHING)
    prepared = objective.prepare(faces)
    inside = objective.atlas.valid.float().mean()
    one = torch.ones(3, 1, MAP, MAP)
    pred = {"texture_offset": 0.1 * one.expand(-1, 3, -1, -1), "displacement": 2e-3 * one}
    found = values_of(objective.losses(pred, prepared, progress=0.0))
    assert found["offset_magnitude"] == pytest.approx(0.01 * float(inside), rel=1e-5)
    assert found["displacement_magnitude"] == pytest.approx(4.0 * float(inside), rel=1e-5)
    lopsided = float((objective.atlas.valid ^ objective.atlas.valid.flip(-1)).float().mean())
    assert found["offset_symmetry"] == pytest.approx(0.01 * lopsided, abs=1e-6)
    albedo = prepared.surface.albedo
    assert found["smooth_albedo"] == pytest.approx(float(mesh_smoothness_loss(albedo, objective.edges)), rel=0.15)
    shape = mesh_smoothness_loss(prepared.surface.vertices * 100, objective.edges)
    assert found["smooth_shape"] == pytest.approx(float(shape), rel=0.15)
    half = torch.linspace(-1, 1, MAP).expand(3, 1, MAP, MAP) * 1e-3
    odd = values_of(objective.losses({**pred, "displacement": half}, prepared, progress=0.0))
    expected = (2 * half[0, 0] * 1000 * objective.atlas.valid).square().mean()
    assert odd["displacement_symmetry"] == pytest.approx(float(expected), rel=0.02)


def test_maps_that_only_vertices_sample_are_linear_between_vertices(
    model: MorphableModel, encoder: FaceEncoder, faces: FaceBatch
) -> None:
    """A ramp is linear between vertices and stays; stripes of one texel do not. With a texel loss all maps stay."""
    ramp = torch.linspace(0, 1, MAP).expand(1, 1, MAP, MAP)
    stripes = torch.arange(MAP).remainder(2).float().expand(1, 3, MAP, MAP)
    maps = DetailMaps(stripes, ramp)
    by_vertices = objective_of(model, encoder, replace(NOTHING, photometric=1.0))
    inside = by_vertices.atlas.valid
    sampled = by_vertices._sampled_maps(maps)
    assert (sampled.displacement - ramp)[..., inside].abs().max() < 0.03
    assert (sampled.texture_offset - stripes)[..., inside].abs().mean() > 0.05
    by_texels = objective_of(model, encoder, replace(NOTHING, texel=1.0))
    assert by_texels._sampled_maps(maps) is maps


def test_the_frozen_encoder_and_the_model_are_not_changed(
    model: MorphableModel, encoder: FaceEncoder, faces: FaceBatch
) -> None:
    own = DetailNetwork(model.fingerprint, width=2).train()
    objective = DetailObjective(own, encoder, model, weights=NOTHING, coarse=NO_ERROR, map_size=MAP, recognition=None)
    assert objective.model is model
    assert objective.network is own
    assert own.training
    assert objective.reconstruct.encoder is encoder
    with pytest.raises(ConfigError, match=r"in training mode; call encoder\.eval\(\) first"):
        DetailObjective(
            own, deepcopy(encoder).train(), model, weights=NOTHING, coarse=NO_ERROR, map_size=MAP, recognition=None
        )
    before = torch.get_rng_state()
    metrics = objective.evaluate(own.eval(), faces)
    assert torch.equal(before, torch.get_rng_state())
    assert metrics == objective.evaluate(own, faces)


@pytest.mark.parametrize("weights", [PAPER, replace(PAPER, sampling="hyperbolic"), EVERYTHING])
def test_every_head_gets_a_gradient(
    model: MorphableModel, encoder: FaceEncoder, faces: FaceBatch, weights: DetailLossSettings
) -> None:
    objective = objective_of(model, encoder, weights)
    prepared = objective.prepare(faces)
    terms = objective.losses(objective.network(*prepared.inputs), prepared, progress=0.0)
    torch.stack([term.weight * term.value for term in terms]).sum().backward()
    for name, head in objective.network.heads.items():
        gradient = head.last.weight.grad  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.isfinite(gradient).all(), name
        assert float(gradient.norm()) > 0, name


def test_coarse_reconstructions_have_the_configured_errors(
    model: MorphableModel, encoder: FaceEncoder, faces: FaceBatch
) -> None:
    assert faces.gt is not None
    exact = objective_of(model, encoder, EVERYTHING).prepare(faces).coefficients
    torch.testing.assert_close(exact.identity, faces.gt.identity)
    off = objective_of(model, encoder, EVERYTHING, coarse=replace(NO_ERROR, identity_error=0.5))
    found = off.prepare(faces).coefficients
    assert float((found.identity - exact.identity).std()) == pytest.approx(0.5, rel=0.15)
    torch.testing.assert_close(found.albedo, exact.albedo)
    photos = replace(faces, gt=None, maps=None)
    pred = objective_of(model, encoder, NOTHING, coarse=CoarseInputSettings(source="encoder"))
    torch.testing.assert_close(
        pred.prepare(photos).coefficients.identity,
        encoder.encode(faces.images, faces.camera, landmarks468_px=faces.detected_px).identity,
    )


def test_settings_that_contradict_each_other_are_refused(model: MorphableModel, encoder: FaceEncoder) -> None:
    with pytest.raises(ConfigError, match="multiple of 16"):
        load_config(DetailConfig, None, changes=["network.map_size=100"])
    with pytest.raises(ConfigError, match=r"loss\.texel needs"):
        load_config(DetailConfig, None, changes=["network.layout=image"])
    with pytest.raises(ConfigError, match="needs the recognition network"):
        DetailObjective(
            DetailNetwork("hash", width=2),
            encoder,
            model,
            weights=PAPER,
            coarse=NO_ERROR,
            map_size=MAP,
            recognition=None,
        )


SMALL = (
    "network.image_size=64", f"network.map_size={MAP}", "network.width=4", "data.synthetic_share=1.0",
    "data.synthetic_faces=4", "data.augment=false", "loop.batch_size=4", "loop.workers=0", "loop.log_every=1",
    "loop.threads=1", "optimizer.warmup=2", "optimizer.ema_decay=0.5", "optimizer.learning_rate=3e-3",
)  # fmt: skip


def config_of(*changes: str) -> DetailConfig:
    return load_config(DetailConfig, None, changes=[*SMALL, *changes])


def losses_of(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / "tensors.safetensors")


@pytest.fixture
def few_validation_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.training.sources.HELD_OUT_FACES", 2)


@pytest.mark.usefixtures("few_validation_faces")
@pytest.mark.parametrize("source", ["refined", "encoder"])
def test_points_are_detected_where_the_encoder_predicts_for_synthetic_faces(model: MorphableModel, source: str) -> None:
    faces = held_out_detail_faces(config_of(f"coarse.source={source}"), model, store=None, split="test")
    off = (faces.detected_px - faces.gt_px).norm(dim=-1).mean() / SIZE
    assert (0.002 < off < 0.05) if source == "encoder" else off == 0


@pytest.mark.usefixtures("few_validation_faces")
def test_a_tiny_training_learns_reports_and_leaves_the_encoder_alone(
    model: MorphableModel, encoder: FaceEncoder, tmp_path: Path
) -> None:
    """End to end over a coarse run, with photos; parameters and batch statistics of the encoder do not change."""
    coarse = tmp_path / "coarse"
    coarse.mkdir()
    save_encoder(encoder, coarse / "encoder.safetensors", notes={})
    store = write_store(model, tmp_path / "store", splits={"train": 2, "validation": 1, "test": 1})
    run = tmp_path / "run"
    config = config_of("data.synthetic_share=0.5", "loop.steps=14", "loop.sheet_every=7")
    path = train_detail(config, encoder=coarse, store=str(store), run=run, resume=False)
    assert path == run / "detail.safetensors"
    losses = losses_of(run, "texel")
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert len(list((run / "sheets").iterdir())) == 2
    before, after = load_file(coarse / "encoder.safetensors"), load_file(run / "encoder.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    report = report_detail(run, store=str(store), out=tmp_path / "report")
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "figure4.png",
        "figure5.png",
        "curves.png",
        "report.md",
    }
    assert "colour error, augmented" in report.text()


@pytest.mark.usefixtures("few_validation_faces")
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    config = config_of("loop.steps=4", "loop.checkpoint_every=2")
    packaged = "encoder-lite0.safetensors"
    train_detail(config, encoder=packaged, store=None, run=tmp_path / "whole", resume=False)
    train_detail(config, encoder=packaged, store=None, run=tmp_path / "cut", resume=False)
    undo_last_checkpoint(tmp_path / "cut")
    train_detail(config, encoder=packaged, store=None, run=tmp_path / "cut", resume=True)
    one, other = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("few_validation_faces")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """With exact coarse reconstructions: each process draws its own errors."""
    exact = [f"coarse.{f.name}=0.0" for f in fields(CoarseInputSettings) if f.name != "source"]
    changes = [*exact, "loop.steps=2", "optimizer.ema_decay=0.0"]
    one, two = tmp_path / "one", tmp_path / "two"
    train_detail(config_of(*changes), encoder="encoder-lite0.safetensors", store=None, run=one, resume=False)
    options = [word for change in (*SMALL, *changes) for word in ("--set", change)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mien.cli",
        "train", "detail", "-o", str(two), *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    start = {f"network.{k}": v for k, v in make_detail_network(config_of().network, load_model()).state_dict().items()}
    single, shared = last_tensors(one), last_tensors(two)

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(a[name] - b[name]).flatten() for name in start]).norm())

    assert distance(single, start) > 0.02
    assert distance(shared, single) < 0.05 * distance(single, start)
