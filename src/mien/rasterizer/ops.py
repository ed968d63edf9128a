"""`rasterize` and `rasterize_hard`: checks, choice of the backend, and autograd around the native kernels.

Everything that a caller may get wrong is found here, before native code runs: wrong types raise TypeError, wrong
shapes, indices out of range and numbers that are not finite ValueError, settings outside their range ConfigError, and
a device without a kernel BackendUnavailable.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Literal

import torch

from mien.arrays import Float, Int, Tensor
from mien.errors import BackendUnavailable, ConfigError
from mien.rasterizer.reference import (
    Fragments,
    RasterOutput,
    rasterize_hard_reference,
    rasterize_reference,
)

__all__ = ["Backend", "rasterize", "rasterize_hard"]

Backend = Literal["auto", "reference", "cpu"]

_LONGEST_SIDE = 16384  # pixels; the kernels count pixels in 16 bits


def rasterize(
    vertices_ndc: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "*b T 3"],
    attributes: Float[Tensor, "B V C"],
    *,
    image_size: tuple[int, int],
    sigma: float = 1e-5,
    gamma: float = 1e-4,
    dist_eps: float = 1e-4,
    near: float | Float[Tensor, "B"],
    far: float | Float[Tensor, "B"],
    background: Float[Tensor, "C"] | None = None,
    cull_backfaces: bool = False,
    backend: Backend = "auto",
) -> RasterOutput:
    """Draw a batch of meshes softly: differentiable images of any number of channels, and alpha.

    The definition is SoftRas (Liu et al. 2019, arXiv 1901.05567) as written down in `mien.rasterizer.reference`.

    `vertices_ndc`: x to the right and y DOWN, where the shorter side of the image spans [-1, 1] and pixels are
    square, so `x = (2 u - W) / min(H, W)` for a position u in pixels; z is the depth along the camera's axis, > 0,
    in any unit. `triangles`: corners as vertex indices, (T, 3) for all images or (B, T, 3); int32 avoids a copy.
    `attributes`: what is drawn, C channels at each vertex.

    `sigma` (NDC²) is how soft edges are, `gamma` how soft the choice of the nearest surface; a triangle does not act
    where it would cover less than `dist_eps`. `near` and `far`, in the unit of z, scale the depth and clip pixel by
    pixel; a triangle with a corner at z <= 0 is dropped. `background`: colour behind everything, zeros if None.
    `cull_backfaces` drops triangles whose corners do not run counter-clockwise for the viewer.

    Differentiable in `vertices_ndc` (x, y and z) and `attributes`, once; not in `background`.

    Backends: "cpu" is the native kernel (float32, on the CPU; `torch.get_num_threads()` threads, the same result to
    the last bit for any number of them), "reference" the slow PyTorch twin for any float dtype and device, and
    "auto" the fastest that is exact for the given tensors: it never falls back to the reference.

    Raises TypeError, ValueError, ConfigError or BackendUnavailable; see the module's docstring.
    """
    chosen = _choose(backend, vertices_ndc)
    _check_tensors(vertices_ndc, triangles, attributes)
    height, width = _check_size(image_size)
    _check_softness(sigma, gamma, dist_eps)
    near, far = _check_depth_range(near, far, vertices_ndc)
    background = _check_background(background, attributes)
    if chosen == "reference":
        _check_values(vertices_ndc, triangles, attributes)
        return rasterize_reference(
            vertices_ndc,
            triangles,
            attributes,
            image_size=image_size,
            sigma=sigma,
            gamma=gamma,
            dist_eps=dist_eps,
            near=near,
            far=far,
            background=background,
            cull_backfaces=cull_backfaces,
        )
    image, alpha, ids, barycentrics, depth, _ = torch.ops.mien.soft_rasterize(
        vertices_ndc,
        _as_int32(triangles, vertices_ndc.shape[1]),
        attributes,
        near,
        far,
        background,
        height,
        width,
        sigma,
        gamma,
        dist_eps,
        cull_backfaces,
    )
    return RasterOutput(image, alpha, ids, barycentrics, depth)


def rasterize_hard(
    vertices_ndc: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "*b T 3"],
    *,
    image_size: tuple[int, int],
    near: float | Float[Tensor, "B"],
    far: float | Float[Tensor, "B"],
    cull_backfaces: bool = False,
    backend: Backend = "auto",
) -> Fragments:
    """Find the nearest triangle under each pixel centre, with perspective-correct barycentrics and depth.

    Arguments, conventions and errors are those of `rasterize`. Not differentiable.
    """
    chosen = _choose(backend, vertices_ndc)
    _check_tensors(vertices_ndc, triangles, None)
    height, width = _check_size(image_size)
    near, far = _check_depth_range(near, far, vertices_ndc)
    if chosen == "reference":
        _check_values(vertices_ndc, triangles, None)
        return rasterize_hard_reference(
            vertices_ndc, triangles, image_size=image_size, near=near, far=far, cull_backfaces=cull_backfaces
        )
    return Fragments(
        *torch.ops.mien.hard_rasterize(
            vertices_ndc, _as_int32(triangles, vertices_ndc.shape[1]), near, far, height, width, cull_backfaces
        )
    )


# --------------------------------------------------------------------------------------------------------- checks


def _choose(backend: str, vertices: Tensor) -> str:
    if backend not in ("auto", "reference", "cpu"):
        raise ConfigError(f'backend={backend!r} is unknown; choose "auto", "cpu" or "reference"')
    if backend == "reference":
        return backend
    if vertices.device.type != "cpu":
        raise BackendUnavailable(
            f"the native rasterizer draws tensors on the CPU, and vertices_ndc is on {vertices.device}: "
            'move the tensors with .cpu(), or pass backend="reference", which works on every device but slowly'
        )
    if vertices.dtype != torch.float32:
        raise TypeError(
            f"the native rasterizer draws float32, and vertices_ndc is {vertices.dtype}: cast it, or pass "
            'backend="reference", which takes every float dtype'
        )
    if not torch.compiler.is_compiling():
        _native()  # so that a missing kernel is named here, not in the middle of the op
    return "cpu"


def _check_tensors(vertices: Tensor, triangles: Tensor, attributes: Tensor | None) -> None:
    if vertices.ndim != 3 or vertices.shape[2] != 3:
        raise ValueError(f"vertices_ndc must have the shape (B, V, 3), not {tuple(vertices.shape)}")
    batch, count, _ = vertices.shape
    if triangles.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"triangles must be int32 or int64, not {triangles.dtype}")
    if triangles.ndim not in (2, 3) or triangles.shape[-1] != 3 or (triangles.ndim == 3 and len(triangles) != batch):
        raise ValueError(f"triangles must have the shape (T, 3) or ({batch}, T, 3), not {tuple(triangles.shape)}")
    named = [("triangles", triangles)]
    if attributes is not None:
        if attributes.dtype != vertices.dtype:
            raise TypeError(f"attributes are {attributes.dtype}, vertices_ndc {vertices.dtype}: they must agree")
        if attributes.ndim != 3 or attributes.shape[:2] != vertices.shape[:2] or attributes.shape[2] == 0:
            raise ValueError(
                f"attributes must have the shape ({batch}, {count}, C) with C >= 1, not {tuple(attributes.shape)}"
            )
        named.append(("attributes", attributes))
    for name, tensor in named:
        if tensor.device != vertices.device:
            raise ValueError(f"{name} are on {tensor.device}, vertices_ndc on {vertices.device}: they must agree")


def _check_values(vertices: Tensor, triangles: Tensor, attributes: Tensor | None) -> None:
    """Refuse numbers that are not finite and corners that are not vertices.

    The native ops call this themselves, last before native code, so that it holds for compiled programs too.
    """
    # A sum is finite if and only if (overflow aside) all terms are: one pass, without a temporary array.
    for name, tensor in (("vertices_ndc", vertices), ("attributes", attributes)):
        if tensor is not None and not math.isfinite(tensor.detach().sum()) and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(f"{name} holds {bad} numbers that are not finite; find out where they come from")
    _check_corners(triangles, vertices.shape[1])


def _check_corners(triangles: Tensor, vertices: int) -> None:
    if triangles.numel():
        low, high = (int(bound) for bound in triangles.aminmax())
        if low < 0 or high >= vertices:
            raise ValueError(f"triangles refer to vertices {low} to {high}, but vertices_ndc has {vertices} vertices")


def _as_int32(triangles: Tensor, vertices: int) -> Tensor:
    """Corners as the kernels take them; looked at before int64 numbers lose their upper halves."""
    if triangles.dtype != torch.int32 and not torch.compiler.is_compiling():
        _check_corners(triangles, vertices)
    return triangles.to(torch.int32)


def _check_size(image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    if not (1 <= height <= _LONGEST_SIDE and 1 <= width <= _LONGEST_SIDE):
        raise ConfigError(f"image_size is (height, width), each in 1 … {_LONGEST_SIDE} pixels, not {image_size}")
    return int(height), int(width)


def _check_softness(sigma: float, gamma: float, dist_eps: float) -> None:
    for name, value in (("sigma", sigma), ("gamma", gamma)):
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} must be a positive number, not {value}")
    if not 0 < dist_eps < 1:
        raise ConfigError(f"dist_eps must lie between 0 and 1, not {dist_eps}")


def _check_depth_range(near: float | Tensor, far: float | Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Near and far as tensors (B,) beside the vertices."""
    bounds = []
    for name, bound in (("near", near), ("far", far)):
        tensor = torch.as_tensor(bound, dtype=vertices.dtype, device=vertices.device).detach()
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != len(vertices)):
            raise ValueError(f"{name} must be a number or have the shape ({len(vertices)},), not {tuple(tensor.shape)}")
        bounds.append(tensor.expand(len(vertices)).contiguous())
    if not torch.compiler.is_compiling():
        low, high = bounds
        if not bool(((low > 0) & (low < high) & high.isfinite()).all()):
            raise ConfigError(f"near and far must satisfy 0 < near < far, not near={near}, far={far}")
    return bounds[0], bounds[1]


