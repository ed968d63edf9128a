"""From a video to a track per person.

video ─ follow faces ─► landmarks per frame, tracklets          following, face_store (on disk)
tracklets ─ identity vectors ─► people                          people
best frames ─ photo pipeline ─► identity per person             identity
landmarks, identity ─ all frames at once ─► pose, expression    smoothing, in windows
"""

from __future__ import annotations

import copy
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mien import __version__
from mien.camera import Camera, to_camera_axes
from mien.errors import ConfigError, NoFaceFound
from mien.fitting import FitSettings
from mien.io.video import Video, VideoInfo, open_video
from mien.morphable import MorphableModel
from mien.perception import typical_focal_px
from mien.perception.landmarks import landmarks68_from_mesh
from mien.pipeline import PhotoInputs, Reconstructor
from mien.pipeline.reconstructor import RESOLUTIONS, TEXTURE_SIZE
from mien.pipeline.texturing import TextureBuilder
from mien.result import Reconstruction
from mien.tracking.face_store import FaceStore, Timeline, TrackedFaces
from mien.tracking.following import Follower
from mien.tracking.frame_energy import ExpressionPrior, FrameEnergy, Motion, PointTracks
from mien.tracking.gaze import LOOK_NAMES, gaze_angles
from mien.tracking.identity import (
    PersonShape,
    Portraits,
    choose_portraits,
    detection_of,
    person_shape,
    portrait_inputs,
    portrait_reconstruction,
)
from mien.tracking.people import Person, Segment, find_people
from mien.tracking.smoothing import MotionPrior, Smoother
from mien.tracking.track import Track, TrackRows
from mien.typing import Float, Int, Tensor

MODES = ("net", "fit")
"""How expressions are found: from the points and the encoder's prediction, or from the points alone."""
NET_SIGMA = 0.12
"""Standard deviation of an expression around the encoder's prediction. On a drawn head (`benchmarks/tracking.py`) the
prediction halves the error of a smile, which the points alone confuse with other expressions."""
POINT_SHAPES = ("eyeBlink", "eyeSquint", "eyeWide", *LOOK_NAMES)
"""Expressions that the points show better than the encoder, which sees an eye on a few pixels."""
WINDOW_S, MARGIN_S = 8.0, 1.0
"""Length of the windows that are solved at once, and of the frames on both sides that are solved with them but belong
to the windows beside. Without the frames beyond the margin, points at the border of a window move by less than 0.05 mm
(`test_windows_agree_where_they_meet`)."""

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


@dataclass(frozen=True)
class Window:
    """Frames that are solved at once."""

    outer: Segment
    """All of them."""
    inner: Segment
    """Those whose result is kept."""


