"""Reads safetensors files that may be damaged: regular files only, with a reason that fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mien.errors import FormatError, MienError, OutOfMemory
from mien.io.reading import file_size, unreadable
from mien.typing import Tensor

_OUT_OF_MEMORY = ("out of memory", "Cannot allocate memory", "can't allocate memory", "not enough memory")


@contextmanager
def open_tensors(path: Path, *, advice: str, error: type[MienError] = FormatError) -> Iterator[Any]:
    """Open a safetensors file.

    Args:
        path: The file.
        advice: What the user can do if it is damaged, the end of the message.
        error: Class of the error.

    Yields:
        What `safetensors.safe_open` returns.

    Raises:
        MienError: Of the class `error`: see `file_size`, the file is damaged, or it lacks a tensor that is asked for.
    """
    file_size(path, advice=advice, error=error)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as reason:
        raise error(f"{path} is not a readable safetensors file: {reason}; {advice}") from reason
    except OSError as reason:
        raise error(unreadable(path, reason)) from reason
    except (MemoryError, RuntimeError) as reason:
        raise_out_of_memory(reason, path)
        raise


def read_tensors(
    path: Path, *, advice: str, error: type[MienError] = FormatError
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and all tensors of a safetensors file.

    Args:
        path: The file.
        advice: As in `open_tensors`, as is `error`.
        error: Class of the error.

    Returns:
        Texts by key, and tensors by name, on the CPU in their stored types.

    Raises:
        MienError: As `open_tensors`.
    """
    with open_tensors(path, advice=advice, error=error) as file:
        return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def raise_out_of_memory(reason: Exception, what: object) -> None:
    """Raise OutOfMemory if an error is torch's, safetensors' or Python's way to say that memory is short.

    Args:
        reason: The error; of any other cause nothing happens.
        what: What needed the memory, the begin of the message.

    Raises:
        OutOfMemory: Memory is short.
    """
    if isinstance(reason, MemoryError) or any(words in str(reason) for words in _OUT_OF_MEMORY):
        advice = "close other programs, or use a larger machine"
        raise OutOfMemory(f"{what}: memory is short ({reason}); {advice}") from reason


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite; None if all values are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            return name
    return None
