"""Kept coarse reconstructions: the same as fresh ones, made again if damaged, and moved into every training crop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mien.errors import FitDiverged, OutputError
from mien.losses import photometric_loss
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.networks import load_encoder
from mien.rendering import render
from mien.training.checkpoint import checkpoints
from mien.training.coarse_cache import CoarseCache
from mien.training.config import CoarseInputSettings, DetailConfig
from mien.training.config_file import load_config
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import Shard
from mien.training.data.store import FaceStore
from mien.training.detail_inputs import CoarseReconstruction
from mien.training.run import keeps_coarse, train_detail
from tests.training.tiny_data import undo_last_checkpoint, write_store

SIZE, FACES = 64, 3


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def store(model: MorphableModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(model, tmp_path_factory.mktemp("photos") / "store", splits={"train": FACES, "validation": 1})


@pytest.fixture(scope="module")
def reconstruct(model: MorphableModel) -> CoarseReconstruction:
    return CoarseReconstruction(load_encoder(model), model, CoarseInputSettings())


@pytest.fixture(scope="module")
def kept(
    store: Path, model: MorphableModel, reconstruct: CoarseReconstruction, tmp_path_factory: pytest.TempPathFactory
) -> CoarseCache:
    cache = CoarseCache(tmp_path_factory.mktemp("kept") / "coarse", photos_of(store, model), reconstruct)
    cache.load(Shard(), report=no_report)
    return cache


def photos_of(store: Path, model: MorphableModel, *, augment: bool = True, size: int = SIZE) -> PhotoFaces:
    return PhotoFaces(FaceStore(str(store), split="train"), model, size=size, seed=0, augment=augment)


def no_report(_message: str) -> None:
    return None


def tensors_of(face: FaceCoefficients) -> list[torch.Tensor]:
    pose = face.pose
    return [face.identity, face.expression, face.albedo, face.lighting, pose.rotation, pose.translation, pose.scale]


def assert_same(one: dict[str, FaceCoefficients], other: dict[str, FaceCoefficients]) -> None:
    assert one.keys() == other.keys()
    for key, face in one.items():
        assert all(map(torch.equal, tensors_of(face), tensors_of(other[key])))


def copied(kept: CoarseCache, folder: Path) -> CoarseCache:
    shutil.copytree(kept.folder, folder)
    return replace(kept, folder=folder)


@pytest.fixture
def reconstructions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of the reconstructions that are computed."""
    sizes: list[int] = []
    work: Callable[..., FaceCoefficients] = CoarseReconstruction.of_photos

    def counted(self: CoarseReconstruction, batch: object) -> FaceCoefficients:
        face = work(self, batch)
        sizes.append(len(face.identity))
        return face

    monkeypatch.setattr(CoarseReconstruction, "of_photos", counted)
    return sizes


def test_kept_faces_are_those_that_were_computed(kept: CoarseCache, reconstructions: list[int], tmp_path: Path) -> None:
    fresh = replace(kept, folder=tmp_path / "fresh").load(Shard(), report=no_report)
    assert reconstructions == [FACES]
    assert set(fresh) == {f"{k:08d}" for k in range(FACES)}
    for shard in (Shard(), Shard(1, 2)):
        assert_same(kept.load(shard, report=no_report), fresh)
    assert reconstructions == [FACES]


@pytest.mark.parametrize("damage", ["flipped", "short", "foreign"])
def test_a_damaged_file_is_made_again(
    kept: CoarseCache, reconstructions: list[int], tmp_path: Path, damage: str
) -> None:
    cache = copied(kept, tmp_path / "coarse")
    (path,) = cache.folder.iterdir()
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    path.write_bytes({"flipped": flipped, "short": content[:-40], "foreign": b"no tensors"}[damage])
    messages: list[str] = []
    assert_same(cache.load(Shard(), report=messages.append), kept.load(Shard(), report=no_report))
    assert messages == [f"computing the coarse reconstructions of {FACES} of {FACES} photos"]
    assert reconstructions == [FACES]
    assert load_file(path).keys() == {
        "identity",
        "expression",
        "albedo",
        "lighting",
        "rotation",
        "translation",
        "scale",
    }


