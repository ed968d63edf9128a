"""Choice of the kernels for a tensor's device and dtype."""

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
    """The backend for these vertices; "auto" becomes the kernel of their device, other names stay.

    Raises:
        ConfigError: The name is unknown.
        BackendUnavailable: The backend has no kernel for the device, or it is not installed.
        TypeError: The kernels do not take the dtype.
    """
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ConfigError(f'backend={backend!r} is unknown; use "auto", "cpu", "triton" or "reference"')
    if backend == "reference":
        return backend
    home = {"cpu": "cpu", "cuda": "triton"}.get(vertices.device.type)
    if home is None or backend not in ("auto", home):
        raise BackendUnavailable(
            f'backend={backend!r} cannot rasterize tensors on {vertices.device}: "cpu" takes tensors on the CPU, '
            '"triton" on CUDA devices. Move them, or pass backend="reference", which is slow but takes every device'
        )
    kinds = (torch.float32,) if home == "cpu" else (torch.float32, torch.bfloat16, torch.float16)
    if vertices.dtype not in kinds:
        allowed = ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
        raise TypeError(
            f"vertices_ndc is {vertices.dtype}, but the kernels take {allowed}: cast it, or pass "
            'backend="reference", which takes every float dtype'
        )
    if not torch.compiler.is_compiling():
        cpu.native() if home == "cpu" else gpu()  # a missing kernel raises here, not inside the op
    return home


@contextlib.contextmanager
def kernels_beside(tensor: Tensor) -> Iterator[ModuleType]:
    """The module with the kernels of the tensor's device, `cpu` or `gpu`; both have the same functions."""
    if tensor.device.type == "cpu":
        yield cpu
        return
    with torch.cuda.device(tensor.device):
        yield gpu()


@functools.cache
def gpu() -> ModuleType:
    """The launcher of the Triton kernels, imported at first use.

    Raises:
        BackendUnavailable: Triton is not installed.
    """
    try:
        from mien.rasterizer import gpu as module  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailable(
            f"the GPU rasterizer needs Triton ({error}): run `pip install 'mien[gpu]'`, or move the tensors to the "
            'CPU, or pass backend="reference"'
        ) from error
    return module
