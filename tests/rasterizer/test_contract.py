"""Errors, defaults and torch integration of `rasterize`, and its golden image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from mien.errors import BackendUnavailable, ConfigError
from mien.rasterizer import backends, checks, ops, rasterize, rasterize_hard
from mien.rasterizer.settings import RasterSettings
from tests.rasterizer.make_golden import golden_arrays
from tests.rasterizer.raster_scenes import bumpy_sphere, mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "rasterizer.npz"


def call(**changes):
    vertices, triangles = bumpy_sphere(4)
    arguments = {
        "vertices_ndc": vertices.float(),
        "triangles": triangles,
        "attributes": torch.ones(1, vertices.shape[1], 3),
        "image_size": (8, 10),
        "near": 1.0,
        "far": 5.0,
    } | changes
    return rasterize(
        arguments.pop("vertices_ndc"), arguments.pop("triangles"), arguments.pop("attributes"), **arguments
    )


def with_value(value: float) -> torch.Tensor:
    vertices = bumpy_sphere(4)[0].float()
    vertices[0, 3, 1] = value
    return vertices


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vertices_ndc": with_value(float("nan"))}, ValueError, "vertices_ndc holds 1 numbers"),
        ({"vertices_ndc": with_value(float("inf"))}, ValueError, "vertices_ndc holds 1 numbers"),
        ({"attributes": torch.full((1, 40, 3), torch.nan)}, ValueError, "attributes holds 120 numbers"),
        ({"triangles": torch.tensor([[0, 1, 40]])}, ValueError, "has 40 vertices"),
        ({"triangles": torch.tensor([[0, 1, -1]])}, ValueError, "refer to vertices -1 to 1"),
        ({"triangles": torch.tensor([[0, 1, 2**40]])}, ValueError, "has 40 vertices"),
        ({"image_size": (0, 5)}, ConfigError, "image_size"),
        ({"image_size": (5, 20000)}, ConfigError, "image_size"),
        ({"sigma": 0.0}, ConfigError, "sigma"),
        ({"sigma": float("nan")}, ConfigError, "sigma"),
        ({"gamma": -1e-4}, ConfigError, "gamma"),
        ({"dist_eps": 0.51}, ConfigError, "dist_eps"),
        ({"near": 0.0}, ConfigError, "near"),
        ({"near": 5.0}, ConfigError, "near"),
        ({"near": torch.tensor([float("nan")])}, ConfigError, "near"),
        ({"near": 1.0, "far": 1 + 1e-8}, ConfigError, "near"),  # equal as float32
        ({"far": 1e39}, ConfigError, "far=1e\\+39"),
        ({"near": 1e-50}, ConfigError, "near=0"),
        ({"background": torch.tensor([0.0, torch.nan, 0.0])}, ValueError, "background holds 1 numbers"),
        ({"background": torch.tensor([1, 0, 0])}, TypeError, "background"),
        ({"background": torch.zeros(3, device="meta")}, ValueError, "background is on meta"),
    ],
)
def test_errors_name_the_bad_argument(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


# The shape checks of the test run reject wrong shapes earlier; users do not have them.
@pytest.mark.parametrize(
    ("vertices", "triangles", "attributes", "error"),
    [
        (torch.zeros(4, 3), torch.zeros(1, 3).int(), torch.zeros(1, 4, 3), ValueError),
        (torch.zeros(1, 4, 2), torch.zeros(1, 3).int(), torch.zeros(1, 4, 3), ValueError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 4).int(), torch.zeros(1, 4, 3), ValueError),
        (torch.zeros(1, 4, 3), torch.zeros(2, 1, 3).int(), torch.zeros(1, 4, 3), ValueError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3), torch.zeros(1, 4, 3), TypeError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3).short(), torch.zeros(1, 4, 3), TypeError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3).int(), torch.zeros(1, 5, 3), ValueError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3).int(), torch.zeros(1, 4, 0), ValueError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3).int(), torch.zeros(1, 4, 3).double(), TypeError),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3, device="meta").int(), torch.zeros(1, 4, 3), ValueError),
    ],
)
def test_wrong_shapes_types_and_devices_are_refused(vertices, triangles, attributes, error):
    with pytest.raises(error):
        checks.check_tensors(vertices, triangles, attributes)


def op_arguments(**changes):
    vertices = torch.tensor([[[-0.6, 0.5, 2.0], [0.1, -0.7, 2.6], [0.6, 0.4, 3.1]]])
    arguments = {
        "vertices": vertices,
        "triangles": torch.tensor([[0, 1, 2]], dtype=torch.int32),
        "attributes": torch.ones(1, 3, 3),
        "near": torch.ones(1),
        "far": torch.full((1,), 5.0),
        "background": torch.zeros(3),
        "height": 8,
        "width": 8,
        "sigma": 1e-5,
        "gamma": 1e-4,
        "dist_eps": 1e-4,
        "cull_backfaces": False,
        "near_clipping": True,
        "barycentric_clip": "softras",
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"attributes": torch.ones(1, 1, 3)}, ValueError),
        ({"background": torch.zeros(2)}, ValueError),
        ({"near": torch.ones(2)}, ValueError),
        ({"far": torch.ones(1)}, ConfigError),
        ({"triangles": torch.tensor([[0, 1, 2]])}, TypeError),
        ({"triangles": torch.tensor([[0, 1, 3]], dtype=torch.int32)}, ValueError),
        ({"barycentric_clip": "nonsense"}, (ConfigError, jaxtyping.TypeCheckError)),
        ({"height": 0}, ConfigError),
        ({"sigma": -1.0}, ConfigError),
    ],
)
def test_the_op_checks_its_arguments(changes, error):
    torch.ops.mien.soft_rasterize(**op_arguments())
    with pytest.raises(error):
        torch.ops.mien.soft_rasterize(**op_arguments(**changes))


@pytest.mark.parametrize("name", ["attributes", "image", "state", "image_grad", "alpha_grad"])
def test_the_backward_op_checks_its_arguments(name):
    arguments = op_arguments()
    image, alpha, *_, state = torch.ops.mien.soft_rasterize(**arguments)
    for forward_only in ("background", "height", "width"):
        del arguments[forward_only]
    arguments |= {"image": image, "state": state, "image_grad": image, "alpha_grad": alpha}
    torch.ops.mien.soft_rasterize_backward(**arguments)
    with pytest.raises(ValueError, match=name):
        torch.ops.mien.soft_rasterize_backward(**arguments | {name: arguments[name][:, :2]})


def test_calls_beside_the_dispatcher_equal_the_op():
    """rasterize calls the kernels directly; torch.compile, tracers and function transforms get the op."""
    vertices = (bumpy_sphere(12)[0].float() + torch.tensor([0.0, 0.0, -1.2])).requires_grad_()  # crosses near
    triangles = bumpy_sphere(12)[1].int()
    attributes = torch.rand(1, vertices.shape[1], 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    near, far, background = torch.tensor([1.0]), torch.tensor([3.1]), torch.zeros(3)
    settings = RasterSettings((40, 56), 1e-4, 1e-3)
    results = []
    for direct in (True, False):
        scene = vertices, triangles, attributes, near, far, background
        outputs = (
            ops.soft_rasterize(*scene, settings)
            if direct
            else torch.ops.mien.soft_rasterize(*scene, *settings.image_size, *settings.options)[:5]
        )
        loss = outputs[0].square().sum() + outputs[1].sum()
        results.append((*outputs, *torch.autograd.grad(loss, (vertices, attributes))))
    assert "SoftRasterizer" in type(ops.soft_rasterize(*scene, settings)[0].grad_fn).__name__
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_corners_that_changed_after_the_forward_pass_are_refused():
    vertices, triangles = bumpy_sphere(4)
    corners = triangles.int().numpy().copy()
    vertices = vertices.float().requires_grad_()
    out = call(vertices_ndc=vertices, triangles=torch.from_numpy(corners))
    corners[0, 0] = 10**6
    with pytest.raises(ValueError, match="1000000"):
        out.alpha.sum().backward()


def test_second_derivatives_are_refused():
    vertices = bumpy_sphere(4)[0].float().requires_grad_()
    loss = call(vertices_ndc=vertices).alpha.square().sum()
    with pytest.raises(NotImplementedError, match="create_graph"):
        torch.autograd.grad(torch.autograd.grad(loss, vertices, create_graph=True)[0].square().sum(), vertices)


def test_backends_are_never_swapped_silently():
    with pytest.raises(ConfigError, match="backend"):
        backends.choose("gpu", torch.zeros(1, 1, 3))
    with pytest.raises(BackendUnavailable, match='backend="reference"'):
        backends.choose("auto", torch.zeros(1, 1, 3, device="meta"))
    with pytest.raises(BackendUnavailable, match="CUDA"):
        backends.choose("triton", torch.zeros(1, 1, 3))
    with pytest.raises(TypeError, match="float32"):
        backends.choose("auto", torch.zeros(1, 1, 3, dtype=torch.float64))


def test_front_faces_run_counter_clockwise_for_the_viewer():
    # On a screen with y down: from the left below, to the right below, to the top.
    vertices, triangles = mesh((-0.5, 0.5, 2.0), (0.5, 0.5, 2.0), (0.0, -0.5, 2.0))
    settings = {"image_size": (9, 9), "near": 1.0, "far": 5.0}
    seen = rasterize_hard(vertices.float(), triangles, cull_backfaces=True, **settings)
    assert (seen.triangle_ids == 0).any()
    turned = rasterize_hard(vertices.float(), triangles[:, [0, 2, 1]], cull_backfaces=True, **settings)
    assert (turned.triangle_ids == -1).all()


def test_shorter_side_spans_minus_one_to_one_and_y_points_down():
    # A small triangle around the centre of pixel (row 2, column 17) of a 10 x 20 image.
    x, y = (2 * 17.5 - 20) / 10, (2 * 2.5 - 10) / 10
    vertices, triangles = mesh((x - 0.05, y - 0.04, 2.0), (x + 0.05, y - 0.04, 2.0), (x, y + 0.06, 2.0))
    out = rasterize_hard(vertices.float(), triangles, image_size=(10, 20), near=1.0, far=5.0)
    assert (out.triangle_ids[0] == 0).nonzero().tolist() == [[2, 17]]


def test_empty_pixels_show_the_background():
    background = torch.tensor([0.1, 0.2, 0.3])
    out = call(triangles=torch.zeros(0, 3, dtype=torch.int32), background=background)
    assert torch.equal(out.image, background[None, :, None, None].expand(1, 3, 8, 10))
    assert not out.alpha.any()
    assert not out.depth.any()
    assert not out.barycentrics.any()
    assert (out.triangle_ids == -1).all()


def test_a_batch_of_nothing():
    out = call(vertices_ndc=torch.zeros(0, 4, 3), attributes=torch.zeros(0, 4, 2), triangles=torch.zeros(1, 3).int())
    assert out.image.shape == (0, 2, 8, 10)


def test_depth_range_per_image():
    vertices = bumpy_sphere(4)[0].float().expand(2, -1, -1)
    out = call(
        vertices_ndc=vertices,
        attributes=torch.ones(2, 40, 3),
        near=torch.tensor([1.0, 4.0]),
        far=torch.tensor([5.0, 9.0]),
    )
    assert out.alpha[0].any()
    assert not out.alpha[1].any()


def test_strided_inputs_are_drawn_as_they_are():
    straight = call()
    vertices = bumpy_sphere(4)[0].float()
    strided = vertices.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert torch.equal(call(vertices_ndc=strided).image, straight.image)


def test_opcheck():
    vertices, triangles = bumpy_sphere(3)
    generator = torch.Generator().manual_seed(0)
    attributes = torch.rand(1, vertices.shape[1], 2, generator=generator)
    scene = (
        vertices.float().requires_grad_(),
        triangles,
        attributes.requires_grad_(),
        torch.ones(1),
        5 * torch.ones(1),
    )
    torch.library.opcheck(
        torch.ops.mien.soft_rasterize,
        (*scene, torch.zeros(2), 6, 7, 1e-3, 1e-3, 1e-4, False, True, "softras"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"),
    )
    torch.library.opcheck(
        torch.ops.mien.hard_rasterize,
        (scene[0].detach(), triangles, torch.ones(1), 5 * torch.ones(1), 6, 7, False, True),
        test_utils=("test_schema", "test_faketensor"),
    )


COMPILED = """
import torch
from mien.errors import ConfigError
from mien.rasterizer import rasterize, rasterize_hard

