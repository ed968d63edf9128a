"""The base branch: what the encoder says of a crop, drawn and compared with the crop (eq. 4 to 7).

crop ── encoder ──► coefficients ── model, pose, camera ──► points ── eq. 5 (68 points, 468 points)
                    coefficients ── renderer ──► picture ── eq. 4 (pixels), eq. 6 (recognition)
                    coefficients ── against the truth of drawn faces (vertices, albedo, light, pose)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mien.camera import Camera
from mien.errors import ConfigError
from mien.fitting import mesh_point_weights
from mien.fitting.photometric import recognition_features
from mien.geometry import align_points
from mien.losses import identity_loss, landmark_loss, photometric_loss, prior_loss, span_distance_loss
from mien.morphable import FaceCoefficients, MorphableModel, landmark_vertices
from mien.networks import FaceEncoder, load_encoder
from mien.networks.backbones import load_imagenet
from mien.networks.crop_space import HEAD_UNITS, CropSpaceParameters
from mien.networks.encoder import extend_encoder
from mien.perception import IdentityNetwork
from mien.rendering import render
from mien.training.config import BaseLossSettings, EncoderSettings
from mien.training.contact_sheets import coarse_sheet
from mien.training.data.batch import FaceBatch, resized
from mien.training.objective import LossTerm, Metric
from mien.typing import Float, Tensor, UInt8

CENTIMETRES_PER_M = 100.0
EYE_CORNERS = (36, 45)
MEASURE_BATCH = 16


def make_encoder(settings: EncoderSettings, model: MorphableModel) -> FaceEncoder:
    """The network at the start of a run; raises what `load_imagenet` and `load_encoder` raise."""
    if settings.start:
        encoder = load_encoder(model, settings.start)
        if (encoder.backbone_name, encoder.image_size) != (settings.backbone, settings.image_size):
            raise ConfigError(
                f"{settings.start} is {encoder.backbone_name} at {encoder.image_size} px, and the configuration says "
                f"{settings.backbone} at {settings.image_size} px; make them agree."
            )
        if encoder.points is not None and not settings.points:
            raise ConfigError(f"{settings.start} sees points; set encoder.points = true.")
        if encoder.refiner is not None and not settings.refiner:
            raise ConfigError(f"{settings.start} takes a second look; set encoder.refiner = true.")
        if settings.points and (encoder.points is None or (settings.refiner and encoder.refiner is None)):
            encoder = extend_encoder(encoder, model, refiner=settings.refiner)
        encoder.requires_grad_(True)
        for layer in encoder.modules():
            if isinstance(layer, nn.Dropout):  # a file does not say how its network was trained
                layer.p = settings.dropout
    else:
        encoder = FaceEncoder(
            settings.backbone,
            model,
            image_size=settings.image_size,
            dropout=settings.dropout,
            points=settings.points,
            refiner=settings.refiner,
        )
        if settings.weights != "random":
            load_imagenet(encoder.backbone, settings.weights, sha256=settings.weights_sha256)
    encoder.practice = settings.refine_steps
    encoder.freeze(
        blocks=settings.frozen_blocks,
        batchnorm=settings.batchnorm == "frozen",
        refiner_only=settings.learn == "refiner",
    )
    return encoder


@dataclass(frozen=True)
class CoarseBatch:
    """Faces, and what the encoder sees of them."""

    faces: FaceBatch
    inputs: tuple[Tensor, ...]


class CoarseObjective:
    """The losses of the base branch; holds everything that is not trained."""

    def __init__(
        self,
        encoder: FaceEncoder,
        model: MorphableModel,
        *,
        weights: BaseLossSettings,
        recognition: IdentityNetwork | None,
        validation: FaceBatch,
        device: torch.device | None = None,
    ) -> None:
        """`validation` holds faces that no step sees; `recognition` may be None where its weight is 0."""
        if weights.recognition and recognition is None:
            raise ConfigError("loss.recognition is not 0, so the recognition network is needed.")
        device = device or torch.device("cpu")
        self.network, self.weights = encoder.to(device), weights
        self.model = model.to(device)
        self.recognition = None if recognition is None else recognition.to(device)
        self.validation = validation.to(device)
        self.point_weights = mesh_point_weights(self.model)
        shape = torch.cat([model.identity_basis, model.expression_basis]) * CENTIMETRES_PER_M
        face = (1 - model.masks.neck).sqrt()[:, None]
        self.shape_gram = _gram(beyond_similarity(shape * face, model.mean, weights=face))
        self.albedo_gram = _gram(model.albedo_basis * face)

    def prepare(self, batch: FaceBatch) -> CoarseBatch:
        """The crops and, for an encoder with points, what perception found in them."""
        return CoarseBatch(batch, self.network.inputs(batch.images, batch.camera, landmarks468_px=batch.detected_px))

    def losses(self, said: dict[str, Tensor], prepared: CoarseBatch, *, progress: float) -> list[LossTerm]:
        """All terms of non-zero weight; their means over the answers where the network answered several times."""
        count = len(prepared.faces.images)
        answers = zip(*(said[name].split(count) for name in HEAD_UNITS), strict=True)
        several = [
            self._losses_of(
                self.network.regression(dict(zip(HEAD_UNITS, answer, strict=True))), prepared.faces, progress
            )
            for answer in answers
        ]
        return [
            LossTerm(same[0].name, same[0].weight, torch.stack([term.value for term in same]).mean())
            for same in zip(*several, strict=True)
        ]

    def _losses_of(self, regression: CropSpaceParameters, batch: FaceBatch, progress: float) -> list[LossTerm]:
        coefficients = regression.coefficients(batch.camera)
        terms = [
            *self._point_terms(coefficients, batch),
            *self._render_terms(coefficients, batch, progress),
            *self._priors(regression, coefficients),
            *self._supervised(regression, batch),
        ]
        return [term for term in terms if term.weight]

    def _point_terms(self, coefficients: FaceCoefficients, batch: FaceBatch) -> list[LossTerm]:
        """Eq. 5 in halves of the crop's side."""
        vertices = coefficients.pose.to_camera(self.model.vertices(coefficients.identity, coefficients.expression))
        unit = batch.images.shape[-1] / 2
        vertices_px = batch.camera.project(vertices)
        mesh = batch.camera.project(self.model.mediapipe_points(vertices))
        chosen = landmark_vertices(self.model, vertices_px.detach(), coefficients.pose.rotmat().detach())
        landmarks = vertices_px.gather(1, chosen[..., None].expand(-1, -1, 2))
        equal = torch.ones_like(landmarks[..., 0])
        return [
            LossTerm(
                "landmark",
                self.weights.landmark,
                landmark_loss(landmarks / unit, batch.landmarks68_px / unit, weights=equal),
            ),
            LossTerm(
                "points",
                self.weights.points,
                landmark_loss(mesh / unit, batch.gt_px / unit, weights=self.point_weights.expand(len(mesh), -1)),
            ),
        ]

    def _render_terms(self, coefficients: FaceCoefficients, batch: FaceBatch, progress: float) -> list[LossTerm]:
        """Eq. 4 and 6, of the photographed faces; of all where there are no others."""
        weights = self.weights
        if progress < weights.render_from or not (weights.pixel or weights.recognition):
            return []
        shown = slice(0, batch.photographed or len(batch.images))
        photos = resized(batch, weights.render_size)
        drawn = render(self.model, coefficients[shown], photos.camera[shown])
        images, mask, landmarks = photos.images[shown], photos.mask[shown], photos.landmarks68_px[shown]
        terms = [
            LossTerm("pixel", weights.pixel, photometric_loss(drawn.image, images, mask=mask * drawn.coverage.detach()))
        ]
        if weights.recognition and self.recognition is not None:
            with torch.no_grad():
                seen = self.recognition(self.recognition.crop(images, landmarks))
            made = recognition_features(self.recognition, drawn, photos=images, mask=mask, landmarks68_px=landmarks)
            terms.append(LossTerm("recognition", weights.recognition, identity_loss(made, seen)))
        return terms

    def _priors(self, regression: CropSpaceParameters, coefficients: FaceCoefficients) -> list[LossTerm]:
        light = coefficients.lighting
        colour = (light - light.mean(-1, keepdim=True)).flatten(1)
        return [
            LossTerm("identity_prior", self.weights.identity_prior, prior_loss(regression.identity)),
            LossTerm(
                "expression_prior",
                self.weights.expression_prior,
                prior_loss(regression.expression / HEAD_UNITS["expression"]),
            ),
            LossTerm("albedo_prior", self.weights.albedo_prior, prior_loss(regression.albedo)),
            LossTerm("lighting_prior", self.weights.lighting_prior, prior_loss(colour / HEAD_UNITS["lighting"])),
        ]

    def _supervised(self, regression: CropSpaceParameters, batch: FaceBatch) -> list[LossTerm]:
        """Distances to the truth, of the drawn faces."""
        gt, weights = batch.gt, self.weights
        if gt is None:
            return []
        found = regression[slice(batch.photographed, None)]
        shape = torch.cat([found.identity - gt.identity, found.expression - gt.expression], dim=1)
        return [
            LossTerm("vertices", weights.vertices, span_distance_loss(shape, self.shape_gram)),
            LossTerm(
                "vertex_albedo",
                weights.vertex_albedo,
                span_distance_loss(found.albedo - gt.albedo, self.albedo_gram),
            ),
            LossTerm("lighting", weights.lighting, _unit_distance(found, gt, ("lighting",))),
            LossTerm("pose", weights.pose, _unit_distance(found, gt, ("rotation", "translation", "scale"))),
            LossTerm("coefficients", weights.coefficients, _unit_distance(found, gt, ("identity", "expression"))),
        ]

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> list[Metric]:
        """Errors on the validation faces; of shape, also those of the mean face."""
        batch = self.validation
        regression = self._regress(network, batch)
        coefficients = regression.coefficients(batch.camera)
        figures = [Metric("points", self._point_error(coefficients, batch), "% of the eyes' distance")]
        if batch.gt is not None:
            drawn = slice(batch.photographed, None)
            gt = batch.gt
            right = self.model.vertices(gt.identity, gt.expression.clamp(0, 1))
            found = self.model.vertices(coefficients[drawn].identity, coefficients[drawn].expression)
            mean = self.model.mean.expand_as(right)
            figures += [
                Metric("vertices", aligned_distance_mm(found, right, model=self.model), "mm"),
                Metric("vertices of the mean face", aligned_distance_mm(mean, right, model=self.model), "mm"),
            ]
        return figures

    def _regress(self, network: nn.Module, batch: FaceBatch) -> CropSpaceParameters:
        inputs = self.prepare(batch).inputs
        parts = [network(*part) for part in zip(*(whole.split(MEASURE_BATCH) for whole in inputs), strict=True)]
        return self.network.regression({name: torch.cat([part[name] for part in parts]) for name in HEAD_UNITS})

    def _point_error(self, coefficients: FaceCoefficients, batch: FaceBatch) -> float:
        found = landmarks68(self.model, coefficients, batch.camera)
        eyes = (batch.landmarks68_px[:, EYE_CORNERS[0]] - batch.landmarks68_px[:, EYE_CORNERS[1]]).norm(dim=-1)
        distances = (found - batch.landmarks68_px).norm(dim=-1)[:, 17:].mean(1)
        return float((distances / eyes.clamp(min=1)).mean() * 100)

    @torch.no_grad()
    def visualize(self, network: nn.Module) -> UInt8[np.ndarray, "H W 3"]:
        """Crop, overlay, geometry, albedo and shading of the first validation faces."""
        coefficients = self._regress(network, self.validation).coefficients(self.validation.camera)
        return coarse_sheet(self.model, self.validation, coefficients)


