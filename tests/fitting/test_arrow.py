"""Normal equations of several photos: the arrow against the whole matrix."""

from __future__ import annotations

import pytest
import torch

from mien.fitting.arrow import ArrowLayout, ArrowMatrix
from mien.fitting.descent import DenseMatrix
from mien.typing import Tensor

LAYOUT = ArrowLayout.of(torch.tensor([False, True, True, False, False]))
PHOTOS = 3


def random_photos() -> list[Tensor]:
    roots = torch.randn(PHOTOS, 5, 7, dtype=torch.float64)
    return list(roots @ roots.mT)


def whole(photos: list[Tensor], prior: Tensor) -> Tensor:
    """The matrix of all unknowns: shared ones first, then those of each photo."""
    matrix = torch.zeros(2 + 3 * PHOTOS, 2 + 3 * PHOTOS, dtype=torch.float64)
    matrix[:2, :2] = prior
    for k, photo in enumerate(photos):
        numbers = torch.tensor([2 + 3 * k, 0, 1, 3 + 3 * k, 4 + 3 * k])
        matrix[numbers[:, None], numbers] += photo
    return matrix


@pytest.mark.parametrize("held_numbers", [[], [0], [3, 8], [1, 2, 10]])
def test_the_solution_is_that_of_the_whole_matrix(held_numbers: list[int]) -> None:
    photos, prior = random_photos(), 0.5 * torch.eye(2, dtype=torch.float64)
    arrow, vector = ArrowMatrix(LAYOUT, prior), torch.randn(2 + 3 * PHOTOS, dtype=torch.float64)
    for photo in photos:
        arrow.add(photo)
    dense = DenseMatrix(whole(photos, prior))
    arrow.damp(0.1)
    dense.damp(0.1)
    held = torch.zeros(len(vector), dtype=torch.bool)
    held[held_numbers] = True
    found = arrow.solve(vector, held)
    torch.testing.assert_close(found, dense.solve(vector, held))
    assert not found[held].any()
    assert found[~held].all()


def test_damping_has_a_floor() -> None:
    arrow = ArrowMatrix(LAYOUT, torch.zeros(2, 2))
    arrow.add(torch.zeros(5, 5))
    arrow.damp(0.0, 0.5)
    free = torch.zeros(5, dtype=torch.bool)
    torch.testing.assert_close(arrow.solve(torch.ones(5).double(), free), torch.full((5,), 2.0).double())


def test_unknowns_are_gathered_and_scattered() -> None:
    photos = [torch.tensor([k, 7.0, 8.0, 10.0 + k, 20.0 + k]) for k in range(PHOTOS)]
    vector = LAYOUT.gathered(photos)
    assert vector.tolist() == [7, 8, 0, 10, 20, 1, 11, 21, 2, 12, 22]
    assert torch.equal(torch.stack(LAYOUT.scattered(vector)), torch.stack(photos))
    assert LAYOUT.summed(photos).tolist() == [21, 24, 0, 10, 20, 1, 11, 21, 2, 12, 22]


def test_entries_that_are_not_finite_are_noticed() -> None:
    arrow = ArrowMatrix(LAYOUT, torch.zeros(2, 2))
    arrow.add(torch.eye(5))
    assert arrow.is_finite()
    arrow.add(torch.full((5, 5), torch.nan))
    assert not arrow.is_finite()
