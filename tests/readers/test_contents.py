"""Files that are whole but hold values that cannot be: the message names the value and where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from mien.errors import ConfigError, FormatError, MienError
from mien.training.config import CoarseConfig
from mien.training.config_file import load_config
from mien.training.data.store import FaceStore, decode_record, encode_record
from mien.training.synthetic.disk_names import PLAN_FILE
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.store import SyntheticStorePlan
from tests.readers.targets import SHARD_FILE, TARGETS, model
from tests.training.tiny_data import record_of, write_store

T = TypeVar("T")


def whole(name: str, folder: Path) -> Path:
    """Write the whole file of a target."""
    path = folder / TARGETS[name].file
    content = TARGETS[name].honest(folder)
    path.write_bytes(content)
    return path


def with_values(valid: T, **values: object) -> T:
    """The dataclass with other values, past the checks of its types."""
    for name, value in values.items():
        object.__setattr__(valid, name, value)
    return valid


def change_json(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"landmarks68_px": torch.full((68, 2), torch.nan)}, r"the points are float32 \(536, 2\); expected finite"),
        ({"landmarks68_px": torch.zeros(60, 2)}, r"the points are float32 \(528, 2\)"),
        ({"mask": torch.zeros(8, 9)}, "expected equal squares"),
        ({"focal_px": 0.0}, "focal_px=0 must be positive"),
        ({"exposure": float("nan")}, "NaN is not finite"),
    ],
)
def test_a_record_that_cannot_be_names_its_face(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = encode_record("7", with_values(record_of(model(), 0), **change), notes={})
    with pytest.raises(FormatError, match=message):
        decode_record(data)
    store = write_store(model(), tmp_path, splits={"train": 1})
    (store / "faces.tar").write_bytes(data)
    index = json.loads((store / "index.json").read_text())
    index["faces"][0]["length"] = len(data)
    (store / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=rf"face 00000000 in .*faces\.tar.*{message}"):
        FaceStore(str(store))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 10**13}, "face '00000000' is at byte 0"),
        ({"offset": -1}, "face '00000000' is at byte -1"),
        ({"shard": "../../faces.tar"}, "expected a file name"),
        ({"split": "rest"}, r"Invalid enum value 'rest' - at `\$.faces\[0\].split`"),
        ({"age": "old"}, r"at `\$.faces\[0\].age`"),
        ({"flags": None}, r"at `\$.faces\[0\].flags`"),
    ],
)
def test_an_index_that_cannot_be_names_its_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = whole("photo_index", tmp_path)
    change_json(path, faces=[json.loads(path.read_text())["faces"][0] | change])
    with pytest.raises(FormatError, match=message):
        FaceStore(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": 10**13}, "faces=10000000000000 is out of range"),
        ({"faces": 0}, "faces=0 is out of range"),
        ({"size": 2**40}, "size=1099511627776 is out of range"),
        ({"seed": "x"}, r"at `\$.seed`"),
        ({"jitter": [1]}, r"at `\$.jitter`"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = whole("synthetic_plan", tmp_path)
    change_json(path, **change)
    with pytest.raises(FormatError, match=message) as caught:
        TARGETS["synthetic_plan"].read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="faces=0"):
        SyntheticStorePlan(0)


def test_a_stored_face_that_cannot_be_is_named(tmp_path: Path) -> None:
    path = whole("synthetic_shard", tmp_path)
    tensors = load_file(path)
    for name, value in (("truth.rotation", tensors["truth.rotation"] * torch.nan), ("mask", tensors["mask"][:, :4])):
        save_file(tensors | {name: value.contiguous()}, path)
        with pytest.raises(FormatError, match=rf"{SHARD_FILE}: {name} of face 1 has the shape"):
            TARGETS["synthetic_shard"].read(path)
    del tensors["focal_px"]
    save_file(tensors, path)
    with pytest.raises(FormatError, match="focal_px"):
        TARGETS["synthetic_shard"].read(path)
    assert (tmp_path / PLAN_FILE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"albedo": torch.zeros(2, 1)}, "have the shapes"),
        ({"albedo_offset": torch.zeros(1, 3, 3)}, "have the shapes"),
        ({"albedo": torch.zeros(0)}, "have the shapes"),
        ({"albedo": torch.full((2, 5), torch.nan)}, "not finite"),
    ],
)
def test_skins_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    skins = SkinBank(torch.zeros(2, model().counts[2]), torch.zeros(2, len(model().mean), 3))
    with_values(skins, **change).save(tmp_path / "skins.safetensors", model())
    with pytest.raises(FormatError, match=message):
        SkinBank.load(tmp_path / "skins.safetensors", model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop.steps=" + "9" * 5000, "use at most"),
        ("loop.steps=" + "9" * 3000, "out of range"),
        ("loop.steps=" + "[" * 2000, "has the wrong type"),
        ("a" + ".b" * 1000 + "=1", "nested too deep"),
        ("optimizer.learning_rate=nan", "finite number"),
        ("optimizer.learning_rate=inf", "finite number"),
    ],
)
def test_settings_with_monstrous_values_are_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CoarseConfig, None, changes=[change])
    assert len(str(caught.value)) < 5000
    name, _, value = change.partition("=")
    (tmp_path / "config.toml").write_text(f"{name} = {value}\n")
    with pytest.raises(MienError):
        load_config(CoarseConfig, tmp_path / "config.toml")
