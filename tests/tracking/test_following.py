"""Following faces from frame to frame, and what is kept on disk of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.io.video import VideoFrame
from mien.perception import IdentityNetwork
from mien.tracking.face_store import CHUNK, FaceStore
from mien.tracking.following import (
    LARGEST_SCATTER,
    FollowedFrame,
    Follower,
    FollowerState,
    TrackedFace,
    Tracklet,
)
from tests.astronaut import detector
from tests.tracking.clips import clip


@cache
def follower_parts() -> IdentityNetwork:
    return IdentityNetwork.from_assets()


def follow(
    pictures: list[np.ndarray], state: FollowerState | None = None, first: int = 0
) -> tuple[list[FollowedFrame], FollowerState]:
    follower = Follower(detector(), follower_parts(), None, rate=25.0)
    follower.state = state or FollowerState()
    frames = [follower(VideoFrame(first + k, (first + k) / 25, picture)) for k, picture in enumerate(pictures)]
    return frames, follower.state


def numbers_in(frames: list[FollowedFrame]) -> list[list[int]]:
    return [[o.tracklet for o in frame.tracked_faces] for frame in frames]


def test_face_is_followed_in_one_tracklet_and_cuts_end_it() -> None:
    pictures = clip(6)
    other = [np.ascontiguousarray(picture[::-1, ::-1] // 2 + 100) for picture in clip(1)]
    frames, _ = follow([*pictures, *other, *pictures[:2]])
    assert numbers_in(frames)[:6] == [[0]] * 6
    assert [frame.is_cut for frame in frames] == [True, *[False] * 5, True, True, False]
    assert numbers_in(frames)[-1] not in ([], [0])
    move = frames[5].tracked_faces[0].landmarks468_px - frames[0].tracked_faces[0].landmarks468_px
    assert np.abs(move[:, 0].mean() + 10) < 1.5


def test_face_imagined_in_a_blurred_background_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.perception.detector.IMAGINED_SCATTER", np.inf)  # that of photos, which is larger
    cells = np.random.default_rng(37).integers(60, 200, size=(9, 16, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(cells).resize((480, 270), Image.Resampling.BICUBIC))
    (imagined,) = detector().detect(picture)
    assert imagined.confidence > 0.95
    real = clip(1)[0]
    (face,) = detector().detect(real)
    assert detector().scatter(picture, [imagined.landmarks468_px])[0] > 1.5 * LARGEST_SCATTER
    assert detector().scatter(real, [face.landmarks468_px])[0] < 0.7 * LARGEST_SCATTER
    frames, _ = follow([picture, picture])
    assert numbers_in(frames) == [[], []]


def test_lost_face_is_found_again_and_has_a_parent() -> None:
    pictures = clip(8, step_px=0.0)
    covered = pictures[0].copy()
    (face,) = detector().detect(pictures[0])
    left, top, right, bottom = face.box_px.astype(int)
    covered[top - 30 : bottom + 30, left - 20 : right + 20] = 128
    frames, _ = follow([*pictures[:3], covered, covered, *pictures[5:]])
    assert not any(frame.is_cut for frame in frames[1:])
    assert numbers_in(frames) == [[0], [0], [0], [], [], [1], [1], [1]]
    assert frames[5].parents == ((1, 0),)


def test_state_of_the_follower_is_all_that_the_next_frames_need() -> None:
    whole, _ = follow(clip(8))
    first, state = follow(clip(4))
    rest, _ = follow(clip(4, first=4), state, 4)
    for one, other in zip(whole, [*first, *rest], strict=True):
        assert one.index == other.index
        assert (one.tracked_faces[0].landmarks468_px == other.tracked_faces[0].landmarks468_px).all()


def frame_of(index: int, *, people: int = 1) -> FollowedFrame:
    rng = np.random.default_rng(index)
    seen = tuple(
        TrackedFace(
            index, number, rng.normal(size=(468, 3)).astype(np.float32), rng.normal(size=(2, 5, 2)).astype(np.float32),
            0.9, 0.1, rng.random(52).astype(np.float32),
            rng.random(128).astype(np.float32) if index % 50 == 0 else None,
        )
        for number in range(people)
    )  # fmt: skip
    return FollowedFrame(index, index / 25, index == 0, seen, ((0, -1),) if index == 0 else ())


def state_after(index: int) -> FollowerState:
    landmarks = np.random.default_rng(index).normal(size=(468, 3))
    return FollowerState(
        (Tracklet(3, landmarks, landmarks + 1, 5, 1, True, 2, index),), 7, np.full((18, 32), 0.5, np.float32), index - 1
    )


def test_store_goes_on_after_the_last_full_chunk(tmp_path: Path) -> None:
    store = FaceStore(tmp_path, {"video": "a"})
    for index in range(CHUNK + 30):
        store.add(frame_of(index, people=index % 2), state_after(index))
    again = FaceStore(tmp_path, {"video": "a"})
    assert again.frames_done == CHUNK and not again.is_finished
    state, expected = again.state(), state_after(CHUNK - 1)
    assert (state.next_number, state.searched_frame) == (7, CHUNK - 2)
    assert state.tracklets[0].crossing and state.tracklets[0].lost_frame == CHUNK - 1
    for name in ("landmarks468_px", "steady_px"):
        assert (getattr(state.tracklets[0], name) == getattr(expected.tracklets[0], name)).all()
    for index in range(CHUNK, CHUNK + 30):
        again.add(frame_of(index, people=index % 2), state_after(index))
    again.finish(state_after(CHUNK + 29))
    assert FaceStore(tmp_path, {"video": "a"}).is_finished
    some = again.between(CHUNK - 5, CHUNK + 5, [0])
    assert some.frame.tolist() == [95, 97, 99, 101, 103]
    assert (some.landmarks468_px[3] == frame_of(101).tracked_faces[0].landmarks468_px).all()
    assert len(again.timeline().times_s) == CHUNK + 30
    assert FaceStore(tmp_path, {"video": "b"}).frames_done == 0
