"""The native kernels against the specification in float64, forward and backward, on every scene and instruction set."""

from __future__ import annotations

import functools

import pytest
import torch

from mien.rasterizer import _native, rasterize, rasterize_hard
from tests.rasterizer.raster_scenes import Scene, attributes_of, bumpy_sphere, scenes

ISAS = _native.available_isas().split()

# Largest difference to float64. Image, alpha and barycentrics are of order 1, depth of order 3; gradients are
# measured by norms, relative. The worst that was seen over all scenes and instruction sets stands beside each.
TOLERANCE = {
    "image": 1e-5,
    "alpha": 1e-5,
    "barycentrics": 2e-5,
    "depth": 1e-5,
    "x and y gradient": 5e-5,
    "z gradient": 1e-4,
    "attribute gradient": 1e-5,
}


@pytest.fixture(params=ISAS)
def isa(request):
    before = _native.current_isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


def draw(scene: Scene, dtype: torch.dtype, backend: str):
    """The output, and the gradients of a random functional of image and alpha."""
    # Rounded to float32 first, so that both precisions draw the same scene.
    attributes, background = (tensor.float().to(dtype) for tensor in attributes_of(scene))
    vertices = scene.vertices.float().to(dtype).requires_grad_()
    attributes.requires_grad_()
    out = rasterize(vertices, scene.triangles, attributes, background=background, backend=backend, **scene.kwargs)
    generator = torch.Generator().manual_seed(7)
    image_grad = torch.randn(out.image.shape, generator=generator)
    alpha_grad = torch.randn(out.alpha.shape, generator=generator)
    loss = (out.image * image_grad).sum() + (out.alpha * alpha_grad).sum()
    gradients = torch.autograd.grad(loss, (vertices, attributes))
    return out, gradients


def relative(found: torch.Tensor, expected: torch.Tensor, at_least: float = 1e-12) -> float:
    return float((found - expected).norm() / max(float(expected.norm()), at_least))


def natural_z_gradient(scene: Scene) -> float:
    """The size of z gradients where surfaces compete for a pixel: d z_norm/gamma times the image's gradient (1).

    Where one surface has a pixel for itself its true z gradient is zero, and what float32 leaves of the difference
    between its colour and the pixel's is 1e-7 of this.
    """
    return 1 / ((scene.far - scene.near) * scene.gamma)


REFERENCE: dict[str, tuple] = {}


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_forward_and_backward(scene, isa):
    if scene.name not in REFERENCE:
        REFERENCE[scene.name] = draw(scene, torch.float64, "reference")
    expected, expected_gradients = REFERENCE[scene.name]
    found, gradients = draw(scene, torch.float32, "cpu")

    assert (expected.triangle_ids >= 0).any() == scene.expects_pixels
    same = found.triangle_ids == expected.triangle_ids
    # A pixel centre on an edge, or between two equally near triangles, may go to either by rounding.
    assert int((~same).sum()) <= 0.001 * same.numel()
    error = {
        "image": (found.image - expected.image).abs().max(),
        "alpha": (found.alpha - expected.alpha).abs().max(),
        "barycentrics": ((found.barycentrics - expected.barycentrics) * same[..., None]).abs().max(),
        "depth": ((found.depth - expected.depth) * same).abs().max(),
        "x and y gradient": relative(gradients[0][..., :2], expected_gradients[0][..., :2]),
        "z gradient": relative(
            gradients[0][..., 2], expected_gradients[0][..., 2], at_least=0.1 * natural_z_gradient(scene)
        ),
        "attribute gradient": relative(gradients[1], expected_gradients[1]),
    }
    too_large = {name: float(value) for name, value in error.items() if not value <= TOLERANCE[name]}
    assert not too_large


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_hard_mode(scene, isa):
    vertices = scene.vertices.float()
    settings = {name: scene.kwargs[name] for name in ("image_size", "near", "far", "cull_backfaces")}
    found = rasterize_hard(vertices, scene.triangles, **settings)
    expected = rasterize_hard(vertices.double(), scene.triangles, backend="reference", **settings)
    same = found.triangle_ids == expected.triangle_ids
    assert int((~same).sum()) <= 0.001 * same.numel()
    assert ((found.barycentrics - expected.barycentrics) * same[..., None]).abs().max() <= TOLERANCE["barycentrics"]
    assert ((found.depth - expected.depth) * same).abs().max() <= TOLERANCE["depth"]
    attributes, _ = attributes_of(scene)
    soft = rasterize(vertices, scene.triangles, attributes.float(), **scene.kwargs)
    if scene.barycentric_clip == "pytorch3d":
        return  # has depths of its own
    assert torch.equal(soft.triangle_ids, found.triangle_ids)
    assert torch.equal(soft.depth, found.depth)


@functools.cache
def sharpest() -> tuple[Scene, tuple]:
    vertices, triangles = bumpy_sphere(8)
    # Two copies interleaved in depth, at the far end of the numbers: worst for digits.
    double = torch.cat([vertices, vertices + torch.tensor([0.03, 0.02, 1e-4])], 1)
    both = torch.cat([triangles, triangles + vertices.shape[1]])
    scene = Scene("sharpest", double, both, image_size=(48, 48), sigma=1e-5, gamma=1e-4, near=1.9, far=3.1)
    return scene, draw(scene, torch.float64, "reference")[1]


def test_gradients_keep_their_digits_at_the_sharpest_gamma(isa):
    """zeta reaches 1e4 at gamma 1e-4; float32 depths would leave 3e-4 of relative error in the gradients."""
    scene, expected = sharpest()
    _, found = draw(scene, torch.float32, "cpu")
    assert relative(found[0][..., 2], expected[0][..., 2]) <= 1e-4
    assert relative(found[0][..., :2], expected[0][..., :2]) <= 1e-4
    assert relative(found[1], expected[1]) <= 1e-4


@pytest.mark.parametrize("images", [1, 3])
def test_the_number_of_threads_changes_nothing(images, isa):
    vertices = torch.cat([bumpy_sphere(30, seed=seed)[0] for seed in range(images)])
    scene = Scene("threads", vertices, bumpy_sphere(30)[1], image_size=(61, 83), sigma=1e-4)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, gradients = draw(scene, torch.float32, "cpu")
            results.append((out.image, out.alpha, out.triangle_ids, out.barycentrics, out.depth, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
