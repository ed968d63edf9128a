"""Size limits of face models, which readers check before they allocate memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mien.errors import FormatError
from mien.io.placeholders import refuse_placeholder

MAX_VERTICES = 200_000
MAX_TRIANGLES = 400_000
MAX_COMPONENTS = 1_000
MAX_FILE_BYTES = 4 << 30
MAX_JSON_BYTES = 1 << 20
# Compression shrinks floating-point face models by less than a factor of 4 (ICT-FaceKit, whose deltas lie on a grid,
# by 3.3); sparse blendshapes shrink more.
MAX_EXPANSION = 16
_SLACK_BYTES = 1 << 20


def file_size(path: Path) -> int:
    """Size of a file in bytes; FormatError if it is missing, empty, too large or a placeholder of another file."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    refuse_placeholder(path, FormatError)
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise FormatError(f"{path}: {size} bytes; expected 1 to {MAX_FILE_BYTES}")
    return size


def read_json(path: Path, *, expected: str) -> Any:
    """The content of a small JSON file; FormatError for a larger or damaged one, naming what was `expected`."""
    if file_size(path) > MAX_JSON_BYTES:
        raise FormatError(f"{path}: larger than {MAX_JSON_BYTES} bytes; expected {expected}")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON ({error}); expected {expected}") from error


class Budget:
    """Bytes that the content of one file may need in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = min(MAX_EXPANSION * file_size(path) + _SLACK_BYTES, MAX_FILE_BYTES)

    def take(self, count: int, what: str) -> None:
        """Count bytes that are about to be allocated; FormatError if too many."""
        if count < 0 or count > self.left:
            raise FormatError(
                f"{self.path}: {what} claims {count} bytes, more than {MAX_EXPANSION} times the file's own "
                "size; it is damaged or not a face model"
            )
        self.left -= count
