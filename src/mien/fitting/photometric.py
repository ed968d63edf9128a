"""The joint refinement: every coefficient descends the losses of the paper (eq. 4 to 7) through the soft rasterizer.

The landmark fit leaves the face in place; what is left is what landmarks do not see, the shape between them and its
shading. Adam works here because all unknowns are scaled to unit standard deviation.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.camera import Pose
from mien.errors import FitDiverged
from mien.fitting.contour import ContourMesh, contour_energy
from mien.fitting.lighting import expected_light, light_precision
from mien.fitting.optimizer import CosineAdam
from mien.fitting.problem import FitSettings, FitTargets
from mien.losses import identity_loss
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.rendering import RenderOutput, render, sample_image
from mien.typing import Float, Tensor

REACH, LONGEST_STEP = 4.0, 0.12
"""Standard deviations that an unknown can move by in all steps at their first length, and in one of them. Steps of one
length would leave a short descent's colours where it began."""
EFFECTIVE_PIXELS = 400.0
"""Independent colour errors in a face; see `light.EFFECTIVE_SAMPLES`."""
RECOGNITION_FROM = 0.5
"""The recognition term joins in the last part of the steps: it costs as much as the rest together, and far from the
solution its gradient says little."""
DEPTH_STEP_SHARE = 0.01
ROTATION_STEP_RAD = 0.05
FACE_SIZE_M = 0.15
"""Scale of the translation steps: one unit moves the face by its own width times `DEPTH_STEP_SHARE`."""


class _Unknowns:
    """The optimised vector of one batch, each part in units of about one standard deviation."""

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
        """Bring the expression back into the model's range after a step."""
        self.expression.clamp_(*self.expression_range)

    def coefficients(self) -> FaceCoefficients:
        expression = self.expression * self.expression_sigma
        distance = self.start.pose.translation[:, 2:]
        lateral = self.translation[:, :2] * (DEPTH_STEP_SHARE * FACE_SIZE_M)
        depth = distance * (DEPTH_STEP_SHARE * self.translation[:, 2:]).exp()
        # The face slides along its own ray, so that a change of depth is a change of size only.
        position = self.start.pose.translation[:, :2] * (depth / distance) + lateral
        pose = Pose(
            self.start.pose.rotation + ROTATION_STEP_RAD * self.rotation,
            torch.cat([position, depth], dim=1),
            self.start.pose.scale,
        )
        lighting = self.start.lighting + self.settings.light_chroma_sigma * self.lighting
        return FaceCoefficients(self.identity.clone(), expression, self.albedo.clone(), lighting, pose)


def refine(
    model: MorphableModel,
    targets: FitTargets,
    start: FaceCoefficients,
    *,
    settings: FitSettings,
    point_weights: Float[Tensor, "B 468"],
    recognition: IdentityNetwork | None,
) -> FaceCoefficients:
    """Descend pixel, landmark and recognition losses with the coefficients' priors; FitDiverged on a NaN."""
    unknowns = _Unknowns(model, start, settings)
    steps = settings.photometric_steps
    descent = CosineAdam(unknowns.parameters(), rate=step_length(steps), steps=steps)
    features = _photo_features(targets, recognition)
    light = light_precision(settings.light_priors).to(start.lighting)
    contour = ContourMesh.of(model)
    for step in range(steps):
        share = step / max(steps - 1, 1)
        coefficients = unknowns.coefficients()
        drawn = render(model, coefficients, targets.camera)
        energy = (
            _photometric_energy(drawn, targets, settings)
            + _landmark_energy(model, drawn, targets, point_weights, settings)
            + contour_energy(contour, drawn, targets, settings)
            + _prior_energy(model, coefficients, targets.exposure, settings, light)
        )
        if recognition is not None and features is not None and share >= RECOGNITION_FROM:
            rendered = recognition_features(
                recognition,
                drawn,
                photos=targets.crops,
                mask=targets.mask,
                landmarks68_px=targets.landmarks68_px,
            )
            energy = energy + settings.recognition_weight * len(features) * identity_loss(rendered, features)
        if not torch.isfinite(energy):
            raise FitDiverged(
                f"the photometric fit met a value that is not finite at step {step} of {steps}; "
                "the photo's crop or the landmarks hold extreme values. Try --no-detail and report the photo."
            )
        descent.step(energy)
        unknowns.project()
    with torch.no_grad():
        return unknowns.coefficients()