def _check_background(background: Tensor | None, attributes: Tensor) -> Tensor:
    channels = attributes.shape[2]
    if background is None:
        return attributes.new_zeros(channels)
    if background.shape != (channels,):
        raise ValueError(f"background must have the shape ({channels},), not {tuple(background.shape)}")
    return background.detach().to(attributes)


# ------------------------------------------------------------------------------------------------- the native ops
# Their arguments are the schemas', in the schemas' order.
# ruff: noqa: PLR0917


@functools.cache
def _native() -> ModuleType:
    """The compiled module, loaded at first use: importing mien stays light, and the reference works without it."""
    try:
        from mien.rasterizer import _native as native  # noqa: PLC0415  # pyright: ignore[reportMissingModuleSource]
    except ImportError as error:
        raise BackendUnavailable(
            f"the native rasterizer cannot be loaded ({error}): reinstall mien (`pip install --force-reinstall mien`,"
            ' or `pip install -e .` in a clone), or pass backend="reference"'
        ) from error
    return native


_library = torch.library.Library("mien", "FRAGMENT")
_SCENE = "Tensor vertices, Tensor triangles, Tensor attributes, Tensor near, Tensor far"
_SETTINGS = "float sigma, float gamma, float dist_eps, bool cull_backfaces"
_library.define(
    f"soft_rasterize({_SCENE}, Tensor background, int height, int width, {_SETTINGS})"
    " -> (Tensor image, Tensor alpha, Tensor triangle_ids, Tensor barycentrics, Tensor depth, Tensor state)"
)
_library.define(
    f"soft_rasterize_backward({_SCENE}, Tensor image, Tensor state, Tensor image_grad, Tensor alpha_grad, {_SETTINGS})"
    " -> (Tensor vertices_grad, Tensor attributes_grad)"
)
_library.define(
    "hard_rasterize(Tensor vertices, Tensor triangles, Tensor near, Tensor far, int height, int width,"
    " bool cull_backfaces) -> (Tensor triangle_ids, Tensor barycentrics, Tensor depth)"
)


