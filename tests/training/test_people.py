"""Photos of one person in a batch, and the losses of what they have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import ConfigError
from mien.morphable import MorphableModel
from mien.training.coarse import from_person_mean
from mien.training.config import CoarseConfig, CoarseLossSettings, DataSettings
from mien.training.data.batch import join_batches
from mien.training.data.photos import PhotoFaces, person_order
from mien.training.data.store import FaceStore
from mien.training.shape_distance import shape_gram
from mien.training.synthetic.faces import SyntheticFaces
from tests.training.tiny_data import CROP, write_store

PEOPLE = ["anna", "boris", "anna", "cleo", "boris", "anna", "anna", "boris"]


def store_of(tiny: MorphableModel, folder: Path) -> FaceStore:
    """Six photos of three people."""
    store = FaceStore(str(write_store(tiny, folder, splits={"train": 6})), split="train")
    store.faces[:] = [replace(row, identity=f"p{k % 3}") for k, row in enumerate(store.faces)]
    return store


@pytest.mark.parametrize("epoch", [0, 1])
def test_photos_of_a_person_follow_one_another(epoch: int) -> None:
    order = person_order(0, epoch, PEOPLE, together=2)
    assert sorted(order) == list(range(len(PEOPLE)))
    names = [PEOPLE[face] for face in order]
    assert all(names[k] == names[k + 1] for k in (0, 2, 4))
    assert sorted(names[6:]) == ["boris", "cleo"]


def test_each_epoch_has_another_order() -> None:
    orders = [tuple(person_order(0, epoch, PEOPLE, together=2)) for epoch in range(4)]
    assert len(set(orders)) > 1
    assert tuple(person_order(0, 0, PEOPLE, together=2)) == orders[0]


def test_a_batch_names_its_people(tiny: MorphableModel, tmp_path: Path) -> None:
    photos = PhotoFaces(store_of(tiny, tmp_path), tiny, size=CROP, seed=0, augment=False, together=2)
    batch = photos.batch(range(4))
    assert batch.people[0] == batch.people[1] != batch.people[2] == batch.people[3]
    synthetic = SyntheticFaces(tiny, size=CROP, seed=1).render([0])
    mixed = join_batches([batch, synthetic])
    assert mixed.people == (*batch.people, "")
    assert mixed.face(1).people == (batch.people[1],)
    assert mixed.to(torch.device("cpu")).people == mixed.people
    single = PhotoFaces(store_of(tiny, tmp_path / "other"), tiny, size=CROP, seed=0, augment=False)
    assert single.batch(range(2)).people == ()


def test_all_photos_of_a_person_are_mirrored_or_none(
    tiny: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = PhotoFaces(store_of(tiny, tmp_path), tiny, size=CROP, seed=0, augment=True, together=2)
    mirrored, current = dict[str, set[bool]](), list[str]()
    original = photos._cropped

    def cropped(record, rng, *, name):
        row = next(row for row in photos.store.faces if row.photo == name)
        plain = photos.store[photos.store.faces.index(row)]
        mirrored.setdefault(f"{current[-1]}-{row.identity}", set()).add(not torch.equal(record.crop, plain.crop))
        return original(record, rng, name=name)

    monkeypatch.setattr(photos, "_cropped", cropped)
    for epoch in range(4):
        current.append(str(epoch))
        photos.batch(range(6 * epoch, 6 * epoch + 6))
    assert all(len(flags) == 1 for flags in mirrored.values())
    assert set.union(*mirrored.values()) == {False, True}


def test_the_loss_is_the_distance_from_the_mean_face_of_a_person(tiny: MorphableModel) -> None:
    values = torch.randn(5, tiny.counts[0], requires_grad=True)
    people = ("anna", "", "boris", "anna", "")
    found = from_person_mean(values, people)
    half = (values[0] - values[3]) / 2
    torch.testing.assert_close(found, torch.stack([half, -half]))
    found.square().sum().backward()
    assert values.grad is not None
    assert values.grad[[0, 3]].abs().min() > 0
    assert not values.grad[[1, 2, 4]].any()
    for nobody in ((), ("anna", "boris", "", "", "")):
        assert not from_person_mean(values, nobody).any()


def test_the_encoder_learns_one_face_per_person(tiny: MorphableModel, tmp_path: Path) -> None:
    """The two losses of an encoder's prediction, and that their gradient makes the photos of a person alike."""
    from tests.training.test_coarse import objective_of

    batch = PhotoFaces(store_of(tiny, tmp_path), tiny, size=48, seed=0, augment=False, together=2).batch(range(4))
    weights = CoarseLossSettings(photometric=0.0, identity=0.0, person_shape=2.0, person_albedo=3.0)
    objective = objective_of(tiny, weights)
    prepared = objective.prepare(batch)
    prediction = objective.predict(objective.network, prepared.inputs)
    terms = {term.name: term for term in objective.losses(prediction, prepared, progress=0.0)}
    identity = objective.network.parameters_of(prediction[-1]).identity
    gram = shape_gram(tiny)[: tiny.counts[0], : tiny.counts[0]]
    offsets = from_person_mean(identity, batch.people)
    expected = ((offsets @ gram) * offsets).sum(1).clamp(min=0).sqrt().mean()
    assert terms["person_shape"].value.item() == pytest.approx(expected.item(), rel=0.05, abs=1e-4)
    assert (terms["person_shape"].weight, terms["person_albedo"].weight) == (2.0, 3.0)


@pytest.mark.parametrize("loss", [CoarseLossSettings(person_shape=1.0), CoarseLossSettings(person_albedo=1.0)])
def test_losses_of_people_need_several_photos(loss: CoarseLossSettings) -> None:
    with pytest.raises(ConfigError, match="photos_per_person above 1"):
        CoarseConfig(loss=loss)
    CoarseConfig(loss=loss, data=DataSettings(photos_per_person=2))
    with pytest.raises(ConfigError, match="photos_per_person=0"):
        CoarseConfig(data=DataSettings(photos_per_person=0))


def test_orders_are_permutations_for_any_run_length() -> None:
    for together in (1, 2, 3, 9):
        assert np.array_equal(np.sort(person_order(3, 0, PEOPLE, together=together)), np.arange(len(PEOPLE)))
