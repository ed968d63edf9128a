"""Stores of synthetic faces: faces come back in any order, mirrored exactly, and a store can be continued."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mien.errors import ConfigError, FormatError, ModelMismatch, OutputError
from mien.morphable import MorphableModel, load_model
from mien.morphable.symmetry import Mirror
from mien.perception import FaceMesh
from mien.rendering import render
from mien.training.coarse import landmarks68
from mien.training.data.batch import FaceBatch
from mien.training.synthetic import store as module
from mien.training.synthetic.disk_names import PLAN_FILE, SKINS_FORMAT
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import POPULATION_VERSION, SkinBank
from mien.training.synthetic.store import StoredSyntheticFaces, SyntheticStorePlan, write_synthetic_store
from tests.tiny import tiny_model

SIZE = 48
PLAN = SyntheticStorePlan(6, size=SIZE, seed=4, jitter=0.2)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_FACES", 4)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "store"
    write_synthetic_store(PLAN, folder, processes=1)
    return folder


def faces_of(store: Path, model: MorphableModel, *, size: int = SIZE, seed: int = 0) -> StoredSyntheticFaces:
    return StoredSyntheticFaces(store, model, size=size, seed=seed)


def by_name(batch: FaceBatch) -> dict[str, FaceBatch]:
    return {name: batch.face(k) for k, name in enumerate(batch.names)}


def mirrored_numbers(batch: FaceBatch, plain: dict[str, FaceBatch]) -> list[int]:
    return [k for k, name in enumerate(batch.names) if not torch.equal(batch.face(k).images, plain[name].images)]


def test_every_face_comes_back_once_per_epoch(store: Path, model: MorphableModel) -> None:
    stored = faces_of(store, model)
    with Image.open(store / "sheet.png") as sheet:
        assert sheet.size == (8 * SIZE, SIZE)
    epochs = [stored.batch(range(k * 6, k * 6 + 6)) for k in range(4)]
    assert all(sorted(batch.names) == [f"stored-4-{k}" for k in range(6)] for batch in epochs)
    assert len({batch.names for batch in epochs}) > 1
    right = SyntheticFaces(model, size=SIZE, seed=4, jitter=0.2, mesh=FaceMesh.from_assets()).batch(range(6))
    plain = {f"stored-4-{k}": right.face(k) for k in range(6)}
    back = {}
    for batch in epochs:
        back |= {
            name: face
            for name, face in by_name(batch).items()
            if torch.equal(face.camera.focal_px, plain[name].camera.focal_px)
            and (face.gt_px - plain[name].gt_px).abs().max() < 1e-3
        }
    assert len(back) >= 5  # the others were mirrored in all four epochs
    for name, face in back.items():
        want = plain[name]
        torch.testing.assert_close(face.images, want.images, atol=0.5 / 255 + 1e-6, rtol=0)
        torch.testing.assert_close(face.mask, want.mask, atol=0.5 / 255 + 1e-6, rtol=0)
        for points in ("landmarks68_px", "gt_px", "detected_px"):
            torch.testing.assert_close(getattr(face, points), getattr(want, points), atol=1e-3, rtol=0)
        assert face.gt is not None
        assert want.gt is not None
        torch.testing.assert_close(face.gt.identity, want.gt.identity)
        assert face.gt.sides_per_m == want.gt.sides_per_m


def test_half_of_the_faces_are_mirrored_and_a_batch_is_a_function_of_its_numbers(
    store: Path, model: MorphableModel
) -> None:
    stored = faces_of(store, model)
    many = stored.batch(range(60))
    again = faces_of(store, model).batch(range(10, 20))
    assert torch.equal(many.images[10:20], again.images)
    assert many.names[10:20] == again.names
    assert faces_of(store, model, seed=1).batch(range(60)).names != many.names
    plain = {name: stored._stored(int(name.rpartition("-")[2])) for name in set(many.names)}
    assert 18 <= len(mirrored_numbers(many, plain)) <= 42


def test_a_mirrored_face_is_the_face_in_the_mirror(store: Path, model: MorphableModel) -> None:
    mirror, face = Mirror.of(model), faces_of(store, model)._stored(1)
    assert mirror is not None
    turned = face.mirrored(mirror)
    assert turned.gt is not None
    assert face.gt is not None
    coefficients = turned.gt.coefficients(turned.camera)
    vertices = coefficients.pose.to_camera(model.vertices(coefficients.identity, coefficients.expression))
    points = turned.camera.project(model.mediapipe_points(vertices))
    torch.testing.assert_close(points, turned.gt_px, atol=0.02, rtol=0)
    torch.testing.assert_close(
        landmarks68(model, coefficients, turned.camera), turned.landmarks68_px, atol=0.02, rtol=0
    )
    # Light and colour as well: the picture of the mirrored face is the mirrored picture.
    one = render(model, face.gt.coefficients(face.camera), face.camera).image
    other = render(model, coefficients, turned.camera).image
    assert (one.flip(-1) - other).abs().mean() < 2e-3
    assert (one - other).abs().mean() > 0.02
    assert (turned.detected_px - turned.gt_px).norm(dim=-1).mean() < 0.04 * SIZE
    twice = turned.mirrored(mirror)
    assert torch.equal(twice.images, face.images)
    torch.testing.assert_close(twice.detected_px, face.detected_px, atol=1e-3, rtol=0)


def test_a_model_without_symmetry_has_no_mirror(tiny: MorphableModel) -> None:
    assert Mirror.of(tiny) is None


def test_an_interrupted_store_continues_and_grows(store: Path, model: MorphableModel, tmp_path: Path) -> None:
    folder, progress = tmp_path / "store", []
    write_synthetic_store(SyntheticStorePlan(3, size=SIZE, seed=4, jitter=0.2), folder, processes=1)
    (folder / ".mien-partial-7").mkdir()  # left by a killed process
    (folder / "download.zip.partial").touch()  # not of this store
    write_synthetic_store(PLAN, folder, processes=1, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(4, 6), (6, 6)]  # the first file held three of four
    assert [left.name for left in folder.glob("*partial*")] == ["download.zip.partial"]
    first = folder / "faces-000000.safetensors"
    assert first.read_bytes() == (store / first.name).read_bytes()
    first.write_bytes(first.read_bytes()[:1000])
    with pytest.raises(FormatError, match="1 of 2 files are missing"):
        faces_of(folder, model)
    write_synthetic_store(PLAN, folder, processes=1)
    assert first.read_bytes() == (store / first.name).read_bytes()
    assert len(set(faces_of(folder, model).batch(range(6)).names)) == 6
    with pytest.raises(ConfigError, match="has 6 faces already"):
        write_synthetic_store(SyntheticStorePlan(3, size=SIZE, seed=4, jitter=0.2), folder, processes=1)
    with pytest.raises(ConfigError, match=r"other settings, .*: seed \(4 there, 5 now\)\. "):
        write_synthetic_store(SyntheticStorePlan(6, size=SIZE, seed=5, jitter=0.2), folder, processes=1)


def test_a_store_stays_complete_while_it_grows(
    store: Path, model: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    write_synthetic_store(SyntheticStorePlan(3, size=SIZE, seed=4, jitter=0.2), folder, processes=1)

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(module, "_write_shard", full)
    with pytest.raises(OutputError, match="full"):
        write_synthetic_store(PLAN, folder, processes=1)
    assert len(set(faces_of(folder, model).batch(range(3)).names)) == 3


def test_a_store_of_an_earlier_population_is_read_but_not_continued(model: MorphableModel, tmp_path: Path) -> None:
    write_synthetic_store(SyntheticStorePlan(3, size=SIZE, seed=4, jitter=0.2), tmp_path, processes=1)
    now = faces_of(tmp_path, model)
    content = json.loads((tmp_path / PLAN_FILE).read_text(encoding="utf-8"))
    assert content.pop("population") == POPULATION_VERSION
    (tmp_path / PLAN_FILE).write_text(json.dumps(content), encoding="utf-8")
    earlier = faces_of(tmp_path, model)
    assert torch.equal(earlier.batch([1]).images, now.batch([1]).images)
    assert earlier.fingerprint != now.fingerprint
    with pytest.raises(ConfigError, match=rf"population \(None there, {POPULATION_VERSION} now\)"):
        write_synthetic_store(PLAN, tmp_path, processes=1)


def test_two_processes_write_what_one_does(store: Path, tmp_path: Path) -> None:
    write_synthetic_store(PLAN, tmp_path / "two", processes=2)
    for name in ("faces-000000.safetensors", "drawn.json"):
        assert (tmp_path / "two" / name).read_bytes() == (store / name).read_bytes()


@pytest.mark.parametrize("content", ["[]", "3", '{"format": "mien-drawn-1", "faces": "many"}', '{"format": "mien-dr'])
def test_a_damaged_plan_is_refused(content: str, model: MorphableModel, tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(FormatError, match="not a store of synthetic faces"):
        faces_of(tmp_path, model)
    with pytest.raises(FormatError, match="not a store of synthetic faces"):
        write_synthetic_store(PLAN, tmp_path, processes=1)


def test_other_folders_and_models_are_refused(store: Path, model: MorphableModel, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a store of synthetic faces"):
        faces_of(tmp_path, model)
    with pytest.raises(ConfigError, match="crops of 48 px"):
        faces_of(store, model, size=64)
    assert faces_of(store, model, size=32).batch([0]).images.shape[-1] == 32
    with pytest.raises(ModelMismatch):
        faces_of(store, tiny_model())
    (tmp_path / PLAN_FILE).write_text(json.dumps({"format": "other"}), encoding="utf-8")
    with pytest.raises(FormatError, match="has format"):
        faces_of(tmp_path, model)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        write_synthetic_store(PLAN, tmp_path / "file", processes=1)


def test_the_same_skins_in_other_bytes_continue_a_store(tmp_path: Path, model: MorphableModel) -> None:
    """safetensors writes its metadata in random order, so that `mien data skins` never writes the same bytes twice."""
    skins, store = tmp_path / "skins.safetensors", tmp_path / "store"
    bank = SkinBank(torch.zeros(2, model.counts[2]), torch.zeros(2, len(model.mean), 3))
    bank.save(skins, model)
    plan = SyntheticStorePlan(6, size=SIZE, skins=str(skins))
    module._open_store(plan, store)
    tensors = load_file(skins)
    notes = {"more": "bytes", "format": SKINS_FORMAT, "model_hash": model.fingerprint}
    save_file(tensors, skins, metadata=notes)
    module._open_store(plan, store)
    content = json.loads((store / PLAN_FILE).read_text(encoding="utf-8"))
    old = hashlib.sha256(skins.read_bytes()).hexdigest()
    (store / PLAN_FILE).write_text(json.dumps({**content, "skins": old}), encoding="utf-8")
    assert module._open_store(plan, store)["skins"] == old  # of mien 0.2, and stays as it is
    tensors["albedo"][0, 0] = 1.0
    save_file(tensors, skins, metadata=notes)
    with pytest.raises(ConfigError, match="was started with other settings"):
        module._open_store(plan, store)