@pytest.mark.parametrize("other", ["encoder", "settings", "size", "row"])
def test_files_of_other_inputs_are_not_read_but_removed(
    kept: CoarseCache, store: Path, reconstructions: list[int], tmp_path: Path, other: str
) -> None:
    cache, model = copied(kept, tmp_path / "coarse"), kept.reconstruct.model
    (before,) = cache.folder.iterdir()
    if other == "encoder":
        encoder = load_encoder(model)
        with torch.no_grad():
            next(encoder.parameters()).mul_(1.001)
        cache = replace(cache, reconstruct=CoarseReconstruction(encoder, model, CoarseInputSettings()))
    elif other == "settings":
        settings = CoarseInputSettings(source="encoder")
        cache = replace(cache, reconstruct=CoarseReconstruction(cache.reconstruct.encoder, model, settings))
    else:
        cache = replace(cache, photos=photos_of(store, model, size=80 if other == "size" else SIZE))
    if other == "row":
        rows = cache.photos.store.faces
        rows[0] = replace(rows[0], offset=rows[1].offset, length=rows[1].length)
    found = cache.load(Shard(), report=no_report)
    assert reconstructions == [FACES]
    assert not before.exists()
    assert len(list(cache.folder.iterdir())) == 1
    assert not torch.equal(found["00000000"].identity, kept.load(Shard(), report=no_report)["00000000"].identity)


def test_a_folder_that_cannot_be_written_is_a_typed_error(
    kept: CoarseCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written \(.*\); free some space and continue with --resume"):
        replace(kept, folder=tmp_path / "file").load(Shard(), report=no_report)

    def full(_from: Path, _to: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        replace(kept, folder=tmp_path / "full").load(Shard(), report=no_report)
    assert list((tmp_path / "full").iterdir()) == []


def test_photos_whose_fit_diverges_are_named(
    kept: CoarseCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise FitDiverged("lost")

    monkeypatch.setattr(CoarseReconstruction, "of_photos", lost)
    with pytest.raises(FitDiverged, match=r"lost; its photos: 00000000\.jpg"):
        replace(kept, folder=tmp_path / "coarse").load(Shard(), report=no_report)


def test_kept_faces_follow_each_crop_and_its_colours(
    kept: CoarseCache, model: MorphableModel, store: Path, reconstruct: CoarseReconstruction
) -> None:
    """Turned, shifted and mirrored crops of two epochs: as exact as a reconstruction of the crop itself."""
    photos = photos_of(store, model)
    photos.coarse = kept.load(Shard(), report=no_report)
    batch = photos.batch(range(2 * FACES))
    assert batch.coarse is not None
    face, fresh = reconstruct(batch), reconstruct.of_photos(batch)
    points, expected = (
        batch.camera.project(model.mediapipe_points(f.pose.to_camera(model.vertices(f.identity, f.expression))))
        for f in (face, fresh)
    )
    assert (points - expected).norm(dim=-1).mean() < 0.004 * SIZE
    moved = batch.coarse.coefficients(batch.camera)
    assert torch.equal(face.identity, moved.identity)

    def colour_error(f: FaceCoefficients) -> float:
        rendered = render(model, f, batch.camera)
        return float(photometric_loss(rendered.image, batch.images, mask=batch.mask * rendered.coverage))

    assert colour_error(face) < 1.05 * colour_error(fresh)
    assert colour_error(moved) > 1.15 * colour_error(fresh)
    assert len({tuple(row.tolist()) for row in batch.coarse.translation}) == 2 * FACES  # another crop in each epoch


def test_what_augmentation_changes_is_not_kept() -> None:
    changes = {"refined": True, "encoder": False}
    for source, kept_with_augmentation in changes.items():
        config = load_config(DetailConfig, None, changes=[f"coarse.source={source}"])
        assert keeps_coarse(config) == kept_with_augmentation
        assert keeps_coarse(replace(config, data=replace(config.data, augment=False)))


RUN = (
    "network.image_size=64", "network.map_size=48", "network.width=4", "data.synthetic_share=0.5",
    "data.synthetic_faces=2", "loop.batch_size=4", "loop.workers=0", "loop.threads=1", "loop.steps=2",
    "loop.checkpoint_every=1",
)  # fmt: skip


def test_a_resumed_run_whose_kept_faces_are_lost_ends_where_an_uninterrupted_one_does(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mien.training.sources.HELD_OUT_FACES", 1)
    config, run = load_config(DetailConfig, None, changes=RUN), tmp_path / "run"
    train_detail(config, encoder="encoder-lite0.safetensors", store=str(store), run=run, resume=False)
    before = load_file(checkpoints(run)[-1] / "tensors.safetensors")
    undo_last_checkpoint(run)
    shutil.rmtree(run / "coarse")
    train_detail(config, encoder="encoder-lite0.safetensors", store=str(store), run=run, resume=True)
    after = load_file(checkpoints(run)[-1] / "tensors.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert len(list((run / "coarse").iterdir())) == 1
