"""From several photos to one person.

each photo ─ perception ─► faces with features, crops and predictions; the photo itself is not kept
features of all photos ─ the largest cluster ─► the person's face in each photo    mien.perception.same_person
crops ─ joint fit, or mean prediction ─► coefficients                              mien.fitting.joint, here
each photo again ─► views of one texture ─► results                                mien.pipeline.texturing
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import MienError, PhotoLeftOut
from mien.fitting import FitTargets, StageTime
from mien.fitting.prediction import PredictedIdentity
from mien.losses import geman_mcclure_weights
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import find_person
from mien.pipeline.inputs import PhotoInputs
from mien.pipeline.texturing import PhotoFace
from mien.typing import Float, Tensor, UInt8

DOUBTFUL = 0.25
"""A photo with a smaller weight is reported to the user: its face is probably of somebody else, or badly detected."""
_NET_SCALE = 30.0
"""Squared distance of a predicted identity from the mean, standard deviations of a prediction, at which its weight is a
quarter."""


@dataclass(frozen=True)
class SeenPhoto:
    """What is kept of one photo: its faces without its pixels."""

    name: str
    """Name for messages."""
    pixels: Callable[[], UInt8[np.ndarray, "H W 3"]]
    """Reads the photo."""
    inputs: PhotoInputs | None
    """Its faces, without pixels; None if there is no face."""
    features: Float[Tensor, "N 128"]
    """Recognition features of the faces."""
    start: FaceCoefficients | None
    """Prediction of the encoder for the faces; None without an encoder."""
    error: MienError | None = None
    """Why the photo could not be read."""


@dataclass(frozen=True)
class PersonPhotos:
    """The photos that show the person."""

    numbers: tuple[int, ...]
    """Number of each among the given photos."""
    photos: tuple[SeenPhoto, ...]
    """The photos."""
    inputs: tuple[PhotoInputs, ...]
    """The person's face in each of them, without pixels."""
    start: FaceCoefficients | None
    """Prediction of the encoder for the face in each photo."""
    reasons: tuple[str, ...]
    """Why a given photo is left out; empty for the others."""

    @classmethod
    def choose(cls, photos: Sequence[SeenPhoto]) -> PersonPhotos:
        """Find the person.

        Args:
            photos: All given photos, at least one with a face.
        """
        chosen = find_person([photo.features for photo in photos])
        found = [
            (k, photo, face) for k, (photo, face) in enumerate(zip(photos, chosen, strict=True)) if face is not None
        ]
        inputs, starts = [], []
        for _, photo, face in found:
            assert photo.inputs is not None, "a chosen photo has faces"
            inputs.append(photo.inputs[face : face + 1])
            if photo.start is not None:
                starts.append(photo.start[face : face + 1])
        numbers, kept, _ = zip(*found, strict=True)
        return cls(
            numbers,
            kept,
            tuple(inputs),
            FaceCoefficients.join(starts) if starts else None,
            tuple(_reason(photo, face) for photo, face in zip(photos, chosen, strict=True)),
        )

    @property
    def targets(self) -> FitTargets:
        """Targets of the joint fit."""
        return FitTargets.join([inputs.targets for inputs in self.inputs])

    def photo_faces(
        self, coefficients: FaceCoefficients, camera: Camera, weights: Float[Tensor, "B"], *, focal_fitted: bool
    ) -> list[PhotoFace]:
        """The face in each photo with its coefficients, as the texture needs it.

        Args:
            coefficients: The face in each photo.
            camera: The camera of each crop.
            weights: Influence of each photo, 0 to 1.
            focal_fitted: Whether the fit found the focal length.
        """

        def reader(photo: SeenPhoto, inputs: PhotoInputs) -> Callable[[], PhotoInputs]:
            source = "fitted" if focal_fitted else inputs.focal_source
            return lambda: replace(inputs, pixels=photo.pixels(), focal_source=source)

        return [
            PhotoFace(
                read=reader(photo, inputs),
                coefficients=coefficients[k : k + 1],
                camera=camera[k : k + 1],
                weight=float(weights[k]),
            )
            for k, (photo, inputs) in enumerate(zip(self.photos, self.inputs, strict=True))
        ]


