"""Synthetic faces on disk: rendered once, used by any number of runs, by each in an order of its own.

    STORE/drawn.json                  format, face model, and how the faces are made
    STORE/faces-000012.safetensors    images and masks as bytes; points, cameras and ground truth in float32
    STORE/sheet.png                   the first faces, to look at

Rendering a face and detecting its points costs a core about 30 ms; reading it takes a small fraction of 1 ms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from mien.camera import Camera
from mien.errors import ConfigError, FormatError
from mien.io.files import write_text, write_whole, writing
from mien.io.folder_lock import locked_folder
from mien.io.pixels import to_uint8
from mien.io.reading import converted, read_json
from mien.io.tensors import not_finite, open_tensors
from mien.lighting import SH_COUNT
from mien.morphable import MorphableModel, load_model
from mien.morphable.symmetry import Mirror
from mien.networks.crop_space import HEAD_UNITS, CropSpaceParameters, mean_face_frame
from mien.networks.weights_file import check_model
from mien.perception import FaceMesh
from mien.training.data.batch import TENSORS, FaceBatch, join_batches, resized
from mien.training.data.photos import epoch_order
from mien.training.data.workers import run_calls
from mien.training.synthetic.disk_names import GT_PREFIX, PLAN_FILE, STORE_FORMAT, TENSOR_NAMES
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import POPULATION_VERSION, SkinBank
from mien.training.synthetic.samples import sheet_of
from mien.typing import Tensor

SHEET_FILE = "sheet.png"
SHARD_FACES, SHEET_FACES = 512, 48
MAX_FACES, MAX_SIZE = 100_000_000, 1024
"""Limits of a store; rendering 100 million faces takes a core a month."""
RENDER_BATCH = 32
_ADVICE = "remove it and run `mien data synthesize` again"
BYTE_TENSORS = ("images", "mask")
"""Fields of `FaceBatch` that are stored as bytes."""


@dataclass(frozen=True)
class SyntheticStorePlan:
    """What the faces of a synthetic store are."""

    faces: int
    """Number of faces."""
    size: int = 128
    """Side of the crops, pixels."""
    seed: int = 0
    """Decides all faces."""
    jitter: float = 1.0
    """Multiplies the random shift and size of the crops, see `DataSettings.jitter`."""
    model: str = "mien-face"
    """Name or path of the face model."""
    skins: str = ""
    """A file of `mien data skins`; empty for none."""

    def __post_init__(self) -> None:
        for name, value, limit in (("faces", self.faces, MAX_FACES), ("size", self.size, MAX_SIZE)):
            if not 1 <= value <= limit:
                raise ConfigError(f"{name}={value} is out of range for a store of synthetic faces; use 1 to {limit}.")

    @property
    def shards(self) -> int:
        """Number of files; the last may hold fewer faces."""
        return -(-self.faces // SHARD_FACES)

    def numbers(self, shard: int) -> range:
        """The numbers of the faces of a shard."""
        return range(shard * SHARD_FACES, min((shard + 1) * SHARD_FACES, self.faces))


def write_synthetic_store(
    plan: SyntheticStorePlan, store: Path, *, processes: int, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the missing shards of a store: of a new one, of one that was interrupted, or of one that gets more faces.

    A face is a function of the plan's seed and its number; nothing else of the plan or the machine changes it. Until
    all added faces are written, the store stays the smaller one that it was.

    Args:
        plan: What the faces are.
        store: Folder of the store; made if it does not exist.
        processes: Number of processes.
        progress: Called with the number of finished faces and the total number.

    Returns:
        Path of the contact sheet.

    Raises:
        ConfigError: The store was started with another plan, or has more faces than `plan.faces`.
        FormatError: The store's plan or the skins file is damaged.
        ModelMismatch: The skins belong to another face model.
        OutputError: The store cannot be written, or another process writes it.
    """
    with locked_folder(store):
        settings = _open_store(plan, store)
        missing = missing_shards(plan, store)
        done = plan.faces - sum(len(plan.numbers(shard)) for shard in missing)
        calls = {shard: (plan, plan.numbers(shard), _shard_path(store, shard)) for shard in missing}
        for shard in run_calls(_write_shard, calls, processes=processes):
            done += len(plan.numbers(shard))
            if progress is not None:
                progress(done, plan.faces)
        _write_plan(settings, store)
        return _write_sheet(store)


