"""Inputs of the detail network in training: the coarse reconstruction of each face, and the photo on the UV map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.errors import ConfigError
from mien.fitting import FitSettings, FitTargets, fit
from mien.fitting.stages import with_light_and_albedo
from mien.morphable import FaceCoefficients, MorphableModel
from mien.networks import FaceEncoder
from mien.networks.crop_space import HEAD_UNITS
from mien.networks.detail_unet import Layout, texture_inputs
from mien.rendering import FaceSurface, build_surface, render, vertex_visibility
from mien.texture import TexelAtlas, TexelFace, Unwrapped, texel_face, unwrap_photo
from mien.texture.fill import largest
from mien.training.config import CoarseInputSettings
from mien.training.data.batch import FaceBatch, resized
from mien.typing import Float, Tensor

CLOSING_SHARE = 1 / 16
"""Gaps in the skin mask up to this share of the crop's side are eyes, lips or eyebrows: part of the face, but not
skin."""


@dataclass(frozen=True)
class DetailBatch:
    """Faces with their coarse reconstruction, and the detail network's input."""

    faces: FaceBatch
    inputs: tuple[Float[Tensor, "B C S S"]]
    coefficients: FaceCoefficients
    """The coarse reconstruction."""
    surface: FaceSurface
    """Its mesh."""
    texels: TexelFace
    """Its appearance on the UV map."""
    unwrapped: Unwrapped
    """The photo on the UV map."""


class CoarseReconstruction:
    """Reconstructs faces coarsely with a frozen encoder.

    Args:
        encoder: The frozen encoder, in evaluation mode.
        model: Its face model, on the same device.
        settings: Where the reconstruction comes from.

    Raises:
        ConfigError: The encoder is in training mode.
    """

    def __init__(self, encoder: FaceEncoder, model: MorphableModel, settings: CoarseInputSettings) -> None:
        if encoder.training:
            raise ConfigError("the encoder below the detail maps is in training mode; call encoder.eval() first.")
        self.encoder, self.model, self.settings = encoder, model, settings

    @torch.no_grad()
    def __call__(self, batch: FaceBatch) -> FaceCoefficients:
        """Reconstruct the faces of a batch.

        Raises:
            FitDiverged: The fit of a photo met a number that is not finite.
        """
        if self.settings.source == "encoder" or batch.gt is None:
            return self._of_photos(batch)
        synthetic = self._of_synthetic_faces(batch)
        if not batch.photo_count:
            return synthetic
        return FaceCoefficients.join([self._of_photos(batch.photos()), synthetic])

    def _of_photos(self, batch: FaceBatch) -> FaceCoefficients:
        """The kept faces in these crops, or `of_photos`. Light and albedo depend on the colours of the crop."""
        if batch.coarse is None:
            return self.of_photos(batch)
        kept = batch.coarse.coefficients(batch.camera)
        if self.settings.source == "encoder":
            return kept
        targets = _targets(batch, outline=batch.mask)  # only steps that are not taken here need the outline
        return with_light_and_albedo(self.model, targets, kept, settings=FitSettings(), warm=True)

    @torch.no_grad()
    def of_photos(self, batch: FaceBatch) -> FaceCoefficients:
        """Reconstruct photos from their crops: the encoder's prediction, with source "refined" after the linear part
        of the fit.

        Raises:
            FitDiverged: The fit of a photo met a number that is not finite.
        """
        pred = self.encoder.encode(batch.images, batch.camera, landmarks468_px=batch.detected_px)
        if self.settings.source == "encoder":
            return pred
        settings = FitSettings(warm_photometric_steps=0)
        targets = _targets(batch, outline=close_mask(batch.mask))
        return fit(self.model, targets, settings=settings, start=pred).coefficients

    def _of_synthetic_faces(self, batch: FaceBatch) -> FaceCoefficients:
        """The ground truth plus random errors of about the size of a fit's errors."""
        if batch.gt is None:
            raise ConfigError("the batch has no ground truth; synthetic faces need it.")
        settings = self.settings
        errors = {
            "identity": settings.identity_error,
            "expression": settings.expression_error,
            "albedo": settings.albedo_error,
            "lighting": settings.lighting_error,
            **dict.fromkeys(("rotation", "translation", "scale"), settings.pose_error),
        }
        disturbed = {
            name: (value := getattr(batch.gt, name)) + HEAD_UNITS[name] * error * torch.randn_like(value)
            for name, error in errors.items()
        }
        return replace(batch.gt, **disturbed).coefficients(batch.camera[batch.gt_rows])


def _targets(batch: FaceBatch, *, outline: Float[Tensor, "B S S"]) -> FitTargets:
    return FitTargets(
        crops=batch.images,
        mask=batch.mask,
        outline=outline,
        exposure=torch.ones_like(batch.mask[:, 0, 0]),
        camera=batch.camera,
        landmarks468_px=batch.gt_px,
        landmarks68_px=batch.landmarks68_px,
    )


@torch.no_grad()
def detail_batch(
    batch: FaceBatch, coefficients: FaceCoefficients, model: MorphableModel, atlas: TexelAtlas, *, layout: Layout
) -> DetailBatch:
    """Compute everything about a batch that does not depend on the detail network.

    Args:
        batch: The faces.
        coefficients: Their coarse reconstruction.
        model: Face model.
        atlas: UV map at the size of the detail maps.
        layout: Input layout of the network.
    """
    surface = build_surface(model, coefficients)
    masks = torch.stack([batch.mask, close_mask(batch.mask)], dim=1)
    unwrapped = unwrap_photo(
        atlas,
        surface,
        photo=torch.cat([batch.images, masks], dim=1),
        vertices_px=batch.camera.project(surface.vertices_camera),
        visibility=vertex_visibility(model, surface, batch.camera),
    )
    texels = texel_face(atlas, model, coefficients, surface)
    if layout == "texture":
        inputs = texture_inputs(texels, unwrapped)
    else:
        inputs = _image_inputs(batch, coefficients, model, size=len(atlas.triangle_ids))
    return DetailBatch(batch, (inputs,), coefficients, surface, texels, unwrapped)


def _image_inputs(
    batch: FaceBatch, coefficients: FaceCoefficients, model: MorphableModel, *, size: int
) -> Float[Tensor, "B 6 S S"]:
    """Photo and rendering of the coarse reconstruction side by side: the paper's input."""
    photos = resized(batch, size)
    return torch.cat([photos.images, render(model, coefficients, photos.camera).image], dim=1)


def close_mask(mask: Float[Tensor, "B S S"]) -> Float[Tensor, "B S S"]:
    """Close the small gaps of a mask (morphological closing with a square of `CLOSING_SHARE` of the side)."""
    radius = round(mask.shape[-1] * CLOSING_SHARE / 2)
    return -largest(-largest(mask[:, None], radius=radius), radius=radius)[:, 0]