def _array(tensor: Tensor):
    return tensor.detach().contiguous().numpy()


def _new_fragments(like: Tensor, batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        like.new_empty((batch, height, width), dtype=torch.int32),
        like.new_empty((batch, height, width, 3)),
        like.new_empty((batch, height, width)),
    )


def _new_images(attributes: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    batch, _, channels = attributes.shape
    return (
        attributes.new_empty((batch, channels, height, width)),
        attributes.new_empty((batch, height, width)),
        *_new_fragments(attributes, batch, height, width),
        attributes.new_empty((batch, 4, height, width)),  # what the backward pass needs; see csrc/soft_raster.hpp
    )


def _soft_rasterize(
    vertices, triangles, attributes, near, far, background, height, width, sigma, gamma, dist_eps, cull_backfaces
):
    _check_values(vertices, triangles, attributes)
    outputs = _new_images(attributes, height, width)
    _native().soft_forward(
        *map(_array, (vertices, triangles, attributes, near, far, background)),
        sigma,
        gamma,
        dist_eps,
        cull_backfaces,
        torch.get_num_threads(),
        *(output.numpy() for output in outputs),
    )
    return outputs


def _soft_rasterize_backward(
    vertices,
    triangles,
    attributes,
    near,
    far,
    image,
    state,
    image_grad,
    alpha_grad,
    sigma,
    gamma,
    dist_eps,
    cull_backfaces,
):
    vertices_grad = torch.empty_like(vertices, memory_format=torch.contiguous_format)
    attributes_grad = torch.empty_like(attributes, memory_format=torch.contiguous_format)
    _native().soft_backward(
        *map(_array, (vertices, triangles, attributes, near, far)),
        sigma,
        gamma,
        dist_eps,
        cull_backfaces,
        torch.get_num_threads(),
        *map(_array, (image, state, image_grad, alpha_grad)),
        vertices_grad.numpy(),
        attributes_grad.numpy(),
    )
    return vertices_grad, attributes_grad


def _hard_rasterize(vertices, triangles, near, far, height, width, cull_backfaces):
    _check_values(vertices, triangles, None)
    outputs = _new_fragments(vertices, len(vertices), height, width)
    _native().hard_forward(
        *map(_array, (vertices, triangles, near, far)),
        cull_backfaces,
        torch.get_num_threads(),
        *(output.numpy() for output in outputs),
    )
    return outputs


_library.impl("soft_rasterize", _soft_rasterize, "CPU")
_library.impl("soft_rasterize_backward", _soft_rasterize_backward, "CPU")
_library.impl("hard_rasterize", _hard_rasterize, "CPU")


@torch.library.register_fake("mien::soft_rasterize", lib=_library)
def _soft_rasterize_fake(vertices, triangles, attributes, near, far, background, height, width, *settings):
    return _new_images(attributes, height, width)


@torch.library.register_fake("mien::soft_rasterize_backward", lib=_library)
def _soft_rasterize_backward_fake(vertices, triangles, attributes, *rest):
    return (
        torch.empty_like(vertices, memory_format=torch.contiguous_format),
        torch.empty_like(attributes, memory_format=torch.contiguous_format),
    )


@torch.library.register_fake("mien::hard_rasterize", lib=_library)
def _hard_rasterize_fake(vertices, triangles, near, far, height, width, cull_backfaces):
    return _new_fragments(vertices, len(vertices), height, width)


def _remember(ctx, inputs, output) -> None:
    vertices, triangles, attributes, near, far, _, _, _, *ctx.settings = inputs
    image, _, ids, barycentrics, depth, state = output
    ctx.save_for_backward(vertices, triangles, attributes, near, far, image, state)
    ctx.mark_non_differentiable(ids, barycentrics, depth, state)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, image_grad, alpha_grad, *_):
    vertices, triangles, attributes, near, far, image, state = ctx.saved_tensors
    if image_grad is None and alpha_grad is None:
        return (None,) * 12
    if image_grad is None:
        image_grad = torch.zeros_like(image)
    if alpha_grad is None:
        alpha_grad = torch.zeros_like(image[:, 0])
    vertices_grad, attributes_grad = torch.ops.mien.soft_rasterize_backward(
        vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, *ctx.settings
    )
    return vertices_grad, None, attributes_grad, *(None,) * 9


torch.library.register_autograd("mien::soft_rasterize", _differentiate, setup_context=_remember, lib=_library)
