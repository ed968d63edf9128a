from __future__ import annotations

import pytest
import torch

from mien.geometry import rotvec_to_rotmat
from mien.lighting import ambient_lighting, directional_lighting, rolled_lighting, sh_basis, shading


def sphere_points(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=-1)


def test_ambient_light_leaves_the_albedo() -> None:
    shade = shading(sphere_points(10)[None].float(), ambient_lighting(1))
    torch.testing.assert_close(shade, torch.ones(1, 10, 3))


def test_basis_matches_the_cosine_integral() -> None:
    """The irradiance of the light L = Y_k / Y_00, by Monte Carlo over incoming directions, over pi (eq. 3)."""
    incoming = sphere_points(400_000)
    kernel = torch.tensor([1, *[2 / 3] * 3, *[1 / 4] * 5], dtype=torch.float64)
    radiance = sh_basis(incoming) / kernel
    for normal in sphere_points(4):
        cosine = (incoming @ normal).clamp(min=0)
        irradiance = 4 * (radiance * cosine[:, None]).mean(0)
        torch.testing.assert_close(irradiance, sh_basis(normal), atol=0.02, rtol=0)


def test_light_from_above_is_brightest_on_top() -> None:
    lighting = ambient_lighting(1)
    lighting[:, 1] = 0.5
    up, down = shading(torch.tensor([[[0.0, 1, 0], [0, -1, 0]]]), lighting)[0, :, 0]
    assert up > 1 > down


def test_a_distant_light_shines_like_a_clamped_cosine() -> None:
    """Second order keeps the cosine to 0.1 everywhere (Ramamoorthi and Hanrahan 2001), and its mean exactly."""
    normals = torch.nn.functional.normalize(torch.randn(4000, 3), dim=-1)
    direction = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.7]]), dim=-1)
    light = directional_lighting(direction, torch.tensor([[1.0, 2.0, 0.0]]))
    found = shading(normals[None], light)[0]
    cosine = (normals @ direction[0]).clamp(min=0)
    assert (found[:, 0] - cosine).abs().max() < 0.1
    assert light[0, 0, 0] == pytest.approx(0.25)
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])
    assert found[:, 2].abs().max() == 0


def test_light_turns_with_the_picture() -> None:
    from_where = torch.nn.functional.normalize(torch.tensor([[0.3, 0.5, 0.8], [-0.6, 0.1, 0.4]]), dim=1)
    angle = torch.tensor([0.7, -2.5])
    colour = torch.tensor([[1.0, 0.8, 0.6], [0.2, 0.5, 0.9]])
    clockwise = rotvec_to_rotmat(torch.stack([0 * angle, 0 * angle, -angle], dim=1))
    turned = torch.einsum("bij,bj->bi", clockwise, from_where)
    expected = directional_lighting(turned, colour)
    torch.testing.assert_close(rolled_lighting(directional_lighting(from_where, colour), angle), expected)
