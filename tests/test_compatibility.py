"""Files that commit af0329d wrote still load, and mean what they meant.

`golden/af0329d` holds one file of each kind; its README.md tells how they were made. `expected.json` there holds what
that commit read in them. Weights and long files are packed with xz.
"""

from __future__ import annotations

import csv
import json
import lzma
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mien
from mien import cli
from mien.errors import RenamedSetting
from mien.networks.detail_unet import load_detail
from mien.networks.encoder_file import load_encoder
from mien.training.checkpoint import checkpoints
from mien.training.data.store import FaceStore
from mien.training.run import load_detail_run, load_run
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.store import StoredSyntheticFaces

WRITTEN = Path(__file__).parent / "golden" / "af0329d"
MODEL = "model.safetensors"
DRAWN_FACES = 513
Numbers = dict[str, Any]


def unpack(folder: Path) -> Path:
    """A copy of the files, unpacked, that tests may write to."""
    shutil.copytree(WRITTEN, folder, dirs_exist_ok=True)
    for packed in folder.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("af0329d"))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Both runs name their model, encoder and stores relative to this folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def summary(array: torch.Tensor | np.ndarray) -> list[float]:
    """Shape, mean magnitude, and 16 values from all over the array."""
    values = np.asarray(array)
    flat = values.astype(np.float64).ravel()
    some = flat[np.linspace(0, len(flat) - 1, 16).astype(int)]
    return [*map(float, values.shape), float(np.abs(flat).mean()), *some.tolist()]


def pattern(*shape: int) -> torch.Tensor:
    """A picture of exact numbers in [0, 1], the same on every machine."""
    count = int(np.prod(shape))
    return ((torch.arange(count) * 7919) % 251 / 250).view(*shape)


def result_numbers(old: Path) -> Numbers:
    face = mien.Reconstruction.load(old / "result")
    arrays = (
        "rotation", "translation", "identity", "expression", "albedo", "lighting", "vertices_model", "vertices",
        "triangles", "uv", "xy", "visible", "landmarks68", "landmarks68_vertices", "vertex_albedo", "texture",
        "texture_offset", "centre_px",
    )  # fmt: skip
    return {
        "displacement_mm": summary(1000 * face.displacement),
        **{name: summary(getattr(face, name)) for name in arrays},
        "numbers": [*face.image_size, face.focal_px, face.scale, face.landmark_error, face.photometric_error],
        "texts": [face.model_name, *face.expression_names],
        "stages": [name for name, _ in face.stage_seconds],
    }


def model_numbers(old: Path) -> Numbers:
    model = mien.load_model(old / MODEL)
    identity = torch.linspace(-1, 1, model.counts[0])[None]
    expression = torch.linspace(0, 1, model.counts[1])[None]
    albedo = torch.linspace(-1, 1, model.counts[2])[None]
    return {
        "fingerprint": model.fingerprint,
        "texts": [model.name, model.licence, model.expression_kind, *model.expression_names, *model.blendshape_names],
        "notes": list(model.notes),
        "vertices": summary(model.vertices(identity, expression)),
        "albedo": summary(model.albedo(albedo)),
        "landmarks68": summary(model.landmarks68),
        "uv": summary(model.uv),
        "mask_skin": summary(model.masks.skin),
    }


def encoder_numbers(old: Path) -> Numbers:
    encoder = load_encoder(mien.load_model(old / MODEL), old / "encoder.safetensors")
    camera = mien.Camera.from_fov(30.0, image_size=(128, 128), batch=2)
    points = FaceStore(str(old / "photo_store"))[0].landmarks468_px * (128 / 280)
    face = encoder.encode(pattern(2, 3, 128, 128), camera, landmarks468_px=points.expand(2, -1, -1))
    parts = {name: getattr(face, name) for name in ("identity", "expression", "albedo", "lighting")}
    parts |= {name: getattr(face.pose, name) for name in ("rotation", "translation", "scale")}
    return {name: value.flatten().tolist() for name, value in parts.items()}


def detail_numbers(old: Path) -> Numbers:
    network = load_detail(mien.load_model(old / MODEL), old / "detail.safetensors")
    maps = network(2 * pattern(2, 18, 48, 48) - 1)
    return {"texture_offset": summary(maps["texture_offset"]), "displacement_mm": summary(1000 * maps["displacement"])}


def photo_store_numbers(old: Path) -> Numbers:
    splits = {split: len(FaceStore(str(old / "photo_store"), split=split)) for split in ("train", "validation", "test")}
    store = FaceStore(str(old / "photo_store"))
    records = [store[k] for k in range(len(store))]
    return {
        "splits": splits,
        "people": [[face.identity, face.age, face.split, *face.flags] for face in store.faces],
        "landmarks68": [summary(record.landmarks68_px) for record in records],
        "mesh": [summary(record.landmarks468_px) for record in records],
        "cameras": [[record.focal_px, *record.centre_px, record.exposure] for record in records],
        "mask": [float(record.mask.mean()) for record in records],
        "colours": [record.crop.mean((1, 2)).tolist() for record in records],
    }


