"""Each equation of the paper against a value worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mien.losses import (
    geman_mcclure,
    geman_mcclure_weights,
    identity_loss,
    landmark_loss,
    magnitude_loss,
    map_smoothness_loss,
    mesh_smoothness_loss,
    photometric_loss,
    prior_loss,
    span_distance_loss,
    symmetry_loss,
)


def test_eq4_pixel() -> None:
    rendered, photo = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 0.5)
    mask = torch.tensor([[[1.0, 0], [0, 0]], [[1, 1], [1, 1]]])
    assert photometric_loss(rendered, photo, mask=mask).item() == pytest.approx(0.75)


def test_eq4_of_an_empty_mask_is_zero() -> None:
    assert photometric_loss(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), mask=torch.zeros(1, 2, 2)).item() == 0


def test_eq5_landmarks() -> None:
    target = torch.zeros(1, 2, 2)
    predicted = torch.tensor([[[1.0, -2.0], [4.0, 0.0]]])
    assert landmark_loss(predicted, target, weights=torch.tensor([[1.0, 3.0]])).item() == pytest.approx(3.75)


def test_eq6_recognition() -> None:
    assert identity_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == pytest.approx(1.5)


def test_eq8_magnitude() -> None:
    assert magnitude_loss(torch.tensor([[[[1.0, 3.0]]]])).item() == pytest.approx(5.0)


def test_eq9_symmetry() -> None:
    assert symmetry_loss(torch.tensor([[[[1.0, 0.0, 4.0]]]])).item() == pytest.approx(6.0)
    assert symmetry_loss(torch.tensor([[[[2.0, 7.0, 2.0]]]])).item() == 0


def test_eq10_and_eq11_on_a_mesh() -> None:
    """A path of three vertices 0, 1, 3: neighbour means 1, (1 + 4) / 2, 4; their mean is 2.5."""
    values = torch.tensor([[[0.0], [1.0], [3.0]]])
    loss = mesh_smoothness_loss(values, torch.tensor([[0, 1], [1, 2]]))
    assert loss.item() == pytest.approx(2.5)


def test_eq10_and_eq11_on_a_map() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])
    assert map_smoothness_loss(maps).item() == pytest.approx(5.0 + 2.0)
    weights = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert map_smoothness_loss(maps, weights=weights).item() == pytest.approx(1.0)


def test_prior_is_the_mean_square() -> None:
    assert prior_loss(torch.tensor([[1.0, 3.0], [0.0, 2.0]])).item() == pytest.approx(14 / 4)


def test_span_distance_is_the_rms_distance_of_vertices() -> None:
    basis = torch.tensor([[[3.0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 4.0, 0]]])
    flat = basis.flatten(1)
    loss = span_distance_loss(torch.tensor([[1.0, 1.0]]), flat @ flat.T / 2)
    # The two vertices move by 3 and by 4: the root of (9 + 16) / 2.
    assert loss.item() == pytest.approx(12.5**0.5)


def test_span_distance_of_equal_coefficients_has_a_gradient() -> None:
    difference = torch.zeros(1, 2, requires_grad=True)
    span_distance_loss(difference, torch.eye(2)).backward()
    assert difference.grad is not None
    assert torch.isfinite(difference.grad).all()


def test_robust_error_is_quadratic_near_zero_and_bounded_by_its_scale() -> None:
    squared = torch.tensor([0.0, 1.0, 9.0, 9e6])
    assert geman_mcclure(squared, scale_sq=9.0).tolist() == pytest.approx([0.0, 0.9, 4.5, 9.0], rel=1e-5)
    assert geman_mcclure(squared, scale_sq=9.0, weights=2.0).tolist() == pytest.approx([0.0, 1.8, 9.0, 18.0], rel=1e-5)


def test_robust_weights_are_the_derivative_of_the_robust_error() -> None:
    squared = torch.tensor([0.0, 2.0, 4.0, 30.0], requires_grad=True)
    (slope,) = torch.autograd.grad(geman_mcclure(squared, scale_sq=4.0).sum(), squared)
    found = geman_mcclure_weights(squared.detach(), scale_sq=4.0)
    torch.testing.assert_close(found, slope)
    assert found[2].item() == pytest.approx(0.25)
