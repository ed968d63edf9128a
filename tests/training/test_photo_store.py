"""Photo stores: faces come back as they were written, from any address, and damage is named."""

from __future__ import annotations

import tarfile
from pathlib import Path

import fsspec
import pytest
import torch

from mien.errors import BackendUnavailable, FormatError
from mien.morphable import MorphableModel
from mien.training.data.store import FaceStore, decode_record, encode_record
from tests.training.tiny_data import record_of, write_store


def test_a_face_comes_back(tiny: MorphableModel) -> None:
    record = record_of(tiny, 3)
    back = decode_record(encode_record("a", record, notes={"identity": "x"}))
    assert (back.crop - record.crop).abs().mean() < 0.02  # JPEG
    torch.testing.assert_close(back.mask, record.mask, atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.landmarks468_px, record.landmarks468_px)
    torch.testing.assert_close(back.landmarks68_px, record.landmarks68_px)
    assert (back.focal_px, back.centre_px, back.exposure) == (record.focal_px, record.centre_px, record.exposure)


def test_shards_are_plain_tar_files_in_webdatasets_order(tiny: MorphableModel, tmp_path: Path) -> None:
    store = write_store(tiny, tmp_path / "store", splits={"train": 2})
    with tarfile.open(store / "faces.tar") as archive:
        names = archive.getnames()
    assert names == [f"{k:08d}.{end}" for k in range(2) for end in ("jpg", "mask.png", "points.npy", "json")]


def test_faces_are_read_by_split_and_from_object_storage(tiny: MorphableModel, tmp_path: Path) -> None:
    folder = write_store(tiny, tmp_path / "store", splits={"train": 2, "test": 1})
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/faces", recursive=True)
    for address in (str(folder), "memory://bucket/faces/"):
        assert [len(FaceStore(address, split=s)) for s in ("train", "validation", "test")] == [2, 0, 1]
        torch.testing.assert_close(
            FaceStore(address, split="test")[0].landmarks468_px, record_of(tiny, 2).landmarks468_px
        )


def test_damage_is_named(tiny: MorphableModel, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a store"):
        FaceStore(str(tmp_path))
    folder = write_store(tiny, tmp_path / "store", splits={"train": 1})
    shard = folder / "faces.tar"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(FormatError, match="damaged"):
        FaceStore(str(folder))[0]
    shard.unlink()
    with pytest.raises(FormatError, match=r"faces\.tar of the store cannot be read"):
        FaceStore(str(folder))[0]
    (folder / "index.json").write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(FormatError, match="other"):
        FaceStore(str(folder))


def test_an_address_without_its_package_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.open", missing)
    with pytest.raises(BackendUnavailable, match="s3://bucket/store cannot be opened: Install s3fs"):
        FaceStore("s3://bucket/store")
