"""Which kernels draw which tensors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Literal

import torch

from mien.errors import BackendUnavailable, ConfigError
from mien.rasterizer import cpu
from mien.typing import Tensor

__all__ = ["Backend", "choose", "kernels_beside"]

Backend = Literal["auto", "reference", "cpu", "triton"]


def choose(backend: str, vertices: Tensor) -> str:
    """The backend that is to draw these vertices: never another one than was asked for."""
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ConfigError(f'backend={backend!r} is unknown; choose "auto", "cpu", "triton" or "reference"')
    if backend == "reference":
        return backend
    home = {"cpu": "cpu", "cuda": "triton"}.get(vertices.device.type)
    if home is None or backend not in ("auto", home):
        raise BackendUnavailable(
            f'backend={backend!r} cannot draw tensors on {vertices.device}: "cpu" draws those on the CPU and "triton" '
            'those on CUDA devices; move them, or pass backend="reference", which works on every device but slowly'
        )
    kinds = (torch.float32,) if home == "cpu" else (torch.float32, torch.bfloat16, torch.float16)
    if vertices.dtype not in kinds:
        raise TypeError(
            f'the kernels draw float32, and vertices_ndc is {vertices.dtype}: cast it, or pass backend="reference", '
            "which takes every float dtype"
        )
    if not torch.compiler.is_compiling():
        cpu.native() if home == "cpu" else gpu()  # so that a missing kernel is named here, not in the middle of the op
    return home


@contextlib.contextmanager
def kernels_beside(tensor: Tensor) -> Iterator[ModuleType]:
    """The kernels of the tensor's device, `cpu` or `gpu`, which have the same functions."""
    if tensor.device.type == "cpu":
        yield cpu
        return
    with torch.cuda.device(tensor.device):
        yield gpu()


@functools.cache
def gpu() -> ModuleType:
    """The launcher of the Triton kernels, loaded at first use."""
    try:
        from mien.rasterizer import gpu as module  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailable(
            f"the GPU rasterizer needs Triton ({error}): `pip install 'mien[gpu]'`, draw on the CPU, or pass "
            'backend="reference"'
        ) from error
    return module
