"""Calls that pass the checks of the op run without memory errors; all others are refused before native code runs.

`make asan` runs this with kernels built with AddressSanitizer and UndefinedBehaviorSanitizer (in the file
MIEN_NATIVE_MODULE) and many more examples.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

if sanitized := os.environ.get("MIEN_NATIVE_MODULE"):
    spec = importlib.util.spec_from_file_location("mien.rasterizer._native", sanitized)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

from mien.errors import ConfigError
from mien.rasterizer import rasterize, rasterize_hard
from mien.rasterizer.cpu import native

EXAMPLES = 2000 if sanitized else 60


def test_the_module_is_the_one_to_be_tested():
    assert not sanitized or native().__file__ == sanitized


# Ordinary positions, pixel centres and edges that fall on them, the ends of float32's range, and what must be refused.
ORDINARY = st.floats(-1.5, 1.5, width=32)
ROUND = st.integers(-12, 12).map(lambda n: n / 8)
WILD = st.floats(allow_nan=False, allow_infinity=False, width=32)
REFUSED = st.sampled_from([float("nan"), float("inf"), -float("inf")])


@st.composite
def calls(draw, bad: bool):
    batch, count, faces = draw(st.integers(0, 3)), draw(st.integers(1, 12)), draw(st.integers(0, 40))
    channels = draw(st.integers(1, 8))
    numbers = draw(st.sampled_from([ORDINARY, ROUND, WILD, st.one_of(ORDINARY, WILD)]))
    vertices = draw(st.lists(numbers, min_size=batch * count * 3, max_size=batch * count * 3))
    if draw(st.booleans()):
        vertices = [abs(x) + 1 if k % 3 == 2 and abs(x) < 1e30 else x for k, x in enumerate(vertices)]
    corner = st.integers(0, count - 1)
    per_image = draw(st.booleans()) and batch > 0
    size = (batch if per_image else 1) * faces * 3
    triangles = draw(st.lists(corner, min_size=size, max_size=size))
    arguments = {
        "image_size": (draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        "near": draw(st.floats(1e-3, 2.0)),
        "far": draw(st.floats(2.5, 1e4)),
        "near_clipping": draw(st.booleans()),
    }
    softness = {
        "sigma": 10 ** draw(st.floats(-9, 3)),
        "gamma": 10 ** draw(st.floats(-9, 1)),
        "dist_eps": draw(st.floats(1e-9, 0.5)),
        "barycentric_clip": draw(st.sampled_from(["softras", "pytorch3d"])),
    }
    if bad:
        what = draw(st.sampled_from(["vertices", "triangles", "sigma", "gamma", "near", "size"]))
        hypothesis.assume((what != "vertices" or vertices) and (what != "triangles" or triangles))
        if what == "vertices":
            vertices[draw(st.integers(0, len(vertices) - 1))] = draw(REFUSED)
        elif what == "triangles":
            outside = st.one_of(st.integers(-(2**62), -1), st.integers(count, 2**62))
            triangles[draw(st.integers(0, len(triangles) - 1))] = draw(outside)
        elif what == "near":
            arguments["near"] = draw(st.sampled_from([0.0, -1.0, 1e9, float("nan")]))
        elif what == "size":
            arguments["image_size"] = (draw(st.sampled_from([0, -3, 16385])), 5)
        else:
            softness[what] = draw(st.one_of(REFUSED, st.floats(max_value=0.0)))
    shape = (batch, faces, 3) if per_image else (faces, 3)
    tensors = (
        torch.tensor(vertices, dtype=torch.float32).reshape(batch, count, 3),
        torch.tensor(triangles, dtype=torch.int64).reshape(shape),
    )
    attributes = torch.linspace(0, 1, batch * count * channels).reshape(batch, count, channels)
    threads = draw(st.integers(1, 4))
    isa = draw(st.sampled_from(native().available_isas().split()))
    return tensors, attributes, arguments, softness, draw(st.booleans()), threads, isa


@pytest.fixture(autouse=True, scope="module")
def _isa():
    before = native().current_isa()
    yield
    native().select_isa(before)


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(calls(bad=False))
def test_what_is_accepted_is_drawn(call):
    (vertices, triangles), attributes, arguments, softness, cull, threads, isa = call
    torch.set_num_threads(threads)
    native().select_isa(isa)
    vertices.requires_grad_()
    attributes.requires_grad_()
    out = rasterize(vertices, triangles, attributes, cull_backfaces=cull, **arguments, **softness)
    gradients = torch.autograd.grad(
        (out.image, out.alpha), (vertices, attributes), (out.image.detach() + 1, out.alpha.detach())
    )
    hard = rasterize_hard(vertices.detach(), triangles, cull_backfaces=cull, **arguments)
    for fragments in (out, hard):
        ids = fragments.triangle_ids
        assert bool(((ids >= -1) & (ids < triangles.shape[-2])).all())
    alpha = out.alpha.detach()
    assert bool(((alpha >= -1e-6) & (alpha <= 1 + 1e-6)).all())
    if not vertices.numel() or float(vertices.detach().abs().max()) < 10:
        assert bool(out.image.isfinite().all())
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(calls(bad=True))
def test_what_is_wrong_is_refused(call):
    (vertices, triangles), attributes, arguments, softness, cull, *_ = call
    with pytest.raises((ConfigError, ValueError)):
        rasterize(vertices, triangles, attributes, cull_backfaces=cull, **arguments, **softness)
