"""The encoder's objective: its prediction is compared with the crop and with ground truth (eq. 4 to 7).

crop ── encoder ──► coefficients ── model, pose, camera ──► points ── eq. 5 (68 landmarks, 468 points)
                    coefficients ── renderer ──► image ── eq. 4 (photometric), eq. 6 (identity)
                    coefficients ── ground truth of synthetic faces (vertices, albedo, lighting, pose)
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
from mien.losses import landmark_loss, photometric_loss, prior_loss, span_distance_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import IBUG_INNER, IBUG_OUTER_EYE_CORNERS
from mien.networks import FaceEncoder
from mien.networks.crop_space import HEAD_UNITS, CropSpaceParameters
from mien.perception import IdentityNetwork
from mien.rendering import RenderOutput, render
from mien.training.config import CoarseLossSettings
from mien.training.contact_sheets import coarse_sheet
from mien.training.data.batch import FaceBatch, resized
from mien.training.image_terms import KeptFeatures, identity_term, landmark_term, landmarks_of_vertices
from mien.training.objective import LossTerm, Metric
from mien.training.shape_distance import albedo_gram, aligned_distance_mm, shape_gram
from mien.typing import Float, Tensor, UInt8

EVALUATION_BATCH = 16


@dataclass(frozen=True)
class CoarseBatch:
    """Faces and the encoder's inputs."""

    faces: FaceBatch
    inputs: tuple[Tensor, ...]


