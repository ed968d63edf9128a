"""Drawn faces on disk: drawn once, for as many runs as are wanted, each in an order of its own.

    STORE/drawn.json                  format, face model, and how the faces were drawn
    STORE/faces-000012.safetensors    pictures and masks in bytes; points, cameras and truth in float32
    STORE/sheet.png                   the first of them, to look at

Drawing a face and finding its points costs a core some 30 ms, reading it back a fraction of one.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mien.camera import Camera
from mien.errors import ConfigError, FormatError
from mien.io.files import remove_partial, write_text, write_whole, writing
from mien.io.pixels import to_uint8
from mien.morphable import MorphableModel, load_model
from mien.morphable.symmetry import Mirror
from mien.networks.crop_space import HEAD_UNITS, CropSpaceParameters, mean_face_frame
from mien.networks.weights_file import check_model
from mien.perception import FaceMesh
from mien.training.data.batch import TENSORS, FaceBatch, join_batches, resized
from mien.training.data.photos import order_of_epoch
from mien.training.data.workers import each_done
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.samples import sheet_of
from mien.typing import Tensor

FORMAT = "mien-drawn-1"
PLAN_FILE, SHEET_FILE = "drawn.json", "sheet.png"
SHARD_NAMES = "faces-*.safetensors"
SHARD_FACES, SHEET_FACES = 512, 48
DRAWN_BATCH = 32
IN_BYTES = ("images", "mask")

DISK_NAMES = {"gt_px": "mesh_px", "detected_px": "found_px"}
"""Names of mien 0.1, which the files keep."""


@dataclass(frozen=True)
class SyntheticStorePlan:
    """What the faces of a drawn store are."""

    faces: int
    size: int = 128
    """Side of the crops, pixels."""
    seed: int = 0
    jitter: float = 1.0
    """See `DataSettings.jitter`."""
    model: str = "mien-face"
    skins: str = ""
    """A file of `mien data skins`."""

    @property
    def shards(self) -> int:
        """How many files they fill; the last may hold fewer."""
        return -(-self.faces // SHARD_FACES)

    def numbers(self, shard: int) -> range:
        """The faces of a shard."""
        return range(shard * SHARD_FACES, min((shard + 1) * SHARD_FACES, self.faces))


def write_synthetic_store(
    plan: SyntheticStorePlan, store: Path, *, processes: int, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw what a store lacks, and return its sheet; one that was stopped goes on, and more faces can be added.

    A face is a function of the plan's seed and its own number: nothing else of the plan or the machine changes it.
    `progress` is told how many faces of how many are done.
    Until the added faces are all there, the store is the smaller one that it was.
    Raises ConfigError for a store of another plan or of more faces, FormatError for a damaged one, what
    `SkinBank.load` raises, OutputError where it cannot be written.
    """
    settings = _begin(plan, store)
    missing = lacking(plan, store)
    done = plan.faces - sum(len(plan.numbers(shard)) for shard in missing)
    calls = {shard: (plan, plan.numbers(shard), _shard_path(store, shard)) for shard in missing}
    for shard in each_done(_draw_shard, calls, processes=processes):
        done += len(plan.numbers(shard))
        if progress is not None:
            progress(done, plan.faces)
    _write_plan(settings, store)
    return _write_sheet(store)


def _write_sheet(store: Path) -> Path:
    path = store / SHEET_FILE
    again = "free some space and run the command again"
    with writing(path, advice=again), safe_open(_shard_path(store, 0), framework="pt") as file:
        Image.fromarray(sheet_of(file.get_slice("images")[:SHEET_FACES].float() / 255)).save(path)
    return path


def lacking(plan: SyntheticStorePlan, store: Path) -> list[int]:
    """The shards that are not there, or hold fewer faces than the plan has in them."""
    return [shard for shard in range(plan.shards) if _count(_shard_path(store, shard)) < len(plan.numbers(shard))]


def _count(shard: Path) -> int:
    if not shard.exists():
        return 0
    try:
        with safe_open(shard, framework="pt") as file:
            return file.get_slice("images").get_shape()[0]
    except (OSError, SafetensorError):  # damaged: to be drawn again
        return 0


def _begin(plan: SyntheticStorePlan, store: Path) -> dict[str, object]:
    """What the store's plan will say when all is drawn."""
    model = load_model(plan.model)
    skins = ""
    if plan.skins:
        SkinBank.load(Path(plan.skins), model)  # that it can be worn is to be known before hours of drawing
        skins = hashlib.sha256(Path(plan.skins).read_bytes()).hexdigest()
    settings = {"format": FORMAT, **asdict(plan), "skins": skins, "model_hash": model.fingerprint}
    path = store / PLAN_FILE
    if not path.exists():
        _write_plan(settings, store)
        return settings
    begun = _plan_content(path)
    if {**begun, "faces": plan.faces} != settings:
        raise ConfigError(f"{store} was begun with other settings; see {path}, or choose another folder.")
    if begun["faces"] > plan.faces:
        raise ConfigError(f"{store} has {begun['faces']} faces already, and {plan.faces} were asked for; ask for more.")
    with writing(store):
        remove_partial(store, SHARD_NAMES)
    return settings


