"""Which tracklets show the same person: by identity vectors, and by where a lost face was found again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mien.perception import SAME_PERSON_DISTANCE
from mien.tracking.face_store import Timeline
from mien.typing import Float, Int

CONTINUED_DISTANCE = 0.75
"""Largest distance of identity vectors where a face was found again at its place: turned heads have other vectors."""
FEWEST_FRAMES = 5
"""People who are seen in fewer frames are left out of videos that are longer."""
MAX_GAP_S = 0.5
"""Longest time without a face that is interpolated."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of one shot in which a person is seen without a long gap."""

    first: int
    end: int
    """The frame after the last one."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person of a video."""

    number: int
    """0 for the person who is seen in most frames."""
    tracklets: tuple[int, ...]
    frames: Int[np.ndarray, "N"]
    """Frames in which the person was found, rising."""
    segments: tuple[Segment, ...]
    feature: Float[np.ndarray, "128"]
    """Mean identity vector."""


@dataclass
class _Group:
    tracklets: list[int]
    frames: Int[np.ndarray, "N"]
    total: Float[np.ndarray, "128"]
    count: int

    @property
    def mean(self) -> Float[np.ndarray, "128"]:
        return self.total / max(self.count, 1)


def find_people(
    timeline: Timeline, frames: Int[np.ndarray, "N"], tracklets: Int[np.ndarray, "N"]
) -> tuple[Person, ...]:
    """Join tracklets to people.

    The longest tracklets come first. A tracklet joins the most similar person who is not seen elsewhere at the same
    time, or is a new person.

    Args:
        timeline: The video.
        frames: Frame of each face.
        tracklets: Its tracklet.

    Returns:
        The people, those seen longest first.
    """
    parents = dict(timeline.parents.tolist())
    groups: list[_Group] = []
    group_of: dict[int, _Group] = {}
    numbers, counts = np.unique(tracklets, return_counts=True)
    for number in numbers[np.lexsort((numbers, -counts))].tolist():
        own = frames[tracklets == number]
        features = timeline.features[timeline.feature_tracklets == number]
        relatives = {parents.get(number, -1), *(child for child, parent in parents.items() if parent == number)}
        kin = [group_of[relative] for relative in relatives if relative in group_of]
        best = _most_similar(groups, own, features, kin)
        if best is None:
            best = _Group([], own[:0], np.zeros(features.shape[1]), 0)
            groups.append(best)
        best.tracklets.append(number)
        best.frames = np.sort(np.concatenate([best.frames, own]))
        best.total, best.count = best.total + features.sum(0), best.count + len(features)
        group_of[number] = best
    fewest = min(FEWEST_FRAMES, len(timeline.times_s))
    seen = sorted((g for g in groups if len(g.frames) >= fewest), key=lambda g: (-len(g.frames), g.frames[0]))
    return tuple(
        Person(k, tuple(sorted(g.tracklets)), g.frames, _segments(timeline, g.frames), g.mean)
        for k, g in enumerate(seen)
    )


def _most_similar(
    groups: list[_Group], frames: Int[np.ndarray, "N"], features: Float[np.ndarray, "K 128"], kin: list[_Group]
) -> _Group | None:
    best, least = None, np.inf
    for group in groups:
        if len(np.intersect1d(group.frames, frames, assume_unique=True)):
            continue
        is_kin = any(group is other for other in kin)
        distance = float(np.linalg.norm(features.mean(0) - group.mean)) if len(features) and group.count else np.inf
        if not len(features) and is_kin:
            distance = 0.0
        # The same bonus for continued faces in the comparison with others.
        excess = distance - (CONTINUED_DISTANCE if is_kin else SAME_PERSON_DISTANCE)
        if excess <= 0 and excess < least:
            best, least = group, excess
    return best


def _segments(timeline: Timeline, frames: Int[np.ndarray, "N"]) -> tuple[Segment, ...]:
    """Divide the frames of a person at cuts and long gaps."""
    shots = np.cumsum(timeline.is_cut)[frames]
    waits = np.diff(timeline.times_s[frames])
    breaks = np.flatnonzero((waits > MAX_GAP_S) | (np.diff(shots) > 0)) + 1
    return tuple(Segment(int(part[0]), int(part[-1]) + 1) for part in np.split(frames, breaks))
