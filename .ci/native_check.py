"""Render a triangle with the native kernels alone; needs NumPy and the wheel, but not PyTorch.

PyTorch has no wheels for musllinux and for Intel Macs, so this is what can be tested of mien's wheels there. It runs
on all other platforms too: cibuildwheel calls it for each wheel (see pyproject.toml).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

import mien

SIZE, SIGMA = 32, 1e-3


def load_native() -> ModuleType:
    """The extension module by its path: importing mien.rasterizer would import torch."""
    folder = Path(mien.__file__).parent / "rasterizer"
    (path,) = (path for path in folder.glob("_native*") if path.suffix in {".so", ".pyd"})
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def render_triangle(native: ModuleType, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and alpha of one green triangle, and the gradient of alpha's sum with respect to its corners."""
    shape = (1, SIZE, SIZE)
    corners, colours = np.array([[0, 1, 2]], np.int32), np.tile(np.float32([0, 1, 0]), (1, 3, 1))
    near, far, background = np.float32([1]), np.float32([3]), np.zeros(3, np.float32)
    image, alpha = np.empty((1, 3, SIZE, SIZE), np.float32), np.empty(shape, np.float32)
    state = np.empty((1, 4, SIZE, SIZE), np.float32)
    fragments = np.empty(shape, np.int32), np.empty((*shape, 3), np.float32), np.empty(shape, np.float32)
    softness = SIGMA, 1e-4, 1e-4, False, "softras"
    native.soft_forward(points, corners, colours, near, far, background, *softness, 2, image, alpha, *fragments, state)
    gradients = np.empty_like(points), np.empty_like(colours)
    weights = np.zeros_like(image), np.ones_like(alpha)
    native.soft_backward(points, corners, colours, near, far, *softness, 2, image, state, *weights, *gradients)
    return image, alpha, gradients[0]


def main() -> None:
    """Check every instruction set that this processor can run."""
    native = load_native()
    points = np.float32([[[-0.7, -0.6, 2], [0.8, -0.5, 2], [0.1, 0.7, 2]]])
    share = abs(np.linalg.det(points[0, 1:, :2] - points[0, 0, :2])) / 2 / 4  # of the image, whose sides are 2
    step = np.zeros_like(points)
    step[0, 2, 1] = 1e-2
    for isa in native.available_isas().split():
        native.select_isa(isa)
        image, alpha, gradient = render_triangle(native, points)
        assert np.allclose(image[0, :, SIZE // 2, SIZE // 2], [0, 1, 0], atol=1e-3), image[0, :, SIZE // 2, SIZE // 2]
        assert abs(alpha.mean() - share) < 0.1 * share, (alpha.mean(), share)
        difference = (
            render_triangle(native, points + step)[1].sum() - render_triangle(native, points - step)[1].sum()
        ) / 2e-2
        assert abs(gradient[0, 2, 1] - difference) < 0.05 * abs(difference), (gradient[0, 2, 1], difference)
    print(f"mien {mien.__version__}: the native kernels work with {native.available_isas()}")


if __name__ == "__main__":
    main()
