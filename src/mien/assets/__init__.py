"""Packaged weights: their paths, their hashes, and reading them without unpickling.

`manifest.json` in this folder lists all assets; `PROVENANCE.md` names their sources. A file that is not in the list is
never read, and one with another SHA-256 is refused.
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
from mien.io.placeholders import refuse_placeholder
from mien.typing import Tensor

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"


@dataclass(frozen=True)
class AssetRecord:
    """One row of the manifest."""

    name: str
    """Name of the file."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file, hexadecimal."""
    licence: str
    """SPDX identifiers."""
    source: str
    """What the file was made from."""


def asset_records() -> tuple[AssetRecord, ...]:
    """List all packaged assets.

    Returns:
        One record per file, sorted by name.

    Raises:
        AssetError: The manifest is damaged.
    """
    try:
        rows = json.loads(MANIFEST.read_text(encoding="utf-8"))
        return tuple(AssetRecord(**row) for row in sorted(rows, key=lambda row: row["name"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AssetError(f"the list of packaged assets, {MANIFEST}, cannot be read: {error}; reinstall mien") from error


@functools.lru_cache(maxsize=32)
def _verified(path: Path, record: AssetRecord, _modified_ns: int) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != record.sha256:
        refuse_placeholder(path, AssetError)
        raise AssetError(
            f"{path} has the SHA-256 {digest}, and {MANIFEST.name} of this version of mien expects {record.sha256}: "
            "the file is damaged or belongs to another version; reinstall mien"
        )
    return path


def asset_path(name: str) -> Path:
    """Locate one packaged file and verify its hash, once per process and again after a change.

    Args:
        name: Name of the file, for example "facemesh.safetensors".

    Returns:
        Its path.

    Raises:
        AssetError: The file is not in the manifest, is missing or is damaged.
    """
    record = next((record for record in asset_records() if record.name == name), None)
    if record is None:
        known = ", ".join(record.name for record in asset_records())
        raise AssetError(f"name={name!r} is not a packaged asset; use one of {known}")
    path = FOLDER / name
    try:
        return _verified(path, record, path.stat().st_mtime_ns)
    except OSError as error:
        raise AssetError(f"the packaged asset {path} is missing or unreadable ({error}); reinstall mien") from error


def load_tensors(name: str) -> dict[str, Tensor]:
    """Read all tensors of a packaged safetensors file.

    Args:
        name: Name of the file.

    Returns:
        The tensors by name, in their stored types, on the CPU.

    Raises:
        AssetError: As `asset_path`, or the file is not a safetensors file.
    """
    path = asset_path(name)
    try:
        with safe_open(path, framework="pt") as stream:
            return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise AssetError(f"{path} is not a valid safetensors file: {error}") from error


def load_metadata(name: str) -> dict[str, str]:
    """Read the metadata of a packaged safetensors file.

    Args:
        name: Name of the file.

    Returns:
        Texts by key.

    Raises:
        AssetError: As `load_tensors`.
    """
    path = asset_path(name)
    try:
        with safe_open(path, framework="pt") as stream:
            return dict(stream.metadata() or {})
    except SafetensorError as error:
        raise AssetError(f"{path} is not a valid safetensors file: {error}") from error


def load_weights(
    module: torch.nn.Module,
    name: str,
    *,
    arrange: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda stored: stored,
) -> None:
    """Load a packaged weight file into a module, in the module's own types.

    Args:
        module: The network.
        name: Name of the file.
        arrange: Converts the tensors of the file to those of the module, if they differ.

    Raises:
        AssetError: As `load_tensors`, or names or shapes do not match.
    """
    try:
        module.load_state_dict(arrange(load_tensors(name)))
    except (KeyError, RuntimeError) as error:
        raise AssetError(f"{name} does not fit {type(module).__name__}: {error}; reinstall mien") from error
