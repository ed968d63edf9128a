"""Open a photo that is a file on disk, an open binary file or bytes, as a seekable file with a name."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from mien.errors import ImageError


@runtime_checkable
class BinaryFile(Protocol):
    """A binary file that is open for reading: `open(…, "rb")`, `io.BytesIO`, `sys.stdin.buffer` or fsspec's."""

    def read(self, size: int = ..., /) -> bytes:
        """Read up to `size` bytes."""
        ...

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Move to a position and return it."""
        ...

    def seekable(self) -> bool:
        """Whether `seek` works."""
        ...


PhotoSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryFile
"""A path, the content of a file, or a binary file that is open for reading."""

MAX_STREAM_BYTES = 1 << 30
"""Largest size of a file that is not on disk: 64 megapixels of four 32-bit channels. A stream may have no end."""


@contextmanager
def open_photo(source: PhotoSource, name: str | os.PathLike[str] | None) -> Iterator[tuple[BinaryFile, Path]]:
    """Open a photo for reading; a file that the caller opened stays open.

    Args:
        source: The photo.
        name: Name in messages; by default the path, the name of the open file, or "photo".

    Yields:
        A seekable file at its start, and the name.

    Raises:
        ImageError: The file is missing, a folder, empty, or cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        with _open_path(Path(source), Path(name if name is not None else source)) as file:
            yield file, Path(name if name is not None else source)
    else:
        label = Path(name if name is not None else _name_of(source))
        yield _seekable(source, label), label


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path without symbolic links; until Python 3.13 `Path.resolve` fails where a link leads to itself."""
    return Path(os.path.realpath(path))


def _open_path(path: Path, label: Path) -> io.BufferedReader:
    if path.is_dir():
        raise ImageError(f"{label}: is a folder, not a photo; give the photos in it")
    try:
        if not path.exists():
            raise ImageError(f"{label}: no such file; check the path")
        if not path.is_file():
            raise ImageError(f"{label}: not a regular file; give the open file to read a stream")
        if path.stat().st_size == 0:
            raise ImageError(_empty_message(label))
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise ImageError(f"{label}: cannot be opened ({error})") from None


def _name_of(source: bytes | BinaryFile) -> str:
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "photo"  # a pipe's name may be a number


def _seekable(source: bytes | BinaryFile, label: Path) -> BinaryFile:
    """The source itself if it can be read from its start in any order, otherwise its content."""
    if isinstance(source, bytes):
        return _non_empty(source, label)
    try:
        if source.seekable():
            if source.seek(0, io.SEEK_END) == 0:
                raise ImageError(_empty_message(label))
            source.seek(0)
            return source
        content = source.read(MAX_STREAM_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{label}: cannot be read ({error})") from None
    if len(content) > MAX_STREAM_BYTES:
        raise ImageError(
            f"{label}: the stream has more than {MAX_STREAM_BYTES >> 20} MiB; save it as a file and give its path"
        )
    return _non_empty(content, label)


def _non_empty(content: bytes, label: Path) -> BinaryFile:
    if not content:
        raise ImageError(_empty_message(label))
    return io.BytesIO(content)


def _empty_message(label: Path) -> str:
    return f"{label}: empty, it has zero bytes; copy or download it again"