def _write_plan(settings: dict[str, object], store: Path) -> None:
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
        write_text(store / PLAN_FILE, json.dumps(settings, indent=1))


def _plan_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise FormatError(f"{path} is of another format; this version of mien reads {FORMAT!r}.")
        if not isinstance(content["faces"], int) or content["faces"] < 1:
            raise ValueError("no number of faces")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path.parent} is no store of drawn faces, or a damaged one ({error}); make one with `mien data draw`."
        ) from error
    return content


@cache
def _studio(plan: SyntheticStorePlan) -> SyntheticFaces:
    """What a process draws with, made once."""
    model = load_model(plan.model)
    skins = SkinBank.load(Path(plan.skins), model) if plan.skins else None
    mesh = FaceMesh.from_assets()
    return SyntheticFaces(model, size=plan.size, seed=plan.seed, skins=skins, jitter=plan.jitter, mesh=mesh)


def _draw_shard(plan: SyntheticStorePlan, numbers: range, path: Path) -> None:
    faces = _studio(plan)
    batches = [faces.batch(numbers[k : k + DRAWN_BATCH]) for k in range(0, len(numbers), DRAWN_BATCH)]
    tensors = _tensors(join_batches(batches))
    with writing(path, advice="free some space and run the command again"):
        write_whole(path, lambda partial: save_file(tensors, partial))


def _shard_path(store: Path, shard: int) -> Path:
    return store / f"faces-{shard:06d}.safetensors"


def _tensors(batch: FaceBatch) -> dict[str, Tensor]:
    if batch.gt is None:
        raise TypeError("drawn faces come with their truth")
    tensors = {DISK_NAMES.get(name, name): getattr(batch, name) for name in TENSORS}
    tensors |= {name: torch.from_numpy(to_uint8(tensors[name])) for name in IN_BYTES}
    tensors |= {"focal_px": batch.camera.focal_px, "centre_px": batch.camera.centre_px}
    tensors |= {f"truth.{name}": getattr(batch.gt, name) for name in HEAD_UNITS}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class StoredSyntheticFaces:
    """The faces of a drawn store in crops of `size` pixels, in another order each time they come round.

    Every second face is mirrored, where the model has a mirror (`Mirror.of`).
    FormatError for a place without a whole store, ModelMismatch for one of another face model, ConfigError for one
    with smaller crops.
    """

    def __init__(self, store: Path, model: MorphableModel, *, size: int, seed: int) -> None:
        self.store, self.size, self.seed = store, size, seed
        self.plan = _read_plan(store, model)
        self.fingerprint = hashlib.sha256((store / PLAN_FILE).read_bytes()).hexdigest()
        if self.plan.size < size:
            raise ConfigError(
                f"{store} has crops of {self.plan.size} px; draw another with --size {size} for this encoder."
            )
        missing = lacking(self.plan, store)
        if missing:
            raise FormatError(f"{store} lacks {len(missing)} of {self.plan.shards} files; run `mien data draw` again.")
        self._sides_per_m = mean_face_frame(model).sides_per_m
        self._mirror = Mirror.of(model)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces at these places of the order, which goes through the store again and again."""
        return resized(join_batches([self._face(number) for number in numbers]), self.size)

    def _face(self, number: int) -> FaceBatch:
        epoch, place = divmod(number, self.plan.faces)
        face = self._stored(int(order_of_epoch(self.seed, epoch, self.plan.faces)[place]))
        if self._mirror is None or np.random.default_rng((self.seed, 1, number)).random() < 0.5:
            return face
        return face.mirrored(self._mirror)

    def _stored(self, index: int) -> FaceBatch:
        shard, row = divmod(index, SHARD_FACES)
        path = _shard_path(self.store, shard)
        try:
            with safe_open(path, framework="pt") as file:
                read = {name: file.get_slice(name)[row : row + 1] for name in file.keys()}  # noqa: SIM118 (no mapping)
            pictures = {name: read[name].float() / 255 for name in IN_BYTES}
            points = {name: read[DISK_NAMES.get(name, name)] for name in TENSORS if name not in IN_BYTES}
            gt = {name: read[f"truth.{name}"] for name in HEAD_UNITS}
            camera = Camera(read["focal_px"], read["centre_px"], image_size=(self.plan.size, self.plan.size))
        except (OSError, KeyError, SafetensorError) as error:
            raise FormatError(f"{path} is damaged ({error}); remove it and run `mien data draw` again.") from error
        return FaceBatch(
            **pictures,
            **points,
            camera=camera,
            gt=CropSpaceParameters(**gt, sides_per_m=self._sides_per_m),
            names=(f"drawn-{self.plan.seed}-{index}",),
        )


def _read_plan(store: Path, model: MorphableModel) -> SyntheticStorePlan:
    path = store / PLAN_FILE
    content = _plan_content(path)
    del content["format"]
    try:
        check_model(model, content.pop("model_hash"), whose=str(store))
        return SyntheticStorePlan(**content)
    except (KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged ({error}); draw the store again with `mien data draw`.") from error
