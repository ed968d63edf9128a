"""Differences between two rasterizers on one scene."""

from __future__ import annotations

import torch

from mien.rasterizer import RasterOutput, rasterize
from tests.rasterizer.raster_scenes import Scene, attributes_of

# Largest difference to float64. Image, alpha and barycentrics are of order 1, depth of order 3; gradients are
# measured by norms, relative. The worst that was seen over all scenes, on AVX-512, AVX2, SSE2 and in Triton's
# interpreter, stands beside each.
TOLERANCE = {
    "image": 1e-5,  # 1.8e-6
    "alpha": 1e-5,  # 3.7e-6
    "barycentrics": 2e-5,  # 1.2e-6
    "depth": 1e-5,  # 6.8e-7
    "x and y gradient": 5e-5,  # 3.6e-5
    "z gradient": 1e-4,  # 4.1e-5
    "attribute gradient": 1e-5,  # 4.8e-6
}


def functional(out: RasterOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """A random functional of image and alpha, as the gradients that it sends to them."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(out.image.shape, generator=generator), torch.randn(out.alpha.shape, generator=generator)


def draw(scene: Scene, dtype: torch.dtype, backend: str):
    """The output, and the gradients of `functional`."""
    # Rounded to float32 first, so that both precisions draw the same scene.
    attributes, background = (tensor.float().to(dtype) for tensor in attributes_of(scene))
    vertices = scene.vertices.float().to(dtype).requires_grad_()
    attributes.requires_grad_()
    out = rasterize(vertices, scene.triangles, attributes, background=background, backend=backend, **scene.kwargs)
    to_outputs = [gradient.to(dtype) for gradient in functional(out)]
    return out, torch.autograd.grad((out.image, out.alpha), (vertices, attributes), to_outputs)


def relative(found: torch.Tensor, expected: torch.Tensor, at_least: float = 1e-12) -> float:
    return float((found - expected).norm() / max(float(expected.norm()), at_least))


def natural_z_gradient(scene: Scene) -> float:
    """The size of z gradients where surfaces compete for a pixel: d z_norm/gamma times the image's gradient (1).

    Where one surface has a pixel for itself its true z gradient is zero, and what float32 leaves of the difference
    between its colour and the pixel's is 1e-7 of this.
    """
    return 1 / ((scene.far - scene.near) * scene.gamma)


def differences(scene: Scene, found, gradients, expected, expected_gradients) -> dict[str, float]:
    """Differences to compare with TOLERANCE. Raises AssertionError if the images show different triangles."""
    found, expected = (RasterOutput(*(plane.detach() for plane in vars(out).values())) for out in (found, expected))
    same = found.triangle_ids == expected.triangle_ids
    # A pixel centre on an edge, or between two equally near triangles, may go to either by rounding.
    assert int((~same).sum()) <= 0.001 * same.numel()
    natural = natural_z_gradient(scene)
    least_z = 0.1 * natural if float(expected_gradients[0][..., 2].norm()) < 1e-3 * natural else 1e-12
    error = {
        "image": (found.image - expected.image).abs().max(),
        "alpha": (found.alpha - expected.alpha).abs().max(),
        "barycentrics": ((found.barycentrics - expected.barycentrics) * same[..., None]).abs().max(),
        "depth": ((found.depth - expected.depth) * same).abs().max(),
        "x and y gradient": relative(gradients[0][..., :2], expected_gradients[0][..., :2]),
        "z gradient": relative(gradients[0][..., 2], expected_gradients[0][..., 2], at_least=least_z),
        "attribute gradient": relative(gradients[1], expected_gradients[1]),
    }
    return {name: float(value) for name, value in error.items()}
