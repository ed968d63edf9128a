"""The fit of several photos of one person: one identity and albedo; expression, pose, light and focal length per photo.

    landmarks + priors ── Gauss-Newton ──► poses, expressions, identity    joint_landmarks
    turns of the heads ──► what photos, points and depths count for        views
    identity of each photo against that of all ──► weights of the photos   here
    colours ── Gauss-Newton ──► lights, albedo                             joint_light
    pixels + landmarks + contours ── Gauss-Newton, quasi-Newton ──► all    joint_photometric

The energy is the sum of the energies of the photos, each times its weight, and of the prior of the person, once. Photos
meet only in identity and albedo, so each is eliminated on its own (`arrow`): time grows linearly with their number, and
one photo at a time is rendered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from mien.camera import Camera
from mien.errors import ConfigError
from mien.fitting.joint_landmarks import JointLandmarks, PersonPrior
from mien.fitting.joint_light import fit_joint_light
from mien.fitting.joint_photometric import fit_joint_photometric
from mien.fitting.photometric import photometric_error
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import FitSettings, FitTargets, Progress, StageTime
from mien.fitting.stages import StageClock, check_finite, landmark_priors, trusted_point_weights
from mien.fitting.views import Views
from mien.lighting import ambient_lighting
from mien.losses import geman_mcclure_weights
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.rendering import render
from mien.threads import warn_about_threads
from mien.typing import Float, Tensor

MISFIT_SCALE = 40.0
"""Rise of the energy of a photo, from its own fit to that of the person, at which its weight is a quarter. Photos of
one person keep weights above 0.6 on the pairs of `benchmarks/joint.py --part pairs`. The rise tells of bad points, not
of another person: frontal photos of two people are fitted nearly as well, so recognition matches the faces."""
WEIGHT_ROUNDS = 2
"""How often the weights of the photos are found again."""
PREDICTION_CORRELATION = 0.5
"""Correlation between the errors of a network's predictions from two photos of a person. It is 0.7 for frontal photos
(18 pairs with scans), and not measured for views from several sides, which should err less alike."""


@dataclass(frozen=True)
class JointFit:
    """One person in several photos."""

    coefficients: FaceCoefficients
    """The face in each photo; all rows of identity and albedo are the same."""
    camera: Camera
    """The given cameras, or those with the fitted focal length."""
    photometric_error: Float[Tensor, "B"]
    """Root mean square colour error over the pixels of mask and rendering."""
    photo_weights: Float[Tensor, "B"]
    """Influence of each photo, 0 to 1: 1 for a photo that the person fits as well as a face of its own does."""
    stage_times: tuple[StageTime, ...]
    """Durations of the stages."""


def fit_joint(
    model: MorphableModel,
    targets: FitTargets,
    *,
    settings: FitSettings | None = None,
    recognition: IdentityNetwork | None = None,
    start: FaceCoefficients | None = None,
    progress: Progress | None = None,
) -> JointFit:
    """Fit the model to several photos of one person.

    Args:
        model: The morphable model.
        targets: One photo of the person per element of the batch, in any order: the result does not depend on it.
        settings: As in `fit`; with one photo, the result is that of `fit`.
        recognition: As in `fit`.
        start: Prediction of a network for each photo, as in `fit`; their identities may differ.
        progress: Is called with the name of the stage and the share of it that is done, 0 to 1.

    Returns:
        The person in each photo. Neither `model` nor `targets` is changed. The result is deterministic and not meant to
        be differentiated.

    Raises:
        FitDiverged: A value of `targets` is not finite, or the fit diverged.
        ConfigError: There is no photo.
    """
    count = len(targets.crops)
    if count == 0:
        raise ConfigError("targets is empty; give at least one photo of the person.")
    warn_about_threads(targets.crops.device)
    check_finite(targets)
    settings = settings or FitSettings()
    if start is not None:
        settings = replace(settings, photometric_steps=settings.warm_photometric_steps)
    order = _content_order(targets)
    found = _fit_ordered(
        model,
        targets[order],
        settings=settings,
        recognition=recognition,
        start=None if start is None else start[order],
        clock=StageClock(progress),
    )
    back = order.argsort()
    return replace(
        found,
        coefficients=found.coefficients[back],
        camera=found.camera[back],
        photometric_error=found.photometric_error[back],
        photo_weights=found.photo_weights[back],
    )


def _content_order(targets: FitTargets) -> Tensor:
    """An order of the photos that depends on their content alone, so that sums round in the same way."""
    return targets.landmarks468_px.double().sum((1, 2)).argsort()


def _fit_ordered(
    model: MorphableModel,
    targets: FitTargets,
    *,
    settings: FitSettings,
    recognition: IdentityNetwork | None,
    start: FaceCoefficients | None,
    clock: StageClock,
) -> JointFit:
    count = len(targets.crops)
    points = trusted_point_weights(model, targets)
    views = Views.of(model, targets)
    if count > 1:
        points = points * views.point_weights(model)
        settings = replace(settings, depth_sigma=settings.depth_sigma * math.sqrt(views.count_of_sides()))
    with clock.stage("landmarks"):
        landmarks, person, weights = _fit_landmarks(model, targets, points, settings=settings, start=start, views=views)
        fits, influence = landmarks.results(), views.influence(weights)
        targets = replace(targets, camera=Camera.join([found.camera for found in fits]))
    photos = [targets[k : k + 1] for k in range(count)]
    albedo, light = fits[0].identity.new_zeros(1, model.counts[2]), ambient_lighting(1).to(fits[0].identity)
    faces = [FaceCoefficients(found.identity, found.expression, albedo, light, found.pose) for found in fits]
    with clock.stage("light and albedo"):
        lit = fit_joint_light(model, photos, faces, settings=settings, weights=influence)
        faces = [
            replace(face, lighting=lit.lighting[k : k + 1], albedo=lit.albedo[k : k + 1])
            for k, face in enumerate(faces)
        ]
    with clock.stage("photometric") as report:
        faces = fit_joint_photometric(
            model,
            photos,
            faces,
            settings=settings,
            point_weights=points,
            recognition=recognition,
            person=person,
            weights=influence,
            progress=report,
        )
    with torch.no_grad():
        errors = [
            photometric_error(render(model, face, photo.camera), photo)
            for face, photo in zip(faces, photos, strict=True)
        ]
    return JointFit(FaceCoefficients.join(faces), targets.camera, torch.cat(errors), weights, tuple(clock.times))


def _fit_landmarks(
    model: MorphableModel,
    targets: FitTargets,
    point_weights: Float[Tensor, "B 468"],
    *,
    settings: FitSettings,
    start: FaceCoefficients | None,
    views: Views,
) -> tuple[JointLandmarks, PersonPrior, Float[Tensor, "B"]]:
    """The landmark fit of all photos, the prior of the person, and the weight of each photo."""

    def problem(part: slice, prediction: PredictedIdentity | None) -> JointLandmarks:
        return JointLandmarks(
            model,
            targets[part],
            point_weights=point_weights[part],
            priors=landmark_priors(model, settings),
            person=PersonPrior.of(model, sigma=settings.identity_sigma, prediction=prediction),
            start=None if start is None else start[part],
        )

    prediction = None
    if start is not None:
        prediction = PredictedIdentity.of(model, start.identity, sigma_m=settings.prediction_sigma)
    count = len(targets.crops)
    weights = torch.ones(count).to(targets.crops)
    together = problem(slice(None), joined_prediction(prediction, weights))
    together.descend(views.influence(weights))
    if count > 1:
        alone: list[Tensor] = []
        for k in range(count):
            one = slice(k, k + 1)
            own = problem(one, None if prediction is None else prediction[one])
            own.descend(weights[one])
            alone.append(own.photo_energies())
        energies = torch.cat(alone)
        for _ in range(WEIGHT_ROUNDS):
            weights = _photo_weights(together.photo_energies() - energies).to(weights)
            person = PersonPrior.of(
                model, sigma=settings.identity_sigma, prediction=joined_prediction(prediction, weights)
            )
            together.person = person
            together.descend(views.influence(weights), again=True)
    return together, together.person, weights


def _photo_weights(misfit: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Robust weights of the photos, from how much worse the person fits each than a face of its own.

    Args:
        misfit: Rise of the energy of each photo, from its own fit to that of the person.
    """
    return geman_mcclure_weights(misfit.clamp(min=0), scale_sq=MISFIT_SCALE)


def joined_prediction(prediction: PredictedIdentity | None, weights: Float[Tensor, "B"]) -> PredictedIdentity | None:
    """One prediction from those of all photos. Their errors are correlated, so two photos count less than twice.

    Args:
        prediction: The prediction from each photo.
        weights: Influence of each photo, 0 to 1.
    """
    if prediction is None:
        return None
    return prediction.joined(weights / (1 + PREDICTION_CORRELATION * (weights.sum() - 1).clamp(min=0)))
