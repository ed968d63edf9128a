"""What is fuzzed besides face models: each kind of file that mien reads, with a small whole file to start from."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mien.evaluation.landmarks import _read_npz, _read_pts
from mien.evaluation.scan_packs import OwnScans, read_picked_points
from mien.evaluation.scan_predictions import read_barycentric_keypoints
from mien.evaluation.scan_report import _run_values
from mien.io.reading import read_json
from mien.io.result_files import ARRAYS_FILE, COEFFICIENTS_FILE
from mien.morphable import MorphableModel, load_model
from mien.networks.detail_unet import DetailNetwork, load_detail, save_detail
from mien.networks.encoder import FaceEncoder
from mien.networks.encoder_file import FILE as ENCODER
from mien.registration.landmark_file import read_landmarks
from mien.result import Reconstruction
from mien.scale.run_record import RUN_FILE, RunRecord, read_record
from mien.scale.summary import SUMMARY_FILE, PhotoRow, SummaryTable
from mien.training.config import CoarseConfig
from mien.training.config_file import dump, load_config
from mien.training.data.prepare import _read_rows, _read_table
from mien.training.data.store import INDEX_FILE, FaceStore
from mien.training.monitor import METRICS_HEADER, _forget_from
from mien.training.recipe import load_recipe
from mien.training.recipe_run import _FinishedStage
from mien.training.run_record import INPUTS_FILE, RunInputs, _inputs
from mien.training.synthetic import store as synthetic
from mien.training.synthetic.disk_names import PLAN_FILE
from mien.training.synthetic.population import SkinBank
from tests.evaluation.scan_files import realy_keypoints, write_pack
from tests.formats.targets import Target
from tests.tiny import tiny_model
from tests.tiny_face import tiny_reconstruction
from tests.training.tiny_data import write_model, write_store

SIDE = 8
"""Side of the crops of the synthetic store, pixels."""
PLAN = synthetic.SyntheticStorePlan(2, size=SIDE)
SHARD_FILE = "faces-000000.safetensors"
RECIPE = '[[stage]]\nname = "first"\nkind = "coarse"\nloop.steps = 10\n[[stage]]\nname = "more"\nkind = "skins"\n'


@functools.cache
def model() -> MorphableModel:
    return tiny_model()


def _of(name: str, write: Callable[[Path], object]) -> Callable[[Path], bytes]:
    """Write a folder, and return the bytes of one file in it."""

    def whole(folder: Path) -> bytes:
        write(folder)
        return (folder / name).read_bytes()

    return whole


def _text(text: str) -> Callable[[Path], bytes]:
    return lambda folder: text.encode()


def _result_array(folder: Path) -> bytes:
    tiny_reconstruction().save(folder)
    with zipfile.ZipFile(folder / ARRAYS_FILE) as archive:
        return archive.read("texture.npy")


@functools.cache
def _members() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tiny_reconstruction().save(folder)
        with zipfile.ZipFile(Path(folder) / ARRAYS_FILE) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def _archive_with(member: bytes) -> bytes:
    """A result's archive with these bytes as its texture; the checksum is right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in _members().items():
            archive.writestr(name, member if name == "texture.npy" else content)
    return stream.getvalue()


def _photo_store(folder: Path) -> None:
    write_store(model(), folder, splits={"train": 1})


def _read_store(path: Path) -> object:
    store = FaceStore(str(path.parent))
    return [store[number] for number in range(min(len(store), 4))]


def _shard_rows(folder: Path) -> bytes:
    write_store(model(), folder, splits={"train": 1})
    faces = json.loads((folder / INDEX_FILE).read_text())["faces"]
    return json.dumps({"faces": faces, "dropped": [{"photo": "a.jpg", "reason": "no face"}]}).encode()


