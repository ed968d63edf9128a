"""From the crops of faces to their coefficients: by a fit, by the encoder, or by both."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from mien.camera import Camera
from mien.errors import FitDiverged
from mien.fitting import (
    FitSettings,
    FitTargets,
    Progress,
    StageClock,
    StageTime,
    align_to_points,
    close_lips,
    fit,
    fit_joint,
    fit_lids,
    fit_prediction,
    trusted_point_weights,
    with_light_and_albedo,
)
from mien.fitting.prediction import PredictedIdentity
from mien.losses import geman_mcclure_weights
from mien.morphable import FaceCoefficients, MorphableModel
from mien.networks import FaceEncoder
from mien.perception import FaceParts, IdentityNetwork
from mien.pipeline.inputs import PhotoInputs
from mien.quality import COVERED_ABOVE
from mien.typing import Float, Tensor

UPRIGHT_ROLL = math.radians(30)
"""A head with more roll is turned upright for the encoder, which was trained on few such heads. On two portraits the
landmark error grew from 2.4 % of the eyes' distance to 4 % at 60° of roll and 36 % at 90°; upside down the encoder
failed."""
NEAREST_M = 0.05
"""Least distance of the middle of a head to the camera."""
_NET_SCALE = 30.0
"""Squared distance of a predicted identity from the mean, standard deviations of a prediction, at which its weight is a
quarter."""


@dataclass(frozen=True)
class FoundCoefficients:
    """The coefficients of a batch of faces, and how they were found."""

    coefficients: FaceCoefficients
    """The coefficients."""
    camera: Camera
    """The camera of each crop, with the focal length that the fit may have found."""
    stage_times: tuple[StageTime, ...]
    """How long each stage took."""


@dataclass(frozen=True)
class CoefficientFinder:
    """Finds the coefficients of faces."""

    model: MorphableModel
    """The morphable model."""
    encoder: FaceEncoder | None
    """Predicts coefficients; None for a fit without a prediction."""
    by_fit: bool
    """Whether a fit follows the prediction."""
    settings: FitSettings
    """Weights and schedule of the fit."""

    @functools.cached_property
    def identity_network(self) -> IdentityNetwork:
        """The recognition network of the fit's identity loss, loaded at its first use."""
        return IdentityNetwork.from_assets().to(self.model.mean.device)

    def __call__(self, inputs: PhotoInputs, *, progress: Progress | None) -> FoundCoefficients:
        """Find the coefficients of each face.

        Args:
            inputs: The faces.
            progress: Called with the name of a stage and the share of it that is done.

        Raises:
            FitDiverged: A face could not be fitted, or the encoder predicts it behind the camera.
        """
        start, clock, targets = None, StageClock(progress), inputs.targets
        if self.encoder is not None:
            with clock.stage("network"):
                start = self.predict(inputs)
            if not self.by_fit:
                _check_in_front(start)  # a fit finds another place
                if any(map(_is_covered, inputs.parts)):
                    with clock.stage("light and albedo"):
                        start = self._with_light_of_visible_skin(start, inputs)
                return FoundCoefficients(self.with_closed_lips(start, targets), targets.camera, tuple(clock.times))
        result = fit(
            self.model, targets, settings=self.settings, recognition=self._recognition, start=start, progress=progress
        )
        faces = self.with_closed_lips(result.coefficients, replace(targets, camera=result.camera))
        return FoundCoefficients(faces, result.camera, (*clock.times, *result.stage_times))

    def joint(
        self, targets: FitTargets, start: FaceCoefficients | None, *, progress: Progress | None
    ) -> tuple[FoundCoefficients, Float[Tensor, "B"]]:
        """Find the coefficients of one person in several photos, with one identity and albedo.

        Args:
            targets: The face in each photo.
            start: Its predictions, as `predict` makes them; None without an encoder.
            progress: As in a call.

        Returns:
            The coefficients, and the influence of each photo, 0 to 1.

        Raises:
            FitDiverged: The fit diverged.
        """
        if start is not None and not self.by_fit:
            clock = StageClock(progress)
            with clock.stage("network"), torch.no_grad():
                faces, weights = mean_prediction(self.model, start, sigma_m=self.settings.prediction_sigma)
                faces = self._with_lids(self._aligned(faces, targets), targets)
                faces = self.with_closed_lips(faces, targets)
            return FoundCoefficients(faces, targets.camera, tuple(clock.times)), weights
        result = fit_joint(
            self.model, targets, settings=self.settings, recognition=self._recognition, start=start, progress=progress
        )
        faces = self.with_closed_lips(result.coefficients, replace(targets, camera=result.camera))
        return FoundCoefficients(faces, result.camera, result.stage_times), result.photo_weights

    @torch.no_grad()
    def predict(self, inputs: PhotoInputs, *, refine: bool | None = None) -> FaceCoefficients:
        """Predict coefficients by the encoder, on the detected points and with the detected opening of the eyes.

        Heads that lie on their side or upside down are turned upright for the encoder.

        Args:
            inputs: The faces.
            refine: Whether a refiner that starts from the landmarks is used; it has learnt from fits what they make of
                a photo. None means only if no fit follows: a fit gains from a prediction whose errors are not its own.
        """
        assert self.encoder is not None, "modes net and auto have an encoder"
        rolls, targets = _large_rolls(inputs), inputs.targets
        upright, back = inputs.rolled(rolls), torch.tensor(rolls, device=self.model.mean.device)
        points = upright.landmarks468_px
        faces = self._aligned(
            self.encoder.encode(upright.crops, upright.camera, landmarks468_px=points).rolled(back), targets
        )
        refine = not self.by_fit if refine is None else refine
        if refine and self.encoder.refine_from == "landmarks":
            fitted = fit_prediction(self.model, targets, faces, settings=self.settings).rolled(-back)
            refined = self.encoder.refine(upright.crops, upright.camera, fitted, landmarks468_px=points)
            faces = self._aligned(refined.rolled(back), targets)
        return self._with_lids(faces, targets)

    def with_closed_lips(self, faces: FaceCoefficients, targets: FitTargets) -> FaceCoefficients:
        """The faces with lips that touch where the landmarks show a closed mouth.

        Args:
            faces: The faces, at the end of all other work on them.
            targets: Their landmarks and cameras.
        """
        return close_lips(self.model, faces, targets.camera, landmarks68_px=targets.landmarks68_px)

    @property
    def _recognition(self) -> IdentityNetwork | None:
        return self.identity_network if self.settings.recognition_weight else None

    def _with_light_of_visible_skin(self, faces: FaceCoefficients, inputs: PhotoInputs) -> FaceCoefficients:
        """The faces with light and albedo fitted to their visible skin, where the encoder also saw what covers them."""
        found = []
        for k, parts in enumerate(inputs.parts):
            one = slice(k, k + 1)
            face, targets = faces[one], inputs.targets[one]
            if _is_covered(parts):
                face = with_light_and_albedo(self.model, targets, face, settings=self.settings, warm=True)
            found.append(face)
        return FaceCoefficients.join(found)

    def _with_lids(self, faces: FaceCoefficients, targets: FitTargets) -> FaceCoefficients:
        """The faces with the detected opening of the eyes."""
        return fit_lids(
            self.model,
            faces,
            targets.camera,
            points_px=targets.landmarks468_px,
            sigma=self.settings.lid_sigma,
            expression_sigma=self.settings.expression_sigma_of(self.model),
        )

    def _aligned(self, faces: FaceCoefficients, targets: FitTargets) -> FaceCoefficients:
        weights = trusted_point_weights(self.model, targets)
        return align_to_points(
            self.model, faces, targets.camera, points_px=targets.landmarks468_px, point_weights=weights
        )


