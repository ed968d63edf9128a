"""`rasterize` and `rasterize_hard`: checks, choice of the backend, and autograd around the kernels.

Everything that a caller may get wrong is found here, before native code runs: wrong types raise TypeError, wrong
shapes, indices out of range and numbers that are not finite ValueError, settings outside their range ConfigError, and
a device without a kernel BackendUnavailable. On a GPU, looking at values would mean waiting for the device: there the
kernels themselves leave out triangles whose corners are no vertices or not finite.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
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
from mien.rasterizer.settings import BarycentricClip, RasterSettings

__all__ = ["Backend", "rasterize", "rasterize_hard"]

Backend = Literal["auto", "reference", "cpu", "triton"]


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
    barycentric_clip: BarycentricClip = "softras",
    backend: Backend = "auto",
) -> RasterOutput:
    """Draw a batch of meshes softly: differentiable images of any number of channels, and alpha.

    The definition is SoftRas (Liu et al. 2019, arXiv 1901.05567) as written down in `mien.rasterizer.reference`.

    `vertices_ndc`: x to the right and y DOWN, where the shorter side of the image spans [-1, 1] and pixels are
    square, so `x = (2 u - W) / min(H, W)` for a position u in pixels; z is the depth along the camera's axis, > 0,
    in any unit. `triangles`: corners as vertex indices, (T, 3) for all images or (B, T, 3); int32 avoids a copy.
    `attributes`: what is drawn, C channels at each vertex. `near` and `far`, in the unit of z, scale the depth and clip
    pixel by pixel; a triangle with a corner at z <= 0 is dropped. `background`: colour behind everything, zeros if
    None. The other numbers are explained at `mien.rasterizer.RasterSettings`.

    Differentiable in `vertices_ndc` (x, y and z) and `attributes`, once; not in `background`.

    Backends: "cpu" is the native kernel (float32, on the CPU; `torch.get_num_threads()` threads, the same result to
    the last bit for any number of them), "triton" the one for CUDA devices (float32, or bfloat16 and float16 that are
    cast to it; float32 images), "reference" the slow PyTorch twin for any float dtype and device, and "auto" the kernel
    of the tensors' device: it never falls back to the reference.

    Raises TypeError, ValueError, ConfigError or BackendUnavailable; see the module's docstring.
    """
    chosen = _choose(backend, vertices_ndc)
    settings = RasterSettings(image_size, sigma, gamma, dist_eps, cull_backfaces, barycentric_clip)
    _check_tensors(vertices_ndc, triangles, attributes)
    if chosen == "triton":
        vertices_ndc, attributes = vertices_ndc.float(), attributes.float()
    near, far = _check_depth_range(near, far, vertices_ndc)
    background = _check_background(background, attributes)
    if chosen == "reference":
        _check_values(vertices_ndc, triangles, attributes, background)
        return rasterize_reference(vertices_ndc, triangles, attributes, near, far, background, settings)
    image, alpha, ids, barycentrics, depth, _ = torch.ops.mien.soft_rasterize(
        vertices_ndc,
        _as_int32(triangles, vertices_ndc.shape[1]),
        attributes,
        near,
        far,
        background,
        *settings.image_size,
        float(sigma),
        float(gamma),
        float(dist_eps),
        cull_backfaces,
        barycentric_clip,
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
    settings = RasterSettings(image_size, cull_backfaces=cull_backfaces)
    _check_tensors(vertices_ndc, triangles, None)
    if chosen == "triton":
        vertices_ndc = vertices_ndc.float()
    near, far = _check_depth_range(near, far, vertices_ndc)
    if chosen == "reference":
        _check_values(vertices_ndc, triangles)
        return rasterize_hard_reference(vertices_ndc, triangles, near, far, settings)
    return Fragments(
        *torch.ops.mien.hard_rasterize(
            vertices_ndc, _as_int32(triangles, vertices_ndc.shape[1]), near, far, *settings.image_size, cull_backfaces
        )
    )


# --------------------------------------------------------------------------------------------------------- checks


def _choose(backend: str, vertices: Tensor) -> str:
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
        _native() if home == "cpu" else _gpu()  # so that a missing kernel is named here, not in the middle of the op
    return home


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


def _check_values(
    vertices: Tensor, triangles: Tensor, attributes: Tensor | None = None, background: Tensor | None = None
) -> None:
    """Refuse numbers that are not finite and corners that are not vertices.

    The native ops call this themselves, last before native code, so that it holds for compiled programs too.
    """
    # A sum is finite if and only if (overflow aside) all terms are: one pass, without a temporary array.
    for name, tensor in (("vertices_ndc", vertices), ("attributes", attributes), ("background", background)):
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
    if triangles.dtype == torch.int32:
        return triangles
    if triangles.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_corners(triangles, vertices)
    return triangles.clamp(-1, 2**31 - 1).to(torch.int32)


def _check_depth_range(near: float | Tensor, far: float | Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Near and far as tensors (B,) beside the vertices."""
    bounds = []
    for name, bound in (("near", near), ("far", far)):
        if isinstance(bound, Tensor):
            tensor = bound.detach().to(vertices.device, vertices.dtype)
        elif not 0 < bound <= torch.finfo(vertices.dtype).max:
            raise ConfigError(f"near and far must satisfy 0 < near < far, not {name}={bound} (as {vertices.dtype})")
        else:
            tensor = vertices.new_full((), bound)
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != len(vertices)):
            raise ValueError(f"{name} must be a number or have the shape ({len(vertices)},), not {tuple(tensor.shape)}")
        bounds.append(tensor.expand(len(vertices)).contiguous())
    low, high = bounds
    # As the kernels will see them. Numbers can be looked at anywhere, tensors only where that waits for nobody; in
    # compiled programs the native op looks.
    if torch.compiler.is_compiling():
        return low, high
    if not (isinstance(near, Tensor) or isinstance(far, Tensor)):
        _check_depth_order(*(torch.tensor([bound], dtype=vertices.dtype) for bound in (near, far)))
    elif vertices.device.type == "cpu":
        _check_depth_order(low, high)
    return low, high


