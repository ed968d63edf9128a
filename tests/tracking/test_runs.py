"""Whole runs: from a clip to files, killed in each phase, live, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mien.cli import main
from mien.cli.track import WORK_FOLDER
from mien.errors import ConfigError, NoFaceFound
from mien.io.folder_lock import locked_folder
from mien.io.video import VideoFrame, VideoInfo, VideoWriter
from mien.tracking import Track, Tracker, face_store
from mien.tracking import tracker as tracker_module
from mien.tracking.live import LiveTracker
from mien.tracking.tracker import TrackProgress
from tests.tracking.clips import SIZE, clip

pytest.importorskip("av", reason="reads the videos")

PHASES = (("following faces", 5), ("shape of person 0", 0), ("motion of person 0", 6), ("drawing", 3))
"""Where a run is killed: the stage, and the number of frames that are done."""


@cache
def tracker() -> Tracker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker_module, "TEXTURE_SIZE", 256)
        return Tracker()


def write_clip(path: Path, pictures: list[np.ndarray]) -> Path:
    with VideoWriter(path, size=SIZE, rate=25.0) as writer:
        for k, picture in enumerate(pictures):
            writer.add(picture, k / 25)
    return path


def run(patch: pytest.MonkeyPatch, video: Path, out: Path, *options: str, kill_at: object = None) -> tuple[int, list]:
    """Exit code of `mien track`, and the progress that it told."""
    told: list[tuple[str, int]] = []

    @contextmanager
    def bar(*, shown: bool) -> Iterator[TrackProgress]:
        def report(stage: str, done: int, total: int | None) -> None:
            told.append((stage, done))
            if (stage, done) == kill_at:
                raise KeyboardInterrupt

        yield report

    patch.setattr("mien.cli.track._bar", bar)
    with pytest.raises(SystemExit) as ended:
        main(["track", str(video), "-o", str(out), "--json", *options])
    assert isinstance(ended.value.code, int)
    return ended.value.code, told


def contents(out: Path) -> dict[str, bytes]:
    """The files that are not hidden."""
    paths = [path for path in out.rglob("[!.]*") if path.is_file() and path.parent.name != WORK_FOLDER]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_run_that_is_killed_in_each_phase_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(face_store, "CHUNK", 4)
    monkeypatch.setattr("mien.tracking.Tracker", lambda **_: tracker())
    video = write_clip(tmp_path / "a.mp4", clip(6))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    (killed / "person3").mkdir(parents=True)
    (killed / "person3" / "head.glb").touch()  # of an earlier run
    assert run(monkeypatch, video, whole)[0] == 0
    assert '"frames": 6' in capsys.readouterr().out
    for phase in PHASES:
        assert run(monkeypatch, video, killed, "--resume", kill_at=phase)[0] == 130
        assert "overlay.mp4" not in contents(killed)
    code, told = run(monkeypatch, video, killed, "--resume")
    assert code == 0 and not any(stage == "following faces" for stage, _ in told)
    assert sorted(contents(whole)) == [
        "overlay.mp4", "person0/blendshapes.csv", "person0/head.glb", "person0/sheet.png", "person0/tracking.npz",
    ]  # fmt: skip
    assert contents(killed) == contents(whole)
    assert not (whole / WORK_FOLDER).exists()
    track = Track.load(whole / "person0")
    assert np.linalg.norm(track.landmarks68 - track.detected68, axis=-1)[:, 17:].mean() < 4
    shift = track.landmarks68[5].mean(0) - track.landmarks68[0].mean(0)
    assert np.abs(shift - [-10, 0]).max() < 1.5


def test_second_run_into_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked_folder(tmp_path / "out"):
        code, _ = run(monkeypatch, tmp_path / "a.mp4", tmp_path / "out")
    assert code == 1


def test_following_goes_on_after_the_last_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_store, "CHUNK", 2)
    video = write_clip(tmp_path / "a.mp4", clip(3))
    told: list[tuple[str, int]] = []

    def stop(stage: str, done: int, total: int | None) -> None:
        told.append((stage, done))
        if done == 3:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            list(tracker()(video, tmp_path / "work", progress=stop))
    assert told == [("following faces", 1), ("following faces", 2), ("following faces", 3), ("following faces", 3)]


def test_video_without_a_face_is_a_typed_error(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mp4", [np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)] * 2)
    with pytest.raises(NoFaceFound, match="2 frames"):
        list(tracker()(video, tmp_path / "work"))


def test_live_tracking_depends_on_the_past_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = clip(5)
    results = []
    monkeypatch.setattr("mien.tracking.live.Tracker", lambda **_: tracker())
    live = LiveTracker()
    for count in (5, 3):
        live.begin(VideoInfo("clip", SIZE, 25.0, 5))
        faces = [live(VideoFrame(k, k / 25, picture)) for k, picture in enumerate(pictures[:count])]
        results.append([frame_faces[0].rows.translation for frame_faces in faces])
    assert all((one == other).all() for one, other in zip(*results, strict=False))
    assert [face.person for face in faces[-1]] == [0]
    assert len(live.track_of(0).frames) == 3


def test_settings_out_of_range_are_typed_errors() -> None:
    with pytest.raises(ConfigError, match="mode='auto'"):
        Tracker(mode="auto")
    with pytest.raises(ConfigError, match="focal_px=-1"):
        Tracker(focal_px=-1.0)
