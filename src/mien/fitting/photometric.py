"""The photometric fit: gradient descent on all coefficients together, with the losses of the paper (eq. 4 to 7).

The landmark fit puts the face in place. What remains is what landmarks do not show: the shape between them, and its
shading. Adam works here because all unknowns are scaled to a standard deviation of about 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from mien.camera import Pose
from mien.errors import FitDiverged
from mien.fitting.contour import ContourMesh, contour_energy
from mien.fitting.depth import depth_px, plane_basis, without_plane
from mien.fitting.lighting import expected_light, light_precision
from mien.fitting.optimizer import CosineAdam
from mien.fitting.problem import ROBUST_SCALE_SQ, FitSettings, FitTargets
from mien.losses import geman_mcclure, identity_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.rendering import RenderOutput, render, sample_image
from mien.typing import Float, Tensor

REACH, LONGEST_STEP = 4.0, 0.12
"""Distance in standard deviations that an unknown can move in all steps at their first length, and in one step. With
steps of one fixed length, a short descent would leave the colours where they began."""
EFFECTIVE_PIXELS = 400.0
"""Number of independent colour errors in a face; see `lighting.EFFECTIVE_SAMPLES`."""
RECOGNITION_FROM = 0.5
"""The recognition term joins after this share of the steps. It costs as much as all other terms together, and its
gradient is of little use far from the solution."""
DEPTH_STEP_SHARE = 0.01
"""Relative change of the depth per unit of its unknown."""
ROTATION_STEP_RAD = 0.05
"""Rotation per unit of its unknown."""
FACE_SIZE_M = 0.15
"""Scale of the lateral steps: one unit moves the face by its own width times `DEPTH_STEP_SHARE`."""


@dataclass(frozen=True)
class EnergyTerms:
    """Terms of the energy that the photometric fit minimises, each summed over the faces of the batch."""

    colour: Float[Tensor, ""]
    """Eq. 4: colour error of the pixels."""
    landmarks: Float[Tensor, ""]
    """Eq. 5 on MediaPipe's points."""
    depth: Float[Tensor, ""]
    """Depth of MediaPipe's points, see `mien.fitting.depth`; zero where it is unknown."""
    contour: Float[Tensor, ""]
    """Distance of the occluding contour from that of the photo, see `mien.fitting.contour`."""
    identity_prior: Float[Tensor, ""]
    """Gaussian prior of the identity coefficients."""
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


