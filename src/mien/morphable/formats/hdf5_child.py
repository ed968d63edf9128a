"""Separate process that copies numeric datasets of an HDF5 file to raw arrays in a folder.

The HDF5 library is large C code that damaged files have crashed before. A crash or a runaway allocation ends this
process and not the caller's. It imports nothing of mien, so that it starts in a fraction of a second.

    python -I hdf5_child.py FILE FOLDER MEMORY_LIMIT DATASET...

A dataset named `NAME.T` is written transposed, which saves the caller a copy. Prints one JSON object per line: name,
type and shape of an array, or {"error": ...}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # no filter libraries from disk
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"

os.environ["OPENBLAS_NUM_THREADS"] = "1"

_NUMBER_KINDS = "iuf"
_TURNED = ".T"
_BLOCK = 512
"""Rows of a matrix that are transposed at a time: they fit the cache."""
_LIBRARIES_BYTES = 2 << 30
"""Upper bound of the address space of Python, NumPy and HDF5 themselves."""


class _Refused(Exception):
    pass


def main(arguments: list[str]) -> None:
    """Copy the datasets named on the command line."""
    source, folder, limit, *names = arguments
    limit_bytes = int(limit)
    _limit_memory(limit_bytes)
    import h5py  # noqa: PLC0415 (after the settings above)

    try:
        with h5py.File(source, "r") as file:
            for name in names:
                limit_bytes -= _extract(file, name, Path(folder), limit_bytes)
    except _Refused as error:
        print(json.dumps({"error": str(error)}))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, MemoryError, OverflowError) as error:
        print(json.dumps({"error": f"HDF5 library error: {error}"}))


def _limit_memory(limit_bytes: int) -> None:
    """Let the system end this process if it allocates too much; Windows has no such limit."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = 2 * limit_bytes + _LIBRARIES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _extract(file: Any, name: str, folder: Path, limit_bytes: int) -> int:
    turned, name = name.endswith(_TURNED), name.removesuffix(_TURNED)
    dataset = _dataset(file, name)
    if dataset is None:
        return 0
    if dataset.dtype.kind not in _NUMBER_KINDS or dataset.dtype.hasobject:
        raise _Refused(f"{name} is of type {dataset.dtype}; expected numbers")
    if dataset.is_virtual or dataset.external:
        raise _Refused(f"{name} is stored in another file; expected it in this one")
    if 0 in dataset.shape and (dataset.ndim > 2 or max(dataset.shape) > limit_bytes):
        raise _Refused(f"{name} has shape {dataset.shape}; expected an array that the file could hold")
    if dataset.nbytes > limit_bytes:
        raise _Refused(f"{name} claims {dataset.nbytes} bytes; expected at most {limit_bytes}")
    if 0 in dataset.shape:
        shape = list(dataset.shape[::-1] if turned else dataset.shape)
    else:
        shape = _write(dataset, folder / f"{name.replace('/', '.')}.raw", turned=turned)
    print(json.dumps({"name": name, "type": dataset.dtype.str, "shape": shape}))
    return int(dataset.nbytes)


def _write(dataset: Any, target: Path, *, turned: bool) -> list[int]:
    """Copy directly into the mapped file, transposed if `turned`; returns the shape written."""
    import numpy as np  # noqa: PLC0415

    if turned and dataset.ndim != 2:
        raise _Refused(f"{dataset.name} has shape {dataset.shape}; expected a matrix")
    with target.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk raises an error here; in a mapping it would be a signal
            os.posix_fallocate(file.fileno(), 0, dataset.nbytes)
        else:
            file.truncate(dataset.nbytes)
    if not turned:
        written = np.memmap(target, dataset.dtype, "r+", shape=dataset.shape or (1,))
        dataset.read_direct(written.reshape(dataset.shape))
        return list(dataset.shape)
    written = np.memmap(target, dataset.dtype, "r+", shape=dataset.shape[::-1])
    # A compressed chunk would be unpacked again for every block that touches it, so such matrices are read at once.
    step = _BLOCK if dataset.chunks is None else len(dataset)
    for first in range(0, len(dataset), step):
        block = slice(first, first + step)
        written[:, block] = dataset[block].T
    return list(written.shape)


def _dataset(file: Any, name: str) -> Any:
    """Find a dataset along hard links only, because soft and external links may lead to other files."""
    import h5py  # noqa: PLC0415

    node = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            return None
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise _Refused(f"{name} is a link to another place; expected it in this file")
        node = node[part]
    return node if isinstance(node, h5py.Dataset) else None


if __name__ == "__main__":
    main(sys.argv[1:])
