"""Which faces of several photos are one person."""

from __future__ import annotations

import torch

from mien.perception import SAME_PERSON_DISTANCE, find_person
from mien.typing import Tensor

ANNA, BORIS = torch.zeros(128), torch.zeros(128)
BORIS[0] = 2 * SAME_PERSON_DISTANCE


def photo(*faces: Tensor) -> Tensor:
    return torch.stack(faces) if faces else torch.zeros(0, 128)


def near(face: Tensor, offset: float) -> Tensor:
    moved = face.clone()
    moved[1] += offset * SAME_PERSON_DISTANCE
    return moved


def test_the_person_is_the_one_in_most_photos() -> None:
    photos = [
        photo(BORIS),
        photo(BORIS, near(ANNA, 0.3)),
        photo(ANNA),
        photo(),
        photo(near(ANNA, 0.5), BORIS),
        photo(ANNA),
    ]
    assert find_person(photos) == [None, 1, 0, None, 0, 0]


def test_without_a_majority_it_is_the_first_face_of_the_first_photo() -> None:
    assert find_person([photo(), photo(BORIS, ANNA), photo(near(ANNA, 5.0))]) == [None, 0, None]
    assert find_person([photo(ANNA), photo(BORIS)]) == [0, None]


def test_a_series_of_turns_stays_together() -> None:
    turns = [photo(near(ANNA, 0.9 * k)) for k in range(4)]
    assert find_person(turns) == [0, 0, 0, 0]
    assert find_person([turns[0], turns[3]]) == [0, None]


def test_the_nearest_face_of_a_photo_is_chosen() -> None:
    assert find_person([photo(ANNA), photo(near(ANNA, 0.8), near(ANNA, 0.2)), photo(ANNA)]) == [0, 1, 0]


def test_of_two_people_in_all_photos_the_more_alike_is_chosen() -> None:
    photos = [photo(BORIS, ANNA), photo(near(BORIS, 0.9), ANNA), photo(BORIS, near(ANNA, 0.1))]
    assert find_person(photos) == [1, 1, 1]


def test_photos_without_faces_have_no_person() -> None:
    assert find_person([photo(), photo()]) == [None, None]
