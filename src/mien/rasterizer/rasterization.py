"""`rasterize` and `rasterize_hard`: check the arguments, choose a backend, call it."""

from __future__ import annotations

import torch

from mien.rasterizer.backends import Backend, choose
from mien.rasterizer.checks import as_int32, check_background, check_depth_range, check_tensors, check_values
from mien.rasterizer.ops import soft_rasterize
from mien.rasterizer.reference import Fragments, RasterOutput, rasterize_hard_reference, rasterize_reference
from mien.rasterizer.settings import BarycentricClip, RasterSettings
from mien.typing import Float, Int, Tensor

__all__ = ["rasterize", "rasterize_hard"]


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
    near_clipping: bool = True,
    barycentric_clip: BarycentricClip = "softras",
    backend: Backend = "auto",
) -> RasterOutput:
    """Rasterize a batch of triangle meshes softly, with gradients for vertices and attributes.

    Soft Rasterizer (Liu et al. 2019, arXiv 1901.05567); `mien.rasterizer.reference` holds the exact definition.
    Differentiable once, in `vertices_ndc` (x, y and z) and `attributes`, through `image` and `alpha`. Not
    differentiable in `near`, `far` and `background`.

    Args:
        vertices_ndc: x to the right and y DOWN; the shorter side of the image spans [-1, 1] and pixels are square, so
            `x = (2 u - W) / min(H, W)` for a position u in pixels. z is the depth along the camera's axis, > 0, in any
            unit.
        triangles: Vertex indices of the corners, (T, 3) for all images or (B, T, 3). int32 avoids a copy.
        attributes: C channels at each vertex, for example colours. Same dtype as `vertices_ndc`.
        image_size: Height and width in pixels, each in 1 … 16384.
        sigma: Softness of edges in NDC², > 0. 1e-5 reaches about one pixel beyond an edge at 224 × 224.
        gamma: Softness of the choice between surfaces, > 0, in units of (far - z) / (far - near).
        dist_eps: A triangle has no effect where its coverage is below this; in (0, 0.5].
        near: Nearest depth, > 0, in the unit of z; a number, or one per image. Triangles that cross it are cut there.
        far: Farthest depth, > near. Triangles that cross it are cut pixel by pixel.
        background: Attributes behind all surfaces; zeros if None.
        cull_backfaces: Drop triangles whose corners do not run counter-clockwise for the viewer.
        near_clipping: Cut triangles that cross `near`; if False, drop them whole.
        barycentric_clip: "softras" or "pytorch3d", see `RasterSettings.barycentric_clip`.
        backend: "cpu" is the native kernel: float32 on the CPU, `torch.get_num_threads()` threads, the same bits for
            any number of them. "triton" is the kernel for CUDA devices: float32, or bfloat16 and float16, which are
            cast to float32. "reference" is slow PyTorch for any float dtype and device. "auto" is the kernel of the
            tensors' device, never the reference.

    Returns:
        Soft image and alpha, and the nearest triangle under each pixel centre.

    Raises:
        TypeError: A dtype is not supported by the backend, or dtypes differ.
        ValueError: A shape or device does not fit, an index is not that of a vertex, or a number is not finite. On CUDA
            devices values are not checked: triangles with such corners are left out.
        ConfigError: A setting is outside its range, or `backend` is unknown.
        BackendUnavailable: The backend has no kernel for the tensors' device, or its kernel is not installed.

    Example:
        >>> import torch
        >>> vertices_ndc = torch.tensor([[[-0.6, 0.5, 2.0], [0.0, -0.7, 2.0], [0.6, 0.5, 3.0]]], requires_grad=True)
        >>> triangles, colours = torch.tensor([[0, 1, 2]]), torch.rand(1, 3, 3)
        >>> out = rasterize(vertices_ndc, triangles, colours, image_size=(64, 96), near=1.0, far=4.0)
        >>> out.image.square().mean().backward()
        >>> vertices_ndc.grad.shape
        torch.Size([1, 3, 3])
    """
    chosen = choose(backend, vertices_ndc)
    settings = RasterSettings(image_size, sigma, gamma, dist_eps, cull_backfaces, near_clipping, barycentric_clip)
    check_tensors(vertices_ndc, triangles, attributes)
    if chosen == "triton":
        vertices_ndc, attributes = vertices_ndc.float(), attributes.float()
    near, far = check_depth_range(near, far, vertices_ndc)
    background = check_background(background, attributes)
    if chosen == "reference":
        check_values(vertices_ndc, triangles, attributes, background)
        return rasterize_reference(vertices_ndc, triangles, attributes, near, far, background, settings)
    corners = as_int32(triangles, vertices_ndc.shape[1])
    return RasterOutput(*soft_rasterize(vertices_ndc, corners, attributes, near, far, background, settings))


def rasterize_hard(
    vertices_ndc: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "*b T 3"],
    *,
    image_size: tuple[int, int],
    near: float | Float[Tensor, "B"],
    far: float | Float[Tensor, "B"],
    cull_backfaces: bool = False,
    near_clipping: bool = True,
    backend: Backend = "auto",
) -> Fragments:
    """Find the nearest triangle under each pixel centre, with perspective-correct barycentrics and depth.

    Not differentiable; `interpolate` turns the result into images of vertex attributes, which are.

    Args:
        vertices_ndc: As in `rasterize`: x to the right, y down, the shorter side spans [-1, 1]; z is the depth.
        triangles: Vertex indices of the corners, (T, 3) for all images or (B, T, 3).
        image_size: Height and width in pixels, each in 1 … 16384.
        near: Nearest depth, > 0, in the unit of z; a number, or one per image.
        far: Farthest depth, > near.
        cull_backfaces: Drop triangles whose corners do not run counter-clockwise for the viewer.
        near_clipping: Cut triangles that cross `near`; if False, drop them whole.
        backend: "auto", "cpu", "triton" or "reference", as in `rasterize`.

    Returns:
        Triangle index, barycentrics and depth of every pixel.

    Raises:
        TypeError: A dtype is not supported by the backend.
        ValueError: A shape or device does not fit, an index is not that of a vertex, or a number is not finite.
        ConfigError: A setting is outside its range, or `backend` is unknown.
        BackendUnavailable: The backend has no kernel for the tensors' device, or its kernel is not installed.

    Example:
        >>> import torch
        >>> vertices_ndc = torch.tensor([[[-0.6, 0.5, 2.0], [0.0, -0.7, 2.0], [0.6, 0.5, 3.0]]])
        >>> fragments = rasterize_hard(vertices_ndc, torch.tensor([[0, 1, 2]]), image_size=(64, 96), near=1.0, far=4.0)
        >>> fragments.triangle_ids.unique()
        tensor([-1,  0], dtype=torch.int32)
    """
    chosen = choose(backend, vertices_ndc)
    settings = RasterSettings(image_size, cull_backfaces=cull_backfaces, near_clipping=near_clipping)
    check_tensors(vertices_ndc, triangles, None)
    if chosen == "triton":
        vertices_ndc = vertices_ndc.float()
    near, far = check_depth_range(near, far, vertices_ndc)
    if chosen == "reference":
        check_values(vertices_ndc, triangles)
        return rasterize_hard_reference(vertices_ndc, triangles, near, far, settings)
    return Fragments(
        *torch.ops.mien.hard_rasterize(
            vertices_ndc,
            as_int32(triangles, vertices_ndc.shape[1]),
            near,
            far,
            *settings.image_size,
            cull_backfaces,
            near_clipping,
        )
    )
