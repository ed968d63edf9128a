"""From several photos to one person.

each photo ─ perception ─► faces with features, crops and predictions; the photo itself is not kept
features of all photos ─ the largest cluster ─► the person's face in each photo    mien.perception.same_person
crops ─ joint fit, or mean prediction ─► coefficients                              mien.pipeline.coefficients
each photo again ─► views of one texture ─► results                                mien.pipeline.texturing
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import ConfigError, ImageError, MienError, NoFaceFound, PhotoLeftOut
from mien.fitting import FitTargets, Progress, StageClock, StageTime
from mien.io.photo import Photo
from mien.memory import typed_out_of_memory
from mien.morphable import FaceCoefficients
from mien.perception import FaceDetection, find_person
from mien.pipeline.coefficients import CoefficientFinder
from mien.pipeline.finding import FaceFinder, GivenCamera, PhotoSource, opened, pixels_of
from mien.pipeline.inputs import PhotoInputs
from mien.pipeline.texturing import PersonTexture, PhotoFace, TextureBuilder
from mien.result import PersonReconstruction, Reconstruction
from mien.typing import Float, Tensor, UInt8

DOUBTFUL = 0.25
"""A photo with a smaller weight is reported to the user: its face is probably of somebody else, or badly detected."""


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

    @property
    def detections(self) -> tuple[FaceDetection, ...]:
        """Its faces as they were detected."""
        return () if self.inputs is None else tuple(face.detection for face in self.inputs.faces)


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


@dataclass(frozen=True)
class PersonFaces:
    """One person in several photos, whose faces come one after the other, so that memory does not grow."""

    faces: Iterator[tuple[int, Reconstruction]]
    """Number of the photo and the face in it, for each photo that shows the person. Can be read once."""
    photo_weights: tuple[float, ...]
    """As in `PersonReconstruction`."""
    reasons: tuple[str, ...]
    """As in `PersonReconstruction`."""
    reference: int
    """As in `PersonReconstruction`."""

    def all(self) -> PersonReconstruction:
        """All faces at once; `faces` cannot be read after that."""
        faces: list[Reconstruction | None] = [None] * len(self.reasons)
        for number, face in self.faces:
            faces[number] = face
        return PersonReconstruction(tuple(faces), self.photo_weights, self.reasons, self.reference)


@dataclass(frozen=True)
class JointReconstructor:
    """Reconstructs one person from several photos."""

    faces: FaceFinder
    """Finds the faces of each photo."""
    coefficients: CoefficientFinder
    """Finds the coefficients of the person."""
    textures: TextureBuilder
    """Makes the texture and the results."""

    @typed_out_of_memory
    def __call__(
        self,
        photos: Sequence[PhotoSource],
        camera: GivenCamera,
        *,
        max_pixels: int,
        progress: Progress | None,
        detected: Callable[[int, tuple[FaceDetection, ...]], None] | None,
    ) -> PersonFaces:
        """`Reconstructor.joint_one_by_one`, whose arguments and errors these are."""
        if not photos:
            raise ConfigError("photos=[] is empty; give at least one photo of the person.")
        clock = StageClock(progress)
        with clock.stage("perception") as report:
            seen = []
            for k, photo in enumerate(photos):
                seen.append(self._seen(photo, camera, number=k, max_pixels=max_pixels))
                if detected is not None and seen[k].error is None:
                    detected(k, seen[k].detections)
                report((k + 1) / len(photos))
        _check_any_face(seen)
        person = PersonPhotos.choose(seen)
        found, weights = self.coefficients.joint(person.targets, person.start, progress=progress)
        fitted = self.coefficients.settings.refine_focal
        with clock.stage("maps") as report:
            views = person.photo_faces(found.coefficients, found.camera, weights, focal_fitted=fitted)
            texture = self.textures.merge(views, progress=lambda share: report(share / 2))  # the results are the rest
        times = _mean_times((*clock.times, *found.stage_times), len(views))
        reasons, all_weights = list(person.reasons), [0.0] * len(person.reasons)
        for k, photo, weight in zip(person.numbers, person.photos, weights.tolist(), strict=True):
            all_weights[k], reasons[k] = weight, _doubtful_reason(photo.name, weight)
        for reason in filter(None, reasons):
            warnings.warn(reason, PhotoLeftOut, stacklevel=4)
        reference = person.numbers[_reference(found.coefficients, weights, person.inputs)]
        faces = self._results(person, texture, times, progress=progress)
        return PersonFaces(faces, tuple(all_weights), tuple(reasons), reference)

    def _results(
        self,
        person: PersonPhotos,
        texture: PersonTexture,
        times: Sequence[tuple[str, float]],
        *,
        progress: Progress | None,
    ) -> Iterator[tuple[int, Reconstruction]]:
        for done, number in enumerate(person.numbers):
            start = time.perf_counter()
            face = typed_out_of_memory(self.textures.result_in)(done, texture)
            seconds = time.perf_counter() - start
            own = tuple((name, spent + (seconds if name == "maps" else 0.0)) for name, spent in times)
            if progress is not None:
                progress("maps", 0.5 + (done + 1) / (2 * len(person.numbers)))
            yield number, replace(face, stage_seconds=own)

    def _seen(self, source: PhotoSource, camera: GivenCamera, *, number: int, max_pixels: int) -> SeenPhoto:
        """The faces of a photo without its pixels."""
        name, pixels = _name(source, number), lambda: pixels_of(opened(source, max_pixels=max_pixels))
        seen = SeenPhoto(name, pixels, None, torch.zeros(0, 128), None)
        try:
            inputs = self.faces(opened(source, max_pixels=max_pixels), camera)
        except NoFaceFound:
            return seen
        except ImageError as error:
            return replace(seen, error=error)
        recognition, targets = self.coefficients.identity_network, inputs.targets
        with torch.no_grad():
            features = recognition(recognition.crop(targets.crops, targets.landmarks68_px))
        start = None if self.coefficients.encoder is None else self.coefficients.predict(inputs)
        return replace(seen, inputs=_without_pixels(inputs), features=features, start=start)


def _name(source: PhotoSource, number: int) -> str:
    if isinstance(source, np.ndarray):
        return f"photo {number}"
    return str(source.path if isinstance(source, Photo) else source)


def _check_any_face(seen: Sequence[SeenPhoto]) -> None:
    """Raise the error of the first photo if no photo could be read, or `NoFaceFound`."""
    if any(photo.inputs is not None for photo in seen):
        return
    errors = [photo.error for photo in seen if photo.error is not None]
    if len(errors) == len(seen):
        raise errors[0]
    raise NoFaceFound(
        f"no face was found in any of the {len(seen)} photos; a face needs at least 30 pixels. Use larger or sharper "
        "photos of the person."
    )


def _doubtful_reason(name: str, weight: float) -> str:
    """Why a photo that the person fits badly counts for little; empty for the others."""
    if weight >= DOUBTFUL:
        return ""
    return (
        f"{name}: the person of the other photos fits it badly, so it counts for {weight:.2f} of a photo; check that "
        "it shows the same person without something in front of the face"
    )


def _without_pixels(inputs: PhotoInputs) -> PhotoInputs:
    """The inputs without the photo, of which only the size remains."""
    pixels = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), inputs.pixels.shape)
    return replace(inputs, pixels=pixels)


def _reference(coefficients: FaceCoefficients, weights: Float[Tensor, "B"], inputs: Sequence[PhotoInputs]) -> int:
    """The photo that shows the person best.

    Args:
        coefficients: The face in each photo.
        weights: Influence of each photo.
        inputs: The face in each photo; a larger one is better, up to the size of the crop.
    """
    facing = coefficients.pose.rotmat()[:, 2, 2].clamp(min=0.05).cpu()
    sizes = torch.tensor([min(one.faces[0].crop.scale, 1.0) for one in inputs])
    return int((weights.cpu() * facing * sizes).argmax())


def _mean_times(times: Sequence[StageTime], count: int) -> tuple[tuple[str, float], ...]:
    """Durations per photo; those of stages of the same name are summed."""
    summed: dict[str, float] = {}
    for stage in times:
        summed[stage.name] = summed.get(stage.name, 0.0) + stage.seconds / count
    return tuple(summed.items())