def _write_sheet(store: Path) -> Path:
    path = store / SHEET_FILE
    advice = "free some space and run the command again"
    with writing(path, advice=advice), open_tensors(_shard_path(store, 0), advice=_ADVICE) as file:
        write_whole(path, Image.fromarray(sheet_of(file.get_slice("images")[:SHEET_FACES].float() / 255)).save)
    return path


def missing_shards(plan: SyntheticStorePlan, store: Path) -> list[int]:
    """The shards that do not exist or hold fewer faces than the plan."""
    return [shard for shard in range(plan.shards) if _face_count(_shard_path(store, shard)) < len(plan.numbers(shard))]


def _face_count(shard: Path) -> int:
    if not shard.exists():
        return 0
    try:
        with open_tensors(shard, advice=_ADVICE) as file:
            return file.get_slice("images").get_shape()[0]
    except FormatError:  # damaged: it is written again
        return 0


def _open_store(plan: SyntheticStorePlan, store: Path) -> dict[str, object]:
    """Start a store or check that it can be continued; returns its plan file's content once it is complete."""
    model = load_model(plan.model)
    skins = ""
    if plan.skins:
        skins = SkinBank.load(Path(plan.skins), model).fingerprint
    hashes = {"skins": skins, "model_hash": model.fingerprint}
    settings = {"format": STORE_FORMAT, "population": POPULATION_VERSION, **asdict(plan), **hashes}
    path = store / PLAN_FILE
    if not path.exists():
        _write_plan(settings, store)
        return settings
    existing = _read_plan_file(path)
    if plan.skins and existing.get("skins") == hashlib.sha256(Path(plan.skins).read_bytes()).hexdigest():
        settings["skins"] = existing["skins"]  # a store of mien 0.2 or earlier, which has the hash of the file
    changed = [
        f"{name} ({existing.get(name)!r} there, {settings.get(name)!r} now)"
        for name in dict.fromkeys((*settings, *existing))
        if name != "faces" and existing.get(name) != settings.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{store} was started with other settings, see {path}: {', '.join(changed)}. Skins and model are compared "
            "by the hash of their content, and the population is that of another version of mien; use the former ones, "
            "or choose another folder."
        )
    if existing["faces"] > plan.faces:
        raise ConfigError(
            f"{store} has {existing['faces']} faces already, more than faces={plan.faces}; use at least as many."
        )
    return settings


def _write_plan(settings: dict[str, object], store: Path) -> None:
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
        write_text(store / PLAN_FILE, json.dumps(settings, indent=1))


def _read_plan_file(path: Path) -> dict[str, Any]:
    advice = f"{path.parent} is not a store of synthetic faces, or a damaged one; make one with `mien data synthesize`"
    content = read_json(path, dict[str, Any], advice=advice)
    if content.get("format") != STORE_FORMAT:
        raise FormatError(f"{path} has format {content.get('format')!r}; this version of mien reads {STORE_FORMAT!r}.")
    converted(content, SyntheticStorePlan, path, advice=advice)
    return content


@cache
def _process_stream(plan: SyntheticStorePlan) -> SyntheticFaces:
    """The stream that a process renders from, made once per process."""
    model = load_model(plan.model)
    skins = SkinBank.load(Path(plan.skins), model) if plan.skins else None
    mesh = FaceMesh.from_assets()
    return SyntheticFaces(model, size=plan.size, seed=plan.seed, skins=skins, jitter=plan.jitter, mesh=mesh)


def _write_shard(plan: SyntheticStorePlan, numbers: range, path: Path) -> None:
    faces = _process_stream(plan)
    batches = [faces.batch(numbers[k : k + RENDER_BATCH]) for k in range(0, len(numbers), RENDER_BATCH)]
    tensors = _to_tensors(join_batches(batches))
    with writing(path, advice="free some space and run the command again"):
        write_whole(path, lambda partial: save_file(tensors, partial))


def _shard_path(store: Path, shard: int) -> Path:
    return store / f"faces-{shard:06d}.safetensors"


