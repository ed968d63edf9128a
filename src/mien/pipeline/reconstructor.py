"""From one photo to a list of faces.

photo ─ perception ─► crops and landmarks of each face    mien.pipeline.inputs
crops ─ fit or network ─► coefficients                    here
coefficients ─ detail, texture ─► results                 mien.pipeline.texturing
"""

from __future__ import annotations

import copy
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import (
    BackendUnavailable,
    ConfigError,
    FaceDoubtful,
    FaceLeftOut,
    FitDiverged,
    ImageError,
    NoFaceFound,
    OutOfMemory,
)
from mien.fitting import (
    DetailSettings,
    FitSettings,
    FitTargets,
    Progress,
    StageClock,
    StageTime,
    align_to_points,
    fit,
    fit_joint,
    fit_lids,
    fit_prediction,
    trusted_point_weights,
    with_light_and_albedo,
)
from mien.io.photo import Photo, read_photo
from mien.io.photo_files import MAX_PIXELS
from mien.memory import typed_out_of_memory
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.networks import (
    DEFAULT_DETAIL,
    DEFAULT_ENCODER,
    DetailNetwork,
    FaceEncoder,
    has_packaged_encoder,
    load_detail,
    load_encoder,
)
from mien.networks.detail_unet import CROP_SHARE
from mien.perception import FaceDetection, FaceDetector, FaceParts, IdentityNetwork, Pin, pinned
from mien.pipeline.inputs import PhotoInputs
from mien.pipeline.joint import (
    PersonPhotos,
    SeenPhoto,
    doubtful_reason,
    mean_prediction,
    mean_times,
    reference_of,
    warn_about_photos,
    without_pixels,
)
from mien.pipeline.texturing import TextureBuilder
from mien.quality import COVERED_ABOVE
from mien.result import PersonReconstruction, Reconstruction
from mien.threads import warn_about_threads
from mien.typing import Float, Tensor, UInt8

TEXTURE_SIZES = (256, 512, 1024, 2048)
TEXTURE_SIZE = 1024
"""Side of the texture in texels; a face that fills a photo of 1,000 pixels has about as many pixels across."""
NET_TEXTURE_SIZE = 256
"""Side of the texture in mode "net": one of 1024 texels would take ten times as long as everything else."""
QUICK_TEXTURE_SIZE = 384
"""Side of the texture of results that better ones replace within a second."""
RESOLUTIONS = (224, 512, 1024)
UPRIGHT_ROLL = math.radians(30)
"""A head with more roll is turned upright for the encoder, which was trained on few such heads. On two portraits the
landmark error grew from 2.4 % of the eyes' distance to 4 % at 60° of roll and 36 % at 90°; upside down the encoder
failed."""
NEAREST_M = 0.05
"""Least distance of the middle of a head to the camera."""
MODES = ("fit", "net", "auto")
"""How coefficients are found: by optimisation, by the encoder, or by optimisation from the encoder's prediction."""
DETAIL_MODES = ("fit", "net")
"""How the detail maps are found: by optimisation, or by the detail network."""


