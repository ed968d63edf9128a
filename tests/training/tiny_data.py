"""Small inputs for tests: a model file, stores of synthetic faces, and a run as a kill leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mien.morphable import MorphableModel
from mien.morphable.model import FORMAT
from mien.training.checkpoint import SAVED_FILE, checkpoints
from mien.training.data.store import INDEX_FILE, STORE_MARGIN, FaceRecord, Split, StoredFace, encode_record, write_index
from mien.training.synthetic.faces import SyntheticFaces

CROP = 40


def write_model(model: MorphableModel, path: Path) -> Path:
    """The model as a file that `load_model` reads."""
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "licence": model.licence,
        "length_unit_m": "1.0",
        "expression_names": json.dumps(model.expression_names),
    }
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, metadata=metadata)
    return path


def record_of(model: MorphableModel, number: int, *, size: int = CROP) -> FaceRecord:
    """A synthetic face as a photo store holds it: with a margin around its face crop."""
    batch = SyntheticFaces(model, size=size, seed=5).render([number])
    inner = (1 - 1 / STORE_MARGIN) / 2 * size
    crop = torch.nn.functional.pad(
        torch.nn.functional.interpolate(batch.images, scale_factor=1 / STORE_MARGIN), (round(inner),) * 4
    )
    crop = torch.nn.functional.interpolate(crop, size=(size, size))[0]

    def moved(points: torch.Tensor) -> torch.Tensor:
        return points / STORE_MARGIN + inner

    return FaceRecord(
        crop=crop,
        mask=batch.mask[0],
        landmarks68_px=moved(batch.landmarks68_px[0]),
        landmarks468_px=moved(batch.gt_px[0]),
        focal_px=float(batch.camera.focal_px[0]) / STORE_MARGIN,
        centre_px=tuple(moved(batch.camera.centre_px[0]).tolist()),  # pyright: ignore[reportArgumentType]
        exposure=1.0,
    )


def write_store(model: MorphableModel, folder: Path, *, splits: dict[Split, int]) -> Path:
    """A photo store with the given number of synthetic faces per split, all in one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, data = [], b""
    for number, split in enumerate(s for s, count in splits.items() for _ in range(count)):
        key = f"{number:08d}"
        part = encode_record(key, record_of(model, number), notes={"photo": key})
        rows.append(StoredFace(key, "faces.tar", len(data), len(part), f"{key}.jpg", f"p{number}", 30, split, ()))
        data += part
    (folder / "faces.tar").write_bytes(data + b"\0" * 1024)
    write_index(str(folder / INDEX_FILE), rows, settings={})
    return folder


def undo_last_checkpoint(run: Path) -> None:
    """Change a run to the state in which a kill during its last checkpoint would leave it."""
    newest = checkpoints(run)[-1]
    newest.rename(newest.with_name(f".{newest.name}.partial-1"))
    (run / SAVED_FILE).unlink()
    if left := checkpoints(run):
        (run / SAVED_FILE).write_text(json.dumps({"step": int(left[-1].name.removeprefix("step-"))}), encoding="utf-8")
