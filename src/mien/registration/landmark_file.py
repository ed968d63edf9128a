"""Landmarks of a mesh from a text file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mien.errors import FormatError
from mien.io.reading import read_text
from mien.morphable.formats.source import SourceModel

_LARGEST = 1 << 16


def with_landmarks(model: SourceModel, path: Path | None) -> SourceModel:
    """The model with its landmarks replaced by those of a text file; binary embeddings are read with the model."""
    if path is None or path.suffix in (".npy", ".pkl"):
        return model
    return replace(model, landmarks=read_landmarks(path, vertices=len(model.mean)))


def read_landmarks(path: Path, *, vertices: int) -> dict[int, int]:
    """Read lines of 'iBUG-number vertex', both from 0; '#' starts a comment.

    Args:
        path: The text file.
        vertices: Number of vertices of the mesh.

    Returns:
        Vertex by iBUG index.

    Raises:
        FormatError: A line is invalid, or the file is too large.
    """
    text = read_text(path, limit=_LARGEST, errors="replace", advice="expected up to 68 lines of two numbers")
    found: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        is_pair = len(words) == 2 and all(word.isascii() and word.isdigit() and len(word) < 10 for word in words)
        if not is_pair or int(words[0]) >= 68 or int(words[1]) >= vertices:
            raise FormatError(f"{path}: line {number} is {line!r}; expected 0 to 67 and a vertex below {vertices}")
        found[int(words[0])] = int(words[1])
    if not found:
        raise FormatError(f"{path}: holds no landmarks; expected lines of an iBUG number and a vertex")
    return found
