"""Follows the faces of a video from frame to frame: where they are, but not yet who they are.

A face is followed by its landmarks: the mesh network looks where they were in the frame before. The box detector, which
takes longer, looks for further faces now and then, and after a face was lost. A stretch in which a face was followed
without doubt is a tracklet. Cuts end all tracklets, and so do faces that cross, since they may be exchanged there;
`people` finds out which tracklets show the same person.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mien.camera import Camera
from mien.io.video import VideoFrame
from mien.morphable.landmark_tables import MEDIAPIPE_OUTER_EYE_CORNERS
from mien.networks import FaceEncoder
from mien.perception import FaceDetection, FaceDetector, IdentityNetwork, face_crop
from mien.perception.crops import sample_pixels
from mien.perception.detector import CONFIDENCE_THRESHOLD
from mien.typing import Float, Tensor, UInt8

SEARCH_S = 0.4
"""Time after which the box detector looks for further faces."""
LOST_SEARCH_S = 1.0
"""Time during which it looks in every frame for a face that was lost."""
SMALLEST_PX = 24.0
"""Faces of which the longer side of the landmarks' box is smaller are not followed."""
LEAST_OVERLAP = 0.15
"""Least intersection over union of a face's boxes in two frames; a mesh that jumps farther is on another face."""
SAME_FACE = 0.4
"""Intersection over union from which on two boxes are one face."""
CROSSING, CROSSED = 0.1, 0.02
"""Intersection over union from which on two faces may be exchanged, and below which they are apart again."""
FEATURE_AGES_S = (0.0, 0.1, 0.3, 0.8)
"""Ages of a tracklet at which its identity vector is measured; later once per second."""
LARGEST_SCATTER = 0.027
"""Largest `FaceDetector.scatter` of a face that begins to be followed: `benchmarks/tracking.py --only imagined` prints
that of portraits and of blurred backgrounds that were taken for faces."""
CUT_DIFFERENCE, CUT_CORRELATION = 0.08, 0.55
"""A frame begins a new shot if it differs from the frame before by so much of the full range, in the mean over
32 × 18 cells, and the cells have so little correlation: a flash keeps the correlation, a fast pan small differences."""
STEADY = 0.5
"""Share of the newest landmarks in those around which the mesh network looks next. With 1, errors feed themselves: a
window that is too high in one frame is too low in the next one, and the landmarks of a still face move by 0.7 px
instead of 0.1 (`benchmarks/tracking.py --only talk`)."""
_CELLS = (18, 32)
_UPRIGHT_ROLL = np.radians(30)
"""As in `mien.pipeline`: a head with more roll is turned upright for the encoder."""


@dataclass(frozen=True, eq=False)
class TrackedFace:
    """One face in one frame."""

    frame: int
    tracklet: int
    landmarks468_px: Float[np.ndarray, "468 3"]
    irises_px: Float[np.ndarray, "2 5 2"]
    confidence: float
    sharpness: float
    """Mean slope of the luma over its contrast; comparable for one person."""
    expression: Float[np.ndarray, "E"] | None
    """The encoder's prediction; None without an encoder."""
    feature: Float[np.ndarray, "128"] | None
    """Identity vector, measured now and then."""


@dataclass(frozen=True)
class Tracklet:
    """A face that is being followed."""

    number: int
    landmarks468_px: Float[np.ndarray, "468 3"]
    steady_px: Float[np.ndarray, "468 3"]
    """Landmarks around which the mesh network looks in the next frame."""
    first_frame: int
    parent: int = -1
    """The tracklet that ended where this one began, which probably shows the same person; -1 for none."""
    crossing: bool = False
    """Whether another face is close."""
    features: int = 0
    """Number of identity vectors so far."""
    lost_frame: int = -1
    """Frame in which the face was lost; -1 while it is followed."""


@dataclass(frozen=True, eq=False)
class FollowerState:
    """All that the next frame depends on."""

    tracklets: tuple[Tracklet, ...] = ()
    """Those that are followed, and those that were lost a moment ago."""
    next_number: int = 0
    cells: Float[np.ndarray, "18 32"] = field(default_factory=lambda: np.zeros(_CELLS, np.float32))
    """Lumas of the frame before."""
    searched_frame: int = -1
    """Last frame in which the box detector looked."""


