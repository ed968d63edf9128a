"""From the coefficients of a face to its result: detail maps, surface, texture, and their errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from mien.camera import Camera
from mien.fitting import DetailSettings, FitTargets, fit_detail
from mien.morphable import FaceCoefficients, MorphableModel, landmark_vertices
from mien.morphable.head import has_head
from mien.morphable.landmark_tables import IBUG_INNER, IBUG_OUTER_EYE_CORNERS
from mien.networks import DetailNetwork, predict_maps
from mien.networks.detail_unet import CROP_SHARE
from mien.perception import Crop, face_crop
from mien.perception.crops import sample_pixels
from mien.pipeline.inputs import FIT_SIZE_PX, PhotoInputs
from mien.pipeline.inspection import measure_face
from mien.quality import FaceQuality
from mien.rendering import FaceSurface, VertexDetail, build_surface, draw_texture, sample_map, vertex_visibility
from mien.result import Reconstruction
from mien.texture import (
    CompletedTexture,
    DetailMaps,
    TexelAtlas,
    TexelMasks,
    TexelParts,
    TextureView,
    Unwrapped,
    complete_texture,
    hair_colour,
    merge_views,
    texel_face,
    unwrap_photo,
)
from mien.typing import Bool, Float, Tensor


@dataclass(frozen=True)
class PhotoFace:
    """One photo of a person, with the face in it."""

    read: Callable[[], PhotoInputs]
    """The inputs of the face, for which the photo is read again."""
    coefficients: FaceCoefficients
    """Its coefficients."""
    camera: Camera
    """The camera of its crop, with the focal length that the fit found."""
    weight: float
    """Influence of the photo on the texture, 0 to 1."""


@dataclass(frozen=True)
class _View:
    """A face as one photo shows it."""

    photo: Float[Tensor, "1 5 R R"]
    """The part of the photo around the face: colours, mask of the skin, mask of the whole face."""
    camera: Camera
    """The camera of this part."""
    coarse: FaceSurface
    """The surface without the detail maps."""
    maps: DetailMaps
    """The detail maps."""
    surface: FaceSurface
    """The surface with them."""


@dataclass(frozen=True)
class PersonTexture:
    """One texture from several photos of a person."""

    photos: tuple[PhotoFace, ...]
    """The photos."""
    maps: tuple[DetailMaps, ...]
    """The detail maps of each of them."""
    albedo: Float[Tensor, "1 3 S S"]
    """Colours without light."""
    seen: Float[Tensor, "1 1 S S"]
    """Visibility in any of the photos, 0 to 1."""


class TextureBuilder:
    """Makes the maps, surface and texture of one face at a time; keeps the UV atlases and masks from face to face.

    Args:
        model: The face model.
        detail: The detail network, or the settings of the detail fit; None for maps of zeros.
        resolution: Side of the detail maps in texels.
        texture_size: Side of the texture in texels.
    """

    def __init__(
        self,
        model: MorphableModel,
        *,
        detail: DetailNetwork | DetailSettings | None,
        resolution: int,
        texture_size: int,
    ) -> None:
        self.model, self.detail = model, detail
        self.resolution, self.texture_size = resolution, texture_size
        self._atlases: dict[int, TexelAtlas] = {}

    def _atlas(self, size: int) -> TexelAtlas:
        if size not in self._atlases:
            self._atlases[size] = TexelAtlas.of(self.model, size)
        return self._atlases[size]

    @functools.cached_property
    def _masks(self) -> TexelMasks:
        return TexelMasks.of(self.model, self._atlas(self.texture_size))

    def __call__(
        self,
        inputs: PhotoInputs,
        coefficients: FaceCoefficients,
        camera: Camera,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> Reconstruction:
        """Make the result of one face.

        Args:
            inputs: One face of a photo.
            coefficients: Its coefficients.
            camera: The camera of its crop, with the focal length that the fit found.
            progress: Is called with the share of the detail fit's steps that is done.

        Returns:
            The result, without stage times.
        """
        view = self.view(inputs, coefficients, camera, progress=progress)
        with torch.no_grad():
            unwrapped = self._unwrapped(
                self._atlas(self.texture_size),
                view.photo,
                view.camera,
                view.surface,
                near_thin=self._masks.near_thin,
            )
            return self._result(inputs, view, coefficients, camera, unwrapped)

    def merge(self, photos: Sequence[PhotoFace], *, progress: Callable[[float], None] | None = None) -> PersonTexture:
        """Make one texture from several photos of one person.

        Args:
            photos: The photos and the face in each of them; one photo at a time is read, and none is kept.
            progress: Is called with the share of the work that is done.

        Returns:
            The texture, for `result_in`.
        """
        maps: dict[int, DetailMaps] = {}
        done, views = 0, 1 if len(photos) == 1 else 2 * len(photos)  # see merge_views

        def view_of(number: int) -> TextureView:
            nonlocal done
            photo, inputs = photos[number], photos[number].read()
            if number in maps:
                pixels, camera = self._sharp_photo(inputs, photo.camera)
                view = self._with_surfaces(pixels, camera, photo.coefficients, maps[number])
            else:
                view = self.view(inputs, photo.coefficients, photo.camera)
                maps[number] = view.maps
            done += 1
            if progress is not None:
                progress(done / views)
            return self._texture_view(view, photo_weight=photo.weight)

        albedo, seen = merge_views(view_of, len(photos))
        return PersonTexture(tuple(photos), tuple(maps[number] for number in range(len(photos))), albedo, seen)

    def result_in(self, number: int, person: PersonTexture) -> Reconstruction:
        """Make the result of one photo of a person, with the common texture in the light of the photo.

        Args:
            number: Which of the photos of `merge`.
            person: The texture.

        Returns:
            The result, without stage times.
        """
        photo = person.photos[number]
        nothing = person.albedo.new_empty(1, 5, 0, 0)
        with torch.no_grad():
            view = self._with_surfaces(nothing, photo.camera, photo.coefficients, person.maps[number])
            shade = self._atlas(self.texture_size).interpolate(view.coarse.shading)
            lit = Unwrapped(person.albedo * shade, person.seen, torch.ones_like(person.seen))
            return self._result(photo.read(), view, photo.coefficients, photo.camera, lit)

    @torch.no_grad()
    def _texture_view(self, view: _View, *, photo_weight: float) -> TextureView:
        atlas = self._atlas(self.texture_size)
        unwrapped = self._unwrapped(atlas, view.photo, view.camera, view.surface, near_thin=self._masks.near_thin)
        return TextureView.of(
            atlas,
            self.model,
            unwrapped,
            shade=atlas.interpolate(view.coarse.shading),
            vertices_px=view.camera.project(view.surface.vertices_camera),
            photo_weight=photo_weight,
        )

    def _sharp_photo(self, inputs: PhotoInputs, camera: Camera) -> tuple[Float[Tensor, "1 5 R R"], Camera]:
        """The part of the photo around the face with the two masks, and the camera of this part."""
        (face,) = inputs.faces
        sharp = face_crop(
            torch.from_numpy(face.detection.landmarks468_px[:, :2]), size=_native_size(face.crop, self.texture_size)
        )
        masks = torch.stack([inputs.targets.mask, inputs.targets.outline], dim=1)
        masks = F.interpolate(masks, size=(sharp.size, sharp.size), mode="bilinear", align_corners=False)
        pixels = sample_pixels(inputs.pixels, sharp).to(self.model.mean.device)
        return torch.cat([pixels, masks], dim=1), camera.resized(sharp.size)

    def view(
        self,
        inputs: PhotoInputs,
        coefficients: FaceCoefficients,
        camera: Camera,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> _View:
        """The surface and the maps of one face, and the part of the photo that shows it."""
        model = self.model
        photo, sharp_camera = self._sharp_photo(inputs, camera)
        with torch.no_grad():
            coarse = build_surface(model, coefficients)
        maps = self._detail_maps(photo, sharp_camera, coarse, coefficients=coefficients, progress=progress)
        with torch.no_grad():
            surface = self._detailed(coarse, maps, coefficients=coefficients)
        return _View(photo, sharp_camera, coarse, maps, surface)

    @torch.no_grad()
    def _with_surfaces(
        self, photo: Float[Tensor, "1 5 R R"], camera: Camera, coefficients: FaceCoefficients, maps: DetailMaps
    ) -> _View:
        """A view whose maps are known; its surfaces are made again, since they are larger than the maps."""
        coarse = build_surface(self.model, coefficients)
        return _View(photo, camera, coarse, maps, self._detailed(coarse, maps, coefficients=coefficients))

    def _result(
        self,
        inputs: PhotoInputs,
        view: _View,
        coefficients: FaceCoefficients,
        camera: Camera,
        unwrapped: Unwrapped,
    ) -> Reconstruction:
        completed = self.completed(unwrapped, view, coefficients=coefficients)
        texture = self._atlas(self.texture_size).dilate(completed.colours).clamp(0, 1)
        targets = replace(inputs.targets, camera=camera)
        return _reconstruction(
            self.model,
            inputs,
            coefficients,
            camera,
            surface=view.surface,
            maps=view.maps,
            texture=texture,
            photometric_error=_texture_error(self.model, view.surface, targets, texture),
        )

    def _unwrapped(
        self, atlas: TexelAtlas, photo: Tensor, view: Camera, surface: FaceSurface, *, near_thin: Tensor | None = None
    ) -> Unwrapped:
        return unwrap_photo(
            atlas,
            surface,
            photo=photo,
            vertices_px=view.project(surface.vertices_camera),
            visibility=vertex_visibility(self.model, surface, view),
            near_thin=near_thin,
        )

    def _detail_maps(
        self,
        photo: Tensor,
        view: Camera,
        surface: FaceSurface,
        *,
        coefficients: FaceCoefficients,
        progress: Callable[[float], None] | None,
    ) -> DetailMaps:
        size = self.resolution
        if self.detail is None:
            return DetailMaps(photo.new_zeros(1, 3, size, size), photo.new_zeros(1, 1, size, size))
        atlas = self._atlas(size)
        if isinstance(self.detail, DetailNetwork):
            # The scale that the network was trained at; a sharper crop would only alias.
            side = min(round(CROP_SHARE * size), photo.shape[-1])
            photo = F.interpolate(photo, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
            view = view.resized(side)
            unwrapped = self._unwrapped(atlas, photo, view, surface)
            return predict_maps(self.detail, texel_face(atlas, self.model, coefficients, surface), unwrapped)
        return fit_detail(
            self.model,
            atlas,
            surface=surface,
            coefficients=coefficients,
            unwrapped=self._unwrapped(atlas, photo, view, surface),
            settings=self.detail,
            progress=progress,
        )

    def _detailed(self, coarse: FaceSurface, maps: DetailMaps, *, coefficients: FaceCoefficients) -> FaceSurface:
        """The surface with its maps: without detail, the coarse surface."""
        if self.detail is None:
            return coarse
        detail = VertexDetail(
            displacement=sample_map(maps.displacement, self.model.uv)[..., 0],
            albedo_offset=sample_map(maps.texture_offset, self.model.uv),
        )
        return build_surface(self.model, coefficients, detail=detail)

    def completed(self, unwrapped: Unwrapped, view: _View, *, coefficients: FaceCoefficients) -> CompletedTexture:
        """The texture, not yet continued beyond the border of the UV layout."""
        atlas, size, coarse = self._atlas(self.texture_size), (self.texture_size, self.texture_size), view.coarse
        # Shading without the displacement, which ends where the photo does: its border must not show.
        albedo, shade = atlas.interpolate(coarse.albedo), atlas.interpolate(coarse.shading)
        offset = None
        if self.detail is not None:
            offset = F.interpolate(view.maps.texture_offset, size=size, mode="bilinear", align_corners=False)
        parts = TexelParts.of(self.model, atlas, self._masks, surface=coarse, coefficients=coefficients)
        return complete_texture(albedo, offset, shade, unwrapped, parts)


def _reconstruction(
    model: MorphableModel,
    inputs: PhotoInputs,
    coefficients: FaceCoefficients,
    camera: Camera,
    *,
    surface: FaceSurface,
    maps: DetailMaps,
    texture: Float[Tensor, "1 3 S S"],
    photometric_error: float,
) -> Reconstruction:
    (face,) = inputs.faces
    crop = face.crop
    vertices_crop = camera.project(surface.vertices_camera)
    rotmat = coefficients.pose.rotmat()
    landmarks = landmark_vertices(model, vertices_crop, rotmat)[0]
    xy = crop.to_photo(vertices_crop[0].double().cpu())
    height, width = inputs.pixels.shape[:2]
    seen = vertex_visibility(model, surface, camera.resized(2 * FIT_SIZE_PX))[0] > 0
    inside = (xy >= 0).all(-1) & (xy < torch.tensor([width, height])).all(-1)
    landmark_error = _landmark_error(face.detection.landmarks68_px, _numpy(xy[landmarks.cpu()]))
    return Reconstruction(
        model_name=model.name,
        image_size=(width, height),
        focal_px=float(camera.focal_px[0]) * crop.scale,
        focal_source=inputs.focal_source,
        centre_px=_numpy(crop.to_photo(camera.centre_px[0].double().cpu())),
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
        landmark_error=landmark_error,
        photometric_error=photometric_error,
        stage_seconds=(),
        expression_names=model.expression_names,
        hair_colour=_hair_colour(model, surface, inputs, xy=xy, seen=seen.cpu() & inside),
        quality=FaceQuality.judge(measure_face(inputs, coefficients, camera), landmark_error=landmark_error),
    )


def _hair_colour(
    model: MorphableModel,
    surface: FaceSurface,
    inputs: PhotoInputs,
    *,
    xy: Float[Tensor, "V 2"],
    seen: Bool[Tensor, "V"],
) -> np.ndarray | None:
    """The hair's colour; the hairline is known for models with a head."""
    if not has_head(model):
        return None
    columns, rows = xy.long().unbind(-1)
    height, width = inputs.pixels.shape[:2]
    pixels = inputs.pixels[rows.clamp(0, height - 1).numpy(), columns.clamp(0, width - 1).numpy()]
    colours = torch.from_numpy(pixels.astype(np.float32) / 255)
    found = hair_colour(colours, surface.shading[0].cpu(), model.mean.cpu(), seen)
    return None if found is None else _numpy(found)


def _native_size(crop: Crop, largest: int) -> int:
    """Side of the crop at which its pixels have the size of the photo's, between FIT_SIZE_PX and `largest`."""
    return int(min(max(crop.size * crop.scale, FIT_SIZE_PX), largest))


def _texture_error(model: MorphableModel, surface: FaceSurface, targets: FitTargets, texture: Tensor) -> float:
    """Root mean squared colour error of the textured mesh inside the face's mask."""
    rendered, coverage = draw_texture(model, surface.vertices_camera, targets.camera, texture=texture)
    weight = coverage * targets.mask
    squared = ((rendered - targets.crops) ** 2).mean(1)
    return float(((squared * weight).sum() / weight.sum().clamp(min=1)).sqrt())


def _landmark_error(detected_px: np.ndarray, model_px: np.ndarray) -> float:
    """Mean distance of the 51 inner landmarks over the distance of the outer eye corners."""
    right, left = detected_px[list(IBUG_OUTER_EYE_CORNERS)]
    distance = np.linalg.norm(right - left)
    return float(np.linalg.norm((detected_px - model_px)[IBUG_INNER], axis=1).mean() / max(distance, 1e-6))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()
