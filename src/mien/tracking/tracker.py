"""From a video to a track per person.

video ─ follow faces ─► landmarks per frame, tracklets          following, face_store (on disk)
tracklets ─ identity vectors ─► people                          people
best frames ─ photo pipeline ─► identity per person             identity
landmarks, identity ─ all frames at once ─► pose, expression    person_motion, in windows; smoothing, frame_energy
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mien import __version__
from mien.camera import Camera
from mien.errors import ConfigError, NoFaceFound
from mien.io.video import Video, VideoInfo, open_video
from mien.morphable import MorphableModel
from mien.perception import typical_focal_px
from mien.pipeline import PhotoInputs, Reconstructor
from mien.pipeline.reconstructor import RESOLUTIONS, TEXTURE_SIZE
from mien.pipeline.texturing import TextureBuilder
from mien.tracking.face_store import FaceStore, Timeline
from mien.tracking.following import Follower
from mien.tracking.identity import (
    PersonShape,
    Portraits,
    choose_portraits,
    detection_of,
    person_shape,
    portrait_inputs,
    portrait_reconstruction,
)
from mien.tracking.people import Person, find_people
from mien.tracking.person_motion import PersonSolver, windows
from mien.tracking.smoothing import MotionPrior
from mien.tracking.track import Track, TrackRows

MODES = ("net", "fit")
"""How expressions are found: from the points and the encoder's prediction, or from the points alone."""
TrackProgress = Callable[[str, int, int | None], None]
"""Is called with the name of a stage, the number of frames that are done, and the number of all, None if unknown."""


def track(
    video: str | os.PathLike[str] | int,
    *,
    mode: str = "net",
    device: str = "cpu",
    max_faces: int | None = None,
    focal_px: float | None = None,
    rate: float | None = None,
    progress: TrackProgress | None = None,
) -> list[Track]:
    """Track the faces of a video: one identity per person, and pose, expression and gaze per frame.

    The motion is smoothed with frames before and after, so the curves do not lag.

    Args:
        video: A video file, or a folder of pictures.
        mode: How expressions are found: "net" (from the points and the encoder's prediction, which is more exact) or
            "fit" (from the points alone).
        device: "cpu" or "cuda".
        max_faces: Maximum number of faces that are followed at a time, the largest first; None for all.
        focal_px: Focal length in pixels of the upright frames. By default the person who is seen longest is assumed
            0.8 m away.
        rate: Pictures per second, for a folder; 25 by default.
        progress: Is called as `TrackProgress` says. If it raises, the computation ends.

    Returns:
        One track per person, those who are seen longest first.

    Raises:
        VideoError: The video cannot be read.
        NoFaceFound: It shows no face.
        BackendUnavailable: PyAV or the device is missing.
        ConfigError: A setting is out of range.

    Example:
        >>> for person in mien.track("video.mp4"):
        ...     print(person, person.expression.max(0))
    """
    tracker = Tracker(mode=mode, device=device, max_faces=max_faces, focal_px=focal_px)
    with tempfile.TemporaryDirectory(prefix="mien-track-") as folder:
        return list(tracker(video, Path(folder), rate=rate, progress=progress))