@dataclass(frozen=True, eq=False)
class FollowedFrame:
    """What was found in one frame."""

    index: int
    time_s: float
    is_cut: bool
    """Whether the frame begins a shot; the first one does."""
    tracked_faces: tuple[TrackedFace, ...]
    parents: tuple[tuple[int, int], ...]
    """New tracklets and their parents."""


class Follower:
    """Follows faces; `state` can be kept and set to go on later.

    Args:
        detector: The detector.
        recognition: The identity network.
        encoder: Predicts the expression of each face; None to leave it out.
        rate: Frames per second.
        max_faces: Largest number of faces that are followed at a time, the largest first; None for all.
    """

    def __init__(
        self,
        detector: FaceDetector,
        recognition: IdentityNetwork,
        encoder: FaceEncoder | None,
        *,
        rate: float,
        max_faces: int | None = None,
    ) -> None:
        self.detector, self.recognition, self.encoder = detector, recognition, encoder
        self.rate, self.max_faces = rate, max_faces
        self.state = FollowerState()

    def __call__(self, frame: VideoFrame) -> FollowedFrame:
        """Find the faces of the next frame."""
        cells = _luma_cells(frame.pixels)
        is_cut = frame.index == 0 or _differs(cells, self.state.cells)
        known = () if is_cut else self.state.tracklets
        lost_limit = frame.index - LOST_SEARCH_S * self.rate
        lost = [t for t in known if t.lost_frame >= 0 and t.lost_frame >= lost_limit]
        followed, newly_lost = self._follow(frame, [t for t in known if t.lost_frame < 0])
        lost += newly_lost
        started: list[tuple[Tracklet, FaceDetection]] = []
        searched = self.state.searched_frame
        if is_cut or lost or not followed or frame.index - searched >= SEARCH_S * self.rate:
            searched = frame.index
            started = self._search(frame, [d for _, d in followed], lost)
        taken = {t.parent for t, _ in started}
        lost = [t for t in lost if t.number not in taken]
        current = self._renumbered(frame.index, [*followed, *started])
        parents = tuple((t.number, t.parent) for t, _ in current if t.first_frame == frame.index)
        current, tracked_faces = self._tracked(frame, current)
        self.state = FollowerState((*current, *lost), self.state.next_number, cells, searched)
        return FollowedFrame(frame.index, frame.time_s, is_cut, tracked_faces, parents)

    def _follow(
        self, frame: VideoFrame, tracklets: list[Tracklet]
    ) -> tuple[list[tuple[Tracklet, FaceDetection]], list[Tracklet]]:
        """The faces that are still there, and those that are lost."""
        if not tracklets:
            return [], []
        found = self.detector.follow(frame.pixels, [t.steady_px for t in tracklets])
        pairs = sorted(zip(tracklets, found, strict=True), key=lambda pair: -_kept_share(*pair))
        followed: list[tuple[Tracklet, FaceDetection]] = []
        lost = []
        for tracklet, face in pairs:
            is_face = face.confidence >= CONFIDENCE_THRESHOLD and face.size_px >= SMALLEST_PX
            is_free = all(overlap(face.box_px, other.box_px) < SAME_FACE for _, other in followed)
            if is_face and is_free and _kept_share(tracklet, face) >= LEAST_OVERLAP:
                followed.append((tracklet, face))
            else:
                lost.append(replace(tracklet, lost_frame=frame.index))
        return sorted(followed, key=lambda pair: pair[0].number), lost

    def _search(
        self, frame: VideoFrame, known: list[FaceDetection], lost: list[Tracklet]
    ) -> list[tuple[Tracklet, FaceDetection]]:
        """Faces that are not followed yet; each continues a lost tracklet at its place, if there is one."""
        boxes = self.detector.detect_boxes(frame.pixels)
        new = [box for box in boxes if all(overlap(box.box_px, face.box_px) < 0.5 * SAME_FACE for face in known)]
        room = None if self.max_faces is None else max(self.max_faces - len(known), 0)
        if not new or room == 0:
            return []
        started = []
        for face in self.detector.detect(frame.pixels, new, max_faces=room):
            box = mesh_box(face.landmarks468_px)
            if max(box[2] - box[0], box[3] - box[1]) < SMALLEST_PX:
                continue
            if any(overlap(box, other.box_px) >= SAME_FACE for other in known):
                continue
            if self.detector.scatter(frame.pixels, [face.landmarks468_px])[0] > LARGEST_SCATTER:
                continue
            before = max(lost, key=lambda t: overlap(mesh_box(t.landmarks468_px), box), default=None)
            parent = -1
            if before is not None and overlap(mesh_box(before.landmarks468_px), box) > LEAST_OVERLAP:
                parent = before.number
                lost = [t for t in lost if t is not before]
            started.append((Tracklet(-1, face.landmarks468_px, face.landmarks468_px, frame.index, parent), face))
        return started

    def _renumbered(
        self, index: int, current: list[tuple[Tracklet, FaceDetection]]
    ) -> list[tuple[Tracklet, FaceDetection]]:
        """Give new tracklets a number; a tracklet whose face begins or ends to cross another becomes a new one."""
        boxes = [mesh_box(face.landmarks468_px) for _, face in current]
        result = []
        for k, (before, face) in enumerate(current):
            limit = CROSSED if before.crossing else CROSSING
            crossing = any(overlap(boxes[k], box) > limit for j, box in enumerate(boxes) if j != k)
            now = before
            if before.number < 0:
                now = self._started(before, index, crossing=crossing)
            elif crossing != before.crossing:
                now = self._started(replace(before, parent=before.number), index, crossing=crossing)
            steady = now.steady_px + STEADY * (face.landmarks468_px - now.steady_px)
            result.append((replace(now, landmarks468_px=face.landmarks468_px, steady_px=steady), face))
        return result

    def _started(self, tracklet: Tracklet, index: int, *, crossing: bool) -> Tracklet:
        number = self.state.next_number
        self.state = replace(self.state, next_number=number + 1)
        return replace(tracklet, number=number, first_frame=index, crossing=crossing, features=0)

    def _tracked(
        self, frame: VideoFrame, current: list[tuple[Tracklet, FaceDetection]]
    ) -> tuple[list[Tracklet], tuple[TrackedFace, ...]]:
        predictions = self._predicted(frame.pixels, [face for _, face in current])
        tracklets, tracked_faces = [], []
        for (tracklet, face), expression in zip(current, predictions, strict=True):
            wanted = self._wants_feature(tracklet, frame.index)
            feature = identity_vector(self.recognition, frame.pixels, face) if wanted else None
            tracklets.append(replace(tracklet, features=tracklet.features + wanted))
            tracked_faces.append(
                TrackedFace(
                    frame.index,
                    tracklet.number,
                    face.landmarks468_px.astype(np.float32),
                    face.irises_px.astype(np.float32),
                    face.confidence,
                    _sharpness(frame.pixels, mesh_box(face.landmarks468_px)),
                    expression,
                    feature,
                )
            )
        return tracklets, tuple(tracked_faces)

    def _wants_feature(self, tracklet: Tracklet, index: int) -> bool:
        age_s, count = (index - tracklet.first_frame) / self.rate, tracklet.features
        early = len(FEATURE_AGES_S)
        return age_s >= (FEATURE_AGES_S[count] if count < early else 1.0 + count - early)

    def _predicted(
        self, pixels: UInt8[np.ndarray, "H W 3"], faces: list[FaceDetection]
    ) -> list[Float[np.ndarray, "E"] | None]:
        """The encoder's expression of each face."""
        if self.encoder is None or not faces:
            return [None] * len(faces)
        crops, points = [], []
        for face in faces:
            crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]), angle=upright_angle(face.landmarks468_px))
            crops.append(sample_pixels(pixels, crop, padding="reflection"))
            points.append(crop.to_crop(torch.from_numpy(face.landmarks468_px[:, :2])).float())
        batch = torch.cat(crops).to(self.detector.device)
        with torch.inference_mode():
            predicted = self.encoder.encode(
                batch,
                _any_camera(batch),
                landmarks468_px=torch.stack(points).to(batch.device),
                refine_steps=1,
            ).expression
        return list(predicted.cpu().numpy().astype(np.float32))


