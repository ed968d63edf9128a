"""The shape of a person, from a few good and different frames of a video.

Each of these frames is reconstructed like a photo. The identities are averaged with weights: their precision, and less
for those that differ much from the others, because a hand or a strong expression spoilt them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import Camera
from mien.fitting import FitSettings
from mien.fitting.identity_prior import identity_precision
from mien.fitting.landmarks import initial_pose
from mien.fitting.point_model import PointModel
from mien.fitting.stages import with_light_and_albedo
from mien.geometry import rotmat_to_rotvec
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import FaceDetection
from mien.pipeline import PhotoInputs, Reconstructor
from mien.pipeline.texturing import TextureBuilder
from mien.result import Reconstruction
from mien.tracking.face_store import FaceStore, TrackedFaces
from mien.tracking.frame_energy import Motion
from mien.tracking.people import Person
from mien.typing import Float, Int, Tensor, UInt8

PORTRAITS = 6
"""Frames per person: about one for each of `YAW_BINS_DEG` in which both sides of the face are seen. Each takes the time
of a photo. On a drawn head (`benchmarks/tracking.py --only talk`), means of 1, 2, 3 and 6 are off by 1.52, 1.33, 1.27
and 1.21 mm, and the weighted mean of 6 by 1.13."""
CANDIDATES = 300
"""Frames among which they are chosen, spread evenly."""
YAW_BINS_DEG = (-60.0, -25.0, -8.0, 8.0, 25.0, 60.0)
"""The chosen frames are spread over these ranges of the head's turn; heads that turn farther show half a face."""
SPREAD_S = 0.4
"""Least time between two of them."""
TYPICAL_RESIDUAL = 0.01
"""Distance between detected and modelled points of a good frame, as a share of the face's size."""
OUTLIER_SCALE = 1.5
"""Distance from the mean identity, over the median distance, from which on a frame counts less."""


@dataclass(frozen=True, eq=False)
class Portraits:
    """The chosen frames of one person."""

    frames: Int[np.ndarray, "N"]
    tracked_faces: TrackedFaces
    yaw_deg: Float[np.ndarray, "N"]


