"""From one photo to a list of faces.

photo ─ perception ─► crops and landmarks of each face    mien.pipeline.finding
crops ─ fit or network ─► coefficients                    mien.pipeline.coefficients
coefficients ─ detail, texture ─► results                 mien.pipeline.texturing
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mien.errors import BackendUnavailable, ConfigError, FaceDoubtful, FaceLeftOut, FitDiverged, OutOfMemory
from mien.fitting import DetailSettings, FitSettings, Progress, StageClock, StageTime
from mien.io.photo_files import MAX_PIXELS
from mien.memory import typed_out_of_memory
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.networks import (
    DEFAULT_DETAIL,
    DEFAULT_ENCODER,
    DetailNetwork,
    has_packaged_encoder,
    load_detail,
    load_encoder,
)
from mien.networks.detail_unet import CROP_SHARE
from mien.perception import FaceDetection, FaceDetector, IdentityNetwork, Pin
from mien.pipeline.coefficients import CoefficientFinder, is_in_front
from mien.pipeline.finding import FaceFinder, GivenCamera, PhotoSource, opened
from mien.pipeline.inputs import PhotoInputs
from mien.pipeline.joint import JointReconstructor, PersonFaces
from mien.pipeline.modes import ModeSettings
from mien.pipeline.texturing import TextureBuilder
from mien.result import PersonReconstruction, Reconstruction
from mien.threads import warn_about_threads

TEXTURE_SIZES = (256, 512, 1024, 2048)
TEXTURE_SIZE = 1024
"""Side of the texture in texels; a face that fills a photo of 1,000 pixels has about as many pixels across."""
NET_TEXTURE_SIZE = 256
"""Side of the texture in mode "net": one of 1024 texels would take ten times as long as everything else."""
QUICK_TEXTURE_SIZE = 384
"""Side of the texture of results that better ones replace within a second."""
RESOLUTIONS = (224, 512, 1024)


@dataclass(frozen=True)
class ReconstructionStep:
    """The faces of a photo as far as they are known, see `Reconstructor.steps`."""

    name: str
    """What was done last: "detected", "network", "fit" or "detail"."""
    detections: tuple[FaceDetection, ...]
    """All faces of the photo, the most prominent first."""
    faces: tuple[Reconstruction | None, ...]
    """Their results in the same order; None where there is none yet, or the face could not be fitted."""


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
        chosen = ModeSettings(
            mode, detail, detail_mode, refine_focal, str(encoder), str(detail_network), settings, detail_settings
        )
        chosen.check()
        if resolution not in RESOLUTIONS:
            raise ConfigError(f"resolution={resolution} is not offered; choose one of {RESOLUTIONS}.")
        if texture_size is not None and texture_size not in TEXTURE_SIZES:
            raise ConfigError(f"texture_size={texture_size} is not offered; choose one of {TEXTURE_SIZES}.")
        if max_faces is not None and max_faces < 1:
            raise ConfigError(f"max_faces={max_faces} is out of range; use at least 1, or None for all faces.")
        self.mode, self.max_faces = mode, max_faces
        self.settings = replace(settings or FitSettings(), seed=seed, refine_focal=refine_focal)
        self.detector = FaceDetector(device=device)
        self.encoder = None if mode == "fit" else load_encoder(self.model, encoder).to(self.device)
        self._find_faces = FaceFinder(self.detector, self.device, max_faces)
        self._find_coefficients = CoefficientFinder(self.model, self.encoder, mode != "net", self.settings)
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

    @property
    def identity_network(self) -> IdentityNetwork:
        """The recognition network of the fit's identity loss, loaded at its first use: never in mode "net"."""
        return self._find_coefficients.identity_network

    def __call__(
        self,
        photo: PhotoSource,
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
        clock, camera = StageClock(progress), GivenCamera(focal_px, principal_point_px)
        with clock.stage("perception"):
            inputs = self._find_faces(opened(photo), camera)
        faces = self._reconstruct(inputs, perception=clock.times[0], progress=progress)
        for number, face in enumerate(faces, 1):
            if face.quality is not None and face.quality.flags:
                which = f"face {number} of {len(faces)}: " if len(faces) > 1 else ""
                warnings.warn(FaceDoubtful(which + face.quality.advice()), stacklevel=2)
        return faces

    def steps(
        self,
        photo: PhotoSource,
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
            FaceLeftOut: A face could not be fitted; its prediction stays, if there is one.
        """
        camera = GivenCamera(focal_px, principal_point_px)
        with StageClock(progress).stage("perception"):
            inputs = self._find_faces(opened(photo), camera, pins=pins)
        detections = tuple(face.detection for face in inputs.faces)
        faces: list[Reconstruction | None] = [None] * len(inputs)
        yield ReconstructionStep("detected", detections, tuple(faces))
        if self.encoder is not None:
            quick = self._find_coefficients.predict(inputs, refine=True)
            quick = self._find_coefficients.with_closed_lips(quick, inputs.targets)
            for k in range(len(inputs)):
                one = slice(k, k + 1)
                if is_in_front(quick[one]):
                    faces[k] = self._quick_builder(inputs[one], quick[one], inputs.targets.camera[one])
            yield ReconstructionStep("network", detections, tuple(faces))
        for k in range(len(inputs)):
            one = inputs[k : k + 1]
            try:
                found = self._find_coefficients(one, progress=progress)
                one = self._after_fit(one)
                if self.mode != "net":
                    faces[k] = self._quick_builder(one, found.coefficients, found.camera)
                    yield ReconstructionStep("fit", detections, tuple(faces))
                with StageClock(progress).stage("maps") as report:
                    faces[k] = self.texture_builder(one, found.coefficients, found.camera, progress=report)
            except FitDiverged as error:
                if len(inputs) == 1 and faces[k] is None:
                    raise
                warnings.warn(FaceLeftOut(f"face {k + 1} of {len(inputs)} was not fitted: {error}"), stacklevel=2)
                continue
            yield ReconstructionStep("detail", detections, tuple(faces))

    @functools.cached_property
    def _quick_builder(self) -> TextureBuilder:
        """Makes results without detail that are looked at only until better ones are there."""
        return TextureBuilder(
            self.model, detail=None, resolution=self.texture_builder.resolution, texture_size=QUICK_TEXTURE_SIZE
        )

    def joint(
        self,
        photos: Sequence[PhotoSource],
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
        detected: Callable[[int, tuple[FaceDetection, ...]], None] | None = None,
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
            detected: Is called with the number of a photo and its faces when they were found; not for photos that
                cannot be read.

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
        return self.joint_one_by_one(
            photos,
            focal_px=focal_px,
            principal_point_px=principal_point_px,
            max_pixels=max_pixels,
            progress=progress,
            detected=detected,
        ).all()

    def joint_one_by_one(
        self,
        photos: Sequence[PhotoSource],
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
        detected: Callable[[int, tuple[FaceDetection, ...]], None] | None = None,
    ) -> PersonFaces:
        """Reconstruct as `joint`, and make the faces one after the other: memory then grows little with their number.

        Args:
            photos: As in `joint`.
            focal_px: As in `joint`.
            principal_point_px: As in `joint`.
            max_pixels: As in `joint`.
            progress: As in `joint`.
            detected: As in `joint`.

        Returns:
            The person; the textures of the faces are made while `faces` is read.

        Raises:
            MienError: As `joint`.

        Warns:
            PhotoLeftOut: As `joint`.
        """
        work = JointReconstructor(self._find_faces, self._find_coefficients, self.texture_builder)
        camera = GivenCamera(focal_px, principal_point_px)
        return work(photos, camera, max_pixels=max_pixels, progress=progress, detected=detected)

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
        found = self._find_coefficients(inputs, progress=progress)
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
        return self._find_coefficients(inputs, progress=None).coefficients


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


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
