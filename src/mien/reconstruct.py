"""From one photo to a list of faces: perception, fit, detail, result."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mien.arrays import Float, Tensor, UInt8
from mien.camera import DEFAULT_FOV_DEG, Camera
from mien.detail import CROP_SHARE, DEFAULT_DETAIL, load_detail, predict_maps
from mien.encoder import DEFAULT_ENCODER, FaceEncoder, load_encoder
from mien.errors import BackendUnavailable, ConfigError, FaceLeftOut, FitDiverged, NoFaceFound
from mien.fitting import (
    DetailMaps,
    DetailSettings,
    FitSettings,
    FitTargets,
    StageClock,
    StageTime,
    Unwrapped,
    complete_texture,
    fit,
    fit_detail,
    mesh_point_weights,
    placed_on_points,
    texel_face,
    unwrap_photo,
)
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.perception import Crop, FaceObservation, IdentityNetwork, Perception, face_crop, face_parts
from mien.perception.alignment import sample_pixels
from mien.photo import Photo, exposure_of, read_photo
from mien.reconstruction import Reconstruction
from mien.rendering import (
    FaceSurface,
    VertexDetail,
    build_surface,
    draw_texture,
    landmark_vertices,
    sample_map,
    vertex_visibility,
)
from mien.texture_space import TexelAtlas

FIT_SIZE_PX = 224
"""Side of the crop that the coefficients are fitted in, the paper's."""
TEXTURE_SIZE = 1024
"""Side of the colour map in texels; a face that fills a 1,000-pixel photo has about as many pixels across."""
NET_TEXTURE_SIZE = 256
"""The same where the network alone answers: a full map would take ten times as long as everything else."""
RESOLUTIONS = (224, 512, 1024)
UPRIGHT_ROLL = math.radians(30)
"""A head that lies further on its side than this is turned upright for the encoder, which hardly saw any: on two
portraits its landmark error grows from 2.4 % of the eyes' distance to 4 % at 60° of roll and 36 % at 90°, and upside
down it is lost."""
SHORTEST_FOCAL = 0.1
"""Least focal length in longer sides of the photo: a view of 157°, wider than any lens without distortion."""
MODES = ("fit", "net", "auto")
"""How coefficients are found: by optimisation, by the trained network alone, or by optimisation from its guess."""
DETAIL_MODES = ("fit", "net")
"""How the maps are found: by optimisation, or by the trained U-Net."""


@dataclass(frozen=True)
class _Face:
    """One face's place in the photo."""

    observation: FaceObservation
    crop: Crop

    @classmethod
    def of(cls, observation: FaceObservation, *, roll: float = 0.0) -> _Face:
        """In its upright crop, or in one that is turned by `roll` radians."""
        points = torch.from_numpy(observation.mesh_px[:, :2])
        return cls(observation, face_crop(points, size=FIT_SIZE_PX, angle=roll))


@dataclass(frozen=True)
class _Observed:
    """What perception says of some faces of one photo."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """The whole photo."""
    faces: tuple[_Face, ...]
    camera: Camera
    """The photo's, once for each face."""
    targets: FitTargets

    def __getitem__(self, index: slice) -> _Observed:
        return _Observed(self.pixels, self.faces[index], self.camera[index], self.targets[index])