def drawn_store_numbers(old: Path) -> Numbers:
    store = StoredSyntheticFaces(old / "drawn_store", mien.load_model(old / MODEL), size=32, seed=0)
    found: Numbers = {}
    for start in range(0, DRAWN_FACES, 64):
        batch = store.batch(range(start, min(start + 64, DRAWN_FACES)))
        gt = batch.gt
        assert gt is not None
        for k, name in enumerate(batch.names):
            number = name.rpartition("-")[2]
            arrays = [batch.images[k], batch.mask[k], batch.landmarks68_px[k], batch.gt_px[k], gt.identity[k]]
            arrays += [gt.lighting[k], gt.translation[k], batch.camera.focal_px[k : k + 1]]
            found[number] = [summary(array) for array in arrays] if number in ("0", "511", "512") else []
    return {"count": len(found), **{number: values for number, values in found.items() if values}}


def skin_numbers(old: Path) -> Numbers:
    bank = SkinBank.load(old / "skins.safetensors", mien.load_model(old / MODEL))
    return {"albedo": summary(bank.albedo), "offset": summary(bank.albedo_offset)}


def run_numbers(old: Path, branch: str) -> Numbers:
    """What is in a run of two steps, and what a third one gives."""
    run = old / f"{branch}_run"
    reader = {"base": load_run, "detail": load_detail_run}[branch]
    with inside(old):
        with pytest.warns(RenamedSetting):
            finished = reader(run)
        newest = checkpoints(run)[-1].name
        arguments = ["train", branch, "--config", run / "config.toml", "--data", "photo_store", "-o", run]
        arguments += ["--base", "encoder.safetensors"] if branch == "detail" else []
        command(*arguments, "--set", "loop.steps=3", "--resume")
        longer = reader(run)
    inputs = json.loads((run / "inputs.json").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        last = {row["name"]: float(row["value"]) for row in csv.DictReader(file) if row["step"] == "3"}
    return {
        "steps": [finished.config.loop.steps, longer.config.loop.steps],
        "checkpoints": [newest, checkpoints(run)[-1].name],
        "losses": {OLD_NAMES.get(name, name): last[name] for name in last if name not in MACHINE},
        "state": state_numbers(checkpoints(run)[-1]),
        "inputs": {OLD_NAMES.get(name, name): value for name, value in inputs.items()},
    }


def state_numbers(checkpoint: Path) -> Numbers:
    """Of weights, average and moments after the third step: how many tensors, and the sum of their magnitudes."""
    found: Numbers = {}
    for name, tensor in load_file(checkpoint / "tensors.safetensors").items():
        count, total = found.get(name.partition(".")[0], (0, 0.0))
        found[name.partition(".")[0]] = [count + 1, total + float(tensor.double().abs().sum())]
    return found


OLD_NAMES = {"synthetic": "drawn", "photometric": "pixel", "identity": "recognition"}
"""Inputs and losses of today, and their names in af0329d."""
MACHINE = ("images_per_second", "data_wait_share")


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert not stopped.value.code


NUMBERS: dict[str, Callable[[Path], Numbers]] = {
    "result": result_numbers,
    "model": model_numbers,
    "encoder": encoder_numbers,
    "detail": detail_numbers,
    "photo_store": photo_store_numbers,
    "drawn_store": drawn_store_numbers,
    "skins": skin_numbers,
    "base_run": lambda old: run_numbers(old, "base"),
    "detail_run": lambda old: run_numbers(old, "detail"),
}
RELATIVE = {"base_run": 1e-4, "detail_run": 1e-4}
"""Losses are noted with six digits. Instruction sets (SSE2 to AVX-512) and threads move them by 3e-6."""
ABSOLUTE = {"encoder": 1e-4, "detail": 2e-5}
"""Instruction sets and threads move these by up to 2e-5 and 4e-6; everything else by 1e-7."""


@pytest.mark.parametrize("kind", NUMBERS)
def test_what_af0329d_wrote_is_read_as_it_was(kind: str, old: Path) -> None:
    expected = json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8"))[kind]
    assert_same(NUMBERS[kind](old), expected, where=kind, within=(RELATIVE.get(kind, 1e-5), ABSOLUTE.get(kind, 1e-6)))


def assert_same(found: Any, expected: Any, *, where: str, within: tuple[float, float]) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_same(found[name], expected[name], where=f"{where}.{name}", within=within)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for k, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, where=f"{where}[{k}]", within=within)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=within[0], abs=within[1]), where
    else:
        assert found == expected, where


def write_expected(folder: Path) -> None:
    """Read everything with the mien that is imported, and note what was found. To be run at af0329d only."""
    old = unpack(folder)
    content = {kind: numbers(old) for kind, numbers in NUMBERS.items()}
    lines = (f"{json.dumps(kind)}: {json.dumps(numbers)}" for kind, numbers in content.items())
    (WRITTEN / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
