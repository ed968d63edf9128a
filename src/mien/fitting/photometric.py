"""The energy of the photometric fit: the losses of the paper (eq. 4 to 7) as negative log-likelihoods."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from mien.fitting.contour import ContourMesh, contour_energy
from mien.fitting.depth import depth_px, plane_basis, without_plane
from mien.fitting.identity_prior import identity_precision
from mien.fitting.lids import LidGaps
from mien.fitting.lighting import expected_light, light_precision
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import COLOUR_ROBUST_SCALE_SQ, ROBUST_SCALE_SQ, FitSettings, FitTargets
from mien.losses import geman_mcclure, identity_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.rendering import RenderOutput, render, sample_image
from mien.typing import Float, Tensor

EFFECTIVE_PIXELS = 250.0
"""Number of independent colour errors in a face; see `lighting.EFFECTIVE_SAMPLES`. On photos with scans 150 and 400 had
larger errors."""


@dataclass(frozen=True)
class EnergyTerms:
    """Terms of the energy that the photometric fit minimises, each summed over the faces of the batch."""

    colour: Float[Tensor, ""]
    """Eq. 4: colour error of the pixels."""
    landmarks: Float[Tensor, ""]
    """Eq. 5 on MediaPipe's points."""
    depth: Float[Tensor, ""]
    """Depth of MediaPipe's points, see `mien.fitting.depth`; zero where it is unknown."""
    lids: Float[Tensor, ""]
    """Distance between upper and lower lid, see `mien.fitting.lids`."""
    contour: Float[Tensor, ""]
    """Distance of the occluding contour from that of the photo, see `mien.fitting.contour`."""
    identity_prior: Float[Tensor, ""]
    """Gaussian prior of the identity coefficients, see `mien.fitting.identity_prior`."""
    prediction: Float[Tensor, ""]
    """Distance of the identity from the prediction of a network, see `mien.fitting.prediction`; zero without one."""
    expression_prior: Float[Tensor, ""]
    """Gaussian prior of the expression coefficients."""
    albedo_prior: Float[Tensor, ""]
    """Gaussian prior of the albedo coefficients."""
    light_prior: Float[Tensor, ""]
    """Gaussian prior of the light, around white light of the photo's exposure."""
    recognition: Float[Tensor, ""]
    """Eq. 6; zero without a recognition network."""

    def total(self) -> Float[Tensor, ""]:
        """Sum of the terms."""
        return sum((getattr(self, field.name) for field in fields(self)), start=torch.zeros_like(self.colour))

    def person(self) -> Float[Tensor, ""]:
        """Terms of identity and albedo alone, which several photos of one person have in common."""
        return self.identity_prior + self.prediction + self.albedo_prior