@dataclass(frozen=True)
class _Found:
    """The coefficients of a batch of faces, however they were found."""

    coefficients: FaceCoefficients
    camera: Camera
    stage_times: tuple[StageTime, ...]

    def __getitem__(self, index: slice) -> _Found:
        return _Found(self.coefficients[index], self.camera[index], self.stage_times)


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
        self.perception = Perception(device=device)
        self.recognition = IdentityNetwork.from_assets().to(self.device)
        self.detail, self.resolution, self.max_faces = detail, resolution, max_faces
        self.settings = replace(settings or FitSettings(), seed=seed, refine_focal=refine_focal)
        self.detail_settings = detail_settings or DetailSettings()
        self.mode = mode
        sharp_enough = round(CROP_SHARE * resolution) if detail else 0
        self.texture_size = max(NET_TEXTURE_SIZE, sharp_enough) if mode == "net" else TEXTURE_SIZE
        self.encoder = None if mode == "fit" else load_encoder(self.model, encoder).to(self.device)
        self.detail_network = load_detail(self.model, detail_network).to(self.device) if by_network else None
        self._atlases: dict[int, TexelAtlas] = {}

    def __call__(
        self, photo: Photo | str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"], *, focal_px: float | None = None
    ) -> list[Reconstruction]:
        """Reconstruct every face of a photo, the most prominent first.

        `focal_px` is the focal length in pixels of the upright photo; without it EXIF decides, and without that a
        field of view of 30°. NoFaceFound if there is no face, ImageError if the file cannot be read, ConfigError for a
        focal length of less than `SHORTEST_FOCAL` of the photo's longer side. A face among several that cannot be
        fitted is left out with the warning FaceLeftOut; FitDiverged if that is so of all.
        """
        if not isinstance(photo, np.ndarray | Photo):
            photo = read_photo(photo)
        pixels = photo.pixels if isinstance(photo, Photo) else photo
        known_focal = photo.focal_px if focal_px is None and isinstance(photo, Photo) else focal_px
        clock = StageClock()
        with clock.stage("perception"):
            observations = self.perception.observe(pixels, max_faces=self.max_faces)
            if not observations:
                raise NoFaceFound(
                    f"no face was found in the {pixels.shape[1]} × {pixels.shape[0]} photo; faces from 30 pixels on "
                    "are looked for. Crop the photo around the face, or try a sharper one."
                )
            faces = tuple(_Face.of(observation) for observation in observations)
            camera = _camera(pixels, known_focal, len(faces))
            observed = _Observed(pixels, faces, camera, self._targets(pixels, faces, camera))
        return self._reconstruct(observed, perception=clock.times[0])

    def _reconstruct(self, observed: _Observed, *, perception: StageTime) -> list[Reconstruction]:
        """All faces together; one by one where together they fail, so that one lost face does not cost the others."""
        count = len(observed.faces)
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

    def _together(self, observed: _Observed, *, perception: StageTime) -> list[Reconstruction]:
        count, clock = len(observed.faces), StageClock()
        found = self._find(observed)
        with clock.stage("maps"):
            singles = [slice(k, k + 1) for k in range(count)]
            parts = [self._finish(observed[one], found[one]) for one in singles]
        times = (perception, *found.stage_times, *clock.times)
        return [replace(part, stage_seconds=tuple((t.name, t.seconds / count) for t in times)) for part in parts]

    def _find(self, observed: _Observed) -> _Found:
        """The coefficients, in the way that was asked for."""
        guess, clock, targets = None, StageClock(), observed.targets
        if self.encoder is not None:
            with clock.stage("network"), torch.no_grad():
                guess = placed_on_points(
                    self.model,
                    self._encoded(self.encoder, observed),
                    targets.camera,
                    points_px=targets.mesh_px,
                    point_weights=mesh_point_weights(self.model).expand(len(targets.mesh_px), -1),
                )
        if guess is not None and self.mode == "net":
            return _Found(guess, targets.camera, tuple(clock.times))
        found = fit(self.model, targets, settings=self.settings, recognition=self.recognition, start=guess)
        return _Found(found.coefficients, found.camera, (*clock.times, *found.stage_times))

    def _encoded(self, encoder: FaceEncoder, observed: _Observed) -> FaceCoefficients:
        """What the encoder says, with heads that lie on their side or upside down shown upright to it."""
        faces, targets = observed.faces, observed.targets
        rolls = [_roll(face.observation) for face in faces]
        rolls = [roll if abs(roll) > UPRIGHT_ROLL else 0.0 for roll in rolls]
        if not any(rolls):
            return encoder.encode(targets.crops, targets.camera, mesh_px=targets.mesh_px)
        upright = [_Face.of(face.observation, roll=roll) for face, roll in zip(faces, rolls, strict=True)]
        crops = torch.cat([sample_pixels(observed.pixels, face.crop) for face in upright]).to(self.device)
        points = self._points(upright, [f.observation.mesh_px[:, :2] for f in upright])
        said = encoder.encode(crops, _through_crops(observed.camera, upright).to(self.device), mesh_px=points)
        return said.rolled(torch.tensor(rolls, device=self.device))

    def _targets(self, pixels: UInt8[np.ndarray, "H W 3"], faces: Sequence[_Face], camera: Camera) -> FitTargets:
        crops = torch.cat([sample_pixels(pixels, face.crop) for face in faces]).to(self.device)
        parts = [face_parts(pixels, face.observation, face.crop) for face in faces]
        exposure = torch.full((len(faces),), exposure_of(pixels), device=self.device)
        return FitTargets(
            crops=crops,
            mask=torch.stack([part.skin for part in parts]).to(self.device),
            outline=torch.stack([part.face for part in parts]).to(self.device),
            exposure=exposure,
            camera=_through_crops(camera, faces).to(self.device),
            mesh_px=self._points(faces, [f.observation.mesh_px[:, :2] for f in faces]),
            landmarks68_px=self._points(faces, [f.observation.landmarks68_px for f in faces]),
        )

    def _points(self, faces: Sequence[_Face], points: Sequence[np.ndarray]) -> Float[Tensor, "B L 2"]:
        moved = [face.crop.to_crop(torch.from_numpy(p)) for face, p in zip(faces, points, strict=True)]
        return torch.stack(moved).float().to(self.device)

    def _atlas(self, size: int) -> TexelAtlas:
        if size not in self._atlases:
            self._atlases[size] = TexelAtlas.of(self.model, size)
        return self._atlases[size]

    def _finish(self, observed: _Observed, found: _Found) -> Reconstruction:
        """Maps, texture and everything a user gets, for one face; both hold that face only."""
        model, coefficients = self.model, found.coefficients
        pixels, (face,), targets = observed.pixels, observed.faces, observed.targets
        sharp = face_crop(
            torch.from_numpy(face.observation.mesh_px[:, :2]), size=_native_size(face.crop, self.texture_size)
        )
        view = found.camera.resized(sharp.size)
        masks = torch.stack([targets.mask, targets.outline], dim=1)
        masks = F.interpolate(masks, size=(sharp.size, sharp.size), mode="bilinear", align_corners=False)
        photo = torch.cat([sample_pixels(pixels, sharp).to(self.device), masks], dim=1)
        with torch.no_grad():
            base = build_surface(model, coefficients)
        maps = self._detail_maps(photo, view, base, coefficients=coefficients)
        with torch.no_grad():
            surface = self._detailed(base, maps, coefficients=coefficients)
            texture = self._texture(photo, view, surface, base=base, maps=maps)
            error = _texture_error(model, surface, targets, texture)
            return self._assemble(
                pixels, face, found, surface=surface, maps=maps, texture=texture, photometric_error=error
            )

    def _unwrapped(self, atlas: TexelAtlas, photo: Tensor, view: Camera, surface: FaceSurface) -> Unwrapped:
        return unwrap_photo(
            atlas,
            surface,
            photo=photo,
            vertices_px=view.project(surface.vertices_camera),
            visibility=vertex_visibility(self.model, surface, view),
        )

    def _detail_maps(
        self, photo: Tensor, view: Camera, surface: FaceSurface, *, coefficients: FaceCoefficients
    ) -> DetailMaps:
        size = self.resolution
        if not self.detail:
            return DetailMaps(photo.new_zeros(1, 3, size, size), photo.new_zeros(1, 1, size, size))
        atlas = self._atlas(size)
        if self.detail_network is not None:
            # At the scale that the network was trained at; a sharper crop would only alias.
            side = min(round(CROP_SHARE * size), photo.shape[-1])
            photo = F.interpolate(photo, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
            view = view.resized(side)
            unwrapped = self._unwrapped(atlas, photo, view, surface)
            return predict_maps(self.detail_network, texel_face(atlas, self.model, coefficients, surface), unwrapped)
        return fit_detail(
            self.model,
            atlas,
            surface=surface,
            coefficients=coefficients,
            unwrapped=self._unwrapped(atlas, photo, view, surface),
            settings=self.detail_settings,
        )

    def _detailed(self, base: FaceSurface, maps: DetailMaps, *, coefficients: FaceCoefficients) -> FaceSurface:
        """The surface with its maps; without detail they are zero, and it is the base."""
        if not self.detail:
            return base
        detail = VertexDetail(
            displacement=sample_map(maps.displacement, self.model.uv)[..., 0],
            albedo_offset=sample_map(maps.texture_offset, self.model.uv),
        )
        return build_surface(self.model, coefficients, detail=detail)

    def _texture(
        self, photo: Tensor, view: Camera, surface: FaceSurface, *, base: FaceSurface, maps: DetailMaps
    ) -> Float[Tensor, "1 3 S S"]:
        """The completed colour map, dilated over the chart's border."""
        atlas = self._atlas(self.texture_size)
        albedo, shade = atlas.interpolate(torch.cat([base.albedo, base.shading], dim=-1)).split(3, dim=1)
        if self.detail:
            size = (self.texture_size, self.texture_size)
            albedo = albedo + F.interpolate(maps.texture_offset, size=size, mode="bilinear", align_corners=False)
        # Shaded without the displacement: it ends where the photo does, and its border must not show.
        completed = complete_texture(albedo, shade, self._unwrapped(atlas, photo, view, surface))
        return atlas.dilate(completed).clamp(0, 1)

    def _assemble(
        self,
        pixels: UInt8[np.ndarray, "H W 3"],
        face: _Face,
        found: _Found,
        *,
        surface: FaceSurface,
        maps: DetailMaps,
        texture: Float[Tensor, "1 3 S S"],
        photometric_error: float,
    ) -> Reconstruction:
        model, coefficients, crop = self.model, found.coefficients, face.crop
        vertices_crop = found.camera.project(surface.vertices_camera)
        rotmat = coefficients.pose.rotmat()
        landmarks = landmark_vertices(model, vertices_crop, rotmat)[0]
        xy = crop.to_photo(vertices_crop[0].double().cpu())
        height, width = pixels.shape[:2]
        seen = vertex_visibility(model, surface, found.camera.resized(2 * FIT_SIZE_PX))[0] > 0
        inside = (xy >= 0).all(-1) & (xy < torch.tensor([width, height])).all(-1)
        return Reconstruction(
            model_name=model.name,
            image_size=(width, height),
            focal_px=float(found.camera.focal_px[0]) * crop.scale,
            centre_px=_numpy(crop.to_photo(found.camera.centre_px[0].double().cpu())),
            scale=float(coefficients.pose.scale[0]),
            rotation=_numpy(rotmat[0]),
            translation=_numpy(coefficients.pose.translation[0]),
            identity=_numpy(coefficients.identity[0]),
            expression=_numpy(coefficients.expression[0]),
            albedo=_numpy(coefficients.albedo[0]),
            lighting=_numpy(coefficients.lighting[0]),
            vertices_model=_numpy(surface.vertices[0]),
            vertices=_numpy(surface.vertices_camera[0]),
            triangles=model.triangles.cpu().numpy().astype(np.int32),
            uv=_numpy(model.uv),
            xy=_numpy(xy),
            visible=(seen.cpu() & inside).numpy(),
            landmarks68=_numpy(xy[landmarks.cpu()]),
            landmarks68_vertices=landmarks.cpu().numpy().astype(np.int32),
            vertex_albedo=_numpy(model.albedo(coefficients.albedo)[0].clamp(0, 1)),
            texture=_numpy(texture[0].permute(1, 2, 0)),
            texture_offset=_numpy(maps.texture_offset[0].permute(1, 2, 0)),
            displacement=_numpy(maps.displacement[0, 0]),
            landmark_error=_landmark_error(face.observation.landmarks68_px, _numpy(xy[landmarks.cpu()])),
            photometric_error=photometric_error,
            stage_seconds=(),
            expression_names=model.expression_names,
        )


def _check_settings(resolution: int, *, max_faces: int | None, mode: str, detail_mode: str | None) -> None:
    if resolution not in RESOLUTIONS:
        raise ConfigError(f"resolution {resolution} is not offered; choose one of {RESOLUTIONS}.")
    if max_faces is not None and max_faces < 1:
        raise ConfigError(f"max_faces must be at least 1, got {max_faces}.")
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is not offered; choose one of {', '.join(MODES)}.")
    if detail_mode is not None and detail_mode not in DETAIL_MODES:
        raise ConfigError(f"detail mode {detail_mode!r} is not offered; choose one of {', '.join(DETAIL_MODES)}.")


def _camera(pixels: UInt8[np.ndarray, "H W 3"], focal_px: float | None, batch: int) -> Camera:
    height, width = pixels.shape[:2]
    if focal_px is not None and not SHORTEST_FOCAL * max(height, width) <= focal_px < math.inf:
        raise ConfigError(
            f"a focal length of {focal_px:g} pixels is none of a {width} × {height} photo; it has to be finite and at "
            f"least {SHORTEST_FOCAL * max(height, width):g}."
        )
    camera = Camera.from_fov(DEFAULT_FOV_DEG, image_size=(height, width), batch=batch)
    return camera if focal_px is None else replace(camera, focal_px=torch.full((batch,), float(focal_px)))


def _through_crops(camera: Camera, faces: Sequence[_Face]) -> Camera:
    """The photo's camera as each face's crop shows it, turned where the crop is."""
    scale = torch.tensor([1 / face.crop.scale for face in faces])
    centres = [face.crop.to_crop(centre.double()) for face, centre in zip(faces, camera.centre_px, strict=True)]
    return Camera(camera.focal_px * scale, torch.stack(centres).float(), image_size=(FIT_SIZE_PX, FIT_SIZE_PX))


def _roll(observation: FaceObservation) -> float:
    """How far the line of the eyes is turned in the photo, radians clockwise to the eye."""
    right, left = observation.landmarks68_px[[36, 45]]
    return math.atan2(left[1] - right[1], left[0] - right[0])


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


def _native_size(crop: Crop, most: int) -> int:
    """Side of the crop at which one of its pixels is one of the photo's, within what the texture can hold."""
    return int(min(max(crop.size * crop.scale, FIT_SIZE_PX), most))


def _texture_error(model: MorphableModel, surface: FaceSurface, targets: FitTargets, texture: Tensor) -> float:
    """Root mean squared colour error of the textured mesh inside the face's mask."""
    drawn, covered = draw_texture(model, surface.vertices_camera, targets.camera, texture=texture)
    weight = covered * targets.mask
    squared = ((drawn - targets.crops) ** 2).mean(1)
    return float(((squared * weight).sum() / weight.sum().clamp(min=1)).sqrt())


def _landmark_error(found_px: np.ndarray, modelled_px: np.ndarray) -> float:
    """Mean distance of the 51 inner points over the distance of the outer eye corners."""
    distance = np.linalg.norm(found_px[36] - found_px[45])
    return float(np.linalg.norm(found_px[17:] - modelled_px[17:], axis=1).mean() / max(distance, 1e-6))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()