def windows(segment: Segment, rate: float) -> Iterator[Window]:
    """Divide a segment into windows of equal length that overlap."""
    length, margin = segment.end - segment.first, max(round(MARGIN_S * rate), 8)
    count = max(round(length / max(WINDOW_S * rate, 4 * margin)), 1)
    limits = [segment.first + length * k // count for k in range(count + 1)]
    for first, end in itertools.pairwise(limits):
        outer = Segment(max(first - margin, segment.first), min(end + margin, segment.end))
        yield Window(outer, Segment(first, end))


class PersonSolver:
    """Finds the motion of one person whose shape is known.

    Args:
        model: The face model, on the CPU.
        shape: The person.
        camera: The camera of all frames.
        mode: As in `track`.
        prior: How faces move.
        settings: Standard deviations of the errors.
    """

    def __init__(
        self,
        model: MorphableModel,
        shape: PersonShape,
        camera: Camera,
        *,
        mode: str,
        prior: MotionPrior,
        settings: FitSettings,
    ) -> None:
        self.model, self.mode, self.camera, self.shape = model, mode, camera, shape
        self.identity = shape.coefficients.identity[0].cpu()
        self.energy = FrameEnergy(self.model, self.identity, camera, settings=settings)
        self.smoother = Smoother(self.model, self.energy, prior=prior)
        vertices = self.model.landmarks68
        basis = self.model.identity_basis[:, vertices]
        self.landmarks = self.model.mean[vertices] + torch.einsum("i,ivd->vd", self.identity, basis)
        self.landmark_basis = self.model.expression_basis[:, vertices]

    def solve(
        self,
        window: Window,
        found: TrackedFaces,
        times_s: Float[np.ndarray, "T"],
        *,
        segment: int,
        near: Motion | None = None,
    ) -> tuple[TrackRows, Motion]:
        """Find the motion in a window.

        Args:
            window: The frames.
            found: What was found of the person in the outer frames.
            times_s: Times of the outer frames.
            segment: Number of the segment.
            near: The motion of the outer frames without the last one, where the search begins, as far as it is known.

        Returns:
            The motion in the inner frames for users, and that in the outer frames.
        """
        frames = np.arange(window.outer.first, window.outer.end)
        nearest = np.abs(frames[:, None] - found.frame).argmin(1)
        detected = found.frame[nearest] == frames
        rows = found[nearest]
        tracks = _point_tracks(rows, detected)
        motion = self.smoother(
            tracks, torch.from_numpy(times_s), expression=self.expression_prior(rows.expression), near=near
        )
        inner = slice(window.inner.first - window.outer.first, window.inner.end - window.outer.first)
        shown = self._rows(motion[inner], frames[inner], times_s[inner], rows[inner], detected[inner], segment=segment)
        return shown, motion

    def _rows(
        self,
        motion: Motion,
        frames: np.ndarray,
        times_s: np.ndarray,
        rows: TrackedFaces,
        detected: np.ndarray,
        *,
        segment: int,
    ) -> TrackRows:
        return TrackRows(
            frames=frames,
            times_s=times_s,
            segments=np.full(len(frames), segment),
            detected=detected,
            confidence=np.where(detected, rows.confidence, 0).astype(np.float32),
            rotation=motion.rotation.numpy().astype(np.float32),
            translation=motion.translation.numpy().astype(np.float32),
            expression=motion.expression.numpy().astype(np.float32),
            gaze=gaze_angles(self.model, motion.expression).numpy().astype(np.float32),
            landmarks68=self.landmarks_px(motion).numpy(),
            detected68=np.stack([landmarks68_from_mesh(points) for points in rows.landmarks468_px]),
        )

    def track(
        self,
        number: int,
        info: VideoInfo,
        parts: list[TrackRows],
        portrait: Reconstruction,
        *,
        frames: Int[np.ndarray, "K"],
    ) -> Track:
        """The result.

        Args:
            number: The person.
            info: The video.
            parts: What `solve` returned, in the order of time.
            portrait: The person in one frame.
            frames: Frames that the identity comes from.
        """
        return Track(
            number=number,
            model_name=self.model.name,
            image_size=info.size,
            rate=info.rate,
            focal_px=float(self.camera.focal_px[0]),
            centre_px=self.camera.centre_px[0].numpy(),
            identity=self.identity.numpy(),
            **vars(TrackRows.join(parts)),
            expression_names=self.model.expression_names,
            portrait=portrait,
            portrait_identities=self.shape.identities.astype(np.float32),
            portrait_frames=frames,
            portrait_weights=self.shape.weights.astype(np.float32),
        )

    def landmarks_px(self, motion: Motion) -> Float[Tensor, "T 68 2"]:
        """The model's landmarks in the frames."""
        expression = motion.expression.float()
        points = self.landmarks + torch.einsum("te,evd->tvd", expression, self.landmark_basis)
        points = torch.einsum("tij,tvj->tvi", motion.rotation.float(), points)
        return project(points, motion.translation.float(), self.camera)

    def frame_motion(self, row: TrackedFaces) -> Motion:
        """Pose and expression in one frame by itself."""
        tracks = _point_tracks(row, np.ones(1, bool))
        return self.energy.solve(tracks, prior=self.expression_prior(row.expression))

    def expression_prior(self, predicted: Float[np.ndarray, "T E"]) -> ExpressionPrior | None:
        """The encoder's predictions as priors, in mode "net"."""
        if self.mode != "net":
            return None
        by_points = torch.tensor([name.startswith(POINT_SHAPES) for name in self.model.expression_names])
        mean = torch.from_numpy(predicted).double().clone()
        mean[:, by_points] = 0
        sigma = torch.where(by_points, self.energy.prior_sigma, NET_SIGMA)
        return ExpressionPrior(mean, sigma)


def project(
    rotated: Float[Tensor, "T P 3"], translation: Float[Tensor, "T 3"], camera: Camera
) -> Float[Tensor, "T P 2"]:
    """Project points in view axes that are moved by a translation in camera space."""
    points = to_camera_axes(rotated) + translation[:, None]
    return camera.focal_px[0] * points[..., :2] / points[..., 2:] + camera.centre_px


def _point_tracks(rows: TrackedFaces, detected: np.ndarray) -> PointTracks:
    points = torch.from_numpy(rows.landmarks468_px)
    irises = torch.from_numpy(rows.irises_px[:, :, 0])
    return PointTracks(points[..., :2], points[..., 2], irises, torch.from_numpy(detected).float())


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Ignore the progress."""