@dataclass(frozen=True)
class _Settings:
    """The settings of a reconstructor that depend on each other, checked together."""

    mode: str
    detail: bool
    detail_mode: str | None
    refine_focal: bool
    encoder: str
    detail_network: str
    settings: FitSettings | None
    detail_settings: DetailSettings | None

    @property
    def detail_by_network(self) -> bool:
        chosen = self.detail_mode or ("net" if self.mode == "net" else "fit")
        return self.detail and chosen == "net"

    def check(self) -> None:
        """Raise ConfigError for an unknown mode, or for a setting that the chosen modes do not use."""
        for name, value, choices in (("mode", self.mode, MODES), ("detail_mode", self.detail_mode, DETAIL_MODES)):
            if value is not None and value not in choices:
                raise ConfigError(f"{name}={value!r} is not a mode; choose one of {', '.join(choices)}.")
        fit_detail = self.detail and not self.detail_by_network
        # The one table of which setting is used when: name, whether it was given, where it is used, what to do.
        for name, given, used, advice in (
            ("encoder", self.encoder != DEFAULT_ENCODER, self.mode != "fit", "choose mode net or auto"),
            ("refine_focal", self.refine_focal, self.mode != "net", "choose mode fit or auto"),
            ("settings", self.settings not in (None, FitSettings()), self.mode != "net", "choose mode fit or auto"),
            ("detail_mode", self.detail_mode is not None, self.detail, "turn detail on"),
            ("detail_network", self.detail_network != DEFAULT_DETAIL, self.detail_by_network, "choose detail_mode net"),
            (
                "detail_settings",
                self.detail_settings not in (None, DetailSettings()),
                fit_detail,
                "choose detail_mode fit",
            ),
        ):
            if given and not used:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not used with mode={self.mode!r}, detail={self.detail}, "
                    f"detail_mode={self.detail_mode!r}; {advice}, or leave {name} out."
                )


@dataclass(frozen=True)
class ReconstructionStep:
    """The faces of a photo as far as they are known, see `Reconstructor.steps`."""

    name: str
    """What was done last: "detected", "network", "fit" or "detail"."""
    detections: tuple[FaceDetection, ...]
    """All faces of the photo, the most prominent first."""
    faces: tuple[Reconstruction, ...]
    """Their results in the same order; none before a network or fit has run."""


@dataclass(frozen=True)
class _Coefficients:
    """The coefficients of a batch of faces, with their cameras and the time they took."""

    coefficients: FaceCoefficients
    camera: Camera
    stage_times: tuple[StageTime, ...]


