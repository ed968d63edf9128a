"""Packaged weights: where they lie, what they must hash to, and reading them without unpickling.

`manifest.json` beside this file is the table of every asset; `PROVENANCE.md` tells where each came from. A file
that is not in the table is never read, and one whose SHA-256 differs is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mien.errors import AssetError
from mien.typing import Tensor

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"


@dataclass(frozen=True)
class AssetRecord:
    """One row of the manifest: what a packaged file is, and what it must hash to."""

    name: str
    bytes: int
    sha256: str
    licence: str
    source: str


def asset_records() -> tuple[AssetRecord, ...]:
    """List every packaged asset, sorted by name; raises AssetError where the manifest is damaged."""
    try:
        rows = json.loads(MANIFEST.read_text(encoding="utf-8"))
        return tuple(AssetRecord(**row) for row in sorted(rows, key=lambda row: row["name"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AssetError(f"the list of packaged assets, {MANIFEST}, cannot be read: {error}; reinstall mien") from error


@functools.lru_cache(maxsize=32)
def _verified(path: Path, record: AssetRecord, _modified_ns: int) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != record.sha256:
        raise AssetError(f"{path} is damaged: its SHA-256 is {digest} and must be {record.sha256}; reinstall mien")
    return path


def asset_path(name: str) -> Path:
    """Locate one packaged file and verify it against the manifest.

    `name` is the file name, e.g. "facemesh.safetensors". Each file is hashed once per process (and again when it
    was changed). Raises AssetError if it is not in the manifest, is missing, or is damaged.
    """
    record = next((record for record in asset_records() if record.name == name), None)
    if record is None:
        known = ", ".join(record.name for record in asset_records())
        raise AssetError(f"there is no packaged asset {name!r}; there are: {known}")
    path = FOLDER / name
    try:
        return _verified(path, record, path.stat().st_mtime_ns)
    except OSError as error:
        raise AssetError(f"the packaged asset {path} is missing or unreadable ({error}); reinstall mien") from error


def load_tensors(name: str) -> dict[str, Tensor]:
    """Read every tensor of a packaged safetensors file, in the types it is stored in, on the CPU.

    Raises AssetError as `asset_path` does, and where the file is no safetensors file.
    """
    path = asset_path(name)
    try:
        with safe_open(path, framework="pt") as stream:
            return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise AssetError(f"{path} is no valid safetensors file: {error}") from error


def load_metadata(name: str) -> dict[str, str]:
    """Read the text metadata of a packaged safetensors file; raises AssetError as `asset_path` does."""
    path = asset_path(name)
    try:
        with safe_open(path, framework="pt") as stream:
            return dict(stream.metadata() or {})
    except SafetensorError as error:
        raise AssetError(f"{path} is no valid safetensors file: {error}") from error


def load_weights(
    module: torch.nn.Module,
    name: str,
    *,
    arrange: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda stored: stored,
) -> None:
    """Fill a module with a packaged weight file, in the module's own types; raises AssetError on any mismatch.

    `arrange` makes the module's tensors of the file's, where it keeps them otherwise.
    """
    try:
        module.load_state_dict(arrange(load_tensors(name)))
    except (KeyError, RuntimeError) as error:
        raise AssetError(f"{name} does not fit {type(module).__name__}: {error}") from error