def mean_prediction(
    model: MorphableModel, faces: FaceCoefficients, *, sigma_m: float
) -> tuple[FaceCoefficients, Float[Tensor, "B"]]:
    """One identity and albedo from predictions of a network: their mean, weighted by precision.

    A head that is turned shows less of its face, so its prediction counts by the squared cosine of the turn. A
    prediction far from the others loses its influence.

    Args:
        model: The morphable model.
        faces: The prediction for each photo.
        sigma_m: Standard deviation of the position of a vertex in a prediction, metres.

    Returns:
        The faces with the mean identity and albedo, and the influence of each photo, 0 to 1.
    """
    precision = faces.pose.rotmat()[:, 2, 2].clamp(min=0.2).square()
    predicted, weights = PredictedIdentity.of(model, faces.identity, sigma_m=sigma_m), torch.ones_like(precision)
    if len(precision) > 2:  # two predictions are equally far from their mean
        for _ in range(3):
            mean = predicted.joined(weights * precision).identity
            offsets = predicted.identity - mean
            squared = ((offsets @ predicted.precision) * offsets).sum(1)
            weights = geman_mcclure_weights(squared, scale_sq=_NET_SCALE)
    share = (weights * precision / (weights * precision).sum())[:, None]
    identity = (share * faces.identity).sum(0).expand_as(faces.identity)
    albedo = (share * faces.albedo).sum(0).expand_as(faces.albedo)
    return replace(faces, identity=identity.clone(), albedo=albedo.clone()), weights


def _large_rolls(inputs: PhotoInputs) -> list[float]:
    return [face.roll if abs(face.roll) > UPRIGHT_ROLL else 0.0 for face in inputs.faces]


def is_in_front(faces: FaceCoefficients) -> bool:
    """Whether all faces are in front of the camera: nothing can be drawn of others."""
    return bool((faces.pose.translation[:, 2] > NEAREST_M).all())


def _check_in_front(faces: FaceCoefficients) -> None:
    if not is_in_front(faces):
        nearest = ", ".join(f"{distance:.2f}" for distance in faces.pose.translation[:, 2].tolist())
        raise FitDiverged(
            f"the network places the face at {nearest} m from the camera, where no camera sees it; the focal length is "
            "probably wrong: give another focal_px, or use mode fit."
        )


def _is_covered(parts: FaceParts) -> bool:
    return parts.covered_shares.face > COVERED_ABOVE
