"""Calls the native kernels of csrc/ for tensors on the CPU; gpu.py has the same functions for CUDA tensors.

Nothing is checked here: ops.py has checked all arguments.
"""
# The arguments are those of the native functions, in the same order.
# ruff: noqa: PLR0917

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from types import ModuleType

import torch

from mien.errors import BackendUnavailable
from mien.rasterizer.settings import RasterSettings
from mien.typing import Tensor

__all__ = ["gomp_parallel", "hard_forward", "native", "scan", "soft_backward", "soft_forward"]


def soft_forward(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    near: Tensor,
    far: Tensor,
    background: Tensor,
    settings: RasterSettings,
    outputs: tuple[Tensor, ...],
) -> None:
    """Fill `outputs`: image, alpha, triangle ids, barycentrics, depth and state, shaped as in `ops`."""
    native().soft_forward(
        *_arrays(vertices, triangles, attributes, near, far, background),
        *_softness(settings),
        torch.get_num_threads(),
        *_arrays(*outputs),
    )


def soft_backward(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    near: Tensor,
    far: Tensor,
    image: Tensor,
    state: Tensor,
    image_grad: Tensor,
    alpha_grad: Tensor,
    settings: RasterSettings,
    gradients: tuple[Tensor, Tensor],
) -> None:
    """Fill `gradients`: those of the vertices and of the attributes."""
    native().soft_backward(
        *_arrays(vertices, triangles, attributes, near, far),
        *_softness(settings),
        torch.get_num_threads(),
        *_arrays(image, state, image_grad, alpha_grad),
        *_arrays(*gradients),
    )


def hard_forward(
    vertices: Tensor,
    triangles: Tensor,
    near: Tensor,
    far: Tensor,
    settings: RasterSettings,
    outputs: tuple[Tensor, ...],
) -> None:
    """Fill `outputs`: triangle ids, barycentrics and depth."""
    native().hard_forward(
        *_arrays(vertices, triangles, near, far), settings.cull_backfaces, torch.get_num_threads(), *_arrays(*outputs)
    )


def scan(vertices: Tensor, triangles: Tensor, attributes: Tensor | None, near: Tensor) -> tuple[bool, bool]:
    """Whether all numbers are finite and all corners are vertices, and whether a vertex lies before the near plane."""
    values = None if attributes is None else attributes.detach().contiguous().numpy()
    return native().scan(*_arrays(vertices.contiguous(), triangles.contiguous()), values, near.contiguous().numpy())


def _softness(settings: RasterSettings) -> tuple[float, float, float, bool, str]:
    return (
        float(settings.sigma),
        float(settings.gamma),
        float(settings.dist_eps),
        settings.cull_backfaces,
        settings.barycentric_clip,
    )


def _arrays(*tensors: Tensor):
    return (tensor.detach().numpy() for tensor in tensors)


@functools.cache
def native() -> ModuleType:
    """The compiled module, imported at first use: importing mien stays fast, and the reference works without it.

    Raises:
        BackendUnavailable: The module cannot be imported.
    """
    try:
        from mien.rasterizer import _native as module  # noqa: PLC0415  # pyright: ignore[reportMissingModuleSource]
    except ImportError as error:
        raise BackendUnavailable(
            f"the native rasterizer cannot be imported ({error}): reinstall mien (`pip install --force-reinstall mien`,"
            ' or `pip install -e .` in a clone), or pass backend="reference"'
        ) from error
    module.use_openmp(gomp_parallel())
    return module


def gomp_parallel() -> int:
    """Address of GOMP_parallel in the GNU OpenMP library in torch's folder, 0 if there is none."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    # Torch has already loaded the library: this returns the same instance, with its threads.
    return ctypes.cast(ctypes.CDLL(str(libraries[0])).GOMP_parallel, ctypes.c_void_p).value or 0 if libraries else 0
