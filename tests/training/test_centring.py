"""The constant error of an encoder on photos: it is measured, taken out of the head, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mien.errors import ConfigError
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.networks import FaceEncoder, load_encoder, save_encoder
from mien.training.centring import centred, identity_differences
from mien.training.data.fits import StoredFit, write_fits
from mien.training.data.photos import PhotoFaces
from mien.training.data.store import FaceStore
from mien.training.recipe import CentreStage, Recipe, Stage
from mien.training.recipe_run import _RecipeRun
from tests.training.tiny_data import write_store


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def encoder(model: MorphableModel) -> FaceEncoder:
    torch.manual_seed(3)
    return FaceEncoder("efficientnet_lite0", model, image_size=32, points=True).eval().requires_grad_(False)


def fits_of(model: MorphableModel, count: int) -> dict[str, StoredFit]:
    """Fits whose identities are spread around one that is not the mean face's."""
    torch.manual_seed(5)
    counts = dict(zip(("identity", "expression", "albedo"), model.counts, strict=True))
    mean = FaceCoefficients.mean(**counts)
    shift = torch.randn(1, counts["identity"])
    faces = [replace(mean, identity=shift + 0.3 * torch.randn_like(shift)) for _ in range(count)]
    return {f"{k:08d}": StoredFit(mean, face) for k, face in enumerate(faces)}


def test_a_centred_encoder_has_no_symmetric_mean_difference(
    model: MorphableModel, encoder: FaceEncoder, tmp_path: Path
) -> None:
    store = write_store(model, tmp_path / "store", splits={"train": 3})
    faces = PhotoFaces(
        FaceStore(str(store), split="train"),
        model,
        size=encoder.crop_size,
        seed=0,
        augment=False,
        fits=fits_of(model, 3),
    )
    before = identity_differences(encoder, faces)
    assert encoder.mirror is not None
    mean = before.mean(0)
    symmetric = (mean + mean @ encoder.mirror.identity) / 2
    assert float(symmetric.norm()) > 1
    result = centred(encoder, before)
    after = identity_differences(result, faces)
    torch.testing.assert_close(after, before - symmetric, atol=1e-4, rtol=0)
    others = {k: v for k, v in encoder.state_dict().items() if k != "heads.identity.bias"}
    for name, tensor in others.items():
        assert torch.equal(result.state_dict()[name], tensor), name
    assert torch.equal(identity_differences(encoder, faces), before)  # the given encoder did not change


def test_the_stage_centres_on_the_training_photos_and_measures_on_others(
    model: MorphableModel, encoder: FaceEncoder, tmp_path: Path
) -> None:
    store = write_store(model, tmp_path / "store", splits={"train": 2, "validation": 2})
    write_fits(store / "fits-000000.safetensors", fits_of(model, 4), model)
    stage = Stage("centre", "centre", CentreStage(), start="first")
    run = _RecipeRun(Recipe("mien-face", (stage,)), tmp_path / "run", str(store), 1)
    (tmp_path / "run" / "first").mkdir(parents=True)
    save_encoder(encoder, tmp_path / "run" / "first" / "encoder.safetensors", notes={})
    (metric,) = run.run(stage)
    assert metric.before is not None
    assert metric.after < 0.7 * metric.before
    result = load_encoder(model, tmp_path / "run" / "centre" / "encoder.safetensors")
    assert not torch.equal(result.heads["identity"].bias, encoder.heads["identity"].bias)
    with pytest.raises(ConfigError, match="needs photos"):
        replace(run, store=None, out=tmp_path / "other").run(stage)
