"""Tracking: from known points to motion, from tracklets to people, and from a clip of a photo to files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.camera import Camera, to_camera_axes
from mien.cli import main
from mien.errors import ConfigError, NoFaceFound
from mien.fitting import FitSettings
from mien.geometry import rotvec_to_rotmat
from mien.io.video import VideoFrame, VideoWriter
from mien.morphable import load_model
from mien.perception import IdentityNetwork
from mien.tracking import Track, Tracker, face_store
from mien.tracking.face_store import CHUNK, FaceStore, Timeline
from mien.tracking.following import (
    LARGEST_SCATTER,
    FollowedFrame,
    Follower,
    FollowerState,
    TrackedFace,
    Tracklet,
)
from mien.tracking.frame_energy import RIGID, ExpressionPrior, FrameEnergy, Motion, PointTracks
from mien.tracking.gaze import Pupils, gaze_angles
from mien.tracking.live import LiveTracker
from mien.tracking.people import Segment, find_people
from mien.tracking.person_motion import windows
from mien.tracking.smoothing import MotionPrior, Smoother, second_differences, solve_coupled
from tests.astronaut import astronaut, detector

av = pytest.importorskip("av", reason="reads the videos")

SIZE = (320, 240)
CAMERA = Camera(torch.tensor([900.0]), torch.tensor([[320.0, 240.0]]), (480, 640))


@cache
def energy() -> FrameEnergy:
    model = load_model()
    identity = torch.from_numpy(np.random.default_rng(0).normal(size=model.counts[0]) * 0.5).float()
    return FrameEnergy(model, identity, CAMERA, settings=FitSettings())


def motion_at(times_s: np.ndarray, strengths: dict[str, np.ndarray]) -> Motion:
    """A head that nods and turns, with given expressions."""
    names = load_model().expression_names
    turn = np.stack([0.1 * np.sin(2 * times_s), 0.5 * np.sin(times_s), 0 * times_s], axis=1)
    position = np.stack([0.03 * np.sin(times_s), 0 * times_s, 0.8 + 0.02 * np.cos(times_s)], axis=1)
    expression = np.zeros((len(times_s), len(names)))
    for name, strength in strengths.items():
        expression[:, names.index(name)] = strength
    return Motion(rotvec_to_rotmat(torch.from_numpy(turn)), torch.from_numpy(position), torch.from_numpy(expression))


def points_of(motion: Motion, *, noise_px: float = 0.0, seed: int = 0) -> PointTracks:
    """What a mesh network with independent errors finds of a motion."""
    rng = np.random.default_rng(seed)
    own = energy()
    pupils = Pupils.of(load_model())
    assert pupils is not None
    shaped = own.neutral_pupils + torch.einsum("pik,tk->tpi", pupils.expression_basis, motion.expression)
    turned = torch.einsum("tij,tpj->tpi", motion.rotation, shaped)
    both = torch.cat([own.points_camera(motion), to_camera_axes(turned) + motion.translation[:, None]], dim=1)
    projected = 900 * both[..., :2] / both[..., 2:] + torch.tensor([320.0, 240.0])
    projected = projected + torch.from_numpy(rng.normal(scale=noise_px, size=projected.shape))
    depth = 900 * both[..., 2] / both[..., 2].mean(1, keepdim=True)
    return PointTracks(
        projected[:, :468].float(), depth[:, :468].float(), projected[:, 468:].float(), torch.ones(len(both))
    )


def strength(motion: Motion, name: str) -> np.ndarray:
    return motion.expression[:, load_model().expression_names.index(name)].numpy()


def test_pose_expression_and_gaze_follow_from_exact_points() -> None:
    times = np.linspace(0, 1, 6)
    truth = motion_at(times, {"jawOpen": 0.4 * times, "mouthSmileLeft": 0.3 + 0 * times, "eyeLookOutLeft": 0.5 * times})
    found = energy().solve(points_of(truth))
    turn = torch.einsum("tij,tij->t", found.rotation, truth.rotation)
    assert float(torch.arccos(((turn - 1) / 2).clamp(-1, 1)).max()) < np.radians(1.0)
    assert float((found.translation - truth.translation).norm(dim=1).max()) < 0.004
    assert np.abs(strength(found, "jawOpen") - 0.4 * times).max() < 0.08
    assert np.abs(strength(found, "eyeLookOutLeft") - 0.5 * times).max() < 0.12


def test_gradient_is_that_of_the_energy() -> None:
    """Where the points are exact, robust weights do not change, so the gradient is H times a small step."""
    truth = motion_at(np.array([0.3]), {"jawOpen": np.array([0.3])})
    tracks, own = points_of(truth), energy()
    exact = ExpressionPrior(truth.expression, torch.full((52,), 0.25, dtype=torch.float64))
    hessian, gradient = own.expansion(truth, tracks, prior=exact)
    scale = hessian.diagonal(dim1=1, dim2=2).sqrt()
    assert float((gradient / scale).abs().max()) < 0.02
    step = torch.zeros(1, own.unknowns, dtype=torch.float64)
    step[0, :7] = torch.tensor([1e-4, -2e-4, 1e-4, 1e-4, 2e-4, 1e-3, 0.0])
    _, moved = own.expansion(truth.moved(step, (0.0, 1.0)), tracks, prior=exact)
    expected = torch.einsum("tkl,tl->tk", hessian, step)
    error, size = (moved - gradient - expected) / scale, expected / scale
    pupils = Pupils.of(load_model())
    assert pupils is not None
    error[:, RIGID:][:, pupils.looks] = 0  # these follow the irises, which do not move the pose
    assert float(error.norm() / size.norm()) < 0.05


def test_second_differences_are_accelerations_at_any_rate() -> None:
    times = torch.tensor([0.0, 0.04, 0.1, 0.13, 0.3], dtype=torch.float64)
    weights = second_differences(times)
    for values, acceleration in ((3 * times + 1, 0.0), (times**2, 2.0)):
        found = sum(weights[:, k] * values[k : k + 3] for k in range(3))
        expected = torch.full((3,), acceleration, dtype=torch.float64)
        assert torch.allclose(torch.as_tensor(found), expected, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_coupled_blocks_are_solved_like_the_whole_matrix(count: int) -> None:
    size, seeded = 5, torch.Generator().manual_seed(count)
    blocks = torch.randn(count, size, size, generator=seeded, dtype=torch.float64)
    blocks = blocks @ blocks.mT + 8 * torch.eye(size)
    next_, after, right = torch.rand(3, count, size, generator=seeded, dtype=torch.float64)
    whole = torch.block_diag(*blocks)
    for apart, coupling in ((1, next_), (2, after)):
        for k in range(count - apart):
            one, other = slice(k * size, (k + 1) * size), slice((k + apart) * size, (k + apart + 1) * size)
            whole[one, other] = whole[other, one] = torch.diag(coupling[k])
    expected = torch.linalg.solve(whole, right.flatten()).view(count, size)
    assert torch.allclose(solve_coupled(blocks, next_, after, right), expected)


def smoothed(tracks: PointTracks, times: np.ndarray) -> Motion:
    return Smoother(load_model(), energy(), prior=MotionPrior())(tracks, torch.from_numpy(times))


def jitter(motion: Motion, rows: slice) -> float:
    points = energy().points_camera(motion)[rows]
    return float(torch.diff(900 * points[..., :2] / points[..., 2:], n=2, dim=0).norm(dim=-1).mean())


def test_still_face_stands_still_and_motion_does_not_lag() -> None:
    times = np.arange(70) / 25
    curve = np.maximum(times - 1, 0)  # still for a second
    jaw = 0.3 * np.sin(5 * curve) ** 2
    truth = motion_at(curve, {"jawOpen": jaw})
    tracks = points_of(truth, noise_px=0.8)
    alone, found = energy().solve(tracks), smoothed(tracks, times)
    still = slice(2, 23)
    assert jitter(found, still) < 0.25 * jitter(alone, still)
    lags = np.arange(-3, 3.1, 0.25)
    for name, values, reference in (
        ("jaw", strength(found, "jawOpen"), jaw),
        ("x", found.translation[:, 0].numpy(), truth.translation[:, 0].numpy()),
    ):
        steps = np.arange(30, 64)
        errors = [np.std(np.interp(steps + lag, np.arange(70), values) - reference[steps]) for lag in lags]
        assert abs(lags[int(np.argmin(errors))]) < 1, name


def test_blink_stays_a_blink() -> None:
    times = np.arange(40) / 25
    blink = np.exp(-(((times - 0.8) / 0.05) ** 2))
    found = smoothed(points_of(motion_at(0 * times, {"eyeBlinkLeft": blink}), noise_px=0.5), times)
    assert strength(found, "eyeBlinkLeft")[20] > 0.75
    assert strength(found, "eyeBlinkLeft")[[10, 30]].max() < 0.2


def test_gap_is_interpolated() -> None:
    times = np.arange(40) / 25
    truth = motion_at(times, {})
    tracks = points_of(truth)
    detected = tracks.detected.clone()
    detected[15:23] = 0
    broken = tracks.points_px.clone()
    broken[15:23] = tracks.points_px[:1]
    found = smoothed(PointTracks(broken, tracks.depths_px, tracks.irises_px, detected), times)
    assert float((found.translation - truth.translation)[15:23].norm(dim=1).max()) < 0.006


def test_windows_agree_where_they_meet() -> None:
    found = list(windows(Segment(10, 1010), 25.0))
    assert [w.inner.first for w in found[1:]] == [w.inner.end for w in found[:-1]]
    assert (found[0].inner.first, found[-1].inner.end) == (10, 1010)
    assert all(w.outer.first <= w.inner.first - 25 for w in found[1:])
    margin, times = 25, np.arange(70) / 25
    tracks = points_of(motion_at(times, {"jawOpen": 0.2 + 0.2 * np.sin(6 * times)}), noise_px=0.5)
    first = 40  # of the second window, which starts its solution one margin earlier
    whole, part = smoothed(tracks, times), smoothed(tracks[first - margin :], times[first - margin :])
    away = energy().points_camera(whole[first:]) - energy().points_camera(part[margin:])
    assert float(away.norm(dim=-1).max()) < 5e-5


def test_gaze_angles_have_signs_and_sizes_of_eyes() -> None:
    model = load_model()
    look = torch.zeros(2, model.counts[1])
    for row, names in enumerate((("eyeLookOutLeft", "eyeLookInRight"), ("eyeLookUpLeft", "eyeLookUpRight"))):
        for name in names:
            look[row, model.expression_names.index(name)] = 1.0
    angles = torch.rad2deg(gaze_angles(model, look))
    assert (angles[0, :, 0] > 25).all() and (angles[0, :, 0] < 45).all()  # to the subject's left
    assert (angles[1, :, 1] > 10).all() and (angles[1, :, 1] < 30).all()  # upwards


# People


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


# Frames


def clip(count: int, *, step_px: float = 2.0, first: int = 0) -> list[np.ndarray]:
    """The astronaut in a small frame that pans: the face moves to the left."""
    photo = astronaut()
    shifts = [round(60 + step_px * k) for k in range(first, first + count)]
    return [np.ascontiguousarray(photo[20 : 20 + SIZE[1], shift : shift + SIZE[0]]) for shift in shifts]


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


def test_face_imagined_in_a_blurred_background_is_not_followed() -> None:
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


# Store


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


# Whole runs


def write_clip(path: Path, pictures: list[np.ndarray]) -> Path:
    with VideoWriter(path, size=SIZE, rate=25.0) as writer:
        for k, picture in enumerate(pictures):
            writer.add(picture, k / 25)
    return path


@cache
def tracker() -> Tracker:
    return Tracker()


class Stop(Exception):
    pass


def test_killed_run_goes_on_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_store, "CHUNK", 4)
    video = write_clip(tmp_path / "a.mp4", clip(9))
    (whole,) = tracker()(video, tmp_path / "whole")

    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        list(tracker()(video, tmp_path / "killed", progress=stop))
    seen = []
    (resumed,) = tracker()(video, tmp_path / "killed", progress=lambda stage, done, total: seen.append((stage, done)))
    assert ("following faces", 4) not in seen and ("following faces", 5) in seen
    for name in ("frames", "times_s", "rotation", "translation", "expression", "gaze", "landmarks68", "identity"):
        assert (getattr(whole, name) == getattr(resumed, name)).all(), name
    assert len(whole.frames) == 9
    assert np.linalg.norm(whole.landmarks68 - whole.detected68, axis=-1)[:, 17:].mean() < 4
    shift = whole.landmarks68[8].mean(0) - whole.landmarks68[0].mean(0)
    assert np.abs(shift - [-16, 0]).max() < 1.5
    whole.save(tmp_path)
    loaded = Track.load(tmp_path)
    assert loaded.expression_names == whole.expression_names and loaded.image_size == SIZE
    assert np.allclose(loaded.expression, whole.expression) and (loaded.times_s == whole.times_s).all()


def test_command_writes_the_files_of_each_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_clip(tmp_path / "a.mp4", clip(3))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["track", str(video), "-o", str(out), "--json", "-q"])
    assert ended.value.code == 0
    assert '"frames": 3' in capsys.readouterr().out
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert names == [
        "overlay.mp4", "person0/blendshapes.csv", "person0/head.glb", "person0/sheet.png", "person0/tracking.npz",
    ]  # fmt: skip


def test_video_without_a_face_is_a_typed_error(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mp4", [np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)] * 3)
    with pytest.raises(NoFaceFound, match="3 frames"):
        list(tracker()(video, tmp_path / "work"))


def test_live_tracking_depends_on_the_past_alone() -> None:
    pictures = clip(6)
    results = []
    live = LiveTracker()
    for count in (6, 4):
        live.begin(tracker_info())
        faces = [live(VideoFrame(k, k / 25, picture)) for k, picture in enumerate(pictures[:count])]
        results.append([frame_faces[0].rows.translation for frame_faces in faces])
    assert all((one == other).all() for one, other in zip(*results, strict=False))
    assert [face.person for face in faces[-1]] == [0]
    assert len(live.track_of(0).frames) == 4


def tracker_info():
    from mien.io.video import VideoInfo

    return VideoInfo("clip", SIZE, 25.0, 8)


def test_settings_out_of_range_are_typed_errors() -> None:
    with pytest.raises(ConfigError, match="mode='auto'"):
        Tracker(mode="auto")
    with pytest.raises(ConfigError, match="focal_px=-1"):
        Tracker(focal_px=-1.0)
