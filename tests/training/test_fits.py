"""Fits of a store: one real portrait is fitted where its points are; files are resumable and checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mien.camera import Camera
from mien.errors import FormatError, ModelMismatch
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.training.data import fits as module
from mien.training.data.fits import StoredFit, fit_store, load_fits, write_fits
from mien.training.data.prepare import PreparationSettings, list_photos, prepare
from mien.training.data.store import FaceStore
from tests.astronaut import astronaut
from tests.training.tiny_data import write_store


def some_fits(model: MorphableModel, *keys: str) -> dict[str, StoredFit]:
    identity, expression, albedo = model.counts
    mean = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo)
    fits = {}
    for key in keys:
        shape, light = torch.randn(1, identity), torch.rand(1, 9, 3)
        full = FaceCoefficients(shape, mean.expression, torch.randn(1, albedo), light, mean.pose)
        fits[key] = StoredFit(mean, full)
    return fits


def test_fits_of_a_store_lie_on_the_points_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    Image.fromarray(astronaut()).save(photos / "47_Eileen_Collins_0001.jpg", quality=95)
    prepare(list_photos(photos), store, settings=PreparationSettings(), processes=1)
    (fitted,) = fit_store(store, model="mien-face", processes=1).values()
    model, record = load_model(), FaceStore(str(store))[0]
    side = record.crop.shape[-1]
    camera = Camera(torch.tensor([record.focal_px]), torch.tensor([record.centre_px]), image_size=(side, side))
    size = float((record.landmarks468_px.amax(0) - record.landmarks468_px.amin(0)).norm())
    for face in (fitted.landmarks, fitted.full):
        points = model.mediapipe_points(model.vertices(face.identity, face.expression))
        off = (camera.project(face.pose.to_camera(points))[0] - record.landmarks468_px).norm(dim=-1)
        assert float(off.mean()) < 0.02 * size
    assert float((fitted.full.identity - fitted.landmarks.identity).norm()) > 0.5  # the pixels count
    assert not fitted.landmarks.albedo.any() and fitted.full.albedo.any()

    def refuse(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(module, "_fit_record", refuse)
    (again,) = fit_store(store, model="mien-face", processes=1).values()
    torch.testing.assert_close(again.full.identity, fitted.full.identity)


def test_a_face_that_is_not_found_again_has_no_fit(tmp_path: Path) -> None:
    model = load_model()
    store = write_store(model, tmp_path / "store", splits={"train": 1})
    record = FaceStore(str(store))[0]
    assert module._fit_record(replace(record, crop=torch.full_like(record.crop, 0.5)), model) is None


def test_fits_are_read_as_they_were_written(tmp_path: Path, tiny: MorphableModel) -> None:
    model = load_model()
    first, second = some_fits(model, "a", "b"), some_fits(model, "c")
    write_fits(tmp_path / "fits-000000.safetensors", first, model)
    write_fits(tmp_path / "fits-000001.safetensors", second, model)
    write_fits(tmp_path / "fits-000002.safetensors", {}, model)
    read = load_fits(tmp_path, model)
    assert list(read) == ["a", "b", "c"]
    for key, fitted in (first | second).items():
        torch.testing.assert_close(read[key].full.identity, fitted.full.identity)
        torch.testing.assert_close(read[key].full.lighting, fitted.full.lighting)
        torch.testing.assert_close(read[key].landmarks.pose.translation, fitted.landmarks.pose.translation)
    with pytest.raises(ModelMismatch):
        load_fits(tmp_path, tiny)
    (tmp_path / "fits-000001.safetensors").write_bytes(b"cut off")
    with pytest.raises(FormatError, match=r"fits-000001.safetensors is not .* run `mien data fit` again"):
        load_fits(tmp_path, model)


def test_a_store_without_fits_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has no fits; run `mien data fit"):
        load_fits(tmp_path, load_model())
