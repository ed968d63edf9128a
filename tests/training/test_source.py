"""Batches as a function of the step: photos first, synthetic faces last, each process its shard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mien.errors import ConfigError
from mien.morphable import MorphableModel
from mien.training.config import CoarseConfig
from mien.training.config_file import load_config
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import FaceSource, Shard, stream
from mien.training.data.store import FaceStore
from mien.training.sources import held_out_faces
from mien.training.synthetic.faces import SyntheticFaces
from tests.training.tiny_data import CROP, write_store


@pytest.fixture(scope="module")
def source(tiny: MorphableModel, tmp_path_factory: pytest.TempPathFactory) -> FaceSource:
    folder: Path = tmp_path_factory.mktemp("source") / "store"
    store = FaceStore(str(write_store(tiny, folder, splits={"train": 3})), split="train")
    photos = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True)
    return FaceSource(photos, SyntheticFaces(tiny, size=CROP, seed=0), batch_size=8, synthetic_share=0.5)


def test_photos_come_first_and_each_step_has_the_next_faces(source: FaceSource) -> None:
    batch = source.batch(3, Shard())
    assert batch.photo_count == 4
    assert batch.names[4:] == tuple(f"synthetic-0-{k}" for k in range(12, 16))
    assert batch.gt is not None and len(batch.gt.identity) == 4
    assert source.photos is not None
    assert batch.names[:4] == source.photos.batch(range(12, 16)).names


def test_every_process_makes_its_shard_of_a_batch(source: FaceSource) -> None:
    whole = source.batch(3, Shard())
    parts = [source.batch(3, Shard(rank, 2)) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert part.names == whole.names[rank:4:2] + whole.names[4 + rank :: 2]
    torch.testing.assert_close(whole.images[0::2][:2], parts[0].images[:2], atol=1e-5, rtol=0)
    assert source.steps_per_epoch() == 0.75


def test_a_stream_has_the_batches_of_its_steps_in_order(source: FaceSource) -> None:
    batches = list(stream(source, range(2, 4), shard=Shard(), workers=0))
    assert [batch.names for batch in batches] == [source.batch(step, Shard()).names for step in (2, 3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_divided_is_one_line_also_from_a_worker(tiny: MorphableModel, workers: int) -> None:
    source = FaceSource(None, SyntheticFaces(tiny, size=32, seed=2), batch_size=3, synthetic_share=1.0)
    with pytest.raises(ConfigError, match=r"^a batch of 0 photo faces and 3 synthetic faces cannot be divided over 2"):
        next(stream(source, range(1), shard=Shard(1, 2), workers=workers))


def test_without_photos_there_are_no_epochs_and_no_shares_below_one(tiny: MorphableModel) -> None:
    faces = SyntheticFaces(tiny, size=32)
    with pytest.raises(ConfigError, match=r"loop\.epochs"):
        FaceSource(None, faces, batch_size=4, synthetic_share=1.0).steps_per_epoch()
    with pytest.raises(ConfigError, match=r"data\.synthetic_share=0\.5 needs photos"):
        FaceSource(None, faces, batch_size=4, synthetic_share=0.5)


def test_test_faces_are_not_those_of_validation(tiny: MorphableModel) -> None:
    config = load_config(CoarseConfig, None, changes=["data.synthetic_share=1.0", "encoder.image_size=32"])
    batches = {split: held_out_faces(config, tiny, store=None, split=split) for split in ("validation", "test")}
    assert not set(batches["validation"].names) & set(batches["test"].names)
    assert not torch.equal(batches["validation"].images, batches["test"].images)