def _any_camera(crops: Float[Tensor, "B 3 S S"]) -> Camera:
    """A camera for the encoder, whose expressions do not depend on it."""
    size = crops.shape[-1]
    return Camera.from_fov(30.0, image_size=(size, size), batch=len(crops)).to(crops.device)


def upright_angle(landmarks468_px: Float[np.ndarray, "468 3"]) -> float:
    """Angle of the crop that the encoder gets, radians: 0, or the roll of a head that lies on its side."""
    right, left = landmarks468_px[list(MEDIAPIPE_OUTER_EYE_CORNERS), :2]
    roll = float(np.arctan2(left[1] - right[1], left[0] - right[0]))
    return roll if abs(roll) > _UPRIGHT_ROLL else 0.0


def identity_vector(
    network: IdentityNetwork, pixels: UInt8[np.ndarray, "H W 3"], face: FaceDetection
) -> Float[np.ndarray, "128"]:
    """The vector of the face; only the pixels around it are read."""
    box = mesh_box(face.landmarks468_px)
    centre, half = (box[:2] + box[2:]) / 2, 1.2 * max(box[2:] - box[:2])
    height, width = pixels.shape[:2]
    left, top = np.clip(centre - half, 0, [width - 2, height - 2]).astype(int)
    right, bottom = np.clip(centre + half, [left + 2, top + 2], [width, height]).astype(int)
    patch = np.ascontiguousarray(pixels[top:bottom, left:right].transpose(2, 0, 1))
    points = torch.from_numpy(face.landmarks68_px - [left, top]).float()[None]
    device = next(network.parameters()).device
    with torch.inference_mode():
        chip = network.crop(torch.from_numpy(patch)[None].float().to(device) / 255, points.to(device))
        return network(chip)[0].cpu().numpy()


