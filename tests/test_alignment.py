from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mien.perception import Crop, face_crop
from mien.perception.crops import deep3d_alignment, sample_affine, sample_pixels, similarity_between

GOLDEN = json.loads((Path(__file__).parent / "golden" / "deep3d_alignment.json").read_text())


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.9])
@pytest.mark.parametrize("side", [3.0, 224.0, 4100.0])
def test_a_crop_and_its_inverse_are_exact(angle: float, side: float) -> None:
    crop = Crop.around((310.5, -20.25), side, angle=angle)
    points = torch.rand(50, 2, dtype=torch.float64) * 5000 - 1000
    assert torch.allclose(crop.to_photo(crop.to_crop(points)), points, atol=1e-8)
    assert crop.scale == pytest.approx(side / 224)


def test_centre_and_corner_of_a_crop_lie_at_the_requested_position() -> None:
    crop = Crop.around((40.0, 30.0), 20.0, size=10)
    places = crop.to_photo(torch.tensor([[5.0, 5.0], [0.0, 0.0]]))
    assert torch.allclose(places, torch.tensor([[40.0, 30.0], [30.0, 20.0]]))


def test_a_crop_of_the_whole_photo_is_the_photo() -> None:
    photo = torch.rand(2, 3, 12, 12)
    assert torch.allclose(Crop.around((6.0, 6.0), 12.0, size=12).sample(photo), photo, atol=1e-5)


def test_sampling_follows_the_matrix() -> None:
    """On a ramp of the pixel's own coordinates every sample must give its own place."""
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    ramp = torch.stack([x, y])[None]
    for side in (20.0, 40.0):
        crop = Crop.around((40.0, 30.0), side, size=8, angle=0.3)
        steps = torch.arange(8) + 0.5
        v, u = torch.meshgrid(steps, steps, indexing="ij")
        expected = crop.to_photo(torch.stack([u, v], -1)).permute(2, 0, 1)
        assert torch.allclose(crop.sample(ramp)[0], expected, atol=2e-3)


def test_shrinking_does_not_alias() -> None:
    """A one-pixel checkerboard, shrunk eight times, is grey; plain bilinear reading would show moiré."""
    checker = ((torch.arange(128)[:, None] + torch.arange(128)) % 2).float()[None, None]
    small = Crop.around((64.3, 63.1), 127.0, size=16).sample(checker)
    assert (small - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("side", [33.0, 70.0, 130.0])
def test_sampling_equals_bilinear_sampling_of_box_means(side: float) -> None:
    """Shrunk one, two and four times, over the border too: the same as PyTorch's own pooling and affine grid."""
    photo, crop = torch.rand(2, 3, 61, 75), Crop.around((30.0, 40.0), side, size=32, angle=0.2)
    factor = int(crop.scale + 1e-6)
    padded = F.pad(photo, (0, -75 % factor, 0, -61 % factor), mode="replicate")
    means = F.avg_pool2d(padded, factor)
    extent = torch.tensor([means.shape[3], means.shape[2]])
    # PyTorch's affine grid goes from -1 to 1 over either picture, pixels being squares in both.
    linear, origin = crop.photo_from_crop[:, :2].float() / factor, crop.photo_from_crop[:, 2].float() / factor
    theta = torch.cat([linear * 32, (2 * (linear.sum(1) * 16 + origin) - extent)[:, None]], 1) / extent[:, None]
    grid = F.affine_grid(theta.expand(2, -1, -1), [2, 3, 32, 32], align_corners=False)
    plain = F.grid_sample(means, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(crop.sample(photo), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [20.0, 200.0])
def test_bytes_and_floats_are_sampled_alike(side: float) -> None:
    photo = torch.randint(0, 256, (1, 3, 90, 80), dtype=torch.uint8)
    crop = Crop.around((41.0, 44.0), side, size=16, angle=0.3)
    pixels = photo[0].permute(1, 2, 0).numpy()
    torch.testing.assert_close(sample_pixels(pixels, crop), crop.sample(photo / 255), atol=1e-5, rtol=0)
    torch.testing.assert_close(crop.sample(photo), 255 * crop.sample(photo / 255), atol=1e-3, rtol=0)


def test_sampling_is_differentiable() -> None:
    photo = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[[0.7, 0.1, 0.45], [-0.1, 0.7, 0.85]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, m: sample_affine(p, m, size=(3, 4)), (photo, matrix))
    assert torch.autograd.gradcheck(lambda p, m: sample_affine(p, 3 * m, size=(3, 2)), (photo, matrix))


def test_inside_marks_the_photo() -> None:
    inside = Crop.around((0.0, 5.0), 10.0, size=10).inside(height=10, width=10)
    assert inside[:, :5].sum() == 0
    assert inside[:, 5:].min() == 1


def test_the_face_crop_is_upright_and_holds_all_points() -> None:
    points = torch.rand(68, 2) * torch.tensor([120.0, 200.0]) + 1000
    crop = face_crop(points)
    inside = crop.to_crop(points)
    assert inside.min() > 0
    assert inside.max() < 224
    assert float(crop.photo_from_crop[0, 1]) == 0.0
    assert crop.scale * 224 == pytest.approx(1.6 * float((points.amax(0) - points.amin(0)).max()), rel=1e-5)


def test_a_turned_crop_of_a_turned_face_equals_the_upright_crop() -> None:
    points = torch.tensor([[100.0, 50.0], [180.0, 60.0], [150.0, 190.0]], dtype=torch.float64)
    cos, sin = math.cos(2.0), math.sin(2.0)
    turned = points @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    seen = face_crop(turned, size=100, angle=2.0).to_crop(turned)
    torch.testing.assert_close(seen, face_crop(points, size=100).to_crop(points))


def test_a_similarity_is_recovered() -> None:
    source = torch.rand(2, 7, 2, dtype=torch.float64)
    crop = Crop.around((3.0, 4.0), 50.0, size=5, angle=1.1)
    matrix = similarity_between(source, crop.to_photo(source))
    assert torch.allclose(matrix, crop.photo_from_crop.expand(2, -1, -1), atol=1e-9)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_deep3d_alignment_gives_the_published_numbers(case: dict) -> None:
    found = deep3d_alignment(
        torch.tensor(case["five_points_px_y_down"]),
        torch.tensor(GOLDEN["lm3d_std5"]),
        image_size=tuple(case["size_wh"]),
    )
    assert found.scale == pytest.approx(case["s"], rel=1e-5)
    assert found.translation == pytest.approx(case["t"], rel=1e-5)
    assert list(found.resized_size) == case["resized_wh"]
    assert list(found.corner) == [case["left"], case["up"]]
