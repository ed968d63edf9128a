"""Checks of all arguments before native code runs.

Wrong dtypes raise TypeError. Wrong shapes, indices out of range and numbers that are not finite raise ValueError.
Settings outside their range raise ConfigError. On a GPU, reading values would mean waiting for the device; there the
kernels leave out triangles with an index out of range or a corner that is not finite.
"""

from __future__ import annotations

import math

import torch

from mien.errors import ConfigError
from mien.typing import Float, Tensor

__all__ = [
    "as_int32",
    "check_background",
    "check_call",
    "check_corners",
    "check_depth_range",
    "check_finite",
    "check_planes",
    "check_tensors",
    "check_values",
]


def check_tensors(vertices: Tensor, triangles: Tensor, attributes: Tensor | None) -> None:
    """Check shapes, dtypes and devices of a scene.

    Raises:
        TypeError: A dtype is not supported, or dtypes differ.
        ValueError: A shape is wrong, or devices differ.
    """
    if vertices.ndim != 3 or vertices.shape[2] != 3:
        raise ValueError(f"vertices_ndc has the shape {tuple(vertices.shape)}; use (B, V, 3)")
    batch, count, _ = vertices.shape
    if triangles.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"triangles are {triangles.dtype}; use int32 or int64")
    if triangles.ndim not in (2, 3) or triangles.shape[-1] != 3 or (triangles.ndim == 3 and len(triangles) != batch):
        raise ValueError(f"triangles have the shape {tuple(triangles.shape)}; use (T, 3) or ({batch}, T, 3)")
    named = [("triangles", triangles)]
    if attributes is not None:
        if attributes.dtype != vertices.dtype:
            raise TypeError(f"attributes are {attributes.dtype} and vertices_ndc {vertices.dtype}; use one dtype")
        if attributes.ndim != 3 or attributes.shape[:2] != vertices.shape[:2] or attributes.shape[2] == 0:
            raise ValueError(
                f"attributes have the shape {tuple(attributes.shape)}; use ({batch}, {count}, C) with C >= 1"
            )
        named.append(("attributes", attributes))
    for name, tensor in named:
        if tensor.device != vertices.device:
            raise ValueError(f"{name} are on {tensor.device} and vertices_ndc on {vertices.device}; use one device")