def mesh_box(landmarks468_px: Float[np.ndarray, "468 *C"]) -> Float[np.ndarray, "4"]:
    """Left, top, right and bottom of the landmarks."""
    points = landmarks468_px[:, :2]
    return np.concatenate([points.min(0), points.max(0)])


def overlap(one: Float[np.ndarray, "4"], other: Float[np.ndarray, "4"]) -> float:
    """Intersection over union of two boxes."""
    size = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(size.clip(min=0)))
    return common / (float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - common)


def _kept_share(tracklet: Tracklet, face: FaceDetection) -> float:
    return overlap(mesh_box(tracklet.landmarks468_px), mesh_box(face.landmarks468_px))


def _luma_cells(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "18 32"]:
    """Mean green of each cell, 0 to 1; a few hundred pixels per cell are enough."""
    height, width = pixels.shape[:2]
    step = max(1, min(height // 72, width // 128))
    green = pixels[::step, ::step, 1].astype(np.float32)
    sizes = zip(green.shape, _CELLS, strict=True)
    rows, columns = (np.linspace(0, size, cells + 1).astype(int)[:-1] for size, cells in sizes)
    sums = np.add.reduceat(np.add.reduceat(green, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, green.shape[0]]), np.diff([*columns, green.shape[1]]))
    return (sums / counts / 255).astype(np.float32)


def _differs(cells: Float[np.ndarray, "18 32"], before: Float[np.ndarray, "18 32"]) -> bool:
    """Whether two frames belong to different shots."""
    if float(np.abs(cells - before).mean()) < CUT_DIFFERENCE:
        return False
    deviations = [x - x.mean() for x in (cells, before)]
    power = [float((x**2).sum()) for x in deviations]
    common = float((deviations[0] * deviations[1]).sum())
    return common < CUT_CORRELATION * max(float(np.sqrt(power[0] * power[1])), 1e-9)


def _sharpness(pixels: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> float:
    height, width = pixels.shape[:2]
    left, top = np.clip(box[:2], 0, [width - 2, height - 2]).astype(int)
    right, bottom = np.clip(box[2:], [left + 2, top + 2], [width, height]).astype(int)
    step = max(1, (bottom - top) // 160)
    green = pixels[top:bottom:step, left:right:step, 1].astype(np.float32)
    slopes = np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean()
    return float(slopes / (green.std() + 8.0))  # 8 of 255: a flat patch has only noise
