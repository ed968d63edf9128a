"""`interpolate` and `texture` against sums and samples written out by hand."""

from __future__ import annotations

import pytest
import torch

from mien.rasterizer import Fragments, interpolate, rasterize, rasterize_hard, texture

TRIANGLES = torch.tensor([[0, 2, 1], [1, 2, 3]])


def _fragments(dtype: torch.dtype = torch.float64) -> Fragments:
    """Two images of 2 × 3 pixels, some of them empty."""
    ids = torch.tensor([[[0, 1, -1], [1, 0, 0]], [[-1, -1, 1], [0, 1, 1]]], dtype=torch.int32)
    weights = torch.rand(2, 2, 3, 3, dtype=dtype)
    weights = weights / weights.sum(-1, keepdim=True) * (ids >= 0)[..., None]
    return Fragments(ids, weights, torch.ones(2, 2, 3, dtype=dtype))


@pytest.mark.parametrize("per_image", ["neither", "attributes", "triangles", "both"])
def test_pixels_are_the_weighted_sum_of_their_triangles_corners(per_image: str) -> None:
    found = _fragments()
    attributes, triangles = torch.rand(2, 4, 5, dtype=torch.float64), torch.stack([TRIANGLES, TRIANGLES.flip(0, 1)])
    attributes = attributes if per_image in ("attributes", "both") else attributes[0]
    triangles = triangles if per_image in ("triangles", "both") else triangles[0]
    image = interpolate(attributes, triangles, found)
    assert image.shape == (2, 5, 2, 3)
    for b, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        triangle = int(found.triangle_ids[b, row, column])
        values = attributes if attributes.ndim == 2 else attributes[b]
        corners = (triangles if triangles.ndim == 2 else triangles[b])[triangle]
        expected = (values[corners] * found.barycentrics[b, row, column][:, None]).sum(0) * (triangle >= 0)
        torch.testing.assert_close(image[b, :, row, column], expected)


def test_interpolation_is_differentiable_in_the_attributes() -> None:
    found = _fragments()
    for shape in ((4, 2), (2, 4, 2)):
        attributes = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda values: interpolate(values, TRIANGLES, found), attributes)


def test_interpolation_is_perspective_correct() -> None:
    """Camera space itself is linear on the surface, so that it comes back as depth times the pixel's ray."""
    points = torch.tensor([[[-2.0, -1.0, 2.0], [3.0, -1.5, 4.0], [0.5, 3.0, 5.0]]])
    ndc = torch.cat([points[..., :2] / points[..., 2:], points[..., 2:]], -1)
    triangles = torch.tensor([[0, 1, 2]])
    found = rasterize_hard(ndc, triangles, image_size=(20, 30), near=0.5, far=10.0)
    x, y, z = interpolate(points, triangles, found)[0]
    hit = found.triangle_ids[0] >= 0
    assert 50 < int(hit.sum()) < 600
    torch.testing.assert_close(z, found.depth[0])
    ray_x, ray_y = (2 * torch.arange(30) + 1 - 30) / 20, (2 * torch.arange(20) + 1 - 20) / 20
    torch.testing.assert_close(x, ray_x * z, atol=1e-5, rtol=0)
    torch.testing.assert_close(y, ray_y[:, None] * z, atol=1e-5, rtol=0)


def test_the_fragments_of_soft_rasterization_serve_as_well() -> None:
    ndc, colours = torch.rand(1, 4, 3) + torch.tensor([-0.5, -0.5, 1.0]), torch.rand(1, 4, 3)
    out = rasterize(ndc, TRIANGLES, colours, image_size=(8, 8), near=0.5, far=3.0)
    hard = rasterize_hard(ndc, TRIANGLES, image_size=(8, 8), near=0.5, far=3.0)
    torch.testing.assert_close(interpolate(colours, TRIANGLES, out), interpolate(colours, TRIANGLES, hard))


def test_texel_centres_and_midpoints_are_sampled_with_v_upwards() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    places = [(0.125, 5 / 6), (0.875, 1 / 6), (0.25, 5 / 6), (0.125, 4 / 6), (-1.0, 9.0), (2.0, -2.0)]
    uv = torch.tensor(places).T.view(1, 2, 1, -1)
    expected = torch.tensor([0.0, 11.0, 0.5, 2.0, 0.0, 11.0])  # the last two beyond the border
    torch.testing.assert_close(texture(maps, uv)[0, 0, 0], expected)


def test_textures_are_differentiable_in_maps_and_coordinates() -> None:
    maps = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    # Away from the centres of texels, where bilinear weights have a kink.
    uv = (0.1 + 0.8 * torch.rand(2, 2, 3, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(texture, (maps, uv))
    one_map, one_place = maps[:1].detach().requires_grad_(), uv[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(texture, (one_map, uv))
    assert torch.autograd.gradcheck(texture, (maps, one_place))


def test_pixels_without_a_triangle_have_no_texture() -> None:
    found = _fragments(torch.float32)
    image = texture(torch.ones(1, 3, 4, 4), interpolate(torch.rand(4, 2), TRIANGLES, found), found)
    torch.testing.assert_close(image, (found.triangle_ids >= 0).float()[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("attributes", "triangles", "message"),
    [
        ((3, 4, 5), (2, 3), r"attributes have the shape \(3, 4, 5\).* use \(V, C\) or \(2, V, C\)"),
        ((4, 5), (3, 2, 3), r"triangles have the shape \(3, 2, 3\).* use \(T, 3\) or \(2, T, 3\)"),
    ],
)
def test_other_batch_sizes_are_refused(attributes: tuple[int, ...], triangles: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate(torch.rand(attributes), torch.zeros(triangles, dtype=torch.int64), _fragments())


def test_maps_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="maps hold 3 images and uv 2"):
        texture(torch.rand(3, 1, 4, 4), torch.rand(2, 2, 5, 5))