vertices = torch.tensor([[[-0.6, 0.5, 2.0], [0.1, -0.7, 2.6], [0.6, 0.4, 3.1]]], requires_grad=True)

def loss(v):
    faces = torch.tensor([[0, 1, 2]])
    out = rasterize(1.01 * v, faces, torch.sin(v), image_size=(12, 15), near=1.0, far=5.0)
    hard = rasterize_hard(v.detach(), faces, image_size=(12, 15), near=1.0, far=5.0)
    return out.image.square().mean() + out.alpha.sum() + hard.depth.sum()

expected = torch.autograd.grad(loss(vertices), vertices)[0]
found = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(vertices), vertices)[0]
assert torch.equal(found, expected)
explained = torch._dynamo.explain(loss)(vertices)
assert explained.graph_count == 1 and explained.graph_break_count == 0, explained

@torch.compile(backend="aot_eager", fullgraph=True)
def alpha(v, near):
    return rasterize(v, torch.tensor([[0, 1, 2]]), v, image_size=(12, 15), near=near, far=5.0).alpha

try:
    alpha(vertices.detach(), torch.tensor([float("nan")]))
except ConfigError:
    pass
else:
    raise AssertionError("near is not checked")
"""


@pytest.mark.slow
def test_compiled_programs_hold_the_op_in_one_graph():
    # In a separate process: the shape checks of the test run cannot be traced.
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=120)


IN_PROCESSES = """
import multiprocessing
import torch
from mien.rasterizer import rasterize

