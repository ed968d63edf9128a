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
from mien.memory import typed_out_of_memory
from mien.typing import Tensor


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
        OutOfMemory: Memory ran out.
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
        # safetensors maps files, and torch tells only in the text why it could not.
        if isinstance(reason, MemoryError) or "Cannot allocate memory" in str(reason):
            raise OutOfMemory(f"{path}: memory ran out ({reason}); end other programs, and start again") from None
        raise


@typed_out_of_memory
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


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite; None if all values are finite."""
    for name, tensor in tensors.items():
        # Minimum and maximum are finite exactly if every value is; they take a twentieth of the time of isfinite.
        has_limits = tensor.is_floating_point() and tensor.numel() > 0
        if has_limits and not torch.isfinite(torch.stack(tensor.float().aminmax())).all():
            return name
    return None