def _synthetic_store(folder: Path) -> None:
    shapes = synthetic._tensor_shapes(model(), SIDE)
    tensors = {
        name: torch.ones(2, *shape, dtype=torch.uint8 if name in synthetic.BYTE_TENSORS else torch.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / SHARD_FILE)
    plan = {"format": "mien-drawn-1", **asdict(PLAN), "skins": "", "model_hash": model().fingerprint}
    (folder / PLAN_FILE).write_text(json.dumps(plan))


def _read_synthetic(path: Path) -> object:
    return synthetic.StoredSyntheticFaces(path.parent, model(), size=SIDE, seed=0)._stored(1)


def _skins(folder: Path) -> None:
    albedo, vertices = model().counts[2], len(model().mean)
    SkinBank(torch.zeros(2, albedo), torch.zeros(2, vertices, 3)).save(folder / "skins.safetensors", model())


def _detail(folder: Path) -> None:
    save_detail(DetailNetwork(model().fingerprint, width=1), folder / "detail.safetensors", notes={})


def _read_header(path: Path) -> object:
    header = ENCODER._settings_of(path.read_text("utf-8", "replace"))
    return FaceEncoder(header.backbone, model(), image_size=header.image_size, points=header.points)


def _read_change(path: Path) -> object:
    return load_config(CoarseConfig, None, changes=[path.read_text("utf-8", "replace")])


def _run_json(folder: Path) -> None:
    row = PhotoRow("a.png", 1, 2.5, 0.01, None, "out/a", "")
    RunRecord("a.png", "0" * 64, {"mien": "1", "mode": None, "texture": 3}, (row,)).write(folder)


def _summary(folder: Path) -> None:
    table = SummaryTable(folder)
    table.add(PhotoRow("a.png", 1, 2.5, 0.01, 0.02, "out/a", ""))
    table.write()


def _landmark_table(folder: Path) -> None:
    np.savez(folder / "set.npz", files=np.array(["a.jpg"]), landmarks=np.ones((1, 68, 2)), split=np.array("test"))


_PTS = "version: 1\nn_points: 68\n{\n" + "".join(f"{k}.5 {2 * k}\n" for k in range(68)) + "}\n"
_PICKED = "".join(f'<point x="{k}" y="1.5" z="-2" name="p"/>\n' for k in range(7))
_HEADER = '{"backbone": "efficientnet_lite0", "image_size": 64, "points": true}'
_STAGE = '{"stage": {"kind": "skins"}, "metrics": [{"name": "a", "unit": "", "before": null, "after": 2}]}'


TARGETS = {
    target.name: target
    for target in (
        Target("annotated", "set.npz", _of("set.npz", _landmark_table), lambda p: _read_npz(p, split="test")),
        Target("annotated_pts", "a.pts", _text(_PTS), _read_pts),
        Target(
            "coefficients",
            COEFFICIENTS_FILE,
            _of(COEFFICIENTS_FILE, tiny_reconstruction().save),
            lambda p: Reconstruction.load(p.parent),
        ),
        Target("config", "config.toml", _text(dump(CoarseConfig())), lambda p: load_config(CoarseConfig, p)),
        Target("config_change", "change.txt", _text("loop.steps=500"), _read_change),
        Target(
            "detail_network",
            "detail.safetensors",
            _of("detail.safetensors", _detail),
            lambda p: load_detail(model(), p),
        ),
        Target("encoder_header", "header.json", _text(_HEADER), _read_header),
        Target("keypoints", "keypoints.txt", _text(json.dumps(realy_keypoints()[1])), read_barycentric_keypoints),
        Target("landmarks", "landmarks.txt", _text("30 4 # nose\n8 7\n"), lambda p: read_landmarks(p, vertices=9)),
        Target(
            "model",
            "model.safetensors",
            _of("model.safetensors", lambda f: write_model(model(), f / "model.safetensors")),
            load_model,
        ),
        Target("people", "people.csv", _text("file,identity,age\na.jpg,Ann,30\nb.jpg,Ben,\n"), _read_table),
        Target("photo_index", INDEX_FILE, _of(INDEX_FILE, _photo_store), _read_store),
        Target("photo_record", "faces.tar", _of("faces.tar", _photo_store), _read_store),
        Target("photo_rows", "faces-000000.json", _shard_rows, lambda p: _read_rows(p.parent, 1)),
        Target("picked_points", "a.pp", _text(_PICKED), read_picked_points),
        Target("result_array", ARRAYS_FILE, _result_array, lambda p: Reconstruction.load(p.parent), _archive_with),
        Target(
            "result_arrays",
            ARRAYS_FILE,
            _of(ARRAYS_FILE, tiny_reconstruction().save),
            lambda p: Reconstruction.load(p.parent),
        ),
        Target("recipe", "recipe.toml", _text(RECIPE), load_recipe),
        Target(
            "run_inputs",
            INPUTS_FILE,
            _text(json.dumps(asdict(RunInputs("a", "b", "c", "32-true")))),
            lambda p: _inputs(p.parent),
        ),
        Target(
            "run_metrics",
            "metrics.csv",
            _text("step,name,value\n1,loss,0.5\n2,loss,0.25\n"),
            lambda p: _forget_from(p, 1, header=METRICS_HEADER),
        ),
        Target("run_record", RUN_FILE, _of(RUN_FILE, _run_json), lambda p: read_record(p.parent)),
        Target(
            "scan",
            "scans/a.npz",
            _of("scans/a.npz", lambda f: write_pack(f, ("a",))),
            lambda p: OwnScans.open(p.parent.parent).scan("a"),
        ),
        Target(
            "scan_run",
            "run.json",
            _text('{"n": 1, "per_photo": {"a": {"sim": {"median": 1.5}}}}'),
            lambda p: _run_values(p, "sim", "median"),
        ),
        Target("skins", "skins.safetensors", _of("skins.safetensors", _skins), lambda p: SkinBank.load(p, model())),
        Target("stage", "stage.json", _text(_STAGE), lambda p: read_json(p, _FinishedStage)),
        Target("summary", SUMMARY_FILE, _of(SUMMARY_FILE, _summary), lambda p: SummaryTable(p.parent)),
        Target("synthetic_plan", PLAN_FILE, _of(PLAN_FILE, _synthetic_store), _read_synthetic),
        Target("synthetic_shard", SHARD_FILE, _of(SHARD_FILE, _synthetic_store), _read_synthetic),
    )
}
