"""Drawn faces: the truth that comes with them is the truth, and a face is a function of its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.morphable import MorphableModel, load_model
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import mirror_mesh
from mien.perception import FaceMesh
from mien.perception.facemesh import MESH_SIZE
from mien.training.coarse import landmarks68
from mien.training.config import CoarseConfig
from mien.training.config_file import load_config
from mien.training.data.augment import FaceFrame, elsewhere
from mien.training.data.camera_simulation import simulate_camera
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import FaceSource, Shard, stream
from mien.training.data.store import FaceStore
from mien.training.sources import held_out_faces
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.samples import write_samples
from tests.tiny import tiny_model
from tests.training.tiny_data import CROP, write_store

SIZE = 48


def test_a_face_is_the_same_in_every_batch(tiny: MorphableModel) -> None:
    faces = SyntheticFaces(tiny, size=SIZE, seed=2)
    together, apart = faces.batch([4, 5, 6]), faces.batch([6])
    torch.testing.assert_close(together.images[2:], apart.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.gt_px[2:], apart.gt_px, atol=1e-3, rtol=0)
    assert together.names[2:] == apart.names
    assert (faces.batch([7]).images - apart.images).abs().mean() > 0.02
    assert (SyntheticFaces(tiny, size=SIZE, seed=3).batch([6]).images - apart.images).abs().mean() > 0.02


def test_the_truth_leads_back_to_the_points(tiny: MorphableModel) -> None:
    batch = SyntheticFaces(tiny, size=SIZE, seed=2).batch(range(6))
    assert batch.gt is not None
    face = batch.gt.coefficients(batch.camera)
    torch.testing.assert_close(landmarks68(tiny, face, batch.camera), batch.landmarks68_px, atol=2e-3, rtol=0)
    vertices = face.pose.to_camera(tiny.vertices(face.identity, face.expression))
    found = batch.camera.project(tiny.mediapipe_points(vertices))
    torch.testing.assert_close(found, batch.gt_px, atol=2e-3, rtol=0)


def test_faces_lie_in_their_crops_as_perception_would_cut_them(tiny: MorphableModel) -> None:
    batch = SyntheticFaces(tiny, size=SIZE, seed=2).batch(range(12))
    low, high = batch.gt_px.amin(1), batch.gt_px.amax(1)
    side = (high - low).amax(-1) / SIZE
    assert (side - 1 / 1.6).abs().max() < 0.08
    assert (((low + high) / 2 / SIZE) - 0.5).abs().max() < 0.1
    assert ((batch.images >= 0) & (batch.images <= 1)).all()
    assert (batch.mask.mean((1, 2)) > 0.03).all()


def test_a_pool_repeats_faces_but_not_photographs(tiny: MorphableModel) -> None:
    faces = SyntheticFaces(tiny, size=SIZE, seed=2, pool=3)
    first, again = faces.batch([0, 1, 2]), faces.batch([3, 4, 5])
    assert torch.equal(first.gt_px, again.gt_px)
    assert (first.images - again.images).abs().mean((1, 2, 3)).min() > 0.005
    torch.testing.assert_close(
        SyntheticFaces(tiny, size=SIZE, seed=2, pool=3).batch([4]).images, again.images[1:2], atol=1e-5, rtol=0
    )


def test_points_are_found_in_a_photograph_at_the_mesh_networks_size() -> None:
    """On the packaged model, whose faces look like faces: near the truth, and not the truth."""
    model, mesh = load_model(), FaceMesh.from_assets()
    faces = SyntheticFaces(model, size=SIZE, seed=2, pool=2, mesh=mesh)
    batch = faces.batch([0, 1, 2])
    assert batch.images.shape[-1] == SIZE
    assert faces.draw([0]).images.shape[-1] == MESH_SIZE
    off = (batch.detected_px - batch.gt_px).norm(dim=-1).mean(1) / SIZE
    assert ((off > 0.002) & (off < 0.04)).all(), off
    # Once a scene, whatever photograph of it is shown.
    assert torch.equal(batch.detected_px[0], batch.detected_px[2])
    again = SyntheticFaces(model, size=SIZE, seed=2, mesh=mesh).batch([1])
    torch.testing.assert_close(again.detected_px, batch.detected_px[1:2], atol=1e-4, rtol=0)
    told = SyntheticFaces(model, size=SIZE, seed=2).batch([1])
    assert torch.equal(told.detected_px, told.gt_px)


def test_skins_are_worn_and_belong_to_their_model(tiny: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "skins.safetensors"
    green = torch.tensor([-0.3, 0.3, -0.3]).expand(2, len(tiny.mean), 3)
    SkinBank(torch.zeros(2, tiny.counts[2]), green).save(path, tiny)
    bank = SkinBank.load(path, tiny)
    numbers = range(16)
    plain = SyntheticFaces(tiny, size=SIZE, seed=2).draw(numbers)
    worn = SyntheticFaces(tiny, size=SIZE, seed=2, skins=bank).draw(numbers)

    def greenness(batch: torch.Tensor) -> torch.Tensor:
        return (batch[:, 1] - batch[:, 0]).amax((1, 2))

    assert (greenness(worn.images) > greenness(plain.images) + 0.1).float().mean() > 0.25
    with pytest.raises(ModelMismatch):
        SkinBank.load(path, tiny_model(seed=1))
    path.write_bytes(b"")
    with pytest.raises(FormatError):
        SkinBank.load(path, tiny)


def test_the_frame_follows_a_turned_face() -> None:
    mesh = torch.zeros(468, 2)
    mesh[10], mesh[152], mesh[234], mesh[454] = (torch.tensor(p) for p in ((30.0, 20), (10, 20), (20, 12), (20, 28)))
    frame = FaceFrame.of(mesh, 40)  # the head's top lies to the right
    assert frame.v[19, 29] == pytest.approx(0.95, abs=0.02)
    assert frame.v[19, 10] == pytest.approx(-0.95, abs=0.02)
    assert frame.u[11, 19].abs() == pytest.approx(1.06, abs=0.03)


def test_cameras_differ_and_stay_in_range() -> None:
    picture = torch.linspace(0, 1, 32).expand(3, 32, 32)
    shots = [simulate_camera(np.random.default_rng(k), picture) for k in range(20)]
    assert all(((shot >= 0) & (shot <= 1)).all() for shot in shots)
    assert torch.stack(shots).std(0).mean() > 0.03


def test_photographed_faces_keep_their_points_through_augmentation(tiny: MorphableModel, tmp_path: Path) -> None:
    """The points move with the picture: they stay on the same colours, whatever the crop does."""
    store = FaceStore(str(write_store(tiny, tmp_path / "store", splits={"train": 4})), split="train")
    plain = PhotoFaces(store, tiny, size=CROP, seed=0, augment=False)
    batch = plain.batch(range(4))
    side = (batch.gt_px.amax(1) - batch.gt_px.amin(1)).amax(-1)
    torch.testing.assert_close(side, torch.full((4,), CROP / 1.6), atol=0.5, rtol=0)
    moved = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(range(12))
    assert moved.mask.shape == (12, CROP, CROP)
    spread = (moved.gt_px.amax(1) - moved.gt_px.amin(1)).amax(-1) / CROP
    assert spread.std() > 0.005
    inside = (moved.gt_px > 0) & (moved.gt_px < CROP)
    assert inside.float().mean() > 0.98
    assert torch.equal(moved.detected_px, moved.gt_px)


def test_photographs_come_in_an_order_of_their_own_every_time(tiny: MorphableModel, tmp_path: Path) -> None:
    """A store's order is that of file names: of CACD's, every batch would hold people of one age."""
    store = FaceStore(str(write_store(tiny, tmp_path / "store", splits={"train": 6})), split="train")
    plain = PhotoFaces(store, tiny, size=CROP, seed=0, augment=False)
    first, second = plain.batch(range(6)).names, plain.batch(range(6, 12)).names
    stored = tuple(row.photo for row in store.faces)
    assert sorted(first) == sorted(second) == sorted(stored)
    assert len({first, second, stored}) == 3
    assert plain.batch(range(6)).names == first
    assert PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(range(6)).names == first


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_made_is_told_in_one_line(tiny: MorphableModel, workers: int) -> None:
    source = FaceSource(None, SyntheticFaces(tiny, size=SIZE, seed=2), batch_size=3, drawn_share=1.0)
    with pytest.raises(ConfigError, match=r"^a batch of 0 photographed and 3 drawn faces cannot be divided over 2"):
        next(stream(source, range(1), part=Shard(1, 2), workers=workers))


def test_faces_to_test_on_are_not_those_of_validation(tiny: MorphableModel) -> None:
    config = load_config(CoarseConfig, None, changes=["data.synthetic_share=1.0", "encoder.image_size=32"])
    batches = {split: held_out_faces(config, tiny, store=None, split=split) for split in ("validation", "test")}
    assert not set(batches["validation"].names) & set(batches["test"].names)
    assert not torch.equal(batches["validation"].images, batches["test"].images)


def test_mirrors_are_their_own_undoing(tiny: MorphableModel) -> None:
    order = torch.tensor(IBUG_MIRROR)
    assert torch.equal(order[order], torch.arange(68))
    assert (order[8], order[36], order[48], order[31]) == (8, 45, 54, 35)
    assert len(mirror_mesh(tiny)) == 468


def test_every_process_takes_its_part_of_a_batch(tiny: MorphableModel, tmp_path: Path) -> None:
    store = FaceStore(str(write_store(tiny, tmp_path / "store", splits={"train": 3})), split="train")
    photographed = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True)
    source = FaceSource(photographed, SyntheticFaces(tiny, size=CROP, seed=0), batch_size=8, drawn_share=0.5)
    whole = source.batch(3, Shard())
    parts = [source.batch(3, Shard(rank, 2)) for rank in range(2)]
    assert whole.photographed == 4
    assert sorted(whole.names) == sorted(name for part in parts for name in part.names)
    torch.testing.assert_close(whole.images[0::2][:2], parts[0].images[:2], atol=1e-5, rtol=0)
    assert source.steps_an_epoch() == 0.75


def test_samples_are_written_to_look_at(tiny: MorphableModel, tmp_path: Path) -> None:
    sheet = write_samples(SyntheticFaces(tiny, size=32), tmp_path / "synth", count=9)
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 32, 2 * 32)
    assert len(list((tmp_path / "synth").glob("face-*.png"))) == 9
    with np.load(tmp_path / "synth" / "truth.npz") as gt:
        assert gt["identity"].shape == (9, tiny.counts[0])


def test_a_portrait_leaves_its_plain_wall_and_a_busy_picture_stays() -> None:
    size = 48
    mesh = torch.full((468, 2), size / 2)
    mesh[10, 1], mesh[152, 1], mesh[234, 0], mesh[454, 0] = 14.0, 34.0, 16.0, 32.0
    frame = FaceFrame.of(mesh, size)
    face = (frame.u.square() + frame.v.square() < 0.9).float()
    plain = torch.lerp(torch.full((3, size, size), 0.8), torch.full((3, size, size), 0.3), face)
    moved = elsewhere(np.random.default_rng(1), plain, frame)
    assert (moved - plain).abs()[:, face == 1].max() < 1e-6
    assert (moved - plain).abs()[:, :8].mean() > 0.02
    busy = torch.rand(3, size, size)
    assert torch.equal(elsewhere(np.random.default_rng(1), busy, frame), busy)
