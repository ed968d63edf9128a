"""Which tracklets show the same person."""

from __future__ import annotations

import numpy as np

from mien.tracking.face_store import Timeline
from mien.tracking.people import find_people


def timeline(tracklets: dict[int, np.ndarray], frames: int, *, cuts: tuple[int, ...] = (0,), parents=()) -> Timeline:
    is_cut = np.isin(np.arange(frames), cuts)
    numbers = np.array(list(tracklets))
    features = np.stack(list(tracklets.values())).astype(np.float32)
    return Timeline(np.arange(frames) / 25, is_cut, np.array(parents, np.int64).reshape(-1, 2), numbers, features)


def vector(person: int, noise: float = 0.0) -> np.ndarray:
    feature = np.zeros(128)
    feature[person], feature[100] = 0.6, noise
    return feature


def rows_of(spans: dict[int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = sorted((frame, number) for number, (first, end) in spans.items() for frame in range(first, end))
    frames, numbers = np.array(pairs).T
    return frames, numbers


def test_people_keep_their_identity_when_they_cross() -> None:
    spans = {0: (0, 40), 1: (0, 40), 2: (60, 100), 3: (60, 100)}
    features = {0: vector(0), 1: vector(1), 2: vector(1, 0.2), 3: vector(0, 0.2)}
    found = find_people(timeline(features, 100), *rows_of(spans))
    assert {person.tracklets for person in found} == {(0, 3), (1, 2)}


def test_similar_people_in_one_frame_are_two() -> None:
    found = find_people(timeline({0: vector(0), 1: vector(0, 0.1)}, 50), *rows_of({0: (0, 50), 1: (0, 50)}))
    assert [person.tracklets for person in found] == [(0,), (1,)]


def test_cuts_and_long_gaps_divide_a_person_into_segments() -> None:
    features = {number: vector(0) for number in range(3)}
    spans = {0: (0, 20), 1: (28, 50), 2: (70, 100)}
    (person,) = find_people(timeline(features, 100, cuts=(0, 80)), *rows_of(spans))
    assert [(s.first, s.end) for s in person.segments] == [(0, 50), (70, 80), (80, 100)]


def test_face_found_again_at_its_place_may_look_less_similar() -> None:
    features = {0: vector(0), 1: vector(0, 0.7)}
    spans = rows_of({0: (0, 40), 1: (42, 80)})
    assert len(find_people(timeline(features, 80), *spans)) == 2
    assert len(find_people(timeline(features, 80, parents=[(1, 0)]), *spans)) == 1


def test_faces_of_a_few_frames_are_no_people() -> None:
    features = {0: vector(0), 1: vector(1)}
    assert len(find_people(timeline(features, 60), *rows_of({0: (0, 60), 1: (10, 13)}))) == 1
    assert len(find_people(timeline({0: vector(0)}, 1), *rows_of({0: (0, 1)}))) == 1