def landmarks68(model: MorphableModel, coefficients: FaceCoefficients, camera: Camera) -> Float[Tensor, "B 68 2"]:
    """Where the model's 68 points appear."""
    vertices = coefficients.pose.to_camera(model.vertices(coefficients.identity, coefficients.expression))
    vertices_px = camera.project(vertices)
    chosen = landmark_vertices(model, vertices_px, coefficients.pose.rotmat())
    return vertices_px.gather(1, chosen[..., None].expand(-1, -1, 2))


def aligned_distance_mm(
    found: Float[Tensor, "B V 3"], right: Float[Tensor, "B V 3"], *, model: MorphableModel
) -> float:
    """Mean distance of corresponding vertices of the face after the best similarity, millimetres."""
    face = (1 - model.masks.neck) > 0.5
    found, right = found[:, face], right[:, face]
    return float((align_points(found, right)(found) - right).norm(dim=-1).mean() * 1000)


def _unit_distance(found: CropSpaceParameters, gt: CropSpaceParameters, names: Sequence[str]) -> Float[Tensor, ""]:
    """Mean absolute difference in the units of the heads, each head counting the same."""
    parts = [(getattr(found, name) - getattr(gt, name)).abs().mean() / HEAD_UNITS[name] for name in names]
    return torch.stack(parts).mean()


def beyond_similarity(
    basis: Float[Tensor, "K V 3"], mean: Float[Tensor, "V 3"], *, weights: Float[Tensor, "V 1"]
) -> Float[Tensor, "K V 3"]:
    """What of a basis is no small shift, turn or growth of the whole face; basis and similarity are both weighted.

    One picture says nothing of a face's absolute size, and its place belongs to the pose.
    """
    centred = mean - (mean * weights**2).sum(0) / (weights**2).sum()
    axes = torch.eye(3).to(mean)
    turns = [torch.linalg.cross(axis.expand_as(centred), centred) for axis in axes]
    moves = torch.stack([*(axis.expand_as(centred) for axis in axes), *turns, centred]) * weights
    frame = torch.linalg.qr(moves.flatten(1).T.double()).Q.to(basis)
    flat = basis.flatten(1)
    return (flat - (flat @ frame) @ frame.T).view_as(basis)


def _gram(basis: Float[Tensor, "K V 3"]) -> Float[Tensor, "K K"]:
    flat = basis.flatten(1)
    return flat @ flat.mT / basis.shape[1]