class CoarseObjective:
    """Losses and metrics of the encoder. Implements `Objective`.

    Args:
        encoder: The network that is trained.
        model: The encoder's face model, on the encoder's device.
        weights: Weights of the losses.
        recognition: Network for the identity loss, on the same device; may be None if that loss has weight 0.
        refine_steps: Number of refinement steps in training; each gets all losses.
        evaluation_modules: Modules of the encoder that stay in evaluation mode.
        same_photos: Whether the rendered faces of the batches are photos that never change, so that their recognition
            features are computed once.

    Raises:
        ConfigError: The identity loss has a weight, and `recognition` is None.
    """

    def __init__(
        self,
        encoder: FaceEncoder,
        model: MorphableModel,
        *,
        weights: CoarseLossSettings,
        recognition: IdentityNetwork | None,
        refine_steps: int = 1,
        evaluation_modules: Sequence[nn.Module] = (),
        same_photos: bool = False,
    ) -> None:
        if weights.identity and recognition is None:
            raise ConfigError(
                f"loss.identity={weights.identity} needs the recognition network; pass one, or set loss.identity to 0."
            )
        self.network, self.model, self.weights, self.recognition = encoder, model, weights, recognition
        self.refine_steps, self.evaluation_modules = refine_steps, tuple(evaluation_modules)
        self.features = KeptFeatures(recognition) if recognition is not None and same_photos else None
        self.point_weights = mesh_point_weights(model)
        self.shape_gram, self.albedo_gram = shape_gram(model), albedo_gram(model)

    def train_mode(self) -> None:
        """Put the encoder into training mode, except for `evaluation_modules`."""
        self.network.train()
        for module in self.evaluation_modules:
            module.eval()

    def prepare(self, batch: FaceBatch) -> CoarseBatch:
        """Compute the encoder's inputs: crops, detected points and the start of the refiner, if it needs them.

        Raises:
            ConfigError: The refiner starts from the landmarks, and faces have no landmark fit.
        """
        inputs = self.network.inputs(batch.images, batch.camera, landmarks468_px=batch.detected_px)
        if self.network.refine_from == "landmarks":
            if batch.landmark_fits is None:
                raise ConfigError(
                    "encoder.refine_from='landmarks' needs photos with fits; run `mien data fit`, and set data.fits."
                )
            inputs = (*inputs, self.network.start_of(batch.landmark_fits))
        return CoarseBatch(batch, inputs)

    def predict(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> list[dict[str, Tensor]]:
        """Predict once per refinement step, see `FaceEncoder.forward`."""
        return network(*inputs, refine_steps=self.refine_steps)

    def losses(self, prediction: list[dict[str, Tensor]], prepared: CoarseBatch, *, progress: float) -> list[LossTerm]:
        """Compute all losses of non-zero weight, each as the mean over the refinement steps; differentiable."""
        steps = [
            self._losses_of_step(self.network.parameters_of(step), prepared.faces, progress) for step in prediction
        ]
        return [
            LossTerm(terms[0].name, terms[0].weight, torch.stack([term.value for term in terms]).mean())
            for terms in zip(*steps, strict=True)
        ]

    def _losses_of_step(self, pred: CropSpaceParameters, batch: FaceBatch, progress: float) -> list[LossTerm]:
        coefficients = pred.coefficients(batch.camera)
        terms = [
            *self._image_terms(coefficients, batch, progress),
            *self._priors(pred, coefficients),
            *self._person_terms(pred, batch),
            *self._supervised(pred, batch),
        ]
        return [term for term in terms if term.weight]

    def _image_terms(self, coefficients: FaceCoefficients, batch: FaceBatch, progress: float) -> list[LossTerm]:
        """Eq. 4 to 6. Faces are rendered if photos of the batch, or all faces of a batch without photos, need it."""
        weights, count = self.weights, batch.photo_count or len(batch.images)
        if progress < weights.render_from or not (weights.photometric or weights.identity):
            return self._point_terms(coefficients, self._vertices(coefficients), batch)
        small = resized(batch, weights.render_size)
        rendered = render(self.model, coefficients[:count], small.camera[:count])
        vertices = [rendered.surface.vertices_camera]
        if count < len(batch.images):
            vertices.append(self._vertices(coefficients[count:]))
        points = self._point_terms(coefficients, torch.cat(vertices), batch)
        return [*points, *self._render_terms(rendered, small, count)]

    def _vertices(self, coefficients: FaceCoefficients) -> Float[Tensor, "B V 3"]:
        return coefficients.pose.to_camera(self.model.vertices(coefficients.identity, coefficients.expression))

    def _point_terms(
        self, coefficients: FaceCoefficients, vertices: Float[Tensor, "B V 3"], batch: FaceBatch
    ) -> list[LossTerm]:
        """Eq. 5 in halves of the crop's side, on 68 landmarks and on 468 points; vertices in camera space."""
        landmarks = landmarks_of_vertices(self.model, batch.camera.project(vertices), coefficients.pose.rotmat())
        unit = batch.images.shape[-1] / 2
        mesh = batch.camera.project(self.model.mediapipe_points(vertices))
        weights = self.point_weights.expand(len(mesh), -1)
        return [
            LossTerm("landmark", self.weights.landmark, landmark_term(landmarks, batch)),
            LossTerm("points", self.weights.points, landmark_loss(mesh / unit, batch.gt_px / unit, weights=weights)),
        ]

    def _render_terms(self, rendered: RenderOutput, batch: FaceBatch, count: int) -> list[LossTerm]:
        """Eq. 4 and 6 on the first faces of the batch."""
        images, mask, landmarks = batch.images[:count], batch.mask[:count], batch.landmarks68_px[:count]
        value = photometric_loss(rendered.image, images, mask=mask * rendered.coverage.detach())
        terms = [LossTerm("photometric", self.weights.photometric, value)]
        if self.weights.identity and self.recognition is not None:
            known = None if self.features is None else self.features(batch.names[:count], images, landmarks)
            value = identity_term(
                self.recognition, rendered, images=images, mask=mask, landmarks68_px=landmarks, photo_features=known
            )
            terms.append(LossTerm("identity", self.weights.identity, value))
        return terms

    def _priors(self, pred: CropSpaceParameters, coefficients: FaceCoefficients) -> list[LossTerm]:
        light, weights = coefficients.lighting, self.weights
        colour = (light - light.mean(-1, keepdim=True)).flatten(1)
        expression = pred.expression / HEAD_UNITS["expression"]
        return [
            LossTerm("identity_prior", weights.identity_prior, prior_loss(pred.identity)),
            LossTerm("expression_prior", weights.expression_prior, prior_loss(expression)),
            LossTerm("albedo_prior", weights.albedo_prior, prior_loss(pred.albedo)),
            LossTerm("lighting_prior", weights.lighting_prior, prior_loss(colour / HEAD_UNITS["lighting"])),
        ]

    def _person_terms(self, pred: CropSpaceParameters, batch: FaceBatch) -> list[LossTerm]:
        """Distances of photos of one person from what they have in common."""
        weights, count = self.weights, pred.identity.shape[1]
        if not (weights.person_shape or weights.person_albedo):
            return []
        shape, albedo = (from_person_mean(values, batch.people) for values in (pred.identity, pred.albedo))
        gram = self.shape_gram[:count, :count]
        return [
            LossTerm("person_shape", weights.person_shape, span_distance_loss(shape, gram)),
            LossTerm("person_albedo", weights.person_albedo, span_distance_loss(albedo, self.albedo_gram)),
        ]

    def _supervised(self, pred: CropSpaceParameters, batch: FaceBatch) -> list[LossTerm]:
        """Distances to the ground truth of the synthetic faces."""
        gt, weights = batch.gt, self.weights
        if gt is None:
            return []
        pred = pred[batch.gt_rows]
        shape = torch.cat([pred.identity - gt.identity, pred.expression - gt.expression], dim=1)
        albedo = span_distance_loss(pred.albedo - gt.albedo, self.albedo_gram)
        return [
            LossTerm("vertices", weights.vertices, span_distance_loss(shape, self.shape_gram)),
            LossTerm("vertex_albedo", weights.vertex_albedo, albedo),
            LossTerm("lighting", weights.lighting, _unit_distance(pred, gt, ("lighting",))),
            LossTerm("pose", weights.pose, _unit_distance(pred, gt, ("rotation", "translation", "scale"))),
            LossTerm("coefficients", weights.coefficients, _unit_distance(pred, gt, ("identity", "expression"))),
        ]

    @torch.no_grad()
    def evaluate(self, network: nn.Module, faces: FaceBatch) -> list[Metric]:
        """Measure point errors and, for synthetic faces, vertex errors of network and mean face.

        The network predicts once, with one refinement step and without the mirror image.
        """
        pred = self._predicted(network, faces)
        coefficients = pred.coefficients(faces.camera)
        metrics = [Metric("points", self._point_error(coefficients, faces), "% of the eyes' distance")]
        if faces.gt is not None:
            synthetic = coefficients[faces.gt_rows]
            gt = self.model.vertices(faces.gt.identity, faces.gt.expression.clamp(0, 1))
            vertices = self.model.vertices(synthetic.identity, synthetic.expression)
            mean = self.model.mean.expand_as(gt)
            metrics += [
                Metric("vertices", aligned_distance_mm(vertices, gt, model=self.model), "mm"),
                Metric("vertices of the mean face", aligned_distance_mm(mean, gt, model=self.model), "mm"),
            ]
        return metrics

    def _predicted(self, network: nn.Module, batch: FaceBatch) -> CropSpaceParameters:
        inputs = self.prepare(batch).inputs
        parts = zip(*(whole.split(EVALUATION_BATCH) for whole in inputs), strict=True)
        return CropSpaceParameters.join([self.network.parameters_of(network(*part)[-1]) for part in parts])

    def _point_error(self, coefficients: FaceCoefficients, batch: FaceBatch) -> float:
        """Mean distance of the landmarks without the jaw, in % of the distance of the outer eye corners."""
        found = landmarks68(self.model, coefficients, batch.camera)
        right, left = batch.landmarks68_px[:, list(IBUG_OUTER_EYE_CORNERS)].unbind(1)
        eyes = (right - left).norm(dim=-1)
        distances = (found - batch.landmarks68_px).norm(dim=-1)[:, IBUG_INNER].mean(1)
        return float((distances / eyes.clamp(min=1)).mean() * 100)

    @torch.no_grad()
    def visualize(self, network: nn.Module, faces: FaceBatch) -> UInt8[np.ndarray, "H W 3"]:
        """Draw crop, points, overlay, geometry, albedo and shading of the first faces."""
        coefficients = self._predicted(network, faces).coefficients(faces.camera)
        return coarse_sheet(self.model, faces, coefficients)


def from_person_mean(values: Float[Tensor, "B K"], people: Sequence[str]) -> Float[Tensor, "P K"]:
    """Differences between the photos of a person and their mean; differentiable.

    Args:
        values: Predicted coefficients.
        people: Who each face is; "" for nobody known. May be empty.

    Returns:
        A row for each face of a person with several photos; one row of zeros if there is no such person.
    """
    rows: dict[str, list[int]] = {}
    for row, person in enumerate(people):
        if person:
            rows.setdefault(person, []).append(row)
    groups = [values[group] for group in rows.values() if len(group) > 1]
    return torch.cat([group - group.mean(0) for group in groups]) if groups else 0 * values[:1]


def landmarks68(model: MorphableModel, coefficients: FaceCoefficients, camera: Camera) -> Float[Tensor, "B 68 2"]:
    """Project the model's 68 landmarks, pixels; differentiable.

    Args:
        model: Face model of the coefficients.
        coefficients: Faces with metric poses.
        camera: One camera per face.
    """
    vertices = coefficients.pose.to_camera(model.vertices(coefficients.identity, coefficients.expression))
    return landmarks_of_vertices(model, camera.project(vertices), coefficients.pose.rotmat())


def _unit_distance(pred: CropSpaceParameters, gt: CropSpaceParameters, names: Sequence[str]) -> Float[Tensor, ""]:
    """Mean absolute difference in the units of the heads; each head counts the same."""
    parts = [(getattr(pred, name) - getattr(gt, name)).abs().mean() / HEAD_UNITS[name] for name in names]
    return torch.stack(parts).mean()