def gradient(seed):
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand(1, 300, 3, generator=generator)
    vertices = vertices * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([-1.0, -1.0, 2.0])
    vertices.requires_grad_()
    faces = torch.arange(300).reshape(-1, 3)
    out = rasterize(vertices, faces, vertices, image_size=(32, 48), near=1.0, far=5.0)
    return torch.autograd.grad(out.image.square().sum() + out.alpha.sum(), vertices)[0].tolist()

if __name__ == "__main__":
    here = [gradient(seed) for seed in range(4)]  # the parent has used threads before it forks
    for method in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(gradient, range(4)) == here, method
"""


@pytest.mark.slow
def test_forked_and_spawned_processes_compute_the_same(tmp_path):
    script = tmp_path / "in_processes.py"
    script.write_text(IN_PROCESSES)
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)


DISTRIBUTED = """
import os, sys
import torch
from mien.rasterizer import rasterize

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)

class Mesh(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.corners = torch.nn.Parameter(torch.tensor([[[-0.6, 0.5, 2.0], [0.1, -0.7, 2.6], [0.6, 0.4, 3.1]]]))

    def forward(self, scale):
        vertices = self.corners * torch.stack([scale, scale, torch.ones(())])
        return rasterize(vertices, torch.tensor([[0, 1, 2]]), vertices, image_size=(12, 15), near=1.0, far=5.0)

def gradient(module, scales):
    module.zero_grad()
    for scale in scales:
        out = module(torch.tensor(scale))
        (out.image.sum() + out.alpha.sum()).backward()

mesh = Mesh()
parallel = torch.nn.parallel.DistributedDataParallel(mesh)
gradient(parallel, [[0.8, 1.1][torch.distributed.get_rank()]])
together = mesh.corners.grad.clone()
gradient(mesh, [0.8, 1.1])
assert torch.allclose(together, mesh.corners.grad / 2, rtol=1e-5, atol=1e-6)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(tmp_path / "meeting"), str(rank)])
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def test_golden_picture():
    """Regenerate with `python -m tests.rasterizer.make_golden` when the definition changes, and check it by eye."""
    golden = np.load(GOLDEN)
    found = golden_arrays("auto")
    assert set(golden.files) == set(found)
    assert (golden["triangle_ids"] == found["triangle_ids"]).all()
    for name in set(found) - {"triangle_ids"}:
        scale = np.abs(golden[name]).max()
        assert np.abs(golden[name] - found[name]).max() <= 2e-5 * scale, name