class PhotometricEnergy:
    """Negative log-likelihood of faces given their photos, up to a constant.

    Args:
        model: The morphable model.
        targets: Photos, masks, landmarks and cameras.
        settings: Standard deviations and weights of the terms.
        point_weights: Weight of each of MediaPipe's points, see `mesh_point_weights`.
        recognition: Network of eq. 6; None leaves the term out.
    """

    def __init__(
        self,
        model: MorphableModel,
        targets: FitTargets,
        *,
        settings: FitSettings,
        point_weights: Float[Tensor, "B 468"],
        recognition: IdentityNetwork | None = None,
    ) -> None:
        self.model, self.targets, self.settings, self.point_weights = model, targets, settings, point_weights
        self.recognition = recognition
        self.photo_features = None if recognition is None else _photo_features(targets, recognition)
        self.light_precision = light_precision(settings.light_priors).to(targets.crops)
        self.contour = ContourMesh.of(model)
        self.planes = plane_basis(targets.landmarks468_px)

    def terms(self, coefficients: FaceCoefficients, *, with_recognition: bool) -> EnergyTerms:
        """Render the faces and compare them with the photos.

        Args:
            coefficients: The faces.
            with_recognition: Whether to compute the recognition term, the most expensive one.

        Returns:
            The terms; differentiable in the coefficients.
        """
        settings, rendered = self.settings, render(self.model, coefficients, self.targets.camera)
        expression_sigma = settings.expression_sigma_of(self.model)
        return EnergyTerms(
            colour=_colour_energy(rendered, self.targets, sigma=settings.pixel_sigma),
            landmarks=self._landmark_energy(rendered),
            depth=self._depth_energy(rendered),
            contour=contour_energy(self.contour, rendered, self.targets, settings),
            identity_prior=0.5 * (coefficients.identity / settings.identity_sigma).square().sum(),
            expression_prior=0.5 * (coefficients.expression / expression_sigma).square().sum(),
            albedo_prior=0.5 * coefficients.albedo.square().sum(),
            light_prior=self._light_prior(coefficients.lighting),
            recognition=self._recognition(rendered) if with_recognition else rendered.image.new_zeros(()),
        )

    def _landmark_energy(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        """Eq. 5 on the dense points, squared: near the solution their errors are Gaussian."""
        points = self.model.mediapipe_points(rendered.surface.vertices_camera)
        predicted = self.targets.camera.project(points)
        sigma_px = self.settings.landmark_sigma * self.targets.extent_px[:, None]
        squared = ((predicted - self.targets.landmarks468_px) ** 2).sum(-1) / sigma_px**2
        return 0.5 * geman_mcclure(squared, scale_sq=ROBUST_SCALE_SQ, weights=self.point_weights).sum()

    def _depth_energy(self, rendered: RenderOutput) -> Float[Tensor, ""]:
        """Depths of the dense points after the best plane is removed."""
        if self.targets.landmarks468_depth_px is None:
            return rendered.image.new_zeros(())
        points = self.model.mediapipe_points(rendered.surface.vertices_camera)
        difference = depth_px(points, self.targets.camera) - self.targets.landmarks468_depth_px
        sigma_px = self.settings.depth_sigma * self.targets.extent_px[:, None]
        squared = without_plane(difference, self.planes) ** 2 / sigma_px**2
        return 0.5 * geman_mcclure(squared, scale_sq=ROBUST_SCALE_SQ, weights=self.point_weights).sum()

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


class _Unknowns:
    """The vector that is optimised for one batch, each part in units of about one standard deviation."""

    def __init__(self, model: MorphableModel, start: FaceCoefficients, settings: FitSettings) -> None:
        self.start, self.settings = start, settings
        self.expression_sigma = settings.expression_sigma_of(model)
        self.expression_range = [bound / self.expression_sigma for bound in model.expression_range]
        batch = len(start.identity)
        self.identity = start.identity.clone().requires_grad_()
        self.expression = (start.expression / self.expression_sigma).requires_grad_()
        self.albedo = start.albedo.clone().requires_grad_()
        self.lighting = start.lighting.new_zeros(batch, 9, 3).requires_grad_()
        self.rotation = start.identity.new_zeros(batch, 3).requires_grad_()
        self.translation = start.identity.new_zeros(batch, 3).requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [self.identity, self.expression, self.albedo, self.lighting, self.rotation, self.translation]

    @torch.no_grad()
    def project(self) -> None:
        """Bring the expression back into the range of the model after a step."""
        self.expression.clamp_(*self.expression_range)

    def coefficients(self) -> FaceCoefficients:
        expression = self.expression * self.expression_sigma
        lighting = self.start.lighting + self.settings.light_chroma_sigma * self.lighting
        return FaceCoefficients(self.identity.clone(), expression, self.albedo.clone(), lighting, self._pose())

    def _pose(self) -> Pose:
        start = self.start.pose
        distance = start.translation[:, 2:]
        lateral = self.translation[:, :2] * (DEPTH_STEP_SHARE * FACE_SIZE_M)
        depth = distance * (DEPTH_STEP_SHARE * self.translation[:, 2:]).exp()
        # The face slides along its own line of sight, so that a change of depth changes its size only.
        position = start.translation[:, :2] * (depth / distance) + lateral
        rotation = start.rotation + ROTATION_STEP_RAD * self.rotation
        return Pose(rotation, torch.cat([position, depth], dim=1), start.scale)


def fit_photometric(
    model: MorphableModel,
    targets: FitTargets,
    start: FaceCoefficients,
    *,
    settings: FitSettings,
    point_weights: Float[Tensor, "B 468"],
    recognition: IdentityNetwork | None,
    progress: Callable[[float], None] | None = None,
) -> FaceCoefficients:
    """Minimise `PhotometricEnergy` with Adam.

    Args:
        model: The morphable model.
        targets: Photos, masks, landmarks and cameras.
        start: Faces at which the descent begins.
        settings: Standard deviations, weights and number of steps.
        point_weights: Weight of each of MediaPipe's points, see `mesh_point_weights`.
        recognition: Network of eq. 6; None leaves the term out.
        progress: Is called with the share of the steps that is done.

    Returns:
        The faces after `settings.photometric_steps` steps.

    Raises:
        FitDiverged: The energy is not finite.
    """
    energy = PhotometricEnergy(model, targets, settings=settings, point_weights=point_weights, recognition=recognition)
    unknowns = _Unknowns(model, start, settings)
    steps = settings.photometric_steps
    optimizer = CosineAdam(unknowns.parameters(), rate=step_length(steps), steps=steps)
    for step in range(steps):
        late = step / max(steps - 1, 1) >= RECOGNITION_FROM
        value = energy.terms(unknowns.coefficients(), with_recognition=late).total()
        if not torch.isfinite(value):
            raise FitDiverged(
                f"the energy of the photometric fit is {value.item()} at step {step} of {steps}; the photo's crop or "
                "the landmarks contain extreme values. Use mode net for this photo, and report it."
            )
        optimizer.step(value)
        unknowns.project()
        if progress is not None:
            progress((step + 1) / steps)
    with torch.no_grad():
        return unknowns.coefficients()


def step_length(steps: int) -> float:
    """Length of the first step, in standard deviations: a descent of fewer steps takes longer ones."""
    return min(REACH / max(steps, 1), LONGEST_STEP)


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


def _colour_energy(rendered: RenderOutput, targets: FitTargets, *, sigma: float) -> Float[Tensor, ""]:
    """Eq. 4 as a robust negative log-likelihood of the colour errors of masked pixels."""
    weight = targets.mask * rendered.coverage
    squared = ((rendered.image - targets.crops) ** 2).sum(1) / sigma**2
    robust = geman_mcclure(squared, scale_sq=3 * ROBUST_SCALE_SQ)  # the square of three channels
    per_face = (robust * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    return 0.5 * EFFECTIVE_PIXELS * per_face.sum()


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
