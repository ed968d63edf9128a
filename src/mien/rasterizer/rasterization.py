"""`rasterize` and `rasterize_hard`: the two verbs of the package, over all backends."""

from __future__ import annotations

import torch

from mien.rasterizer import ops  # noqa: F401  # registers torch.ops.mien
from mien.rasterizer.backends import Backend, choose
from mien.rasterizer.checks import as_int32, check_background, check_depth_range, check_tensors, check_values
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
    """Draw a batch of meshes softly: differentiable images of any number of channels, and alpha.

    The definition is SoftRas (Liu et al. 2019, arXiv 1901.05567) as written down in `mien.rasterizer.reference`.

    `vertices_ndc`: x to the right and y DOWN, where the shorter side of the image spans [-1, 1] and pixels are
    square, so `x = (2 u - W) / min(H, W)` for a position u in pixels; z is the depth along the camera's axis, > 0,
    in any unit. `triangles`: corners as vertex indices, (T, 3) for all images or (B, T, 3); int32 avoids a copy.
    `attributes`: what is drawn, C channels at each vertex. `near` and `far`, in the unit of z, scale the depth;
    triangles that cross `near` are cut there, those that cross `far` pixel by pixel. `background`: colour
    behind everything, zeros if None. The other numbers are explained at `mien.rasterizer.RasterSettings`.

    Differentiable in `vertices_ndc` (x, y and z) and `attributes`, once; not in `background`.

    Backends: "cpu" is the native kernel (float32, on the CPU; `torch.get_num_threads()` threads, the same result to
    the last bit for any number of them), "triton" the one for CUDA devices (float32, or bfloat16 and float16 that are
    cast to it; float32 images), "reference" the slow PyTorch twin for any float dtype and device, and "auto" the kernel
    of the tensors' device: it never falls back to the reference.

    Raises TypeError, ValueError, ConfigError or BackendUnavailable; see `mien.rasterizer.checks`.
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
    image, alpha, ids, barycentrics, depth, _ = torch.ops.mien.soft_rasterize(
        vertices_ndc,
        as_int32(triangles, vertices_ndc.shape[1]),
        attributes,
        near,
        far,
        background,
        *settings.image_size,
        float(sigma),
        float(gamma),
        float(dist_eps),
        cull_backfaces,
        near_clipping,
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
    near_clipping: bool = True,
    backend: Backend = "auto",
) -> Fragments:
    """Find the nearest triangle under each pixel centre, with perspective-correct barycentrics and depth.

    Arguments, conventions and errors are those of `rasterize`. Not differentiable.
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