def choose_portraits(
    store: FaceStore,
    person: Person,
    times_s: Float[np.ndarray, "T"],
    *,
    model: MorphableModel,
    camera: Camera,
    count: int = PORTRAITS,
) -> Portraits:
    """Choose sharp, large frames with different turns of the head.

    Args:
        store: What was found in the video.
        person: The person.
        times_s: Times of all frames.
        model: The morphable model.
        camera: A camera of the frames, a batch of one; only turns of the head depend on it, and these little.
        count: Number of frames; fewer if the person is seen briefly.
    """
    step = max(len(person.frames) // CANDIDATES, 1)
    wanted = np.sort(person.frames[step // 2 :: step])
    parts = []
    for first in range(0, int(wanted[-1]) + 1, 1000):
        some = store.between(first, min(first + 1000, int(wanted[-1]) + 1), person.tracklets)
        parts.append(some[np.isin(some.frame, wanted)])
    candidates = TrackedFaces.join(part for part in parts if len(part.frame))
    yaw = _yaw_deg(model, candidates, camera)
    size = np.ptp(candidates.landmarks468_px[..., :2], axis=1).max(-1)
    # Above the size of the fit's crop, more pixels help little.
    score = candidates.confidence * np.minimum(size / 200, 1) * candidates.sharpness / np.median(candidates.sharpness)
    bins = np.digitize(yaw, YAW_BINS_DEG)
    score = np.where((bins == 0) | (bins == len(YAW_BINS_DEG)), 0.01 * score, score)
    chosen: list[int] = []
    used = np.zeros(len(YAW_BINS_DEG) + 1)
    free = np.ones(len(score), bool)
    while free.any() and len(chosen) < count:
        # Each frame already chosen of the same turn halves the score.
        best = int(np.where(free, score * 0.5 ** used[bins], -1).argmax())
        chosen.append(best)
        used[bins[best]] += 1
        times = times_s[candidates.frame]
        free &= np.abs(times - times[best]) >= SPREAD_S
    rows = np.sort(chosen)
    return Portraits(candidates.frame[rows], candidates[rows], yaw[rows])


def _yaw_deg(model: MorphableModel, faces: TrackedFaces, camera: Camera) -> Float[np.ndarray, "N"]:
    points = torch.from_numpy(faces.landmarks468_px[..., :2]).double()
    count = len(points)
    cameras = camera.double()[torch.zeros(count, dtype=torch.int64)]
    pose = initial_pose(PointModel.of(model).mean.expand(count, -1, -1), points, cameras)
    forward = pose.rotmat()[:, :, 2]
    return np.degrees(torch.atan2(forward[:, 0], forward[:, 2]).numpy())


def detection_of(faces: TrackedFaces, row: int) -> FaceDetection:
    """One tracked face as a detection of the photo pipeline."""
    points = faces.landmarks468_px[row].astype(np.float64)
    box = np.concatenate([points[:, :2].min(0), points[:, :2].max(0)])
    confidence = float(faces.confidence[row])
    return FaceDetection(confidence, box, np.zeros((6, 2)), points, faces.irises_px[row].astype(np.float64), confidence)


@dataclass(frozen=True, eq=False)
class PersonShape:
    """The identity of a person, and how it was found."""

    coefficients: FaceCoefficients
    """Identity and albedo of the person, a batch of one; the rest is that of the most frontal portrait."""
    identities: Float[np.ndarray, "N I"]
    """Identity of each portrait."""
    weights: Float[np.ndarray, "N"]
    """Weight of each portrait, sum 1."""


def person_shape(
    reconstructor: Reconstructor,
    portraits: Portraits,
    inputs: Sequence[PhotoInputs],
) -> PersonShape:
    """Average the identities of a person's portraits.

    Args:
        reconstructor: Finds the coefficients of each portrait.
        portraits: The portraits.
        inputs: Their inputs, in the same order.
    """
    faces = [reconstructor.find_coefficients(one) for one in inputs]
    identities = torch.cat([face.identity for face in faces]).double()
    residuals = torch.stack(
        [_residual(reconstructor.model, face, one) for face, one in zip(faces, inputs, strict=True)]
    )
    precision = 1 / (residuals.double() ** 2 + TYPICAL_RESIDUAL**2)
    metric = identity_precision(reconstructor.model, sigma=1.0).double()
    weights = precision / precision.sum()
    for _ in range(3):
        difference = identities - weights @ identities
        distance_sq = ((difference @ metric) * difference).sum(1)
        scale_sq = (OUTLIER_SCALE**2 * distance_sq.median()).clamp(min=1e-12)
        weights = precision / (1 + distance_sq / scale_sq)
        weights = weights / weights.sum()
    albedo = weights.float() @ torch.cat([face.albedo for face in faces])
    frontal = int(np.abs(portraits.yaw_deg).argmin())
    merged = replace(faces[frontal], identity=(weights @ identities).float()[None], albedo=albedo[None])
    return PersonShape(merged, identities.cpu().numpy(), weights.cpu().numpy())


def _residual(model: MorphableModel, face: FaceCoefficients, inputs: PhotoInputs) -> Float[Tensor, ""]:
    """Median distance of the points over the size of the face."""
    targets = inputs.targets
    points = targets.camera.project(face.pose.to_camera(PointModel.of(model).points(face)))
    return ((points - targets.landmarks468_px).norm(dim=-1).median(1).values / targets.extent_px)[0]


def portrait_reconstruction(
    builder: TextureBuilder, shape: PersonShape, inputs: PhotoInputs, motion: Motion, *, settings: FitSettings
) -> Reconstruction:
    """The person in one frame as the result of a photo, with texture.

    Args:
        builder: Builds the texture.
        shape: The person.
        inputs: The frame.
        motion: Pose and expression in that frame, a batch of one, under the camera of the whole frame.
        settings: Standard deviations of the light.
    """
    device = shape.coefficients.identity.device
    motion = motion.to(device)
    face = replace(
        shape.coefficients,
        expression=motion.expression.float(),
        pose=replace(
            shape.coefficients.pose,
            rotation=rotmat_to_rotvec(motion.rotation).float(),
            translation=motion.translation.float(),
            scale=torch.ones(1, device=device),
        ),
    )
    face = with_light_and_albedo(builder.model, inputs.targets, face, settings=settings, warm=True)
    return builder(inputs, face, inputs.targets.camera)


def portrait_inputs(
    pixels: UInt8[np.ndarray, "H W 3"], detection: FaceDetection, *, focal_px: float, device: torch.device
) -> PhotoInputs:
    """One face of a frame as the inputs of the photo pipeline."""
    return PhotoInputs.of(pixels, [detection], focal_px=focal_px, device=device)