def _check_depth_order(near: Tensor, far: Tensor) -> None:
    in_order = (near > 0) & (near < far) & far.isfinite()
    if not bool(in_order.all()):
        first = int((~in_order).nonzero()[0])
        raise ConfigError(
            f"near and far must satisfy 0 < near < far, not near={float(near[first]):.9g}, far={float(far[first]):.9g} "
            f"(as {near.dtype})"
        )


def _check_background(background: Tensor | None, attributes: Tensor) -> Tensor:
    channels = attributes.shape[2]
    if background is None:
        return attributes.new_zeros(channels)
    if background.shape != (channels,):
        raise ValueError(f"background must have the shape ({channels},), not {tuple(background.shape)}")
    if not background.is_floating_point():
        raise TypeError(f"background must hold floats, not {background.dtype}")
    if background.device != attributes.device:
        raise ValueError(f"background is on {background.device}, attributes on {attributes.device}: they must agree")
    return background.detach().to(attributes.dtype)


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
    native.use_openmp(_gomp_parallel())
    return native


def _gomp_parallel() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch brought, 0 where it brought none of GNU's kind."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    # Torch has loaded it: this finds that instance, whose threads are already there.
    return ctypes.cast(ctypes.CDLL(str(libraries[0])).GOMP_parallel, ctypes.c_void_p).value or 0 if libraries else 0


@functools.cache
def _gpu() -> ModuleType:
    """The launcher of the Triton kernels, loaded at first use."""
    try:
        from mien.rasterizer import gpu  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailable(
            f"the GPU rasterizer needs Triton ({error}): `pip install 'mien[gpu]'`, draw on the CPU, or pass "
            'backend="reference"'
        ) from error
    return gpu


_library = torch.library.Library("mien", "FRAGMENT")
_SCENE = "Tensor vertices, Tensor triangles, Tensor attributes, Tensor near, Tensor far"
_SETTINGS = "float sigma, float gamma, float dist_eps, bool cull_backfaces, str barycentric_clip"
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


