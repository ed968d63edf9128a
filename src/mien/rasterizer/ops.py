"""The rasterizer as torch operators: torch.ops.mien.soft_rasterize, its backward pass, and hard_rasterize.

One implementation serves both devices: it checks the arguments as far as the device allows, cuts the mesh at the near
plane, and calls the kernels of cpu.py or gpu.py, which have the same functions. Fake kernels (for torch.compile) and
autograd follow below.
"""
# The arguments are those of the schemas, in the same order.
# ruff: noqa: PLR0917

from __future__ import annotations

import math

import torch

from mien.rasterizer import cpu
from mien.rasterizer.backends import kernels_beside
from mien.rasterizer.checks import check_call, check_finite, check_planes, check_values
from mien.rasterizer.clipping import ClippedMesh, clip_near
from mien.rasterizer.settings import RasterSettings
from mien.typing import Tensor

__all__ = ["new_fragments", "new_gradients", "new_images", "soft_rasterize"]

_library = torch.library.Library("mien", "FRAGMENT")
_SCENE = "Tensor vertices, Tensor triangles, Tensor attributes, Tensor near, Tensor far"
_SETTINGS = "float sigma, float gamma, float dist_eps, bool cull_backfaces, bool near_clipping, str barycentric_clip"
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
    " bool cull_backfaces, bool near_clipping) -> (Tensor triangle_ids, Tensor barycentrics, Tensor depth)"
)


