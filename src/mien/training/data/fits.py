"""`mien data fit`: the fits of the photos of a store, as ground truth for a network that has much less time.

    STORE/fits-000012.safetensors    one file per shard: coefficients of the fit and of the fit to the points alone

Fits cost about a second of a core per photo. A file is written under a temporary name and renamed when it is complete,
so an interrupted run continues with the next shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from mien.camera import Pose
from mien.errors import FitDiverged, FormatError
from mien.fitting import FitSettings, fit, fit_points
from mien.io.files import write_whole, writing
from mien.io.folder_lock import locked_folder
from mien.io.pixels import to_uint8
from mien.io.reading import parse_json
from mien.io.tensors import not_finite, read_tensors
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.networks.weights_file import check_model
from mien.perception import FaceDetector, IdentityNetwork
from mien.pipeline.inputs import PhotoInputs
from mien.training.data.store import FaceRecord, FaceStore
from mien.training.data.workers import run_calls
from mien.typing import Tensor

FIT_NAMES = "fits-*.safetensors"
FORMAT = "mien-fits-1"
_ADVICE = "remove it and run `mien data fit` again"


@dataclass(frozen=True)
class StoredFit:
    """One photo, fitted twice; both are batches of one face, with poses under the camera of the store's crop."""

    landmarks: FaceCoefficients
    """Shape and pose from the points alone, with the mean albedo under white light."""
    full: FaceCoefficients
    """The whole fit."""


def fit_store(
    store: Path, *, model: str, processes: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, StoredFit]:
    """Fit all faces of a store; finished shards of an earlier run are kept.

    Args:
        store: Folder that `mien data prepare` wrote.
        model: Name or path of the face model.
        processes: Number of processes.
        progress: Called with the number of finished faces and the total number.

    Returns:
        The fits by the key of the face in the store. Faces that are not found again, or diverge, are missing.

    Raises:
        FormatError: The folder is no store, or a file of fits is damaged.
        ModelMismatch: A file of fits was made with another face model.
        OutputError: The store cannot be written.
    """
    faces = FaceStore(str(store)).faces
    shards = {face.shard: [k for k, other in enumerate(faces) if other.shard == face.shard] for face in faces}
    advice = "free some space and run the command again"
    with locked_folder(store), writing(store, advice=advice):
        missing = [shard for shard in shards if not _path(store, shard).exists()]
        done = len(faces) - sum(len(shards[shard]) for shard in missing)
        calls = {shard: (store, shard, shards[shard], model) for shard in missing}
        for shard in run_calls(_fit_shard, calls, processes=processes):
            done += len(shards[shard])
            if progress is not None:
                progress(done, len(faces))
    return load_fits(store, load_model(model))


def load_fits(store: Path, model: MorphableModel) -> dict[str, StoredFit]:
    """Read the fits of a store, by the key of the face.

    Args:
        store: Folder that `mien data fit` ran on.
        model: Face model of the fits.

    Raises:
        FormatError: There are no fits, or a file is damaged.
        ModelMismatch: A file was made with another face model.
    """
    paths = sorted(store.glob(FIT_NAMES))
    if not paths:
        raise FormatError(f"{store} has no fits; run `mien data fit {store}`.")
    return {key: fitted for path in paths for key, fitted in _read(path, model).items()}


def _path(store: Path, shard: str) -> Path:
    """The fits of a shard: fits-000012.safetensors for faces-000012.tar."""
    return store / f"fits-{Path(shard).stem.removeprefix('faces-')}.safetensors"


def _fit_shard(store: Path, shard: str, numbers: list[int], model: str) -> None:
    """Write the fits of one shard; runs in a worker process."""
    faces, loaded = FaceStore(str(store)), load_model(model)
    fits = {faces.faces[number].key: _fit_record(faces[number], loaded) for number in numbers}
    write_fits(_path(store, shard), {key: fitted for key, fitted in fits.items() if fitted is not None}, loaded)


def write_fits(path: Path, fits: Mapping[str, StoredFit], model: MorphableModel) -> None:
    """Write the fits of one shard."""
    landmarks = [_tensors(fitted.landmarks, "landmarks") for fitted in fits.values()]
    full = [_tensors(fitted.full, "full") for fitted in fits.values()]
    tensors = (
        {name: torch.cat([face[name] for face in part]) for part in (landmarks, full) for name in part[0]}
        if fits
        else {}
    )
    metadata = {"format": FORMAT, "model_hash": model.fingerprint, "keys": json.dumps(list(fits))}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def _tensors(face: FaceCoefficients, prefix: str) -> dict[str, Tensor]:
    pose = {"rotation": face.pose.rotation, "translation": face.pose.translation}
    shape = {"identity": face.identity, "expression": face.expression}
    colour = {"albedo": face.albedo, "lighting": face.lighting}
    return {f"{prefix}.{name}": tensor.contiguous() for name, tensor in (shape | colour | pose).items()}


def _read(path: Path, model: MorphableModel) -> dict[str, StoredFit]:
    metadata, tensors = read_tensors(path, advice=_ADVICE)
    check_model(model, metadata.get("model_hash", ""), whose=str(path))
    keys = parse_json(metadata.get("keys", ""), list[str], path, advice=_ADVICE)
    damaged = not_finite(tensors) or next((name for name, rows in tensors.items() if len(rows) != len(keys)), None)
    if damaged is not None:
        raise FormatError(f"{path} is damaged ({damaged}); {_ADVICE}.")
    try:
        return {
            key: StoredFit(*(_face(tensors, prefix, row) for prefix in ("landmarks", "full")))
            for row, key in enumerate(keys)
        }
    except KeyError as error:
        raise FormatError(f"{path} is damaged ({error} is missing); {_ADVICE}.") from error


def _face(tensors: Mapping[str, Tensor], prefix: str, row: int) -> FaceCoefficients:
    part = {
        name: tensors[f"{prefix}.{name}"][row : row + 1] for name in ("identity", "expression", "albedo", "lighting")
    }
    rotation, translation = (tensors[f"{prefix}.{name}"][row : row + 1] for name in ("rotation", "translation"))
    return FaceCoefficients(**part, pose=Pose(rotation, translation, torch.ones(1)))


def _fit_record(record: FaceRecord, model: MorphableModel) -> StoredFit | None:
    """Fit the crop of a store as if it were a photo; None if the face is not found in it, or the fit diverges."""
    pixels = to_uint8(record.crop.permute(1, 2, 0))
    detections = _detector().detect(pixels, max_faces=1)
    if not detections:
        return None
    inputs = PhotoInputs.of(
        pixels, detections, focal_px=record.focal_px, principal_point_px=record.centre_px, device=torch.device("cpu")
    )
    targets, settings = replace(inputs.targets, exposure=torch.tensor([record.exposure])), FitSettings()
    try:
        full = fit(model, targets, settings=settings, recognition=_recognition()).coefficients
        return StoredFit(fit_points(model, targets, settings=settings), full)
    except FitDiverged:
        return None


@cache
def _detector() -> FaceDetector:
    return FaceDetector()


@cache
def _recognition() -> IdentityNetwork:
    return IdentityNetwork.from_assets()
