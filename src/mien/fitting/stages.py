"""The stages of the fit: the morphable model is fitted to photos by analysis by synthesis.

    landmarks ── closed form ──► pose                      landmarks.initial_pose
    landmarks + priors ── Gauss-Newton ──► pose, shape     landmarks.fit_landmarks
    colours ── Gauss-Newton ──► light, albedo              lighting.fit_light_and_albedo
    pixels + landmarks + contour ── Gauss-Newton ──► all   second_order.fit_photometric
    the same + recognition ── quasi-Newton ──► all         second_order.fit_photometric
    photo in UV space ── Levenberg–Marquardt ──► maps      maps.fit_detail

Every stage processes a batch of faces and is deterministic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from mien.camera import Camera
from mien.errors import FitDiverged
from mien.fitting.landmarks import LandmarkPriors, fit_landmarks
from mien.fitting.lighting import LightFit, fit_light_and_albedo
from mien.fitting.photometric import photometric_error, sample_vertex_colours
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.problem import FitResult, FitSettings, FitTargets, Progress, StageTime
from mien.fitting.second_order import fit_photometric
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import MEDIAPIPE_LIDS, MEDIAPIPE_OVAL
from mien.perception import IdentityNetwork
from mien.rendering import VISIBILITY_SLACK_M, render, visible_vertices
from mien.threads import warn_about_threads
from mien.typing import Float, Tensor

FOCAL_SIGMA = 0.3
"""Standard deviation of the logarithm of a fitted focal length. The perspective of a face shows little of it: with 0.5,
fits of portraits diverged."""
PREDICTION_STEPS = 3
"""Steps of `fit_prediction`: on photos with scans, two and eight steps have the same error."""


class StageClock:
    """Measures the duration of stages; `times` lists them in order.

    Args:
        progress: Is called when a stage begins, and with the share of it that is done.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.times: list[StageTime] = []
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float], None]]:
        """Context manager that measures its body.

        Args:
            name: Name of the stage.

        Yields:
            A function for the share of the stage that is done, 0 to 1.
        """

        def report(share: float) -> None:
            if self._progress is not None:
                self._progress(name, share)

        report(0.0)
        start = time.perf_counter()
        yield report
        self.times.append(StageTime(name, time.perf_counter() - start))


