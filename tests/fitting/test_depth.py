from __future__ import annotations

import torch

from mien.camera import Camera
from mien.fitting.depth import depth_px, plane_basis, without_plane


def test_planes_are_removed_and_nothing_else() -> None:
    points_px = 100 * torch.rand(2, 50, 2, dtype=torch.float64)
    basis = plane_basis(points_px)
    plane = points_px @ torch.tensor([0.7, -0.2], dtype=torch.float64) + 30
    assert without_plane(plane, basis).abs().max() < 1e-9
    bumps = torch.rand(2, 50, dtype=torch.float64)
    rest = without_plane(bumps, basis)
    torch.testing.assert_close(without_plane(bumps + plane, basis), rest)
    torch.testing.assert_close((rest[:, None] @ basis).abs().max(), torch.zeros((), dtype=torch.float64))
    assert 0.5 * bumps.std() < rest.std() < bumps.std()


def test_columns_are_treated_alike() -> None:
    basis = plane_basis(torch.rand(1, 9, 2))
    values = torch.rand(1, 9, 4)
    for column in range(4):
        torch.testing.assert_close(without_plane(values, basis)[..., column], without_plane(values[..., column], basis))


def test_depth_has_the_scale_of_the_picture() -> None:
    """Two points 1 cm apart in depth differ as two that are 1 cm apart across."""
    camera = Camera.from_fov(20.0, image_size=(224, 224))
    points = torch.tensor([[[0.0, 0.0, 1.0], [0.01, 0.0, 1.0], [0.0, 0.0, 1.01], [0.0, 0.0, 0.99]]])
    across = camera.project(points)[0, 1, 0] - camera.project(points)[0, 0, 0]
    depths = depth_px(points, camera)[0]
    torch.testing.assert_close(depths[2] - depths[0], across, rtol=1e-4, atol=0)
