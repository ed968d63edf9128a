"""Light of each photo, and the one albedo of the person in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mien.fitting.arrow import ArrowLayout, ArrowMatrix
from mien.fitting.lighting import LIGHT_COUNT, STEPS, LightFit, LightProblem
from mien.fitting.problem import FitSettings, FitTargets
from mien.fitting.stages import visible_colours
from mien.morphable import FaceCoefficients, MorphableModel
from mien.typing import Float, Tensor


@torch.no_grad()
def fit_joint_light(
    model: MorphableModel,
    photos: Sequence[FitTargets],
    faces: Sequence[FaceCoefficients],
    *,
    settings: FitSettings,
    weights: Float[Tensor, "B"],
) -> LightFit:
    """The most probable lights and albedo of one person in several photos, from white light and the mean albedo.

    Args:
        model: Gives mean and basis of the albedo.
        photos: The photos one by one.
        faces: Shape and pose in each photo.
        settings: Standard deviations and seed.
        weights: Influence of each photo, 0 to 1.

    Returns:
        Light per photo, and the same albedo for all of them; not meant to be differentiated.
    """
    problems = []
    for targets, face in zip(photos, faces, strict=True):
        seen = visible_colours(model, targets, face)
        problems.append(
            LightProblem(
                model,
                seen.colours,
                seen.weights,
                seen.normals,
                targets.exposure,
                priors=settings.light_priors,
                seed=settings.seed,
            )
        )
    albedo_count = model.counts[2]
    is_shared = torch.arange(LIGHT_COUNT + albedo_count, device=weights.device) >= LIGHT_COUNT
    layout = ArrowLayout.of(is_shared)
    lights, albedos = (list(values) for values in zip(*(problem.start for problem in problems), strict=True))
    prior = torch.eye(albedo_count, dtype=torch.float64, device=weights.device)
    plain, robust = STEPS
    for step in range(plain + robust):
        matrix, gradients = ArrowMatrix(layout, prior), list[Tensor]()
        for problem, lighting, albedo, weight in zip(problems, lights, albedos, weights.double(), strict=True):
            hessian, gradient = problem.equations(lighting, albedo, robust=step >= plain)
            matrix.add(weight * hessian[0])
            gradients.append(weight * gradient[0])
        gradient = layout.summed(gradients)
        gradient[:albedo_count] += albedos[0][0]
        moves = layout.scattered(-matrix.solve(gradient, torch.zeros_like(gradient, dtype=torch.bool)))
        for k, (problem, move) in enumerate(zip(problems, moves, strict=True)):
            lights[k], albedos[k] = problem.moved(lights[k], albedos[k], move[None])
    exact = torch.cat(lights).mT, torch.cat(albedos)
    return LightFit(exact[0].to(model.mean), exact[1].to(model.mean))
