"""Numeric datasets of an HDF5 file, read by a child process (see `hdf5_child`)."""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mien.errors import BackendUnavailable, FormatError
from mien.io.reading import Budget, parse_json

_CHILD = Path(__file__).with_name("hdf5_child.py")
_TIMEOUT_S = 120


def read_hdf5(path: Path, names: tuple[str, ...], *, transposed: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
    """Read those of the named datasets that exist.

    Args:
        path: The HDF5 file.
        names: Paths of datasets inside the file.
        transposed: Names of matrices that are returned with rows and columns exchanged.

    Returns:
        Writable arrays by name, in the file's types.

    Raises:
        FormatError: The file is damaged or too large.
        BackendUnavailable: h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise BackendUnavailable(f"{path}: HDF5 files need h5py; install it with: pip install 'mien[formats]'")
    budget = Budget(path)
    with tempfile.TemporaryDirectory(prefix="mien-hdf5-", dir=_scratch(2 * path.stat().st_size)) as folder:
        command = [sys.executable, "-I", str(_CHILD), str(path.absolute()), folder, str(budget.left)]
        command += [f"{name}.T" if name in transposed else name for name in names]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise FormatError(f"{path}: not read within {_TIMEOUT_S} s; expected an HDF5 face model") from error
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
            raise FormatError(f"{path}: the HDF5 library failed on it ({reason[0]}); expected a complete HDF5 file")
        found: dict[str, np.ndarray] = {}
        for line in done.stdout.splitlines():
            entry = parse_json(line, dict[str, Any], path)
            if "error" in entry:
                raise FormatError(f"{path}: {entry['error']}")
            raw = Path(folder) / f"{entry['name'].replace('/', '.')}.raw"
            shape = tuple(entry["shape"])
            budget.take(math.prod(shape) * np.dtype(entry["type"]).itemsize, entry["name"])
            # Mapped, not copied: the pages stay valid after the file is deleted, and no other process can see them.
            mapped = np.memmap(raw, entry["type"], "r+", shape=shape) if math.prod(shape) else np.zeros(shape)
            found[entry["name"]] = np.asarray(mapped)
        return found


def _scratch(needed_bytes: int) -> str | None:
    """A folder in memory if the system has one with enough room, so that the child's arrays are not written to disk."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > needed_bytes else None