def fit(
    model: MorphableModel,
    targets: FitTargets,
    *,
    settings: FitSettings | None = None,
    recognition: IdentityNetwork | None = None,
    start: FaceCoefficients | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fit the model to photos: identity, expression, albedo, light and pose of each face.

    Args:
        model: The morphable model.
        targets: Crops, masks, landmarks and cameras of the faces.
        settings: Standard deviations, weights and numbers of steps; None for the defaults.
        recognition: Network of the recognition term (eq. 6); None leaves the term out.
        start: Prediction of a network, from which fewer steps are needed (`settings.warm_photometric_steps`) and whose
            identity is a second estimate, see `mien.fitting.prediction`; None starts from the mean face.
        progress: Is called with the name of the stage and the share of it that is done, 0 to 1.

    Returns:
        Coefficients, cameras, colour errors and durations. Neither `model` nor `targets` is changed. The result is
        deterministic and not meant to be differentiated.

    Raises:
        FitDiverged: A value of `targets` is not finite, or the fit diverged.

    Example:
        >>> import mien
        >>> def fit_faces(targets: mien.FitTargets) -> mien.FaceCoefficients:
        ...     return mien.fit(mien.load_model(), targets).coefficients
    """
    warn_about_threads(targets.crops.device)
    settings = settings or FitSettings()
    if start is not None:
        settings = replace(settings, photometric_steps=settings.warm_photometric_steps)
    check_finite(targets)
    clock = StageClock(progress)
    weights = trusted_point_weights(model, targets)
    prediction = (
        None if start is None else PredictedIdentity.of(model, start.identity, sigma_m=settings.prediction_sigma)
    )
    with clock.stage("landmarks"):
        face, camera = _fit_landmarks(
            model, targets, settings=settings, point_weights=weights, start=start, prediction=prediction
        )
        targets = replace(targets, camera=camera)
    with clock.stage("light and albedo"):
        face = with_light_and_albedo(model, targets, face, settings=settings)
    with clock.stage("photometric") as report:
        face = fit_photometric(
            model,
            targets,
            face,
            settings=settings,
            point_weights=weights,
            recognition=recognition,
            prediction=prediction,
            progress=report,
        )
    with torch.no_grad():
        error = photometric_error(render(model, face, targets.camera), targets)
    return FitResult(face, targets.camera, error, tuple(clock.times))


def _fit_landmarks(
    model: MorphableModel,
    targets: FitTargets,
    *,
    settings: FitSettings,
    point_weights: Float[Tensor, "B 468"],
    start: FaceCoefficients | None,
    prediction: PredictedIdentity | None,
) -> tuple[FaceCoefficients, Camera]:
    """Shape and pose from the landmarks, with the mean albedo under white light; and the fitted camera."""
    shape = fit_landmarks(
        model,
        targets.landmarks468_px,
        targets.camera,
        point_weights=point_weights,
        priors=landmark_priors(model, settings),
        depths_px=targets.landmarks468_depth_px,
        start=start,
        prediction=prediction,
    )
    batch = len(targets.crops)
    albedo = shape.identity.new_zeros(batch, model.counts[2])
    light = ambient_lighting(batch).to(shape.identity)
    return FaceCoefficients(shape.identity, shape.expression, albedo, light, shape.pose), shape.camera


def fit_prediction(
    model: MorphableModel, targets: FitTargets, prediction: FaceCoefficients, *, settings: FitSettings
) -> FaceCoefficients:
    """Fit shape and pose to the landmarks in a few steps from the prediction of a network; light and albedo are kept.

    Args:
        model: The morphable model.
        targets: Landmarks and cameras of the faces.
        prediction: Where the fit starts. Its identity has no influence: the refiner of an encoder learns from fits to
            the landmarks alone, and then corrects this one.
        settings: Standard deviations.

    Returns:
        The fitted faces; not meant to be differentiated.

    Raises:
        FitDiverged: A value of `targets` is not finite.
    """
    check_finite(targets)
    shape = fit_landmarks(
        model,
        targets.landmarks468_px,
        targets.camera,
        point_weights=trusted_point_weights(model, targets),
        priors=landmark_priors(model, settings),
        depths_px=targets.landmarks468_depth_px,
        start=replace(prediction, identity=torch.zeros_like(prediction.identity)),
        steps=PREDICTION_STEPS,
    )
    return replace(prediction, identity=shape.identity, expression=shape.expression, pose=shape.pose)


def fit_points(model: MorphableModel, targets: FitTargets, *, settings: FitSettings) -> FaceCoefficients:
    """Shape and pose from the landmarks alone, with the mean albedo under white light: the first stage of `fit`.

    Args:
        model: The morphable model.
        targets: Landmarks and cameras of the faces.
        settings: Standard deviations.
    """
    weights = trusted_point_weights(model, targets)
    return _fit_landmarks(model, targets, settings=settings, point_weights=weights, start=None, prediction=None)[0]


def landmark_priors(model: MorphableModel, settings: FitSettings) -> LandmarkPriors:
    """The standard deviations of the landmark fit."""
    return LandmarkPriors(
        settings.landmark_sigma,
        settings.depth_sigma,
        settings.lid_sigma,
        settings.identity_sigma,
        settings.expression_sigmas(model),
        FOCAL_SIGMA if settings.refine_focal else None,
    )


def check_finite(targets: FitTargets) -> None:
    """Check the inputs of a fit.

    Raises:
        FitDiverged: A value is not finite.
    """
    for name in ("crops", "mask", "outline", "landmarks468_px", "landmarks68_px"):
        values: Tensor = getattr(targets, name)
        bad = [k for k, face in enumerate(values) if not torch.isfinite(face).all()]
        if bad:
            raise FitDiverged(
                f"targets.{name} contains values that are not finite for faces {bad}; remove these faces."
            )


def with_light_and_albedo(
    model: MorphableModel,
    targets: FitTargets,
    coefficients: FaceCoefficients,
    *,
    settings: FitSettings,
    warm: bool = False,
) -> FaceCoefficients:
    """Fit light and albedo to the colours of the photo; shape and pose are kept.

    Args:
        model: The morphable model.
        targets: Photos and masks.
        coefficients: Faces in place.
        settings: Standard deviations and seed.
        warm: Whether the coefficients have light and albedo of another photo of the same face, from which fewer steps
            are needed.

    Returns:
        The faces with fitted light and albedo.
    """
    with torch.no_grad():
        seen = visible_colours(model, targets, coefficients)
        light = fit_light_and_albedo(
            model,
            colours=seen.colours,
            weights=seen.weights,
            normals=seen.normals,
            exposure=targets.exposure,
            priors=settings.light_priors,
            seed=settings.seed,
            start=LightFit(coefficients.lighting, coefficients.albedo) if warm else None,
        )
    return replace(coefficients, lighting=light.lighting, albedo=light.albedo)


def trusted_point_weights(model: MorphableModel, targets: FitTargets) -> Float[Tensor, "B 468"]:
    """`mesh_point_weights`, times the trust in the points of each photo.

    Args:
        model: The morphable model.
        targets: Points and what hides them.
    """
    return mesh_point_weights(model) * targets.trust(targets.landmarks468_px)


@dataclass(frozen=True)
class VisibleColours:
    """What photos show at the vertices of faces."""

    colours: Float[Tensor, "B V 3"]
    """Colour of the photo."""
    weights: Float[Tensor, "B V"]
    """0 for vertices that are hidden or show no skin, 1 for those that count."""
    normals: Float[Tensor, "B V 3"]
    """Unit normals in view axes."""


@torch.no_grad()
def visible_colours(model: MorphableModel, targets: FitTargets, coefficients: FaceCoefficients) -> VisibleColours:
    """Sample photos at the visible skin of faces.

    Args:
        model: The morphable model.
        targets: Photos and masks.
        coefficients: Faces in place.
    """
    rendered = render(model, coefficients, targets.camera)
    colours, mask = sample_vertex_colours(rendered, targets)
    visible = visible_vertices(rendered.surface, rendered.vertices_px, rendered.depth, slack_m=VISIBILITY_SLACK_M)
    parts = model.masks
    skin = (1 - parts.eyes) * (1 - parts.mouth) * (1 - parts.neck)
    return VisibleColours(colours, visible * mask * skin, rendered.surface.normals)


def mesh_point_weights(model: MorphableModel) -> Float[Tensor, "468"]:
    """Weight of each of MediaPipe's points in a fit.

    The network sees lids, brows and lips; the points of the face oval and of the forehead are its estimate.

    Returns:
        1 for most points, up to 2 on brows, lips and lids, 0.1 on the face oval.
    """
    parts = model.masks
    features = torch.stack([parts.lips, parts.brows], dim=0).amax(0)
    weights = 1.0 + (features[model.mediapipe_vertices] * model.mediapipe_barycentrics).sum(1)
    weights[list(MEDIAPIPE_OVAL)] = OVAL_WEIGHT
    weights[list(MEDIAPIPE_LIDS)] = LID_WEIGHT
    return weights


OVAL_WEIGHT = 0.1
"""Weight of the points of the face oval."""
LID_WEIGHT = 2.0
"""Weight of the points of the lid rims."""