def _check_call(vertices: Tensor, triangles: Tensor, near: Tensor, far: Tensor, attributes: Tensor | None) -> None:
    """What `rasterize` has checked, for those who call the ops themselves: native code believes every shape."""
    _check_tensors(vertices, triangles, attributes)
    for name, tensor, dtype in (("vertices", vertices, torch.float32), ("triangles", triangles, torch.int32)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    for name, bound in (("near", near), ("far", far)):
        if bound.shape != vertices.shape[:1] or bound.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 (B,), not {bound.dtype} {tuple(bound.shape)}")
    _check_depth_order(near, far)


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


def _new_gradients(vertices: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(vertices, memory_format=torch.contiguous_format),
        torch.empty_like(attributes, memory_format=torch.contiguous_format),
    )


def _soft_rasterize(vertices, triangles, attributes, near, far, background, height, width, *settings):
    RasterSettings((height, width), *settings)
    _check_call(vertices, triangles, near, far, attributes)
    if background.shape != attributes.shape[2:] or background.dtype != torch.float32:
        raise ValueError(f"background must be float32 (C,), not {background.dtype} {tuple(background.shape)}")
    _check_values(vertices, triangles, attributes, background)
    outputs = _new_images(attributes, height, width)
    _native().soft_forward(
        *map(_array, (vertices, triangles, attributes, near, far, background)),
        *settings,
        torch.get_num_threads(),
        *(output.numpy() for output in outputs),
    )
    return outputs


def _soft_rasterize_backward(
    vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, *settings
):
    RasterSettings((image.shape[-2], image.shape[-1]), *settings)
    _check_call(vertices, triangles, near, far, attributes)
    _check_corners(triangles, vertices.shape[1])
    images = (len(vertices), attributes.shape[2], *image.shape[-2:])
    shapes = (images, (images[0], 4, *images[2:]), images, (images[0], *images[2:]))
    for name, plane, shape in zip(
        ("image", "state", "image_grad", "alpha_grad"), (image, state, image_grad, alpha_grad), shapes, strict=True
    ):
        if plane.shape != shape or plane.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 {shape}, not {plane.dtype} {tuple(plane.shape)}")
    gradients = _new_gradients(vertices, attributes)
    _native().soft_backward(
        *map(_array, (vertices, triangles, attributes, near, far)),
        *settings,
        torch.get_num_threads(),
        *map(_array, (image, state, image_grad, alpha_grad)),
        *(gradient.numpy() for gradient in gradients),
    )
    return gradients


def _hard_rasterize(vertices, triangles, near, far, height, width, cull_backfaces):
    RasterSettings((height, width), cull_backfaces=cull_backfaces)
    _check_call(vertices, triangles, near, far, None)
    _check_values(vertices, triangles)
    outputs = _new_fragments(vertices, len(vertices), height, width)
    _native().hard_forward(
        *map(_array, (vertices, triangles, near, far)),
        cull_backfaces,
        torch.get_num_threads(),
        *(output.numpy() for output in outputs),
    )
    return outputs


def _soft_rasterize_gpu(vertices, triangles, attributes, near, far, background, height, width, *settings):
    outputs = _new_images(attributes, height, width)
    with torch.cuda.device(vertices.device):
        _gpu().soft_forward(
            *(tensor.contiguous() for tensor in (vertices, triangles, attributes, near, far, background)),
            RasterSettings((height, width), *settings),
            outputs,
        )
    return outputs


def _soft_rasterize_backward_gpu(
    vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, *settings
):
    gradients = _new_gradients(vertices, attributes)
    with torch.cuda.device(vertices.device):
        _gpu().soft_backward(
            *(tensor.contiguous() for tensor in (vertices, triangles, attributes, near, far)),
            *(tensor.contiguous() for tensor in (image, state, image_grad, alpha_grad)),
            RasterSettings((image.shape[2], image.shape[3]), *settings),
            gradients,
        )
    return gradients


def _hard_rasterize_gpu(vertices, triangles, near, far, height, width, cull_backfaces):
    outputs = _new_fragments(vertices, len(vertices), height, width)
    with torch.cuda.device(vertices.device):
        _gpu().hard_forward(
            *(tensor.contiguous() for tensor in (vertices, triangles, near, far)),
            RasterSettings((height, width), cull_backfaces=cull_backfaces),
            outputs,
        )
    return outputs


_library.impl("soft_rasterize", _soft_rasterize, "CPU")
_library.impl("soft_rasterize_backward", _soft_rasterize_backward, "CPU")
_library.impl("hard_rasterize", _hard_rasterize, "CPU")
_library.impl("soft_rasterize", _soft_rasterize_gpu, "CUDA")
_library.impl("soft_rasterize_backward", _soft_rasterize_backward_gpu, "CUDA")
_library.impl("hard_rasterize", _hard_rasterize_gpu, "CUDA")


@torch.library.register_fake("mien::soft_rasterize", lib=_library)
def _soft_rasterize_fake(vertices, triangles, attributes, near, far, background, height, width, *settings):
    return _new_images(attributes, height, width)


@torch.library.register_fake("mien::soft_rasterize_backward", lib=_library)
def _soft_rasterize_backward_fake(vertices, triangles, attributes, *rest):
    return _new_gradients(vertices, attributes)


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
        return (None,) * 13
    if image_grad is None:
        image_grad = torch.zeros_like(image)
    if alpha_grad is None:
        alpha_grad = torch.zeros_like(image[:, 0])
    vertices_grad, attributes_grad = torch.ops.mien.soft_rasterize_backward(
        vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, *ctx.settings
    )
    return vertices_grad, None, attributes_grad, *(None,) * 10


torch.library.register_autograd("mien::soft_rasterize", _differentiate, setup_context=_remember, lib=_library)


def _refuse_second_derivative(ctx, *_):
    raise NotImplementedError(
        "the rasterizer's gradients cannot be differentiated again: compute them without create_graph=True, or pass "
        'backend="reference", which has second derivatives'
    )


torch.library.register_autograd("mien::soft_rasterize_backward", _refuse_second_derivative, lib=_library)
