"""Runs the GPU kernels in Triton's interpreter and prints their differences to the specification.

    TRITON_INTERPRET=1 python -m tests.rasterizer.triton_scenes        one line of JSON: {scene: {quantity: error}}

A separate program, because the interpreter is chosen when the kernels are imported, and the shape checks of the test
run would rewrite them. Each vector operation takes a Python call, so the scenes have few triangles.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from functools import partial
from unittest import mock

import numpy as np
import torch

from mien.rasterizer import Fragments, RasterOutput, gpu, ops
from tests.rasterizer.comparison import differences, draw, functional
from tests.rasterizer.raster_scenes import Scene, attributes_of, bumpy_sphere, scenes

MOST_TRIANGLES = 4

# Wide vectors make the interpreter fast. The second choice covers the other branches: several tiles per bin, and boxes
# that all lanes share.
WIDE = gpu.Launch(tile_width=32, tile_height=32, lanes=64, small_box=24)
NARROW = gpu.Launch(tile_width=8, tile_height=8, lanes=64, small_box=16)


def small_scenes() -> list[tuple[Scene, gpu.Launch]]:
    """Named scenes of few triangles, and spheres of 64, which are two chunks."""
    few = [scene for scene in scenes() if scene.triangles.shape[-2] <= MOST_TRIANGLES and max(scene.image_size) < 64]
    sphere, triangles = bumpy_sphere(4)
    batch = torch.cat([sphere, bumpy_sphere(4, seed=1)[0]])
    per_image = torch.stack([triangles, triangles.flip(0)])
    settings = {"image_size": (8, 12), "sigma": 1e-3, "gamma": 1e-2}
    spheres = [
        (Scene("sphere, culled, six channels", sphere, triangles, cull_backfaces=True, channels=6, **settings), WIDE),
        (Scene("two spheres, triangles per image, one channel", batch, per_image, channels=1, **settings), WIDE),
        (Scene("sharp sphere", sphere, triangles, image_size=(12, 12), sigma=1e-4, gamma=1e-4), WIDE),
    ]
    tiled = [renamed(scene, "in tiles") for scene in few if scene.name in {"shared edge, int64", "crossing near"}]
    # The backward pass takes four channels at a time; thirteen leave one for the last pass.
    many = [renamed(scene, "13 channels", channels=13) for scene in few if scene.name == "crossing near"]
    return [(scene, WIDE) for scene in few + many] + [(scene, NARROW) for scene in tiled] + spheres


def renamed(scene: Scene, how: str, channels: int = 3) -> Scene:
    return Scene(f"{scene.name}, {how}", scene.vertices, scene.triangles, near=scene.near, channels=channels)


class OnNoDevice:
    """Replaces `gpu` in the ops, so that tensors on the CPU are processed like those on a GPU."""

    def __init__(self, launch: gpu.Launch):
        self.soft_forward = partial(gpu.soft_forward, launch=launch)
        self.soft_backward = partial(gpu.soft_backward, launch=launch)
        self.hard_forward = partial(gpu.hard_forward, launch=launch)


def draw_with_triton(scene: Scene, launch: gpu.Launch):
    attributes, background = (tensor.float() for tensor in attributes_of(scene))
    vertices, triangles = scene.vertices.float(), scene.triangles.int()
    near, far = (torch.full((len(vertices),), depth) for depth in (scene.near, scene.far))
    options = (scene.sigma, scene.gamma, 1e-4, scene.cull_backfaces, scene.near_clipping, scene.barycentric_clip)
    with (
        mock.patch.object(ops, "kernels_beside", lambda _: contextlib.nullcontext(OnNoDevice(launch))),
        mock.patch.object(ops, "_on_cpu", lambda _: False),
    ):
        *outputs, state = ops._soft_rasterize(
            vertices, triangles, attributes, near, far, background, *scene.image_size, *options
        )
        found = RasterOutput(*outputs)
        gradients = ops._soft_rasterize_backward(
            vertices, triangles, attributes, near, far, found.image, state, *functional(found), *options
        )
        hard = Fragments(
            *ops._hard_rasterize(
                vertices, triangles, near, far, *scene.image_size, scene.cull_backfaces, scene.near_clipping
            )
        )
    if scene.barycentric_clip == "softras":
        assert torch.equal(hard.triangle_ids, found.triangle_ids)
        assert torch.equal(hard.depth, found.depth)
    return found, gradients


def main() -> None:
    warnings.simplefilter("error")
    result = {}
    for scene, launch in small_scenes():
        # Lanes without a triangle compute with undefined numbers, as on the device.
        with np.errstate(all="ignore"):
            found = draw_with_triton(scene, launch)
        expected = draw(scene, torch.float64, "reference")
        result[scene.name] = differences(scene, *found, *expected)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