def step_length(steps: int) -> float:
    """The first step of a descent of so many, in standard deviations: fewer steps are longer ones."""
    return min(REACH / max(steps, 1), LONGEST_STEP)


def photometric_error(drawn: RenderOutput, targets: FitTargets) -> Float[Tensor, "B"]:
    """Root mean squared colour error over the mask and the rendering, per face."""
    weight = targets.mask * drawn.coverage
    squared = ((drawn.image.clamp(0, 1) - targets.crops) ** 2).mean(1)
    return ((squared * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).sqrt()


def recognition_features(
    network: IdentityNetwork,
    drawn: RenderOutput,
    *,
    photos: Float[Tensor, "B 3 H W"],
    mask: Float[Tensor, "B H W"],
    landmarks68_px: Float[Tensor, "B 68 2"],
) -> Float[Tensor, "B 128"]:
    """Features of the rendered face before the photo's own background (eq. 6 compares masked images)."""
    alpha = drawn.coverage[:, None] * mask[:, None]
    composed = drawn.image.clamp(0, 1) * alpha + photos * (1 - alpha)
    return network(network.crop(composed, landmarks68_px))


def _photo_features(targets: FitTargets, network: IdentityNetwork | None) -> Float[Tensor, "B 128"] | None:
    if network is None:
        return None
    with torch.no_grad():
        return network(network.crop(targets.crops, targets.landmarks68_px))


def _photometric_energy(drawn: RenderOutput, targets: FitTargets, settings: FitSettings) -> Float[Tensor, ""]:
    """Eq. 4 as a robust negative log-likelihood: Geman-McClure on the colour error of masked pixels."""
    weight = targets.mask * drawn.coverage
    squared = ((drawn.image - targets.crops) ** 2).sum(1) / settings.pixel_sigma**2
    robust = squared / (1 + squared / (3 * 3.0**2))
    per_face = (robust * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    return 0.5 * EFFECTIVE_PIXELS * per_face.sum()


def _landmark_energy(
    model: MorphableModel,
    drawn: RenderOutput,
    targets: FitTargets,
    point_weights: Float[Tensor, "B 468"],
    settings: FitSettings,
) -> Float[Tensor, ""]:
    """Eq. 5 on the dense points, squared: near the solution their errors are Gaussian."""
    points = model.mediapipe_points(drawn.surface.vertices_camera)
    predicted = targets.camera.project(points)
    sigma_px = settings.landmark_sigma * targets.extent_px[:, None]
    scaled = ((predicted - targets.landmarks468_px) ** 2).sum(-1) / sigma_px**2
    return 0.5 * (point_weights * scaled / (1 + scaled / 9.0)).sum()


def _prior_energy(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    exposure: Float[Tensor, "B"],
    settings: FitSettings,
    light: Float[Tensor, "27 27"],
) -> Float[Tensor, ""]:
    """Gaussian priors of identity, expression, albedo and light, the last by its inverse covariance."""
    off = coefficients.lighting.mT.flatten(1) - expected_light(exposure)
    return 0.5 * (
        (coefficients.identity / settings.identity_sigma).square().sum()
        + (coefficients.expression / settings.expression_sigma_of(model)).square().sum()
        + coefficients.albedo.square().sum()
        + ((off @ light) * off).sum()
    )


def sample_vertex_colours(
    drawn: RenderOutput, targets: FitTargets
) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B V"]]:
    """The photo's colour at each projected vertex, and the mask's value there."""
    both = torch.cat([targets.crops, targets.mask[:, None]], dim=1)
    sampled = F.relu(sample_image(both, drawn.vertices_px))
    return sampled[..., :3], sampled[..., 3]
