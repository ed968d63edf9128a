"""The GPU kernels without a GPU: in Triton's interpreter against the specification, and compiled ahead of time.

If there is a CUDA device, the compiled kernels run on all scenes of the tests as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mien.rasterizer import rasterize
from tests.rasterizer.comparison import TOLERANCE, differences, draw
from tests.rasterizer.raster_scenes import attributes_of, scenes

ROOT = Path(__file__).parents[2]

pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install 'mien[gpu]'")


def run(*command: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    ).stdout


@pytest.mark.slow
def test_interpreted_kernels_agree_with_the_specification():
    errors = json.loads(run("-m", "tests.rasterizer.triton_scenes", TRITON_INTERPRET="1"))
    assert len(errors) >= 20
    too_large = {
        f"{scene}: {name}": error
        for scene, quantities in errors.items()
        for name, error in quantities.items()
        if not error <= TOLERANCE[name]
    }
    assert not too_large


@pytest.mark.slow
def test_kernels_compile_for_the_gpus_that_they_are_made_for(tmp_path):
    report = tmp_path / "resources.json"
    run("benchmarks/triton_resources.py", "--channels", "3", "--json", str(report))
    resources = json.loads(report.read_text())
    assert {(r["kernel"], r["capability"]) for r in resources} == {
        (kernel, capability)
        for kernel in ("set_up", "bin_chunks", "draw", "pack", "push_back")
        for capability in (80, 90)
    }
    # All modes for three channels, which need the most registers; `benchmarks/triton_resources.py --all` compiles the
    # other numbers of channels.
    for capability in (80, 90):
        modes = {(r["kernel"], r["constants"]) for r in resources if r["capability"] == capability}
        assert sum(kernel == "set_up" for kernel, _ in modes) == 4
        assert sum(kernel == "draw" for kernel, _ in modes) == 3  # hard, and soft in both definitions
        assert sum(kernel == "push_back" for kernel, _ in modes) == 2
    assert all(r["spilled_bytes"] == 0 for r in resources)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9, 13, 16, 100])
def test_backward_passes_take_every_channel_once_and_four_at_most(channels):
    from mien.rasterizer import gpu

    blocks = gpu.channel_blocks(channels)
    assert [channel for first, end in blocks for channel in range(first, end)] == list(range(channels))
    lengths = [end - first for first, end in blocks]
    assert max(lengths) == lengths[0] <= 4  # the first decides for which length the kernels are compiled
    assert len(blocks) == -(-channels // 4)


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_gpu
@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_on_the_device(scene):
    attributes, background = (tensor.float().cuda() for tensor in attributes_of(scene))
    vertices = scene.vertices.float().cuda().requires_grad_()
    attributes.requires_grad_()
    out = rasterize(vertices, scene.triangles.cuda(), attributes, background=background, **scene.kwargs)
    expected, expected_gradients = draw(scene, torch.float64, "reference")
    generator = torch.Generator().manual_seed(7)
    to_outputs = [torch.randn(t.shape, generator=generator).cuda() for t in (out.image, out.alpha)]
    gradients = torch.autograd.grad((out.image, out.alpha), (vertices, attributes), to_outputs)
    found = type(out)(*(tensor.cpu() for tensor in vars(out).values()))
    error = differences(scene, found, [gradient.cpu() for gradient in gradients], expected, expected_gradients)
    assert not {name: value for name, value in error.items() if not value <= TOLERANCE[name]}


@on_gpu
def test_a_cuda_graph_can_hold_it():
    scene = scenes()[0]
    vertices = scene.vertices.float().cuda()
    triangles = scene.triangles.cuda()
    settings = {"image_size": (24, 24), "near": 1.0, "far": 5.0}
    expected = rasterize(vertices, triangles, vertices, **settings).image  # also compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rasterize(vertices, triangles, vertices, **settings).image
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)