def _reason(photo: SeenPhoto, face: int | None) -> str:
    if face is not None:
        return ""
    if photo.error is not None:
        return str(photo.error)
    if photo.inputs is None:
        return f"{photo.name}: no face was found; use a larger or sharper photo"
    return f"{photo.name}: no face in it is the person of the other photos; remove it, or reconstruct it alone"


def doubtful_reason(name: str, weight: float) -> str:
    """Why a photo that the person fits badly counts for little; empty for the others."""
    if weight >= DOUBTFUL:
        return ""
    return (
        f"{name}: the person of the other photos fits it badly, so it counts for {weight:.2f} of a photo; check that "
        "it shows the same person without something in front of the face"
    )


def warn_about_photos(reasons: Sequence[str]) -> None:
    """Warn of photos that are left out or count for little."""
    for reason in reasons:
        if reason:
            warnings.warn(reason, PhotoLeftOut, stacklevel=4)


def without_pixels(inputs: PhotoInputs) -> PhotoInputs:
    """The inputs without the photo, of which only the size remains."""
    pixels = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), inputs.pixels.shape)
    return replace(inputs, pixels=pixels)


def reference_of(coefficients: FaceCoefficients, weights: Float[Tensor, "B"], inputs: Sequence[PhotoInputs]) -> int:
    """The photo that shows the person best.

    Args:
        coefficients: The face in each photo.
        weights: Influence of each photo.
        inputs: The face in each photo; a larger one is better, up to the size of the crop.
    """
    facing = coefficients.pose.rotmat()[:, 2, 2].clamp(min=0.05).cpu()
    sizes = torch.tensor([min(one.faces[0].crop.scale, 1.0) for one in inputs])
    return int((weights.cpu() * facing * sizes).argmax())


def mean_prediction(
    model: MorphableModel, faces: FaceCoefficients, *, sigma_m: float
) -> tuple[FaceCoefficients, Float[Tensor, "B"]]:
    """One identity and albedo from predictions of a network: their mean, weighted by precision.

    A head that is turned shows less of its face, so its prediction counts by the squared cosine of the turn. A
    prediction far from the others loses its influence.

    Args:
        model: The morphable model.
        faces: The prediction for each photo.
        sigma_m: Standard deviation of the position of a vertex in a prediction, metres.

    Returns:
        The faces with the mean identity and albedo, and the influence of each photo, 0 to 1.
    """
    precision = faces.pose.rotmat()[:, 2, 2].clamp(min=0.2).square()
    predicted, weights = PredictedIdentity.of(model, faces.identity, sigma_m=sigma_m), torch.ones_like(precision)
    if len(precision) > 2:  # two predictions are equally far from their mean
        for _ in range(3):
            mean = predicted.joined(weights * precision).identity
            offsets = predicted.identity - mean
            squared = ((offsets @ predicted.precision) * offsets).sum(1)
            weights = geman_mcclure_weights(squared, scale_sq=_NET_SCALE)
    share = (weights * precision / (weights * precision).sum())[:, None]
    identity = (share * faces.identity).sum(0).expand_as(faces.identity)
    albedo = (share * faces.albedo).sum(0).expand_as(faces.albedo)
    return replace(faces, identity=identity.clone(), albedo=albedo.clone()), weights


def mean_times(times: Sequence[StageTime], count: int) -> tuple[tuple[str, float], ...]:
    """Durations per photo; those of stages of the same name are summed."""
    summed: dict[str, float] = {}
    for time in times:
        summed[time.name] = summed.get(time.name, 0.0) + time.seconds / count
    return tuple(summed.items())