def check_values(
    vertices: Tensor, triangles: Tensor, attributes: Tensor | None = None, background: Tensor | None = None
) -> None:
    """Check that all numbers are finite and that all corners are vertices.

    The native ops call this directly before native code, so that compiled programs are checked, too.

    Raises:
        ValueError: A number is not finite, or an index is out of range.
    """
    for name, tensor in (("vertices_ndc", vertices), ("attributes", attributes), ("background", background)):
        if tensor is not None:
            check_finite(name, tensor)
    check_corners(triangles, vertices.shape[1])


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that all numbers are finite.

    Raises:
        ValueError: At least one is not.
    """
    # Except for overflow, a sum is finite if and only if all its terms are: one pass, without a temporary array.
    if not math.isfinite(tensor.detach().sum()) and not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).sum())
        raise ValueError(f"{name} holds {bad} numbers that are not finite; check the computation that made it")


def check_corners(triangles: Tensor, vertices: int) -> None:
    """Check that all corners are in [0, vertices).

    Raises:
        ValueError: An index is out of range.
    """
    if triangles.numel():
        low, high = (int(bound) for bound in triangles.aminmax())
        if low < 0 or high >= vertices:
            raise ValueError(
                f"triangles refer to vertices {low} to {high}, but vertices_ndc has {vertices} vertices; "
                f"use 0 to {vertices - 1}"
            )


def as_int32(triangles: Tensor, vertices: int) -> Tensor:
    """Corners as int32 for the kernels, checked before int64 numbers lose their upper halves.

    Raises:
        ValueError: An index is out of range; CPU only.
    """
    if triangles.dtype == torch.int32:
        return triangles
    if triangles.device.type == "cpu" and not torch.compiler.is_compiling():
        check_corners(triangles, vertices)
    return triangles.clamp(-1, 2**31 - 1).to(torch.int32)


def check_depth_range(near: float | Tensor, far: float | Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Near and far as tensors (B,) with the dtype and device of the vertices.

    Raises:
        ConfigError: The depths do not satisfy 0 < near < far; values of CUDA tensors are not checked.
        ValueError: A shape is wrong.
    """
    most = torch.finfo(vertices.dtype).max
    numbers = all(isinstance(bound, (int, float)) and 0 < bound <= most for bound in (near, far))
    if numbers and vertices.device.type == "cpu" and not torch.compiler.is_compiling():  # the usual case, in few calls
        pair = torch.tensor([[near], [far]], dtype=vertices.dtype)
        check_depth_order(*pair)
        low, high = pair.expand(2, len(vertices)).contiguous().unbind()
        return low, high
    bounds = []
    for name, bound in (("near", near), ("far", far)):
        if isinstance(bound, Tensor):
            tensor = bound.detach().to(vertices.device, vertices.dtype)
        elif not 0 < bound <= most:
            raise ConfigError(f"{name}={bound} is out of range (as {vertices.dtype}); use 0 < near < far")
        else:
            tensor = vertices.new_full((), bound)
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != len(vertices)):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; use a number or ({len(vertices)},)")
        bounds.append(tensor.expand(len(vertices)).contiguous())
    low, high = bounds
    # In the dtype of the kernels. Python numbers can be checked on any device, tensors only on the CPU, where reading
    # them does not wait; in compiled programs the native op checks them.
    if torch.compiler.is_compiling():
        return low, high
    if not (isinstance(near, Tensor) or isinstance(far, Tensor)):
        check_depth_order(*(torch.tensor([bound], dtype=vertices.dtype) for bound in (near, far)))
    elif vertices.device.type == "cpu":
        check_depth_order(low, high)
    return low, high


def check_depth_order(near: Float[Tensor, "B"], far: Float[Tensor, "B"]) -> None:
    """Check that 0 < near < far for every image.

    Raises:
        ConfigError: It is not so for at least one image.
    """
    for low, high in zip(near.tolist(), far.tolist(), strict=True):
        if not 0 < low < high < math.inf:
            raise ConfigError(f"near={low:.9g}, far={high:.9g} are out of range (as {near.dtype}); use 0 < near < far")


def check_background(background: Tensor | None, attributes: Tensor) -> Tensor:
    """The background (C,) in the dtype of the attributes, zeros if None.

    Raises:
        TypeError: It does not hold floats.
        ValueError: Its shape or device is wrong.
    """
    channels = attributes.shape[2]
    if background is None:
        return attributes.new_zeros(channels)
    if background.shape != (channels,):
        raise ValueError(f"background has the shape {tuple(background.shape)}; use ({channels},)")
    if not background.is_floating_point():
        raise TypeError(f"background is {background.dtype}; use floats")
    if background.device != attributes.device:
        raise ValueError(f"background is on {background.device} and attributes on {attributes.device}; use one device")
    return background.detach().to(attributes.dtype)


def check_call(vertices: Tensor, triangles: Tensor, near: Tensor, far: Tensor, attributes: Tensor | None) -> None:
    """Check the tensors of a direct call of the ops, which `rasterize` has not checked: native code trusts all shapes.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or device is wrong.
        ConfigError: The depths do not satisfy 0 < near < far.
    """
    check_tensors(vertices, triangles, attributes)
    for name, tensor, dtype in (("vertices", vertices, torch.float32), ("triangles", triangles, torch.int32)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    for name, bound in (("near", near), ("far", far)):
        if bound.shape != vertices.shape[:1] or bound.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 (B,), not {bound.dtype} {tuple(bound.shape)}")
    check_depth_order(near, far)


def check_planes(planes: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Check that each tensor is float32 and has the shape given with it.

    Raises:
        ValueError: It is not so.
    """
    for name, (plane, shape) in planes.items():
        if plane.shape != shape or plane.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 {tuple(shape)}, not {plane.dtype} {tuple(plane.shape)}")
