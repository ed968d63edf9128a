from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mien import assets
from mien.assets import asset_path, asset_records, load_tensors, load_weights
from mien.errors import AssetError


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of assets of its own, with one small file in it."""
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    monkeypatch.setattr(assets, "MANIFEST", tmp_path / "manifest.json")
    path = tmp_path / "small.safetensors"
    save_file({"weight": torch.ones(2, 3)}, path)
    data = path.read_bytes()
    row = {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps([{**row, "licence": "CC0-1.0", "source": "a test"}]))
    return tmp_path


def test_every_packaged_asset_is_what_the_manifest_says() -> None:
    for record in asset_records():
        path = asset_path(record.name)
        assert path.stat().st_size == record.bytes
        assert record.licence
        assert record.source


def test_no_weight_file_is_missing_from_the_manifest() -> None:
    names = {record.name for record in asset_records()}
    assert {path.name for path in assets.FOLDER.glob("*.safetensors")} <= names


def test_provenance_names_every_asset() -> None:
    text = (assets.FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
    assert [record.name for record in asset_records() if record.name not in text] == []


def test_tensors_come_back(shelf: Path) -> None:
    assert torch.equal(load_tensors("small.safetensors")["weight"], torch.ones(2, 3))


def test_a_damaged_file_is_refused(shelf: Path) -> None:
    load_tensors("small.safetensors")
    path = shelf / "small.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AssetError, match="is damaged"):
        load_tensors("small.safetensors")


def test_a_missing_file_and_an_unknown_name_are_refused(shelf: Path) -> None:
    (shelf / "small.safetensors").unlink()
    with pytest.raises(AssetError, match="missing or unreadable"):
        asset_path("small.safetensors")
    with pytest.raises(AssetError, match=r"name='other\.bin' is not a packaged asset"):
        asset_path("other.bin")


def test_a_module_of_another_shape_is_refused(shelf: Path) -> None:
    with pytest.raises(AssetError, match="does not fit Linear"):
        load_weights(torch.nn.Linear(4, 2), "small.safetensors")
