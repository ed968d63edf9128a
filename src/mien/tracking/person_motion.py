"""The motion of a person whose shape is known, in windows of frames: memory stays the same for videos of any length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mien.camera import Camera, to_camera_axes
from mien.fitting import FitSettings
from mien.io.video import VideoInfo
from mien.morphable import MorphableModel
from mien.perception.landmarks import landmarks68_from_mesh
from mien.result import Reconstruction
from mien.tracking.face_store import TrackedFaces
from mien.tracking.frame_energy import ExpressionPrior, FrameEnergy, Motion, PointTracks
from mien.tracking.gaze import LOOK_NAMES, gaze_angles
from mien.tracking.identity import PersonShape
from mien.tracking.people import Segment
from mien.tracking.smoothing import MotionPrior, Smoother
from mien.tracking.track import Track, TrackRows
from mien.typing import Float, Int, Tensor

NET_SIGMA = 0.12
"""Standard deviation of an expression around the encoder's prediction. On a drawn head (`benchmarks/tracking.py`) the
prediction halves the error of a smile, which the points alone confuse with other expressions."""
POINT_SHAPES = ("eyeBlink", "eyeSquint", "eyeWide", *LOOK_NAMES)
"""Expressions that the points show better than the encoder, which sees an eye on a few pixels."""
WINDOW_S, MARGIN_S = 8.0, 1.0
"""Length of the windows that are solved at once, and of the frames on both sides that are solved with them but belong
to the windows beside. Without the frames beyond the margin, points at the border of a window move by less than 0.05 mm
(`test_windows_agree_where_they_meet`)."""


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