class PhotometricEnergy:
    """Negative log-likelihood of faces given their photos, up to a constant.

    Args:
        model: The morphable model.
        targets: Photos, masks, landmarks and cameras.
        settings: Standard deviations and weights of the terms.
        point_weights: Weight of each of MediaPipe's points, see `mesh_point_weights`.
        recognition: Network of eq. 6; None leaves the term out.
        prediction: Identities that a network predicts; None leaves the term out.
    """

    def __init__(
        self,
        model: MorphableModel,
        targets: FitTargets,
        *,
        settings: FitSettings,
        point_weights: Float[Tensor, "B 468"],
        recognition: IdentityNetwork | None = None,
        prediction: PredictedIdentity | None = None,
    ) -> None:
        self.model, self.targets, self.settings, self.point_weights = model, targets, settings, point_weights
        self.recognition, self.prediction = recognition, prediction
        self.photo_features = None if recognition is None else _photo_features(targets, recognition)
        self.light_precision = light_precision(settings.light_priors).to(targets.crops)
        self.contour = ContourMesh.of(model)
        self.planes = plane_basis(targets.landmarks468_px)
        self.identity_precision = identity_precision(model, sigma=settings.identity_sigma)
        self.expression_sigmas = settings.expression_sigmas(model)
        self.lids = LidGaps.of(targets.landmarks468_px, sigma=settings.lid_sigma)

    def render(self, coefficients: FaceCoefficients) -> RenderOutput:
        """Render the faces with the cameras of the photos."""
        return render(self.model, coefficients, self.targets.camera)

    def terms(self, coefficients: FaceCoefficients, rendered: RenderOutput) -> EnergyTerms:
        """Compare rendered faces with the photos.

        Args:
            coefficients: The faces.
            rendered: Their rendering.

        Returns:
            The terms; differentiable in coefficients and rendering.
        """
        settings = self.settings
        return EnergyTerms(
            colour=self._colour_energy(rendered),
            landmarks=self._landmark_energy(rendered),
            depth=self._depth_energy(rendered),
            lids=self._lid_energy(rendered),
            contour=contour_energy(self.contour, rendered, self.targets, settings),
            identity_prior=0.5 * ((coefficients.identity @ self.identity_precision) * coefficients.identity).sum(),
            prediction=self._prediction_energy(coefficients.identity),
            expression_prior=0.5 * (coefficients.expression / self.expression_sigmas).square().sum(),
            albedo_prior=0.5 * coefficients.albedo.square().sum(),
            light_prior=self._light_prior(coefficients.lighting),
            recognition=self._recognition(rendered),
        )

    def _landmark_energy(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        """Eq. 5 on the dense points, squared: near the solution their errors are Gaussian."""
        points = self.model.mediapipe_points(rendered.surface.vertices_camera)
        predicted = self.targets.camera.project(points)
        sigma_px = self.settings.landmark_sigma * self.targets.extent_px[:, None]
        squared = ((predicted - self.targets.landmarks468_px) ** 2).sum(-1) / sigma_px**2
        return 0.5 * geman_mcclure(squared, scale_sq=ROBUST_SCALE_SQ, weights=self.point_weights).sum()

    def _lid_energy(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        points = self.model.mediapipe_points(rendered.surface.vertices_camera)
        return 0.5 * self.lids.residuals(self.targets.camera.project(points)).square().sum()

    def _depth_energy(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        """Depths of the dense points after the best plane is removed."""
        errors = self.depth_errors(self.model.mediapipe_points(rendered.surface.vertices_camera))
        if errors is None:
            return rendered.image.new_zeros(())
        sigma_px = self.settings.depth_sigma * self.targets.extent_px[:, None]
        squared = errors**2 / sigma_px**2
        return 0.5 * geman_mcclure(squared, scale_sq=ROBUST_SCALE_SQ, weights=self.point_weights).sum()

    def _prediction_energy(self, identity: Float[Tensor, "B I"]) -> Float[Tensor, ""]:
        return identity.new_zeros(()) if self.prediction is None else self.prediction.energy(identity)

    def depth_errors(self, points: Float[Tensor, "B 468 3"]) -> Float[Tensor, "B 468"] | None:
        """Differences from the depths of the photo after the best plane is removed, pixels; None if it has no depths.

        Args:
            points: MediaPipe's points on the faces, camera space; the errors are differentiable in them.
        """
        if self.targets.landmarks468_depth_px is None:
            return None
        return self.without_plane(depth_px(points, self.targets.camera) - self.targets.landmarks468_depth_px)

    def without_plane(self, values: Float[Tensor, "B 468 *C"]) -> Float[Tensor, "B 468 *C"]:
        """Values at MediaPipe's points of the photos minus their least-squares plane."""
        return without_plane(values, self.planes)

    @functools.cached_property
    def photo_gradient(self) -> Float[Tensor, "B 3 2 H W"]:
        """Derivative of the photos by x and y: central differences after a mean over 3 × 3 pixels."""
        smooth = F.avg_pool2d(F.pad(self.targets.crops, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
        along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        return torch.stack([along_x, along_y], dim=2)

    def pixel_weights(self, rendered: RenderOutput) -> Float[Tensor, "B H W"]:
        """Weight of each pixel in eq. 4: the mask of the photo within the rendering."""
        return self.targets.mask * rendered.coverage

    def _colour_energy(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        """Eq. 4 as a robust negative log-likelihood of the colour errors of masked pixels."""
        weight = self.pixel_weights(rendered)
        squared = ((rendered.image - self.targets.crops) ** 2).sum(1) / self.settings.pixel_sigma**2
        robust = geman_mcclure(squared, scale_sq=COLOUR_ROBUST_SCALE_SQ)
        per_face = (robust * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
        return 0.5 * EFFECTIVE_PIXELS * per_face.sum()

    def _light_prior(self, lighting: Float[Tensor, "B 9 3"]) -> Float[Tensor, ""]:
        """Gaussian prior around white light of the photo's exposure."""
        difference = lighting.mT.flatten(1) - expected_light(self.targets.exposure)
        return 0.5 * ((difference @ self.light_precision) * difference).sum()

    def _recognition(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        if self.recognition is None or self.photo_features is None:
            return rendered.image.new_zeros(())
        features = recognition_features(
            self.recognition,
            rendered,
            photos=self.targets.crops,
            mask=self.targets.mask,
            landmarks68_px=self.targets.landmarks68_px,
        )
        # Eq. 6 is a mean over faces; the energy is a sum.
        return self.settings.recognition_weight * len(features) * identity_loss(features, self.photo_features)


def photometric_error(rendered: RenderOutput, targets: FitTargets) -> Float[Tensor, "B"]:
    """Root mean square colour error over the pixels of mask and rendering, per face."""
    weight = targets.mask * rendered.coverage
    squared = ((rendered.image.clamp(0, 1) - targets.crops) ** 2).mean(1)
    return ((squared * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).sqrt()


def recognition_features(
    network: IdentityNetwork,
    rendered: RenderOutput,
    *,
    photos: Float[Tensor, "B 3 H W"],
    mask: Float[Tensor, "B H W"],
    landmarks68_px: Float[Tensor, "B 68 2"],
) -> Float[Tensor, "B 128"]:
    """Recognition features of the rendered face in front of the background of its photo (eq. 6 compares masked images).

    Args:
        network: The recognition network.
        rendered: The rendered faces.
        photos: The photo of each face.
        mask: Probability that a pixel of the photo shows skin; elsewhere the photo is kept.
        landmarks68_px: iBUG points of the photo, pixels.

    Returns:
        Features per face; differentiable in the rendering.
    """
    alpha = rendered.coverage[:, None] * mask[:, None]
    composed = rendered.image.clamp(0, 1) * alpha + photos * (1 - alpha)
    return network(network.crop(composed, landmarks68_px))


def _photo_features(targets: FitTargets, network: IdentityNetwork) -> Float[Tensor, "B 128"]:
    with torch.no_grad():
        return network(network.crop(targets.crops, targets.landmarks68_px))


def sample_vertex_colours(
    rendered: RenderOutput, targets: FitTargets
) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B V"]]:
    """Sample photo and mask at the projected vertices.

    Args:
        rendered: The rendered faces, of which the projected vertices are used.
        targets: Photos and masks.

    Returns:
        Colour and mask value per vertex.
    """
    both = torch.cat([targets.crops, targets.mask[:, None]], dim=1)
    sampled = sample_image(both, rendered.vertices_px)
    return sampled[..., :3], sampled[..., 3]