class Tracker:
    """Tracks the faces of videos. Keeps the model and the networks, so that they are loaded once.

    Args:
        mode: As in `track`.
        device: "cpu" or "cuda".
        max_faces: As in `track`.
        focal_px: As in `track`.
        prior: How faces move.

    Raises:
        ConfigError: A setting is out of range.
        BackendUnavailable: The device does not exist here.
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
        if mode not in MODES:
            raise ConfigError(f"mode={mode!r} is not a mode of tracking; choose one of {', '.join(MODES)}.")
        if focal_px is not None and not 0 < focal_px < np.inf:
            raise ConfigError(f"focal_px={focal_px:g} is out of range; use a positive number of pixels.")
        self.reconstructor = Reconstructor(
            mode="net" if mode == "net" else "auto", device=device, detail=False, max_faces=max_faces
        )
        # The textures of videos are few and not made per frame, so they have the full size in each mode.
        self.texture_builder = TextureBuilder(
            self.model, detail=None, resolution=RESOLUTIONS[0], texture_size=TEXTURE_SIZE
        )
        # Steps over few unknowns have no use for a GPU.
        self.cpu_model = self.model if device == "cpu" else copy.deepcopy(self.model).cpu()
        self.mode, self.max_faces, self.focal_px, self.prior = mode, max_faces, focal_px, prior or MotionPrior()

    @property
    def model(self) -> MorphableModel:
        """The face model."""
        return self.reconstructor.model

    def __call__(
        self,
        video: str | os.PathLike[str] | int,
        folder: Path,
        *,
        rate: float | None = None,
        progress: TrackProgress | None = None,
    ) -> Iterator[Track]:
        """Track a video.

        Args:
            video: A video file, or a folder of pictures.
            folder: Where to keep what was found so far. If the same run was killed before, it goes on there.
            rate: As in `track`.
            progress: As in `track`.

        Yields:
            The tracks, those of people who are seen longest first.

        Raises:
            VideoError: The video cannot be read.
            NoFaceFound: It shows no face.
        """
        report = progress or no_progress
        info, store = self._follow(video, folder, rate, report)
        timeline = store.timeline()
        frames, tracklets = store.rows()
        people = find_people(timeline, frames, tracklets)
        if not people:
            raise NoFaceFound(f"{info.name}: no face was found in {len(timeline.times_s)} frames; use a closer shot.")
        camera = self._camera(info, store, people[0])
        for person in people:
            yield self._track(_Source(video, rate, info, store, timeline), person, camera, report)

    def _follow(
        self, source: str | os.PathLike[str] | int, folder: Path, rate: float | None, report: TrackProgress
    ) -> tuple[VideoInfo, FaceStore]:
        """Find the faces of all frames that are not in the folder yet."""
        with open_video(source, rate=rate) as video:
            store = FaceStore(folder, self._run(source, video))
            if store.is_finished:
                return video.info, store
            follower = self.follower(video.info)
            follower.state = store.state()
            for frame in video.frames(skip=store.frames_done):
                store.add(follower(frame), follower.state)
                report("following faces", frame.index + 1, video.info.frames)
            store.finish(follower.state)
            return video.info, store

    def follower(self, info: VideoInfo) -> Follower:
        """A follower for the faces of a video."""
        return Follower(
            self.reconstructor.detector,
            self.reconstructor.identity_network,
            self.reconstructor.encoder if self.mode == "net" else None,
            rate=info.rate,
            max_faces=self.max_faces,
        )

    def _run(self, source: str | os.PathLike[str] | int, video: Video) -> dict[str, object]:
        """What the faces found depend on."""
        path = Path(str(source))
        entry = path.stat() if path.exists() else None
        return {
            "version": __version__,
            "video": str(path.resolve()),
            "bytes": entry.st_size if entry else 0,
            "changed_ns": entry.st_mtime_ns if entry else 0,
            "rate": video.info.rate,
            "mode": self.mode,
            "max_faces": self.max_faces,
        }

    def _camera(self, info: VideoInfo, store: FaceStore, person: Person) -> Camera:
        """One camera for all frames: with the focal length given, or the median of those in which a face is typical."""
        width, height = info.size
        centre = width / 2, height / 2
        focal_px = self.focal_px
        if focal_px is None:
            some = person.frames[:: max(len(person.frames) // 20, 1)].tolist()
            faces = [store.between(frame, frame + 1, person.tracklets) for frame in some]
            focal_px = float(
                np.median(
                    [
                        typical_focal_px(face.landmarks468_px[0], image_size=(height, width), centre_px=centre)
                        for face in faces
                    ]
                )
            )
        return Camera(torch.tensor([focal_px]), torch.tensor([centre]), (height, width))

    def _track(self, source: _Source, person: Person, camera: Camera, report: TrackProgress) -> Track:
        info, store, timeline = source.info, source.store, source.timeline
        report(f"shape of person {person.number}", 0, None)
        portraits = choose_portraits(store, person, timeline.times_s, model=self.cpu_model, camera=camera)
        inputs = self._portrait_inputs(source, portraits, float(camera.focal_px[0]))
        shape = person_shape(self.reconstructor, portraits, inputs)
        solver = self.solver(shape, camera)
        parts: list[TrackRows] = []
        done = 0
        for number, segment in enumerate(person.segments):
            for window in windows(segment, info.rate):
                found = store.between(window.outer.first, window.outer.end, person.tracklets)
                times_s = timeline.times_s[window.outer.first : window.outer.end]
                parts.append(solver.solve(window, found, times_s, segment=number)[0])
                done += window.inner.end - window.inner.first
                report(f"motion of person {person.number}", done, None)
        frontal = int(np.abs(portraits.yaw_deg).argmin())
        motion = solver.frame_motion(portraits.tracked_faces[frontal : frontal + 1])
        portrait = portrait_reconstruction(
            self.texture_builder, shape, inputs[frontal], motion, settings=self.reconstructor.settings
        )
        return solver.track(person.number, info, parts, portrait, frames=portraits.frames)

    def solver(self, shape: PersonShape, camera: Camera) -> PersonSolver:
        """The solver for the motion of one person."""
        return PersonSolver(
            self.cpu_model, shape, camera, mode=self.mode, prior=self.prior, settings=self.reconstructor.settings
        )

    def _portrait_inputs(self, source: _Source, portraits: Portraits, focal_px: float) -> list[PhotoInputs]:
        with open_video(source.video, rate=source.rate) as video:
            return [
                portrait_inputs(
                    frame.pixels,
                    detection_of(portraits.tracked_faces, row),
                    focal_px=focal_px,
                    device=self.reconstructor.device,
                )
                for row, frame in enumerate(video.picked(portraits.frames.tolist()))
            ]


@dataclass(frozen=True, eq=False)
class _Source:
    """A video whose faces have been followed."""

    video: str | os.PathLike[str] | int
    rate: float | None
    info: VideoInfo
    store: FaceStore
    timeline: Timeline


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Ignore the progress."""