def _to_tensors(batch: FaceBatch) -> dict[str, Tensor]:
    if batch.gt is None:
        raise TypeError("batch.gt is None; only synthetic faces, which have ground truth, can be stored.")
    tensors = {TENSOR_NAMES.get(name, name): getattr(batch, name) for name in TENSORS}
    tensors |= {name: torch.from_numpy(to_uint8(tensors[name])) for name in BYTE_TENSORS}
    tensors |= {"focal_px": batch.camera.focal_px, "centre_px": batch.camera.centre_px}
    tensors |= {f"{GT_PREFIX}{name}": getattr(batch.gt, name) for name in HEAD_UNITS}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class StoredSyntheticFaces:
    """An endless stream of the faces of a synthetic store, in another order in every epoch.

    Half of the faces are mirrored, at random, if the model has a mirror (`Mirror.of`).

    Args:
        store: Folder of the store.
        model: The face model of the store.
        size: Side of the crops, pixels; at most that of the store.
        seed: Decides the order, and which faces are mirrored.

    Raises:
        FormatError: The folder is not a complete store.
        ModelMismatch: The store belongs to another face model.
        ConfigError: The crops of the store are smaller than `size`.
    """

    def __init__(self, store: Path, model: MorphableModel, *, size: int, seed: int) -> None:
        self.store, self.size, self.seed = store, size, seed
        self.plan = _read_plan(store, model)
        self.fingerprint = hashlib.sha256((store / PLAN_FILE).read_bytes()).hexdigest()
        if self.plan.size < size:
            raise ConfigError(
                f"{store} has crops of {self.plan.size} px, but this encoder needs {size}; make another store with "
                f"--size {size}."
            )
        missing = missing_shards(self.plan, store)
        if missing:
            raise FormatError(
                f"{len(missing)} of {self.plan.shards} files are missing in {store}; run `mien data synthesize` again."
            )
        self._shapes = _tensor_shapes(model, self.plan.size)
        self._sides_per_m = mean_face_frame(model).sides_per_m
        self._mirror = Mirror.of(model)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers in the stream; number n belongs to epoch n // plan.faces."""
        return resized(join_batches([self._face(number) for number in numbers]), self.size)

    def _face(self, number: int) -> FaceBatch:
        epoch, position = divmod(number, self.plan.faces)
        face = self._stored(int(epoch_order(self.seed, epoch, self.plan.faces)[position]))
        if self._mirror is None or np.random.default_rng((self.seed, 1, number)).random() < 0.5:
            return face
        return face.mirrored(self._mirror)

    def _stored(self, index: int) -> FaceBatch:
        shard, row = divmod(index, SHARD_FACES)
        path = _shard_path(self.store, shard)
        with open_tensors(path, advice=_ADVICE) as file:
            read = {name: file.get_slice(name)[row : row + 1] for name in self._shapes}
        wrong = [name for name, shape in self._shapes.items() if read[name].shape != (1, *shape)]
        damaged = wrong[0] if wrong else not_finite(read)
        if damaged is not None:
            raise FormatError(
                f"{path}: {damaged} of face {index} has the shape {tuple(read[damaged].shape[1:])}, or values that are "
                f"not finite; expected finite values of the shape {self._shapes[damaged]}; {_ADVICE}."
            )
        images = {name: read[name].float() / 255 for name in BYTE_TENSORS}
        points = {name: read[TENSOR_NAMES.get(name, name)] for name in TENSORS if name not in BYTE_TENSORS}
        gt = {name: read[f"{GT_PREFIX}{name}"] for name in HEAD_UNITS}
        return FaceBatch(
            **images,
            **points,
            camera=Camera(read["focal_px"], read["centre_px"], image_size=(self.plan.size, self.plan.size)),
            gt=CropSpaceParameters(**gt, sides_per_m=self._sides_per_m),
            names=(f"stored-{self.plan.seed}-{index}",),
        )


def _tensor_shapes(model: MorphableModel, size: int) -> dict[str, tuple[int, ...]]:
    """Names of the tensors of a shard, and their shapes per face."""
    identity, expression, albedo = model.counts
    sizes = (identity, expression, albedo, 3 * SH_COUNT, 3, 2, 1)
    shapes: dict[str, tuple[int, ...]] = {
        "images": (3, size, size), "mask": (size, size), "landmarks68_px": (68, 2), "gt_px": (468, 2),
        "detected_px": (468, 2),
    }  # fmt: skip
    named = {TENSOR_NAMES.get(name, name): shape for name, shape in shapes.items()}
    named |= {"focal_px": (), "centre_px": (2,)}
    return named | {f"{GT_PREFIX}{name}": (count,) for name, count in zip(HEAD_UNITS, sizes, strict=True)}


def _read_plan(store: Path, model: MorphableModel) -> SyntheticStorePlan:
    path = store / PLAN_FILE
    content = _read_plan_file(path)
    check_model(model, str(content.get("model_hash", "")), whose=str(store))
    return converted(content, SyntheticStorePlan, path)
