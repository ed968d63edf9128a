"""Writes tests/golden/rasterizer.npz from the specification in float64: `python -m tests.rasterizer.make_golden`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mien.rasterizer import rasterize
from tests.rasterizer.raster_scenes import bumpy_sphere


def golden_arrays(backend: str) -> dict[str, np.ndarray]:
    """A bumpy sphere coloured by position, 32 x 40 pixels, and gradients of its squared picture."""
    vertices, triangles = bumpy_sphere(9, seed=4)
    vertices = vertices.float()
    attributes = (0.5 + 0.5 * torch.sin(7 * vertices)).requires_grad_()
    dtype = torch.float64 if backend == "reference" else torch.float32
    vertices = vertices.to(dtype).requires_grad_()
    attributes = attributes.detach().to(dtype).requires_grad_()
    out = rasterize(
        vertices,
        triangles,
        attributes,
        image_size=(32, 40),
        sigma=3e-4,
        gamma=1e-3,
        near=1.5,
        far=3.5,
        background=torch.tensor([0.2, 0.3, 0.4], dtype=dtype),
        backend=backend,
    )
    gradients = torch.autograd.grad(out.image.square().sum() + out.alpha.square().sum(), (vertices, attributes))
    arrays = {
        "image": out.image,
        "alpha": out.alpha,
        "triangle_ids": out.triangle_ids,
        "barycentrics": out.barycentrics,
        "depth": out.depth,
        "vertices_grad": gradients[0],
        "attributes_grad": gradients[1],
    }
    return {
        name: array.detach().numpy().astype(np.int32 if name == "triangle_ids" else np.float32)
        for name, array in arrays.items()
    }


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).parents[1] / "golden" / "rasterizer.npz", **golden_arrays("reference"))
