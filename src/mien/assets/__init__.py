"""Packaged weights: their paths, their hashes, and reading them without unpickling.

`manifest.json` in this folder lists all assets; `PROVENANCE.md` names their sources. A file that is not in the list is
never read, and one with another SHA-256 is refused.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mien.errors import AssetError
from mien.io.placeholders import refuse_placeholder
from mien.io.reading import read_json
from mien.io.tensors import open_tensors, read_tensors
from mien.typing import Tensor

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"
_ADVICE = "reinstall mien"


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
    rows = read_json(MANIFEST, list[AssetRecord], advice=_ADVICE, error=AssetError)
    return tuple(sorted(rows, key=lambda row: row.name))


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
    return read_tensors(asset_path(name), advice=_ADVICE, error=AssetError)[1]


def load_metadata(name: str) -> dict[str, str]:
    """Read the metadata of a packaged safetensors file.

    Args:
        name: Name of the file.

    Returns:
        Texts by key.

    Raises:
        AssetError: As `load_tensors`.
    """
    with open_tensors(asset_path(name), advice=_ADVICE, error=AssetError) as file:
        return dict(file.metadata() or {})


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
