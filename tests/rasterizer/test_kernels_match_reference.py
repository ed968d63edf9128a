"""The native kernels against the specification in float64, forward and backward, on every scene and instruction set."""

from __future__ import annotations

import concurrent.futures
import functools

import pytest
import torch

from mien.rasterizer import _native, rasterize, rasterize_hard
from mien.rasterizer.cpu import gomp_parallel
from tests.rasterizer.comparison import TOLERANCE, differences, draw, relative
from tests.rasterizer.raster_scenes import Scene, attributes_of, bumpy_sphere, scenes

ISAS = _native.available_isas().split()


@pytest.fixture(params=ISAS)
def isa(request):
    before = _native.current_isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


REFERENCE: dict[str, tuple] = {}


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_forward_and_backward(scene, isa):
    if scene.name not in REFERENCE:
        REFERENCE[scene.name] = draw(scene, torch.float64, "reference")
    expected, expected_gradients = REFERENCE[scene.name]
    found, gradients = draw(scene, torch.float32, "cpu")

    assert (expected.triangle_ids >= 0).any() == scene.expects_pixels
    error = differences(scene, found, gradients, expected, expected_gradients)
    too_large = {name: float(value) for name, value in error.items() if not value <= TOLERANCE[name]}
    assert not too_large


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_hard_mode(scene, isa):
    vertices = scene.vertices.float()
    settings = {name: scene.kwargs[name] for name in ("image_size", "near", "far", "cull_backfaces", "near_clipping")}
    found = rasterize_hard(vertices, scene.triangles, **settings)
    expected = rasterize_hard(vertices.double(), scene.triangles, backend="reference", **settings)
    same = found.triangle_ids == expected.triangle_ids
    assert int((~same).sum()) <= 0.001 * same.numel()
    assert ((found.barycentrics - expected.barycentrics) * same[..., None]).abs().max() <= TOLERANCE["barycentrics"]
    assert ((found.depth - expected.depth) * same).abs().max() <= TOLERANCE["depth"]
    attributes, _ = attributes_of(scene)
    soft = rasterize(vertices, scene.triangles, attributes.float(), **scene.kwargs)
    if scene.barycentric_clip == "pytorch3d":
        return  # its depth has another definition
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


@pytest.mark.skipif(gomp_parallel() == 0, reason="this torch brings no libgomp")
def test_torchs_threads_and_our_own_draw_the_same():
    vertices, triangles = bumpy_sphere(30)
    scene = Scene("threads", vertices, triangles, image_size=(61, 83), sigma=1e-4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared, shared_gradients = draw(scene, torch.float32, "cpu")
        _native.use_openmp(0)
        own, own_gradients = draw(scene, torch.float32, "cpu")
    finally:
        _native.use_openmp(gomp_parallel())
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(vars(shared).values(), vars(own).values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(shared_gradients, own_gradients, strict=True))


def test_two_hundred_thousand_triangles():
    """Against the specification in a window of the image that contains few of them."""
    vertices, triangles = bumpy_sphere(317)
    assert len(triangles) > 200_000
    colours = (0.5 + 0.5 * torch.sin(7 * vertices)).float()
    vertices = vertices.float()
    out = rasterize(vertices, triangles, colours, image_size=(1024, 512), sigma=1e-5, near=1.0, far=5.0)
    # 512 pixels span two units: the window of 16 x 16 pixels in the middle is a picture of its own, enlarged.
    zoom, size = 512 / 16, 16
    top, left = 504, 248
    window = vertices.double() * torch.tensor([zoom, zoom, 1.0], dtype=torch.float64)
    inside = (window[0, triangles.long(), :2].abs().amin(1) < 1.5).all(-1)  # triangles reach 0.3 far
    expected = rasterize(
        window,
        triangles[inside],
        colours.double(),
        image_size=(size, size),
        sigma=1e-5 * zoom**2,
        near=1.0,
        far=5.0,
        backend="reference",
    )
    found = out.image[:, :, top : top + size, left : left + size]
    assert float((found - expected.image).abs().max()) <= TOLERANCE["image"]
    ids = inside.nonzero()[:, 0].int()[expected.triangle_ids.long()]
    assert float((ids == out.triangle_ids[:, top : top + size, left : left + size]).float().mean()) >= 0.98
    assert int(out.triangle_ids.max()) < len(triangles)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_drawing_an_image_in_pieces_changes_nothing(images, threads, isa):
    """Long lists of blocks are divided by rows and columns, down to single blocks."""
    vertices = torch.cat([bumpy_sphere(12, seed=seed)[0] for seed in range(images)])
    scene = Scene("pieces", vertices, bumpy_sphere(12)[1], image_size=(43, 61), sigma=1e-4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        whole = draw(scene, torch.float32, "cpu")[0]
        for numbers in (1, 1000):  # twice the triangles, 1,056, is always allowed
            _native.select_list_budget(numbers)
            pieces = draw(scene, torch.float32, "cpu")[0]
            assert all(torch.equal(a, b) for a, b in zip(vars(whole).values(), vars(pieces).values(), strict=True))
    finally:
        _native.select_list_budget(0)
        torch.set_num_threads(before)


def test_memory_is_bounded_for_any_number_of_triangles_per_pixel():
    """As one list of (triangle, block), these 4,000 triangles that fill 256² pixels would take 65 MB and more."""
    vertices = torch.tensor([[[-5.0, -5.0, 2.0], [5.0, -5.0, 2.0], [0.0, 8.0, 2.0]]])
    triangles = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    settings = {"image_size": (256, 256), "near": 1.0, "far": 5.0}
    with concurrent.futures.ThreadPoolExecutor(1) as fresh:  # a thread whose workspace is empty
        out = fresh.submit(rasterize_hard, vertices, triangles.repeat(4000, 1), **settings).result()
        assert bool((out.triangle_ids == 0).all())
        assert 0 < fresh.submit(_native.workspace_bytes).result() <= 20 << 20


def test_a_workspace_above_the_cap_is_given_back():
    vertices = bumpy_sphere(4)[0].float()
    settings = {"image_size": (8, 8), "near": 1.0, "far": 5.0}

    def kept(triangles: int) -> int:
        rasterize_hard(vertices, torch.zeros(triangles, 3, dtype=torch.int32), **settings)
        return _native.workspace_bytes()

    with concurrent.futures.ThreadPoolExecutor(1) as fresh:  # a thread whose workspace is empty
        assert 10**6 * 128 <= fresh.submit(kept, 10**6).result() <= 256 << 20
        assert fresh.submit(kept, 3 * 10**6).result() == 0
