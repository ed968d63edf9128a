"""From one photo to a list of faces.

photo ── perception ──► faces in crops           mien.pipeline.inputs
crops ── fit or network ──► coefficients         here
coefficients ── detail, texture ──► results      mien.pipeline.texturing
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import BackendUnavailable, ConfigError, FaceLeftOut, FitDiverged, NoFaceFound
from mien.fitting import DetailSettings, FitSettings, StageClock, StageTime, align_to_points, fit, mesh_point_weights
from mien.io.photo import Photo, read_photo
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER, DetailNetwork, FaceEncoder, load_detail, load_encoder
from mien.networks.detail_unet import CROP_SHARE
from mien.perception import FaceDetector, IdentityNetwork
from mien.pipeline.inputs import PhotoInputs
from mien.pipeline.texturing import TextureBuilder
from mien.result import Reconstruction
from mien.typing import UInt8

TEXTURE_SIZE = 1024
"""Side of the colour map in texels; a face that fills a 1,000-pixel photo has about as many pixels across."""
NET_TEXTURE_SIZE = 256
"""The same where the network alone answers: a full map would take ten times as long as everything else."""
RESOLUTIONS = (224, 512, 1024)
UPRIGHT_ROLL = math.radians(30)
"""A head that lies further on its side than this is turned upright for the encoder, which hardly saw any: on two
portraits its landmark error grows from 2.4 % of the eyes' distance to 4 % at 60° of roll and 36 % at 90°, and upside
down it is lost."""
MODES = ("fit", "net", "auto")
"""How coefficients are found: by optimisation, by the trained network alone, or by optimisation from its guess."""
DETAIL_MODES = ("fit", "net")
"""How the maps are found: by optimisation, or by the trained U-Net."""


@dataclass(frozen=True)
class _Found:
    """The coefficients of a batch of faces, however they were found."""

    coefficients: FaceCoefficients
    camera: Camera
    stage_times: tuple[StageTime, ...]


class Reconstructor:
    """Turns photos into 3D faces; holds the model and the networks, so that further photos cost less than the first.

    `detail` adds texture offset and displacement maps of `resolution` texels a side, found as `detail_mode` says: "fit"
    or "net"; None stands for "fit" where the coefficients are fitted from scratch and for "net" in the modes "net"
    and "auto". `max_faces` keeps the largest faces only; `refine_focal` lets the fit move the focal length;
    `encoder` is the network of the modes "net" and "auto", `detail_network` that of the detail mode "net". ConfigError
    for a resolution or mode that is not offered, BackendUnavailable for a device that is not there, ModelMismatch for a
    network that was trained with another model. ConfigError also for what has no say in the given modes.
    """

    def __init__(
        self,
        model: str | Path | MorphableModel = "mien-face",
        *,
        device: str = "cpu",
        detail: bool = True,
        resolution: int = 224,
        seed: int = 0,
        max_faces: int | None = None,
        refine_focal: bool = False,
        settings: FitSettings | None = None,
        detail_settings: DetailSettings | None = None,
        mode: str = "fit",
        encoder: str | Path = DEFAULT_ENCODER,
        detail_mode: str | None = None,
        detail_network: str | Path = DEFAULT_DETAIL,
    ) -> None:
        _check_settings(resolution, max_faces=max_faces, mode=mode, detail_mode=detail_mode)
        by_network = detail and (detail_mode or ("fit" if mode == "fit" else "net")) == "net"
        if mode == "fit" and str(encoder) != DEFAULT_ENCODER:
            raise ConfigError(f"the encoder {encoder} has no say in the mode 'fit'; choose the mode net or auto.")
        if mode == "net" and refine_focal:
            raise ConfigError("refine_focal has no say in the mode 'net'; choose the mode fit or auto.")
        if not detail and detail_mode is not None:
            raise ConfigError(f"the detail mode {detail_mode!r} has no say without detail; leave one of them out.")
        if not by_network and str(detail_network) != DEFAULT_DETAIL:
            raise ConfigError(f"the detail network {detail_network} has no say here; choose the detail mode net.")
        self.device = _checked_device(device)
        self.model = (model if isinstance(model, MorphableModel) else load_model(model)).to(self.device)
        self.perception = FaceDetector(device=device)
        self.recognition = IdentityNetwork.from_assets().to(self.device)
        self.mode, self.max_faces = mode, max_faces
        self.settings = replace(settings or FitSettings(), seed=seed, refine_focal=refine_focal)
        self.encoder = None if mode == "fit" else load_encoder(self.model, encoder).to(self.device)
        maps: DetailNetwork | DetailSettings | None = detail_settings or DetailSettings()
        if by_network:
            maps = load_detail(self.model, detail_network).to(self.device)
        sharp_enough = round(CROP_SHARE * resolution) if detail else 0
        self.texture_builder = TextureBuilder(
            self.model,
            detail=maps if detail else None,
            resolution=resolution,
            texture_size=max(NET_TEXTURE_SIZE, sharp_enough) if mode == "net" else TEXTURE_SIZE,
        )

    def __call__(
        self, photo: Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"], *, focal_px: float | None = None
    ) -> list[Reconstruction]:
        """Reconstruct every face of a photo, the most prominent first.

        `focal_px` is the focal length in pixels of the upright photo; without it EXIF decides, and without that a
        field of view of 30°. NoFaceFound if there is no face, ImageError if the file cannot be read, ConfigError for a
        focal length of less than a tenth of the photo's longer side. A face among several that cannot be
        fitted is left out with the warning FaceLeftOut; FitDiverged if that is so of all.
        """
        if not isinstance(photo, np.ndarray | Photo):
            photo = read_photo(photo)
        pixels = photo.pixels if isinstance(photo, Photo) else photo
        known_focal = photo.focal_px if focal_px is None and isinstance(photo, Photo) else focal_px
        clock = StageClock()
        with clock.stage("perception"):
            observations = self.perception.detect(pixels, max_faces=self.max_faces)
            if not observations:
                raise NoFaceFound(
                    f"no face was found in the {pixels.shape[1]} × {pixels.shape[0]} photo; faces from 30 pixels on "
                    "are looked for. Crop the photo around the face, or try a sharper one."
                )
            observed = PhotoInputs.of(pixels, observations, focal_px=known_focal, device=self.device)
        return self._reconstruct(observed, perception=clock.times[0])

    def _reconstruct(self, observed: PhotoInputs, *, perception: StageTime) -> list[Reconstruction]:
        """All faces together; one by one where together they fail, so that one lost face does not cost the others."""
        count = len(observed)
        try:
            return self._together(observed, perception=perception)
        except FitDiverged as error:
            if count == 1:
                raise
            last = error
        done: list[Reconstruction] = []
        own_share = StageTime(perception.name, perception.seconds / count)
        for k in range(count):
            single = observed[slice(k, k + 1)]
            try:
                done += self._together(single, perception=own_share)
            except FitDiverged as error:
                last = error
                warnings.warn(FaceLeftOut(f"face {k + 1} of {count} was left out: {error}"), stacklevel=3)
        if not done:
            raise last
        return done

    def _together(self, observed: PhotoInputs, *, perception: StageTime) -> list[Reconstruction]:
        count, clock = len(observed), StageClock()
        found = self._find(observed)
        with clock.stage("maps"):
            singles = [slice(k, k + 1) for k in range(count)]
            parts = [self.texture_builder(observed[one], found.coefficients[one], found.camera[one]) for one in singles]
        times = (perception, *found.stage_times, *clock.times)
        return [replace(part, stage_seconds=tuple((t.name, t.seconds / count) for t in times)) for part in parts]

    def _find(self, observed: PhotoInputs) -> _Found:
        """The coefficients, in the way that was asked for."""
        guess, clock, targets = None, StageClock(), observed.targets
        if self.encoder is not None:
            with clock.stage("network"), torch.no_grad():
                guess = align_to_points(
                    self.model,
                    self._encoded(self.encoder, observed),
                    targets.camera,
                    points_px=targets.landmarks468_px,
                    point_weights=mesh_point_weights(self.model).expand(len(targets.landmarks468_px), -1),
                )
        if guess is not None and self.mode == "net":
            return _Found(guess, targets.camera, tuple(clock.times))
        found = fit(self.model, targets, settings=self.settings, recognition=self.recognition, start=guess)
        return _Found(found.coefficients, found.camera, (*clock.times, *found.stage_times))

    def _encoded(self, encoder: FaceEncoder, observed: PhotoInputs) -> FaceCoefficients:
        """What the encoder says, with heads that lie on their side or upside down shown upright to it."""
        rolls = [face.roll if abs(face.roll) > UPRIGHT_ROLL else 0.0 for face in observed.faces]
        if not any(rolls):
            targets = observed.targets
            return encoder.encode(targets.crops, targets.camera, landmarks468_px=targets.landmarks468_px)
        view = observed.turned(rolls)
        said = encoder.encode(view.crops, view.camera, landmarks468_px=view.landmarks468_px)
        return said.rolled(torch.tensor(rolls, device=self.device))


def _check_settings(resolution: int, *, max_faces: int | None, mode: str, detail_mode: str | None) -> None:
    if resolution not in RESOLUTIONS:
        raise ConfigError(f"resolution {resolution} is not offered; choose one of {RESOLUTIONS}.")
    if max_faces is not None and max_faces < 1:
        raise ConfigError(f"max_faces must be at least 1, got {max_faces}.")
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is not offered; choose one of {', '.join(MODES)}.")
    if detail_mode is not None and detail_mode not in DETAIL_MODES:
        raise ConfigError(f"detail mode {detail_mode!r} is not offered; choose one of {', '.join(DETAIL_MODES)}.")


def _checked_device(device: str) -> torch.device:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"{device!r} is not a device; use cpu or cuda.") from error
    if wanted.type not in {"cpu", "cuda"}:
        raise ConfigError(f"the device {device!r} is not supported; use cpu or cuda.")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("cuda was asked for, and this PyTorch sees no CUDA device; use --device cpu.")
    return wanted
