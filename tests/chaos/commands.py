"""The commands that are disturbed, each with small inputs, and what is in the folders that they write."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

from mien.morphable import load_model
from mien.result import Reconstruction
from mien.tracking import Track, face_store
from mien.training.checkpoint import FOLDER
from mien.training.data import prepare
from mien.training.data.store import INDEX_FILE, FaceStore
from mien.training.synthetic import store as synthetic
from tests.tiny import tiny_model
from tests.training.tiny_data import write_model

Content = dict[str, str]
"""Fingerprints of the finished things in a folder, by name."""
PHOTO = Path(__file__).parents[2] / "examples" / "astronaut.png"
TRAINING = (
    "encoder.weights=random", "encoder.image_size=32", "encoder.frozen_blocks=0", "data.synthetic_share=1.0",
    "data.synthetic_faces=16", "loop.batch_size=4", "loop.workers=0", "loop.log_every=1", "loop.threads=1",
    "loss.points=8.0", "loss.vertices=1.0", "loss.pose=1.0", "loss.photometric=0.0", "loss.identity=0.0",
    "loop.steps=3", "loop.checkpoint_every=1", "loop.validate_every=2", "optimizer.ema_decay=0.0",
)  # fmt: skip
_TIMES = ("images_per_second", "data_wait_share", "seconds")
_SHARD_FACES, _CHUNK_FRAMES = 2, 3


@dataclass(frozen=True)
class Scenario:
    """A command whose result is the same each time."""

    name: str
    arguments: Callable[[Path], list[object]]
    """Its arguments for an output folder or file."""
    content: Callable[[Path], Content]
    """What is finished in the output; raises if that is damaged."""
    again: tuple[str, ...] = ()
    """Options that continue an interrupted run."""
    out: str = "out"


def small_shards() -> None:
    """Let a few faces fill several files; called in the process of the command."""
    face_store.CHUNK = _CHUNK_FRAMES
    synthetic.SHARD_FACES = _SHARD_FACES
    synthetic.SHEET_FACES = _SHARD_FACES
    prepare.SMALLEST_SHARD = _SHARD_FACES


def scenarios(inputs: Path) -> dict[str, Scenario]:
    """Write the inputs of all commands.

    Args:
        inputs: Folder of the inputs.
    """
    photos = inputs / "photos"
    photos.mkdir()
    with Image.open(PHOTO) as image:
        face = image.convert("RGB").resize((200, 200))
    for number, picture in enumerate((face, face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), face.rotate(8))):
        picture.save(photos / f"{number}.png")
    Image.new("RGB", (80, 80)).save(photos / "nobody.png")
    clip = inputs / "clip"
    clip.mkdir()
    for number in range(8):
        face.rotate(2 * number).save(clip / f"{number}.png")
    model = write_model(tiny_model(), inputs / "tiny.safetensors")
    generic = _other_model(inputs / "generic.npz")
    settings = [word for change in (f'model="{model}"', *TRAINING) for word in ("--set", change)]
    net = ("--mode", "net", "--no-detail", "--formats", "npz,json")
    return {
        scenario.name: scenario
        for scenario in (
            Scenario(
                "reconstruct", lambda out: ["reconstruct", photos, "-o", out, *net, "-q"], _results, ("--resume",)
            ),
            Scenario("prepare", lambda out: ["data", "prepare", photos, "-o", out, "--processes", 1], _photo_store),
            Scenario(
                "draw",
                lambda out: [
                    *("data", "synthesize", "-o", out, "--faces", 6, "--size", 32, "--processes", 1, "--model", model)
                ],
                _tensors,
            ),
            Scenario("train", lambda out: ["train", "coarse", "-o", out, *settings], _training_run, ("--resume",)),
            Scenario("track", lambda out: ["track", clip, "-o", out, "-q"], _track, ("--resume",)),
            Scenario("convert", lambda out: ["model", "convert", generic, "-o", out], _model, out="model.safetensors"),
        )
    }


def _other_model(path: Path) -> Path:
    """The packaged model as another project's file, without what a conversion completes."""
    model = load_model()
    arrays = {
        "mean": 1.05 * model.mean, "triangles": model.triangles, "identity_basis": model.identity_basis[:3],
        "landmarks68": model.landmarks68,
    }  # fmt: skip
    np.savez(path, format="mien-npz-1", length_unit_m=1.0, **{name: array.numpy() for name, array in arrays.items()})
    return path


def _whole(out: Path, pattern: str) -> list[Path]:
    """The files that are not in a hidden folder of a writer, which a kill may leave half-written."""
    return sorted(
        path for path in out.rglob(pattern) if not any(part.startswith(".") for part in path.relative_to(out).parts)
    )


def _results(out: Path) -> Content:
    content = {}
    for file in _whole(out, "reconstruction.npz"):
        face = Reconstruction.load(file.parent)
        values = (getattr(face, field.name) for field in fields(face) if field.name != "stage_seconds")
        content[str(file.parent.relative_to(out))] = _hash(
            value.tobytes() if isinstance(value, np.ndarray) else str(value).encode() for value in values
        )
    table = out / "summary.csv"
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if not row["reason"] or row["reason"].startswith("NoFaceFound"):  # others report the fault
                    content[f"row {row['photo']}"] = row["faces"]
    return content


def _track(out: Path) -> Content:
    """The files of the person, and the frames of the overlay."""
    content = {str(path.relative_to(out)): _hash([path.read_bytes()]) for path in _whole(out, "*") if path.is_file()}
    for file in _whole(out, "tracking.npz"):
        Track.load(file)
    return content


def _photo_store(out: Path) -> Content:
    if not (out / INDEX_FILE).exists():
        return {}
    store = FaceStore(str(out))
    records = (store[k] for k in range(len(store)))
    return {
        row.key: _hash((record.crop.numpy().tobytes(), record.mask.numpy().tobytes(), row.photo.encode()))
        for row, record in zip(store.faces, records, strict=True)
    }


def _tensors(out: Path) -> Content:
    """The tensors of all safetensors files; the order of the metadata in a file is random."""
    content = {}
    for path in _whole(out, "*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            content[str(path.relative_to(out))] = _hash(file.get_tensor(name).tobytes() for name in names)
    return content


def _training_run(out: Path) -> Content:
    content = {name: value for name, value in _tensors(out).items() if FOLDER in name or "/" not in name}
    for name in ("metrics.csv", "validation.csv"):
        if (out / name).exists():
            with (out / name).open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row["name"] not in _TIMES:
                        content[f"{name} {row['step']} {row['name']}"] = str(row["value"])
    return content


def _model(out: Path) -> Content:
    """Not its numbers: the last bits of a registration differ between two processes."""
    if not out.exists():
        return {}
    model = load_model(out)
    return {"model": f"{len(model.mean)} vertices, {model.counts}, {model.notes}"}


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
