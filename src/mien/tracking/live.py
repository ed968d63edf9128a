"""Tracking as the frames come: the result of a frame depends on this frame and those before it.

The identity of a person is the weighted mean of the first good frames, and is then kept. The motion of a frame is the
last one of the most probable motion of the frames so far, of which a few are kept: the same energy as that of whole
stretches, without the future.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import NoFaceFound
from mien.io.video import VideoFrame, VideoInfo, open_video
from mien.morphable import MorphableModel
from mien.perception import SAME_PERSON_DISTANCE, typical_focal_px
from mien.pipeline import PhotoInputs
from mien.tracking.face_store import TrackedFaces
from mien.tracking.following import FollowedFrame, Follower, TrackedFace
from mien.tracking.frame_energy import Motion
from mien.tracking.identity import Portraits, detection_of, person_shape, portrait_inputs, portrait_reconstruction
from mien.tracking.outputs import overlay_video
from mien.tracking.people import CONTINUED_DISTANCE, MAX_GAP_S, Segment
from mien.tracking.person_motion import PersonSolver, Window
from mien.tracking.pictures import TrackPainter
from mien.tracking.smoothing import MotionPrior
from mien.tracking.track import Track, TrackRows
from mien.tracking.tracker import Tracker, TrackProgress, no_progress
from mien.typing import Float

HISTORY_S = 0.4
"""Time before a frame that its motion depends on."""
LIVE_PORTRAITS, PORTRAIT_EVERY_S = 4, 0.25
"""Frames that the identity comes from, and the time between them: it is fixed within a second."""


@dataclass(frozen=True, eq=False)
class LiveFace:
    """One face in the newest frame."""

    person: int
    """Number of the person, in the order of appearance."""
    rows: TrackRows
    """Its pose, expression and gaze: one row."""


@dataclass(eq=False)
class _Person:
    number: int
    feature: Float[np.ndarray, "128"]
    features: int
    inputs: list[PhotoInputs] = field(default_factory=list)
    portraits: list[TrackedFace] = field(default_factory=list)
    solver: PersonSolver | None = None
    history: deque[TrackedFace] = field(default_factory=deque)
    segment: int = 0
    last_time_s: float = 0.0
    rows: list[TrackRows] = field(default_factory=list)
    motion: Motion | None = None
    """In the frames from the first one of the history on."""


class LiveTracker:
    """Tracks faces in frames as they come.

    Args:
        mode: As in `mien.track`.
        device: "cpu" or "cuda".
        max_faces: Maximum number of faces that are followed at a time.
        focal_px: Focal length; by default the first face is assumed 0.8 m away.
        prior: How faces move.

    Example:
        >>> tracker = LiveTracker()
        >>> with open_video("video.mp4") as video:
        ...     tracker.begin(video.info)
        ...     for frame in video.frames():
        ...         for face in tracker(frame):
        ...             print(face.person, face.rows.expression[0])
    """

    def __init__(
        self,
        *,
        mode: str = "net",
        device: str = "cpu",
        max_faces: int | None = None,
        focal_px: float | None = None,
        prior: MotionPrior | None = None,
    ) -> None:
        self._tracker = Tracker(mode=mode, device=device, max_faces=max_faces, focal_px=focal_px, prior=prior)
        self._people: list[_Person] = []
        self._of_tracklet: dict[int, _Person] = {}
        self._times: deque[tuple[int, float]] = deque()
        self._follower: Follower | None = None
        self._info: VideoInfo | None = None
        self._camera: Camera | None = None

    @property
    def model(self) -> MorphableModel:
        """The face model."""
        return self._tracker.model

    def begin(self, info: VideoInfo) -> None:
        """Begin a video; forgets the people of the one before."""
        self._info, self._follower = info, self._tracker.follower(info)
        self._people, self._camera = [], None
        self._of_tracklet.clear()
        self._times.clear()

    def __call__(self, frame: VideoFrame) -> list[LiveFace]:
        """Track the faces of the next frame.

        Args:
            frame: The frame.

        Returns:
            The faces in it.
        """
        assert self._info is not None and self._follower is not None, "call begin first"
        followed = self._follower(frame)
        self._times.append((frame.index, frame.time_s))
        while self._times[0][1] < frame.time_s - 2 * HISTORY_S:
            self._times.popleft()
        faces, taken = [], set[int]()
        for tracked_face in followed.tracked_faces:
            person = self._person_of(tracked_face, followed, taken)
            taken.add(person.number)
            faces.append(self._face(person, tracked_face, frame, is_cut=followed.is_cut))
        return faces

    def _person_of(self, tracked_face: TrackedFace, followed: FollowedFrame, taken: set[int]) -> _Person:
        """The person of a tracklet; of a new one, the most similar person who is not in the frame."""
        known = self._of_tracklet.get(tracked_face.tracklet)
        if known is not None and known.number not in taken:
            if tracked_face.feature is not None:
                known.feature = (known.feature * known.features + tracked_face.feature) / (known.features + 1)
                known.features += 1
            return known
        feature = tracked_face.feature if tracked_face.feature is not None else np.full(128, np.inf, np.float32)
        parent = self._of_tracklet.get(dict(followed.parents).get(tracked_face.tracklet, -1))
        best, least = None, 0.0
        for person in self._people:
            if person.number in taken:
                continue
            limit = CONTINUED_DISTANCE if person is parent else SAME_PERSON_DISTANCE
            excess = float(np.linalg.norm(feature - person.feature)) - limit
            if excess < least:
                best, least = person, excess
        if best is None:
            best = _Person(len(self._people), feature, 1)
            self._people.append(best)
        self._of_tracklet[tracked_face.tracklet] = best
        return best

    def _face(self, person: _Person, tracked_face: TrackedFace, frame: VideoFrame, *, is_cut: bool) -> LiveFace:
        if person.rows and (is_cut or frame.time_s - person.last_time_s > MAX_GAP_S):
            person.segment += 1
            person.history.clear()
            person.motion = None
        person.last_time_s = frame.time_s
        self._add_portrait(person, tracked_face, frame)
        person.history.append(tracked_face)
        first_time = frame.time_s - HISTORY_S
        times = dict(self._times)
        while times.get(person.history[0].frame, -np.inf) < first_time:
            gone = person.history.popleft()
            if person.motion is not None:
                person.motion = person.motion[person.history[0].frame - gone.frame :]
        assert person.solver is not None
        first = person.history[0].frame
        window = Window(Segment(first, frame.index + 1), Segment(frame.index, frame.index + 1))
        recent = np.array([times[number] for number in range(first, frame.index + 1)])
        rows, person.motion = person.solver.solve(
            window, as_rows(person.history), recent, segment=person.segment, near=person.motion
        )
        person.rows.append(rows)
        return LiveFace(person.number, rows)

    def _add_portrait(self, person: _Person, tracked_face: TrackedFace, frame: VideoFrame) -> None:
        """Use the frame for the identity, if it is one of the first good ones."""
        if len(person.portraits) >= LIVE_PORTRAITS:
            return
        assert self._info is not None
        wait = PORTRAIT_EVERY_S * self._info.rate
        if person.portraits and frame.index < person.portraits[-1].frame + wait:
            return
        camera = self._camera_of(tracked_face)
        person.portraits.append(tracked_face)
        rows = as_rows(person.portraits)
        person.inputs.append(
            portrait_inputs(
                frame.pixels,
                detection_of(rows, len(person.portraits) - 1),
                focal_px=float(camera.focal_px[0]),
                device=self._tracker.reconstructor.device,
            )
        )
        portraits = Portraits(rows.frame, rows, np.zeros(len(rows.frame)))
        shape = person_shape(self._tracker.reconstructor, portraits, person.inputs)
        person.solver = self._tracker.solver(shape, camera)

    def _camera_of(self, tracked_face: TrackedFace) -> Camera:
        if self._camera is None:
            assert self._info is not None
            width, height = self._info.size
            centre = width / 2, height / 2
            focal_px = self._tracker.focal_px or typical_focal_px(
                tracked_face.landmarks468_px, image_size=(height, width), centre_px=centre
            )
            self._camera = Camera(torch.tensor([float(focal_px)]), torch.tensor([centre]), (height, width))
        return self._camera

    def track_of(self, number: int) -> Track:
        """All frames of one person so far, with a portrait.

        Args:
            number: The person.
        """
        assert self._info is not None and self._camera is not None
        person = self._people[number]
        assert person.solver is not None
        rows = as_rows(person.portraits)
        last = len(person.portraits) - 1
        motion = person.solver.frame_motion(rows[last : last + 1])
        portrait = portrait_reconstruction(
            self._tracker.texture_builder,
            person.solver.shape,
            person.inputs[last],
            motion,
            settings=self._tracker.reconstructor.settings,
        )
        return person.solver.track(number, self._info, person.rows, portrait, frames=rows.frame)

    @property
    def count(self) -> int:
        """Number of people so far."""
        return len(self._people)


def as_rows(tracked_faces: deque[TrackedFace] | list[TrackedFace]) -> TrackedFaces:
    """Tracked faces as arrays."""
    width = next((len(o.expression) for o in tracked_faces if o.expression is not None), 0)
    return TrackedFaces(
        np.array([o.frame for o in tracked_faces]),
        np.array([o.tracklet for o in tracked_faces]),
        np.stack([o.landmarks468_px for o in tracked_faces]),
        np.stack([o.irises_px for o in tracked_faces]),
        np.array([o.confidence for o in tracked_faces], np.float32),
        np.array([o.sharpness for o in tracked_faces], np.float32),
        np.stack([np.zeros(width, np.float32) if o.expression is None else o.expression for o in tracked_faces]),
    )


def record(
    tracker: LiveTracker,
    source: str | os.PathLike[str] | int,
    out: Path,
    *,
    overlay: bool = True,
    rate: float | None = None,
    seconds: float | None = None,
    progress: TrackProgress | None = None,
) -> list[Track]:
    """Track a webcam or a video as its frames come, until it ends or the user presses Ctrl-C.

    Args:
        tracker: The tracker.
        source: A webcam, a video file or a folder of pictures.
        out: Folder for the overlay video.
        overlay: Whether to write it.
        rate: Pictures per second of a folder.
        seconds: Largest time; None for no limit.
        progress: Is called as `mien.tracking.tracker.TrackProgress` says.

    Returns:
        One track per person.

    Raises:
        VideoError: The source cannot be read.
        NoFaceFound: It shows no face.
        OutputError: The overlay cannot be written.
    """
    report = progress or no_progress
    painters: dict[int, TrackPainter] = {}
    with ExitStack() as stack:
        video = stack.enter_context(open_video(source, rate=rate))
        tracker.begin(video.info)
        drawing = stack.enter_context(overlay_video(out, video.info)) if overlay else None
        try:
            for frame in video.frames():
                if seconds is not None and frame.time_s > seconds:
                    break
                faces = tracker(frame)
                if drawing is not None:
                    for face in faces:
                        if face.person not in painters:
                            painters[face.person] = TrackPainter(tracker.track_of(face.person), tracker.model)
                        painters[face.person].follow(face.rows)
                    drawing.add(frame, (painters[face.person] for face in faces))
                report("tracking", frame.index + 1, video.info.frames)
        except KeyboardInterrupt:
            if not video.info.is_live:
                raise
        if tracker.count == 0:
            raise NoFaceFound(f"{video.info.name}: no face was found; use a closer shot.")
    return [tracker.track_of(number) for number in range(tracker.count)]
