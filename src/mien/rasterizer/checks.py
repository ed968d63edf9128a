"""What callers may get wrong, found before native code runs.

Wrong types raise TypeError, wrong shapes, indices out of range and numbers that are not finite ValueError, settings
outside their range ConfigError. On a GPU, looking at values would mean waiting for the device: there the kernels
themselves leave out triangles whose corners are no vertices or not finite.
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
    "check_planes",
    "check_tensors",
    "check_values",
]


def check_tensors(vertices: Tensor, triangles: Tensor, attributes: Tensor | None) -> None:
    """Refuse wrong shapes, types and devices of a scene."""
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


def check_values(
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
    check_corners(triangles, vertices.shape[1])


def check_corners(triangles: Tensor, vertices: int) -> None:
    """Refuse corners that are not among so many vertices."""
    if triangles.numel():
        low, high = (int(bound) for bound in triangles.aminmax())
        if low < 0 or high >= vertices:
            raise ValueError(f"triangles refer to vertices {low} to {high}, but vertices_ndc has {vertices} vertices")


def as_int32(triangles: Tensor, vertices: int) -> Tensor:
    """Corners as the kernels take them; looked at before int64 numbers lose their upper halves."""
    if triangles.dtype == torch.int32:
        return triangles
    if triangles.device.type == "cpu" and not torch.compiler.is_compiling():
        check_corners(triangles, vertices)
    return triangles.clamp(-1, 2**31 - 1).to(torch.int32)


def check_depth_range(near: float | Tensor, far: float | Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
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
        check_depth_order(*(torch.tensor([bound], dtype=vertices.dtype) for bound in (near, far)))
    elif vertices.device.type == "cpu":
        check_depth_order(low, high)
    return low, high


def check_depth_order(near: Float[Tensor, "B"], far: Float[Tensor, "B"]) -> None:
    """Refuse depth ranges unless 0 < near < far."""
    for low, high in zip(near.tolist(), far.tolist(), strict=True):
        if not 0 < low < high < math.inf:
            raise ConfigError(
                f"near and far must satisfy 0 < near < far, not near={low:.9g}, far={high:.9g} (as {near.dtype})"
            )


def check_background(background: Tensor | None, attributes: Tensor) -> Tensor:
    """The background colour (C,), black if None."""
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


def check_call(vertices: Tensor, triangles: Tensor, near: Tensor, far: Tensor, attributes: Tensor | None) -> None:
    """What `rasterize` has checked, for those who call the ops themselves: native code believes every shape."""
    check_tensors(vertices, triangles, attributes)
    for name, tensor, dtype in (("vertices", vertices, torch.float32), ("triangles", triangles, torch.int32)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    for name, bound in (("near", near), ("far", far)):
        if bound.shape != vertices.shape[:1] or bound.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 (B,), not {bound.dtype} {tuple(bound.shape)}")
    check_depth_order(near, far)


def check_planes(planes: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Refuse named tensors that are not float32 of the shape beside them."""
    for name, (plane, shape) in planes.items():
        if plane.shape != shape or plane.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 {tuple(shape)}, not {plane.dtype} {tuple(plane.shape)}")
