"""The work on a video: a first look at one frame, tracking, the files of each person, the overlay."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np

from mien.errors import NoFaceFound, VideoError
from mien.io.video import VideoInfo, open_video
from mien.memory import typed_out_of_memory
from mien.studio.protocol import Frames, OverlayReady, PersonTracked, VideoOpened, VideoTask
from mien.studio.work import Networks, Outbox, quick_face, write_head, write_preview
from mien.tracking import Track, Tracker
from mien.tracking.outputs import FORMATS, OVERLAY_FILE, person_folder, write_person, write_pictures
from mien.typing import Bool

_LOOKS_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Times of the frames in which a face for the first look is searched."""
_REPORT_S = 0.1
"""Least time between two messages of progress."""
_KNOWN_AFTER_S = 0.5
"""Time after which the number of frames per second of a stage is known well enough."""


@typed_out_of_memory
def work_on_video(task: VideoTask, networks: Networks, outbox: Outbox) -> None:
    """Track the faces of a video, and write the files of each person and the overlay.

    Args:
        task: The video.
        networks: Those of this process.
        outbox: Messages to the server.

    Raises:
        MienError: As `mien.track`, or the video is too long.
        Stopped: The server has asked to stop.
    """
    outbox.stage("reading", 0.0)
    info = _first_look(task, networks, outbox)
    report = _Report(task, info, outbox)
    tracker = Tracker(mode=task.mode, device=networks.device, max_faces=task.max_faces, focal_px=task.focal_px)
    tracks = []
    for person in tracker(task.video, task.folder / "tracking", progress=report):
        write_person(person, tracker.model, task.folder, FORMATS)
        tracks.append(person)
        outbox.send(_tracked(person, task))
    write_pictures(task.video, tracks, tracker.model, task.folder, FORMATS, progress=report)
    for person in tracks:
        outbox.send(_tracked(person, task))  # with the sheet
    assert (task.folder / OVERLAY_FILE) == task.overlay
    outbox.send(OverlayReady())


def _first_look(task: VideoTask, networks: Networks, outbox: Outbox) -> VideoInfo:
    """Write the network's head of an early frame: something to see while the video is tracked."""
    reconstructor, model = networks.reconstructor("auto", detail=True), networks.model
    with open_video(task.video) as video:
        info = video.info
        _check_length(info.frames, info, task)
        outbox.send(VideoOpened(*info.size, info.rate, info.frames))
        for frame in video.picked(sorted({round(time_s * info.rate) for time_s in _LOOKS_S})):
            outbox.check()
            with suppress(NoFaceFound):
                face = quick_face(reconstructor, frame.pixels, focal_px=task.focal_px)
                write_preview(frame.pixels, task.folder)
                outbox.send(write_head(face, model, task.folder, number=0, step="network", photo=None, formats=()))
                break
    return info


def _check_length(frames: int | None, info: VideoInfo, task: VideoTask) -> None:
    if frames is not None and frames > task.max_seconds * info.rate:
        raise VideoError(
            f"the video is longer than {task.max_seconds:g} s; send a part of it, or start mien studio with a larger "
            "--max-video-seconds."
        )


class _Report:
    """Sends the progress of tracking, see `mien.tracking.tracker.TrackProgress`."""

    def __init__(self, task: VideoTask, info: VideoInfo, outbox: Outbox) -> None:
        self._task, self._info, self._outbox = task, info, outbox
        self._stage, self._first, self._begun, self._sent = "", 0, 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        self._outbox.check()
        _check_length(done, self._info, self._task)  # files need not tell their length, or the right one
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._first, self._begun, self._sent = stage, done, now, 0.0
        if now - self._sent < _REPORT_S and done != total:
            return
        self._sent, elapsed = now, now - self._begun
        speed = (done - self._first) / elapsed if elapsed > _KNOWN_AFTER_S and done > self._first else None
        left = None if speed is None or total is None else max(total - done, 0) / speed
        self._outbox.send(Frames(stage, done, total, speed, left))


def _tracked(person: Track, task: VideoTask) -> PersonTracked:
    times = person.times_s
    step = 1 / person.rate
    starts = np.flatnonzero(np.diff(person.segments, prepend=person.segments[0] - 1))
    ends = [*(starts[1:] - 1), len(times) - 1]
    return PersonTracked(
        person=person.number,
        files=tuple(sorted(path.name for path in person_folder(task.folder, person).iterdir())),
        frames=len(person.frames),
        spans_s=tuple((float(times[a]), float(times[b]) + step) for a, b in zip(starts, ends, strict=True)),
        interpolated_s=tuple((float(times[a]), float(times[b]) + step) for a, b in _runs(~person.detected)),
    )


def _runs(chosen: Bool[np.ndarray, "N"]) -> list[tuple[int, int]]:
    """First and last index of each run of chosen elements."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]
