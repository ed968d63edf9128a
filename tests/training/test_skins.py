"""Skin colours of photos: what the albedo model lacks is found where it is visible, and taken from the other side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mien.errors import ConfigError
from mien.fitting import FitTargets
from mien.geometry import vertex_normals
from mien.morphable import MorphableModel, load_model
from mien.rendering import VertexDetail, render
from mien.training.data.store import FaceStore
from mien.training.synthetic.population import FaceSamples, Population, ViewDistribution
from mien.training.synthetic.skins import _albedo_offsets, collect_skins
from tests.training.scripted import ScriptedRng
from tests.training.tiny_data import write_store

SIZE = 256


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


def mean_face(model: MorphableModel, *, yaw: float) -> FaceSamples:
    """The mean face at 1.65 m under mild light, turned to its left (the viewer's right) for a positive yaw."""
    rng = ScriptedRng(uniform=(0.5,), normal=(0.0,))
    samples = Population(model, size=SIZE, skins=None, jitter=0.0, view=ViewDistribution()).sample_faces([rng])
    face = samples.coefficients
    pose = replace(face.pose, rotation=torch.tensor([[0.0, yaw, 0.0]]))
    return replace(samples, coefficients=replace(face, pose=pose))


def offsets(model: MorphableModel, known: torch.Tensor, *, yaw: float) -> torch.Tensor:
    """Offsets that are collected from a rendering with known ones, at the true pose, light and albedo."""
    samples = mean_face(model, yaw=yaw)
    photo = render(model, samples.coefficients, samples.camera, detail=VertexDetail(None, albedo_offset=known[None]))
    mask = photo.coverage
    targets = FitTargets(
        crops=photo.image * mask[:, None],
        mask=mask,
        outline=mask,
        exposure=torch.ones(1),
        camera=samples.camera,
        landmarks468_px=torch.zeros(1, 468, 2),
        landmarks68_px=torch.zeros(1, 68, 2),
    )
    return _albedo_offsets(model, render(model, samples.coefficients, samples.camera), targets)[0]


def frontal(model: MorphableModel) -> torch.Tensor:
    """Vertices of the front of the face, away from the midline, eyes and mouth."""
    x, y, z = model.mean.unbind(-1)
    features = model.masks.eyes + model.masks.mouth + model.masks.lips
    facing = vertex_normals(model.mean[None], model.triangles)[0, :, 2] > 0.7
    return (x.abs() > 0.015) & (x.abs() < 0.04) & (y > -0.03) & (y < 0.06) & (z > z.median()) & facing & (features == 0)


def test_the_offset_of_visible_skin_comes_back(model: MorphableModel) -> None:
    known = 0.08 * torch.stack(
        [(60 * model.mean[:, 1]).sin(), (50 * model.mean[:, 0]).cos(), -torch.ones(len(model.mean))]
    )
    collected, where = offsets(model, known.T.contiguous(), yaw=0.0), frontal(model)
    assert where.sum() > 100
    error = (collected - known.T)[where].abs()
    assert error.mean() < 0.016  # a mesh of 3 mm and pixels of 1 mm blur the known offset
    assert error.quantile(0.9) < 0.05  # brows and the rims of the eyes have edges


def test_hidden_skin_takes_the_offset_of_the_other_side(model: MorphableModel) -> None:
    side = (model.mean[:, :1] > 0).float().expand(-1, 3)
    known = 0.15 * side - 0.1 * (1 - side)  # the face's left is bright, its right dark
    where = frontal(model) & (model.mean[:, 0].abs() > 0.03)
    left, right = where & (model.mean[:, 0] > 0), where & (model.mean[:, 0] < 0)
    both = offsets(model, known.contiguous(), yaw=0.0)
    assert both[left].mean() == pytest.approx(0.15, abs=0.02)
    assert both[right].mean() == pytest.approx(-0.1, abs=0.02)
    turned = [offsets(model, known.contiguous(), yaw=yaw) for yaw in (-1.1, 1.1)]
    means = sorted((float(one[left].mean()), float(one[right].mean())) for one in turned)
    # In each view one side is seen, and the other has the same offset.
    for seen, (left_mean, right_mean) in zip((-0.1, 0.15), means, strict=True):
        assert left_mean == pytest.approx(seen, abs=0.04)
        assert right_mean == pytest.approx(seen, abs=0.04)


def test_offsets_are_limited(model: MorphableModel) -> None:
    bright = offsets(model, torch.full((len(model.mean), 3), 0.6), yaw=0.0)
    assert float(bright.max()) == pytest.approx(0.35)
    dark = offsets(model, torch.full((len(model.mean), 3), -0.9), yaw=0.0)
    assert float(dark.min()) >= -0.35 - 1e-6
    assert float(dark[frontal(model), 0].mean()) == pytest.approx(-0.35, abs=0.02)  # red, of which there is more


def test_every_face_of_a_store_gives_a_skin(tiny: MorphableModel, tmp_path: Path) -> None:
    store = FaceStore(str(write_store(tiny, tmp_path / "store", splits={"train": 2})), split="train")
    progress: list[tuple[int, int]] = []
    bank = collect_skins(store, tiny, progress=lambda done, total: progress.append((done, total)))
    assert bank.albedo.shape == (2, tiny.counts[2])
    assert bank.albedo_offset.shape == (2, len(tiny.mean), 3)
    assert torch.isfinite(bank.albedo_offset).all()
    assert progress == [(2, 2)]


def test_a_split_without_faces_is_refused(tiny: MorphableModel, tmp_path: Path) -> None:
    folder = write_store(tiny, tmp_path / "store", splits={"test": 1})
    with pytest.raises(ConfigError, match="no faces in this split"):
        collect_skins(FaceStore(str(folder), split="train"), tiny)