class Reconstructor:
    """Turns photos into 3D faces. Keeps the model and the networks, so that they are loaded once for many photos.

    Args:
        model: A face model, its name ("mien-face" is packaged) or the path of a model file. A model on another device
            is copied; the given one stays where it is.
        device: "cpu" or "cuda".
        detail: Whether to make displacement and texture offset maps.
        resolution: Side of these two maps in texels: 224, 512 or 1024.
        texture_size: Side of the texture in texels: 256, 512, 1024 or 2048. None means 1024, or in mode "net" 256, more
            if the maps need it.
        seed: Seed of the fit; equal seeds give equal results.
        max_faces: Maximum number of faces per photo, the largest first; None for all.
        refine_focal: Whether the fit may change the focal length. Modes "fit" and "auto".
        settings: Weights and schedule of the fit. Modes "fit" and "auto".
        detail_settings: Weights and schedule of the detail fit. Detail mode "fit".
        mode: How coefficients are found: "fit" (optimisation), "net" (the encoder and a short fit to the points, about
            ten times faster) or "auto" (optimisation from the encoder's prediction, which also is an estimate beside
            points and pixels). None means "auto", or "fit" for a face model that the packaged encoder was not made for.
        encoder: File of the encoder; the packaged one by default. Modes "net" and "auto".
        detail_mode: How the maps are found: "fit" (optimisation) or "net" (the detail network). None means "net" in
            mode "net" and "fit" in the others.
        detail_network: File of the detail network; the packaged one by default. Detail mode "net".

    Raises:
        ConfigError: A setting is out of range, or the given modes do not use it.
        BackendUnavailable: The device does not exist here.
        ModelMismatch: A network was trained with another face model.
        FormatError: A model or network file cannot be read.
        AssetError: A packaged file is missing or damaged.

    Warns:
        TorchImportedFirst: Torch was imported before mien, which costs processor time here.

    Example:
        >>> reconstructor = mien.Reconstructor(mode="net")
        >>> for face in reconstructor("photo.jpg"):
        ...     print(face.landmark_error, face.vertices.shape)
    """

    def __init__(
        self,
        model: str | Path | MorphableModel = "mien-face",
        *,
        device: str = "cpu",
        detail: bool = True,
        resolution: int = 224,
        texture_size: int | None = None,
        seed: int = 0,
        max_faces: int | None = None,
        refine_focal: bool = False,
        settings: FitSettings | None = None,
        detail_settings: DetailSettings | None = None,
        mode: str | None = None,
        encoder: str | Path = DEFAULT_ENCODER,
        detail_mode: str | None = None,
        detail_network: str | Path = DEFAULT_DETAIL,
    ) -> None:
        self.device = _checked_device(device)
        warn_about_threads(self.device)
        self.model = _on_device(model if isinstance(model, MorphableModel) else load_model(model), self.device)
        if mode is None:
            mode = "auto" if encoder != DEFAULT_ENCODER or has_packaged_encoder(self.model) else "fit"
        chosen = _Settings(
            mode, detail, detail_mode, refine_focal, str(encoder), str(detail_network), settings, detail_settings
        )
        chosen.check()
        if resolution not in RESOLUTIONS:
            raise ConfigError(f"resolution={resolution} is not offered; choose one of {RESOLUTIONS}.")
        if texture_size is not None and texture_size not in TEXTURE_SIZES:
            raise ConfigError(f"texture_size={texture_size} is not offered; choose one of {TEXTURE_SIZES}.")
        if max_faces is not None and max_faces < 1:
            raise ConfigError(f"max_faces={max_faces} is out of range; use at least 1, or None for all faces.")
        self.detector = FaceDetector(device=device)
        self.mode, self.max_faces = mode, max_faces
        self.settings = replace(settings or FitSettings(), seed=seed, refine_focal=refine_focal)
        self.encoder = None if mode == "fit" else load_encoder(self.model, encoder).to(self.device)
        maps: DetailNetwork | DetailSettings | None = detail_settings or DetailSettings()
        if chosen.detail_by_network:
            maps = load_detail(self.model, detail_network).to(self.device)
        detail_crop_px = round(CROP_SHARE * resolution) if detail else 0
        self.texture_builder = TextureBuilder(
            self.model,
            detail=maps if detail else None,
            resolution=resolution,
            texture_size=texture_size or (max(NET_TEXTURE_SIZE, detail_crop_px) if mode == "net" else TEXTURE_SIZE),
        )

    @functools.cached_property
    def identity_network(self) -> IdentityNetwork:
        """The recognition network of the fit's identity loss, loaded at its first use: never in mode "net"."""
        return IdentityNetwork.from_assets().to(self.device)

    def __call__(
        self,
        photo: Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"],
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        progress: Progress | None = None,
    ) -> list[Reconstruction]:
        """Reconstruct every face of a photo.

        Args:
            photo: A file, a photo that `read_photo` read, or its pixels: sRGB, upright.
            focal_px: Focal length in pixels of the upright photo, of the whole file if `read_photo` reduced it; by
                default that of EXIF. If EXIF has none, the most prominent face is assumed 0.8 m away, or farther if
                that would need a wider lens than 24 mm (full frame).
            principal_point_px: Position (x, y) of the optical axis in the same pixels; by default the middle of the
                photo. A crop of a photo has the middle of the whole photo there, which may be outside the crop.
            progress: Is called with the name of a stage, as in `stage_seconds` of the result, and the share of the
                stage that is done, 0 to 1: when the stage begins, and after each step of an optimisation. To cancel
                the reconstruction, raise an exception in it.

        Returns:
            The faces, the most prominent first.

        Raises:
            NoFaceFound: The photo shows no face that the detector finds.
            ImageError: The file cannot be read.
            ConfigError: `focal_px` is less than a tenth of the photo's longer side, `principal_point_px` is more than
                five focal lengths from its middle, or one of them is not finite.
            FitDiverged: No face of the photo could be fitted.
            OutOfMemory: Memory does not suffice for one face of the photo. Several faces are computed in smaller
                batches first.

        Warns:
            FaceLeftOut: One of several faces could not be fitted and is missing from the list.
            FaceDoubtful: A face has flags in its `quality`; once per face.
            PhotoReduced: The file is a JPEG of more than 64 megapixels; `read_photo` has another limit.
        """
        inputs, perception = self._opened(
            photo, focal_px=focal_px, principal_point_px=principal_point_px, pins=(), progress=progress
        )
        faces = self._reconstruct(inputs, perception=perception, progress=progress)
        for number, face in enumerate(faces, 1):
            if face.quality is not None and face.quality.flags:
                which = f"face {number} of {len(faces)}: " if len(faces) > 1 else ""
                warnings.warn(FaceDoubtful(which + face.quality.advice()), stacklevel=2)
        return faces

    def steps(
        self,
        photo: Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"],
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        pins: Sequence[Sequence[Pin]] = (),
        progress: Progress | None = None,
    ) -> Iterator[ReconstructionStep]:
        """Reconstruct every face of a photo step by step, each time better: for programs that show what they have.

        The last step has the faces that calling the reconstructor gives, up to rounding.

        Args:
            photo: As in a call.
            focal_px: As in a call.
            principal_point_px: As in a call.
            pins: Landmarks that the user has placed, for each face in the order of the detections; the points around
                them move along.
            progress: As in a call.

        Yields:
            First the detections, then the prediction of the network (except in mode "fit"), then one step per face that
            was fitted (except in mode "net"), and one per face that got its detail.

        Raises:
            NoFaceFound: As in a call, like the other errors.

        Warns:
            FaceLeftOut: A face could not be fitted; its prediction stays.
        """
        inputs, _ = self._opened(
            photo, focal_px=focal_px, principal_point_px=principal_point_px, pins=pins, progress=progress
        )
        detections = tuple(face.detection for face in inputs.faces)
        yield ReconstructionStep("detected", detections, ())
        faces: list[Reconstruction | None] = [None] * len(inputs)

        def step(name: str) -> ReconstructionStep:
            return ReconstructionStep(name, detections, tuple(face for face in faces if face is not None))

        if self.encoder is not None:
            with torch.no_grad():
                quick = self._with_lids(self._predict(self.encoder, inputs, refine=True), inputs.targets)
            for k in range(len(inputs)):
                one = slice(k, k + 1)
                faces[k] = self._quick_builder(inputs[one], quick[one], inputs.targets.camera[one])
            yield step("network")
        for k in range(len(inputs)):
            one = inputs[k : k + 1]
            try:
                found = self._coefficients(one, progress=progress)
                one = self._after_fit(one)
                if self.mode != "net":
                    faces[k] = self._quick_builder(one, found.coefficients, found.camera)
                    yield step("fit")
                with StageClock(progress).stage("maps") as report:
                    faces[k] = self.texture_builder(one, found.coefficients, found.camera, progress=report)
            except FitDiverged as error:
                warnings.warn(FaceLeftOut(f"face {k + 1} of {len(inputs)} was not fitted: {error}"), stacklevel=2)
                continue
            yield step("detail")

    @functools.cached_property
    def _quick_builder(self) -> TextureBuilder:
        """Makes results without detail that are looked at only until better ones are there."""
        return TextureBuilder(
            self.model, detail=None, resolution=self.texture_builder.resolution, texture_size=QUICK_TEXTURE_SIZE
        )

    def _opened(
        self,
        photo: Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"],
        *,
        focal_px: float | None,
        principal_point_px: tuple[float, float] | None,
        pins: Sequence[Sequence[Pin]],
        progress: Progress | None,
    ) -> tuple[PhotoInputs, StageTime]:
        """Read a photo and find its faces."""
        clock = StageClock(progress)
        with clock.stage("perception"):
            opened = photo if isinstance(photo, np.ndarray | Photo) else read_photo(photo)
            inputs = self._read_inputs(opened, focal_px=focal_px, principal_point_px=principal_point_px, pins=pins)
        return inputs, clock.times[0]

    def joint(
        self,
        photos: Sequence[Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"]],
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> PersonReconstruction:
        """Reconstruct one person from several photos: one identity, albedo and texture.

        Expression, pose, light and focal length belong to each photo. In a photo of several people, the recognition
        network finds the person: the one in most photos, or the most prominent face of the first photo if no person is
        in more than half of them. The order of the photos does not matter otherwise. docs/many_photos.md describes the
        method.

        Args:
            photos: Photos of the person, as in `__call__`. Files are read several times and not kept, so that many of
                them need little memory.
            focal_px: Focal length of all photos, as in `__call__`.
            principal_point_px: Position of the optical axis of all photos, as in `__call__`.
            max_pixels: Files of larger JPEGs are reduced, as `read_photo` does.
            progress: Is called with the name of a stage and the share of it that is done, 0 to 1.

        Returns:
            The person, and the face in each photo.

        Raises:
            ConfigError: There is no photo, or as in `__call__`.
            NoFaceFound: No photo shows a face.
            ImageError: No photo can be read.
            FitDiverged: The fit diverged.
            OutOfMemory: Memory does not suffice.

        Warns:
            PhotoLeftOut: A photo cannot be read, does not show the person, or fits so badly that it counts for little.

        Example:
            >>> person = mien.Reconstructor().joint(["anna1.jpg", "anna2.jpg", "anna3.jpg"])
            >>> person.face.save("out/anna")
        """
        if not photos:
            raise ConfigError("photos=[] is empty; give at least one photo of the person.")
        clock = StageClock(progress)
        with clock.stage("perception") as report:
            seen = []
            for k, photo in enumerate(photos):
                source = _PhotoSource(photo, f"photo {k}", max_pixels)
                seen.append(self._seen(source, focal_px=focal_px, principal_point_px=principal_point_px))
                report((k + 1) / len(photos))
        if all(photo.inputs is None for photo in seen):
            errors = [photo.error for photo in seen if photo.error is not None]
            if len(errors) == len(seen):
                raise errors[0]
            raise NoFaceFound(
                f"no face was found in any of the {len(seen)} photos; a face needs at least 30 pixels. Use larger or "
                "sharper photos of the person."
            )
        return self._joint(PersonPhotos.choose(seen), clock=clock, progress=progress)

    @typed_out_of_memory
    def _joint(self, person: PersonPhotos, *, clock: StageClock, progress: Progress | None) -> PersonReconstruction:
        found, weights = self._joint_coefficients(person, progress=progress)
        fitted = self.settings.refine_focal
        photos = person.photo_faces(found.coefficients, found.camera, weights, focal_fitted=fitted)
        with clock.stage("maps") as report:
            faces = self.texture_builder.together(photos, progress=report)
        times = mean_times((*clock.times, *found.stage_times), len(faces))
        reasons, all_weights = list(person.reasons), [0.0] * len(person.reasons)
        all_faces: list[Reconstruction | None] = [None] * len(reasons)
        for k, face, photo, weight in zip(person.numbers, faces, person.photos, weights.tolist(), strict=True):
            all_faces[k], all_weights[k] = replace(face, stage_seconds=times), weight
            reasons[k] = doubtful_reason(photo.name, weight)
        warn_about_photos(reasons)
        reference = person.numbers[reference_of(found.coefficients, weights, person.inputs)]
        return PersonReconstruction(tuple(all_faces), tuple(all_weights), tuple(reasons), reference)

    def _joint_coefficients(
        self, person: PersonPhotos, *, progress: Progress | None
    ) -> tuple[_Coefficients, Float[Tensor, "B"]]:
        """The coefficients, found as `mode` says, and the influence of each photo."""
        targets, clock = person.targets, StageClock(progress)
        if self.mode == "net" and person.start is not None:
            with clock.stage("network"), torch.no_grad():
                faces, weights = mean_prediction(self.model, person.start, sigma_m=self.settings.prediction_sigma)
                faces = self._with_lids(self._aligned(faces, targets), targets)
            return _Coefficients(faces, targets.camera, tuple(clock.times)), weights
        recognition = self.identity_network if self.settings.recognition_weight else None
        result = fit_joint(
            self.model,
            targets,
            settings=self.settings,
            recognition=recognition,
            start=person.start,
            progress=progress,
        )
        return _Coefficients(result.coefficients, result.camera, result.stage_times), result.photo_weights

    @typed_out_of_memory
    def _seen(
        self, source: _PhotoSource, *, focal_px: float | None, principal_point_px: tuple[float, float] | None
    ) -> SeenPhoto:
        """The faces of a photo without its pixels."""
        seen = SeenPhoto(source.name, source.pixels, None, torch.zeros(0, 128), None)
        try:
            inputs = self._read_inputs(source.open(), focal_px=focal_px, principal_point_px=principal_point_px)
        except NoFaceFound:
            return seen
        except ImageError as error:
            return replace(seen, error=error)
        targets, start = inputs.targets, None
        with torch.no_grad():
            features = self.identity_network(self.identity_network.crop(targets.crops, targets.landmarks68_px))
            if self.encoder is not None:
                start = self._with_lids(self._predict(self.encoder, inputs, refine=self.mode == "net"), targets)
        return replace(seen, inputs=without_pixels(inputs), features=features, start=start)

    def _read_inputs(
        self,
        photo: Photo | UInt8[np.ndarray, "H W 3"],
        *,
        focal_px: float | None,
        principal_point_px: tuple[float, float] | None,
        pins: Sequence[Sequence[Pin]] = (),
    ) -> PhotoInputs:
        exif_focal_px = photo.focal_px if isinstance(photo, Photo) else None
        reduction = photo.reduction if isinstance(photo, Photo) else 1
        return self._inputs(
            _pixels(photo),
            focal_px=None if focal_px is None else focal_px / reduction,
            exif_focal_px=exif_focal_px,
            principal_point_px=_reduced(principal_point_px, reduction),
            pins=pins,
        )

    @typed_out_of_memory
    def _inputs(
        self,
        pixels: UInt8[np.ndarray, "H W 3"],
        *,
        focal_px: float | None,
        exif_focal_px: float | None,
        principal_point_px: tuple[float, float] | None,
        pins: Sequence[Sequence[Pin]],
    ) -> PhotoInputs:
        detections = self.detector.detect(pixels, max_faces=self.max_faces)
        if not detections:
            raise NoFaceFound(
                f"no face was found in the {pixels.shape[1]} × {pixels.shape[0]} photo; a face needs at least 30 "
                "pixels. Use a larger or sharper photo of it."
            )
        if len(pins) > len(detections):
            raise ConfigError(f"pins are given for {len(pins)} faces, and the photo shows {len(detections)}.")
        return PhotoInputs.of(
            pixels,
            [*map(pinned, detections, pins), *detections[len(pins) :]],
            focal_px=focal_px,
            exif_focal_px=exif_focal_px,
            principal_point_px=principal_point_px,
            device=self.device,
        )

    def _reconstruct(
        self, inputs: PhotoInputs, *, perception: StageTime, progress: Progress | None
    ) -> list[Reconstruction]:
        """All faces as one batch; if that fails, in smaller ones, so that one bad face does not cost the others."""
        count, results, last = len(inputs), list[Reconstruction](), None
        waiting = [range(count)]
        while waiting:
            part = waiting.pop(0)
            share = StageTime(perception.name, perception.seconds * len(part) / count)
            try:
                results += self._reconstruct_batch(inputs[_slice(part)], perception=share, progress=progress)
            except (FitDiverged, OutOfMemory) as error:
                if count == 1:
                    raise
                last = error.with_traceback(None)  # which would keep the tensors of the batch
                size = -(-len(part) // 2) if isinstance(error, OutOfMemory) else 1
                if len(part) == 1:
                    warnings.warn(FaceLeftOut(f"face {part[0] + 1} of {count} was left out: {error}"), stacklevel=3)
                else:
                    waiting[:0] = [part[k : k + size] for k in range(0, len(part), size)]
        if not results and last is not None:
            raise last
        return results

    @typed_out_of_memory
    def _reconstruct_batch(
        self, inputs: PhotoInputs, *, perception: StageTime, progress: Progress | None
    ) -> list[Reconstruction]:
        count, clock = len(inputs), StageClock(progress)
        found = self._coefficients(inputs, progress=progress)
        inputs, faces = self._after_fit(inputs), []
        with clock.stage("maps") as report:
            for k in range(count):
                one = slice(k, k + 1)
                own = functools.partial(_report_part, report, k, count)
                faces.append(
                    self.texture_builder(inputs[one], found.coefficients[one], found.camera[one], progress=own)
                )
        times = (perception, *found.stage_times, *clock.times)
        return [replace(face, stage_seconds=tuple((t.name, t.seconds / count) for t in times)) for face in faces]

    def _after_fit(self, inputs: PhotoInputs) -> PhotoInputs:
        """The inputs as a fit leaves them: it may have found the focal length."""
        return replace(inputs, focal_source="fitted") if self.settings.refine_focal else inputs

    def find_coefficients(self, inputs: PhotoInputs) -> FaceCoefficients:
        """Find the coefficients of faces without textures and maps, for callers that combine several photos.

        Args:
            inputs: The faces of one photo.

        Returns:
            The coefficients as `mode` finds them, with poses under the cameras of `inputs.targets`.

        Raises:
            FitDiverged: A face could not be fitted.
        """
        return self._coefficients(inputs, progress=None).coefficients

    def _coefficients(self, inputs: PhotoInputs, *, progress: Progress | None) -> _Coefficients:
        """The coefficients, found as `mode` says."""
        start, clock, targets = None, StageClock(progress), inputs.targets
        if self.encoder is not None:
            with clock.stage("network"), torch.no_grad():
                predicted = self._predict(self.encoder, inputs, refine=self.mode == "net")
                start = self._with_lids(predicted, targets)
        if start is not None and self.mode == "net":
            _check_in_front(start)  # a fit finds another place
            if any(map(_is_covered, inputs.parts)):
                with clock.stage("light and albedo"):
                    start = self._with_light_of_visible_skin(start, inputs)
            return _Coefficients(start, targets.camera, tuple(clock.times))
        recognition = self.identity_network if self.settings.recognition_weight else None
        result = fit(
            self.model, targets, settings=self.settings, recognition=recognition, start=start, progress=progress
        )
        return _Coefficients(result.coefficients, result.camera, (*clock.times, *result.stage_times))

    def _predict(self, encoder: FaceEncoder, inputs: PhotoInputs, *, refine: bool) -> FaceCoefficients:
        """The encoder's prediction on the detected points.

        Heads that lie on their side or upside down are turned upright for the encoder. A refiner that starts from the
        landmarks has learnt from fits what they make of a photo. In front of a fit it is left out (`refine`): there the
        prediction is of use since its errors are others.
        """
        rolls, targets = self._large_rolls(inputs), inputs.targets
        upright, back = inputs.rolled(rolls), torch.tensor(rolls, device=self.device)
        points = upright.landmarks468_px
        faces = self._aligned(
            encoder.encode(upright.crops, upright.camera, landmarks468_px=points).rolled(back), targets
        )
        if not refine or encoder.refine_from != "landmarks":
            return faces
        fitted = fit_prediction(self.model, targets, faces, settings=self.settings).rolled(-back)
        refined = encoder.refine(upright.crops, upright.camera, fitted, landmarks468_px=points)
        return self._aligned(refined.rolled(back), targets)

    def _with_light_of_visible_skin(self, faces: FaceCoefficients, inputs: PhotoInputs) -> FaceCoefficients:
        """The faces with light and albedo fitted to their visible skin, where the encoder also saw what covers them."""
        found = []
        for k, parts in enumerate(inputs.parts):
            one = slice(k, k + 1)
            face, targets = faces[one], inputs.targets[one]
            if _is_covered(parts):
                face = with_light_and_albedo(self.model, targets, face, settings=self.settings, warm=True)
            found.append(face)
        return FaceCoefficients.join(found)

    def _with_lids(self, faces: FaceCoefficients, targets: FitTargets) -> FaceCoefficients:
        """The faces with the detected opening of the eyes."""
        return fit_lids(
            self.model,
            faces,
            targets.camera,
            points_px=targets.landmarks468_px,
            sigma=self.settings.lid_sigma,
            expression_sigma=self.settings.expression_sigma_of(self.model),
        )

    def _aligned(self, faces: FaceCoefficients, targets: FitTargets) -> FaceCoefficients:
        weights = trusted_point_weights(self.model, targets)
        return align_to_points(
            self.model, faces, targets.camera, points_px=targets.landmarks468_px, point_weights=weights
        )

    @staticmethod
    def _large_rolls(inputs: PhotoInputs) -> Sequence[float]:
        return [face.roll if abs(face.roll) > UPRIGHT_ROLL else 0.0 for face in inputs.faces]


def _check_in_front(faces: FaceCoefficients) -> None:
    """Refuse faces that are not in front of the camera: nothing can be drawn of them."""
    distances_m = faces.pose.translation[:, 2]
    if not (distances_m > NEAREST_M).all():
        nearest = ", ".join(f"{distance:.2f}" for distance in distances_m.tolist())
        raise FitDiverged(
            f"the network places the face at {nearest} m from the camera, where no camera sees it; the focal length is "
            "probably wrong: give another focal_px, or use mode fit."
        )


def _is_covered(parts: FaceParts) -> bool:
    return parts.covered_shares.face > COVERED_ABOVE


def _pixels(photo: Photo | UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    return photo.pixels if isinstance(photo, Photo) else photo


@dataclass(frozen=True)
class _PhotoSource:
    """A photo as `Reconstructor.joint` gets it."""

    photo: Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"]
    default_name: str
    """Name of a photo that is no file."""
    max_pixels: int

    @property
    def name(self) -> str:
        return self.default_name if isinstance(self.photo, np.ndarray | Photo) else os.fspath(self.photo)

    def open(self) -> Photo | UInt8[np.ndarray, "H W 3"]:
        if isinstance(self.photo, np.ndarray | Photo):
            return self.photo
        return read_photo(self.photo, max_pixels=self.max_pixels)

    def pixels(self) -> UInt8[np.ndarray, "H W 3"]:
        return _pixels(self.open())


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


def _reduced(point_px: tuple[float, float] | None, reduction: int) -> tuple[float, float] | None:
    """A position in a file, in pixels of the reduced photo."""
    return None if point_px is None else (point_px[0] / reduction, point_px[1] / reduction)


def _report_part(report: Callable[[float], None], part: int, count: int, share: float) -> None:
    """Report the share of one of `count` equal parts as a share of the whole."""
    report((part + share) / count)


def _on_device(model: MorphableModel, device: torch.device) -> MorphableModel:
    """The model itself if it is on the device, or a copy there; `Module.to` would move the caller's model."""
    return model if model.mean.device == torch.empty(0, device=device).device else copy.deepcopy(model).to(device)


def _checked_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is not a device; use cpu or cuda.") from error
    if found.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device={device!r} is not supported; use cpu or cuda.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device={device!r} needs a CUDA device, and PyTorch finds none here; use cpu.")
    return found