def new_fragments(like: Tensor, batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for triangle ids, barycentrics and depth."""
    return (
        like.new_empty((batch, height, width), dtype=torch.int32),
        like.new_empty((batch, height, width, 3)),
        like.new_empty((batch, height, width)),
    )


def new_images(attributes: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """Memory for image, alpha, fragments and the state that the backward pass needs."""
    batch, _, channels = attributes.shape
    return (
        attributes.new_empty((batch, channels, height, width)),
        attributes.new_empty((batch, height, width)),
        *new_fragments(attributes, batch, height, width),
        attributes.new_empty((batch, 4, height, width)),  # see StatePlane in csrc/soft_raster.hpp
    )


def new_gradients(vertices: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the gradients of the vertices and of the attributes."""
    return (
        torch.empty_like(vertices, memory_format=torch.contiguous_format),
        torch.empty_like(attributes, memory_format=torch.contiguous_format),
    )


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _dense(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _check_and_clip(
    vertices: Tensor, triangles: Tensor, attributes: Tensor | None, near: Tensor, settings: RasterSettings
) -> ClippedMesh | None:
    """Check the values, which native code trusts, unless they are on a GPU; cut the mesh if it crosses `near`."""
    if _on_cpu(vertices):
        valid, crosses = cpu.scan(vertices, triangles, attributes, near)
        if not valid:
            check_values(vertices, triangles, attributes)
        if not crosses:
            return None
    return clip_near(vertices, triangles, attributes, near, settings, shapes_only=not _on_cpu(vertices))


def _soft_rasterize(vertices, triangles, attributes, near, far, background, height, width, *options):
    settings = RasterSettings((height, width), *options)
    if _on_cpu(vertices):
        check_call(vertices, triangles, near, far, attributes)
        check_planes({"background": (background, attributes.shape[2:])})
    return _draw_softly(vertices, triangles, attributes, near, far, background, settings)


def _draw_softly(vertices, triangles, attributes, near, far, background, settings):
    if _on_cpu(vertices) and not all(map(math.isfinite, background.tolist())):
        check_finite("background", background)
    mesh = _check_and_clip(vertices, triangles, attributes, near, settings)
    if mesh is not None and mesh.attributes is not None:
        vertices, triangles, attributes = mesh.vertices, mesh.triangles, mesh.attributes
    outputs = image, alpha, ids, barycentrics, depth, state = new_images(attributes, *settings.image_size)
    with kernels_beside(vertices) as kernels:
        kernels.soft_forward(*_dense(vertices, triangles, attributes, near, far, background), settings, outputs)
    if mesh is not None:
        ids, barycentrics = mesh.restore(ids, barycentrics)
    return image, alpha, ids, barycentrics, depth, state


def _soft_rasterize_backward(
    vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, *options
):
    settings = RasterSettings((image.shape[-2], image.shape[-1]), *options)
    if _on_cpu(vertices):
        check_call(vertices, triangles, near, far, attributes)
        batch, size = len(vertices), image.shape[-2:]
        images = (batch, attributes.shape[2], *size)
        check_planes(
            {
                "image": (image, images),
                "state": (state, (batch, 4, *size)),
                "image_grad": (image_grad, images),
                "alpha_grad": (alpha_grad, (batch, *size)),
            }
        )
    return _differentiate_drawing(
        vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, settings
    )


def _differentiate_drawing(vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad, settings):
    mesh = _check_and_clip(vertices, triangles, attributes, near, settings)
    if mesh is not None and mesh.attributes is not None:
        vertices, triangles, attributes = mesh.vertices, mesh.triangles, mesh.attributes
    gradients = new_gradients(vertices, attributes)
    with kernels_beside(vertices) as kernels:
        kernels.soft_backward(
            *_dense(vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad),
            settings,
            gradients,
        )
    return gradients if mesh is None else mesh.pull_back(*gradients)


def _hard_rasterize(vertices, triangles, near, far, height, width, cull_backfaces, near_clipping):
    settings = RasterSettings((height, width), cull_backfaces=cull_backfaces, near_clipping=near_clipping)
    if _on_cpu(vertices):
        check_call(vertices, triangles, near, far, None)
    mesh = _check_and_clip(vertices, triangles, None, near, settings)
    if mesh is not None:
        vertices, triangles = mesh.vertices, mesh.triangles
    outputs = ids, barycentrics, depth = new_fragments(vertices, len(vertices), height, width)
    with kernels_beside(vertices) as kernels:
        kernels.hard_forward(*_dense(vertices, triangles, near, far), settings, outputs)
    if mesh is not None:
        ids, barycentrics = mesh.restore(ids, barycentrics)
    return ids, barycentrics, depth


for _device in ("CPU", "CUDA"):
    _library.impl("soft_rasterize", _soft_rasterize, _device)
    _library.impl("soft_rasterize_backward", _soft_rasterize_backward, _device)
    _library.impl("hard_rasterize", _hard_rasterize, _device)


@torch.library.register_fake("mien::soft_rasterize", lib=_library)
def _soft_rasterize_fake(vertices, triangles, attributes, near, far, background, height, width, *options):
    return new_images(attributes, height, width)


@torch.library.register_fake("mien::soft_rasterize_backward", lib=_library)
def _soft_rasterize_backward_fake(vertices, triangles, attributes, *rest):
    return new_gradients(vertices, attributes)


@torch.library.register_fake("mien::hard_rasterize", lib=_library)
def _hard_rasterize_fake(vertices, triangles, near, far, height, width, *options):
    return new_fragments(vertices, len(vertices), height, width)


def _remember(ctx, inputs, output) -> None:
    vertices, triangles, attributes, near, far, _, _, _, *ctx.options = inputs
    image, _, ids, barycentrics, depth, state = output
    ctx.save_for_backward(vertices, triangles, attributes, near, far, image, state)
    ctx.mark_non_differentiable(ids, barycentrics, depth, state)
    ctx.set_materialize_grads(False)


def _with_zeros(image: Tensor, image_grad: Tensor | None, alpha_grad: Tensor | None) -> tuple[Tensor, Tensor]:
    return (
        torch.zeros_like(image) if image_grad is None else image_grad,
        torch.zeros_like(image[:, 0]) if alpha_grad is None else alpha_grad,
    )


def _differentiate(ctx, image_grad, alpha_grad, *_):
    *scene, image, state = ctx.saved_tensors
    if image_grad is None and alpha_grad is None:
        return (None,) * 14
    planes = image, state, *_with_zeros(image, image_grad, alpha_grad)
    vertices_grad, attributes_grad = torch.ops.mien.soft_rasterize_backward(*scene, *planes, *ctx.options)
    return vertices_grad, None, attributes_grad, *(None,) * 11


torch.library.register_autograd("mien::soft_rasterize", _differentiate, setup_context=_remember, lib=_library)


def _refuse_second_derivative(ctx, *_):
    raise NotImplementedError(
        "the rasterizer's gradients cannot be differentiated again: compute them without create_graph=True, or pass "
        'backend="reference", which has second derivatives'
    )


torch.library.register_autograd("mien::soft_rasterize_backward", _refuse_second_derivative, lib=_library)


class _SoftRasterizer(torch.autograd.Function):
    """The op and its gradient on the CPU without torch's dispatcher, which takes up to 0.5 ms per call."""

    @staticmethod
    def forward(ctx, vertices, triangles, attributes, near, far, background, settings):
        image, alpha, *fragments, state = _draw_softly(vertices, triangles, attributes, near, far, background, settings)
        ctx.save_for_backward(vertices, triangles, attributes, near, far, image, state)
        ctx.mark_non_differentiable(*fragments)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        return image, alpha, *fragments

    @staticmethod
    def backward(ctx, *gradients):
        image_grad, alpha_grad, *_ = gradients
        if image_grad is None and alpha_grad is None:
            return (None,) * 7
        vertices, triangles, attributes, near, far, image, state = ctx.saved_tensors
        image_grad, alpha_grad = _with_zeros(image, image_grad, alpha_grad)
        arguments = vertices, triangles, attributes, near, far, image, state, image_grad, alpha_grad
        if torch.is_grad_enabled():  # create_graph=True: the op refuses second derivatives when they are asked for
            to_vertices, to_attributes = torch.ops.mien.soft_rasterize_backward(*arguments, *ctx.settings.options)
        else:
            to_vertices, to_attributes = _differentiate_drawing(*arguments, ctx.settings)
        return to_vertices, None, to_attributes, None, None, None, None


def _nothing_listens(*tensors: Tensor) -> bool:
    """Whether no compiler, tracer, function transform or tensor subclass needs to see the op."""
    return (
        all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )


def soft_rasterize(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    near: Tensor,
    far: Tensor,
    background: Tensor,
    settings: RasterSettings,
) -> tuple[Tensor, ...]:
    """Image, alpha, triangle ids, barycentrics and depth of a scene that has been checked, except for its values."""
    scene = vertices, triangles, attributes, near, far, background
    if not (_on_cpu(vertices) and _nothing_listens(*scene)):
        return torch.ops.mien.soft_rasterize(*scene, *settings.image_size, *settings.options)[:5]
    if torch.is_grad_enabled() and (vertices.requires_grad or attributes.requires_grad):
        return _SoftRasterizer.apply(*scene, settings)
    return _draw_softly(*scene, settings)[:5]
