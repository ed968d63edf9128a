"""Fit the morphable model to photographed faces by analysis through synthesis.

    landmarks ── closed form ──► pose                      landmarks.initial_pose
    landmarks + priors ── Gauss-Newton ──► pose, shape     landmarks.fit_landmarks
    colours ── Gauss-Newton ──► light, albedo              light.fit_light_and_albedo
    pixels + landmarks + recognition ── Adam ──► all       photometric.refine
    photo in texture space ──► offset and displacement     detail.fit_detail

Every stage is batched over faces and deterministic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mien.errors import FitDiverged
from mien.fitting.landmarks import LandmarkPriors, fit_landmarks
from mien.fitting.lighting import fit_light_and_albedo
from mien.fitting.photometric import photometric_error, refine, sample_vertex_colours
from mien.fitting.problem import FitResult, FitSettings, FitTargets, StageTime
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import IdentityNetwork
from mien.rendering import VISIBILITY_SLACK_M, render, visible_vertices
from mien.typing import Float, Tensor

FOCAL_SIGMA = 0.3
"""Of the logarithm of a focal length that may be refined: 30° is a guess, but phones lie within a factor of two."""


class StageClock:
    """Collects how long the stages take."""

    def __init__(self) -> None:
        self.times: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        self.times.append(StageTime(name, time.perf_counter() - start))


def fit(
    model: MorphableModel,
    targets: FitTargets,
    *,
    settings: FitSettings | None = None,
    recognition: IdentityNetwork | None = None,
    start: FaceCoefficients | None = None,
) -> FitResult:
    """Find identity, expression, albedo, light and pose of each face; FitDiverged if a value stops being finite.

    `start` is a network's guess, from which fewer steps are needed.
    """
    settings = settings or FitSettings()
    if start is not None:
        settings = replace(settings, photometric_steps=settings.warm_photometric_steps)
    _check_finite(targets)
    clock = StageClock()
    weights = mesh_point_weights(model).expand(len(targets.crops), -1)
    with clock.stage("landmarks"):
        shape = fit_landmarks(
            model,
            targets.landmarks468_px,
            targets.camera,
            point_weights=weights,
            priors=LandmarkPriors(
                settings.landmark_sigma,
                settings.identity_sigma,
                settings.expression_sigma_of(model),
                FOCAL_SIGMA if settings.refine_focal else None,
            ),
            start=start,
        )
        targets = replace(targets, camera=shape.camera)
        batch = len(targets.crops)
        start = FaceCoefficients(
            shape.identity,
            shape.expression,
            shape.identity.new_zeros(batch, model.counts[2]),
            ambient_lighting(batch).to(shape.identity),
            shape.pose,
        )
    with clock.stage("light and albedo"):
        start = with_light_and_albedo(model, targets, start, settings=settings)
    with clock.stage("photometric"):
        coefficients = refine(model, targets, start, settings=settings, point_weights=weights, recognition=recognition)
    with torch.no_grad():
        error = photometric_error(render(model, coefficients, targets.camera), targets)
    return FitResult(coefficients, targets.camera, error, tuple(clock.times))


def _check_finite(targets: FitTargets) -> None:
    for name in ("crops", "mask", "outline", "landmarks468_px", "landmarks68_px"):
        values: Tensor = getattr(targets, name)
        bad = [k for k, face in enumerate(values) if not torch.isfinite(face).all()]
        if bad:
            raise FitDiverged(f"targets.{name} holds values that are not finite for faces {bad}; leave those out.")


def with_light_and_albedo(
    model: MorphableModel, targets: FitTargets, coefficients: FaceCoefficients, *, settings: FitSettings
) -> FaceCoefficients:
    """The same shapes and poses with the light and albedo that explain the photo's colours."""
    with torch.no_grad():
        drawn = render(model, coefficients, targets.camera)
        colours, mask = sample_vertex_colours(drawn, targets)
        visible = visible_vertices(drawn.surface, drawn.vertices_px, drawn.depth, slack_m=VISIBILITY_SLACK_M)
        parts = model.masks
        trusted = (1 - parts.eyes) * (1 - parts.mouth) * (1 - parts.neck)
        light = fit_light_and_albedo(
            model,
            colours=colours,
            weights=visible * mask * trusted,
            normals=drawn.surface.normals,
            exposure=targets.exposure,
            priors=settings.light_priors,
            seed=settings.seed,
        )
    return replace(coefficients, lighting=light.lighting, albedo=light.albedo)


def mesh_point_weights(model: MorphableModel) -> Float[Tensor, "468"]:
    """How far each of MediaPipe's points is to be trusted.

    The network places lids, brows, nose and lips where it sees them; the outline and the forehead are its guess.
    """
    parts = model.masks
    features = torch.stack([parts.lips, parts.brows], dim=0).amax(0)
    spread = (features[model.mediapipe_vertices] * model.mediapipe_barycentrics).sum(1)
    weights = 1.0 + spread
    weights[list(FACE_OVAL)] = OVAL_WEIGHT
    weights[list(LIDS)] = LID_WEIGHT
    return weights


FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""MediaPipe's indices of the outline."""
OVAL_WEIGHT = 0.1
LIDS = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
)  # fmt: skip
"""MediaPipe's indices of the lid rims."""
LID_WEIGHT = 2.0
