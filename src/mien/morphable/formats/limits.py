"""How large a face model may be: what readers check before they allocate."""

from __future__ import annotations

from pathlib import Path

from mien.errors import FormatError

MAX_VERTICES = 200_000
MAX_TRIANGLES = 400_000
MAX_COMPONENTS = 1_000
MAX_FILE_BYTES = 4 << 30
# Face models of floating-point numbers shrink by less than four when they are compressed (ICT-FaceKit, whose
# deltas lie on a grid, by 3.3); sparse blendshapes shrink more.
MAX_EXPANSION = 16
_SLACK_BYTES = 1 << 20


def file_size(path: Path) -> int:
    """Bytes of a file that may be read; FormatError for one that is missing, empty or too large."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise FormatError(f"{path}: {size} bytes; expected 1 to {MAX_FILE_BYTES}")
    return size


class Budget:
    """What one file may unpack to; `take` raises FormatError before memory is allocated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = min(MAX_EXPANSION * file_size(path) + _SLACK_BYTES, MAX_FILE_BYTES)

    def take(self, count: int, what: str) -> None:
        """Count bytes that are about to be allocated."""
        if count < 0 or count > self.left:
            raise FormatError(
                f"{self.path}: {what} claims {count} bytes, more than {MAX_EXPANSION} times what the file could "
                "hold; expected an honest size"
            )
        self.left -= count
