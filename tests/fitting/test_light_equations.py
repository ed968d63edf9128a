"""The normal equations of light and albedo, and the short way from the light of another photo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mien.fitting.lighting import LightFit, LightPriors, LightProblem, fit_light_and_albedo
from mien.lighting import SH_COUNT, shading
from mien.morphable import MorphableModel

PRIORS = LightPriors(pixel_sigma=0.05, light_level_sigma=0.3, light_sigma=0.3, light_chroma_sigma=0.1)


def test_normal_equations_are_those_of_the_whole_jacobian(tiny: MorphableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    count = len(tiny.mean)
    normals = F.normalize(torch.randn(2, count, 3, generator=generator), dim=-1)
    colours = torch.rand(2, count, 3, generator=generator)
    problem = LightProblem(tiny, colours, torch.ones(2, count), normals, torch.ones(2), priors=PRIORS, seed=0)
    rows = len(problem.albedo_mean)
    albedo, shade, residual, precision = (torch.rand(2, rows, 3, generator=generator).double() for _ in range(4))
    hessian, gradient = problem._normal_equations(albedo, shade, residual, precision)
    d_light = torch.einsum("bvc,bvk,cd->bvcdk", albedo, problem.basis, torch.eye(3).double()).flatten(3)
    d_albedo = shade[..., None] * problem.albedo_columns.transpose(0, 1)
    jacobian = torch.cat([d_light, d_albedo], dim=-1).flatten(1, 2)
    weighted = jacobian * precision.flatten(1)[..., None]
    torch.testing.assert_close(hessian, weighted.mT @ jacobian)
    torch.testing.assert_close(gradient, (weighted.mT @ residual.flatten(1)[..., None])[..., 0])
    assert hessian.shape[1] == 3 * SH_COUNT + tiny.counts[2]


def test_a_warm_start_reaches_the_same_fit_in_half_of_the_steps(
    tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, steps = torch.Generator().manual_seed(1), []
    step = LightProblem.step

    def counted(*arguments: Any, **options: Any) -> Any:
        steps.append(options["robust"])
        return step(*arguments, **options)

    monkeypatch.setattr(LightProblem, "step", counted)
    count = len(tiny.mean)
    normals = F.normalize(torch.randn(1, count, 3, generator=generator), dim=-1)
    light = 0.1 * torch.randn(1, SH_COUNT, 3, generator=generator)
    light[:, 0] += 1.0

    def fitted(factor: float, start: LightFit | None = None) -> LightFit:
        return fit_light_and_albedo(
            tiny,
            colours=(tiny.albedo(torch.full((1, tiny.counts[2]), 0.5)) * shading(normals, factor * light)).clamp(0, 1),
            weights=torch.ones(1, count),
            normals=normals,
            exposure=torch.ones(1),
            priors=PRIORS,
            start=start,
        )

    cold, warm = fitted(1.0), fitted(1.0, start=fitted(0.8))
    torch.testing.assert_close(warm.lighting, cold.lighting, rtol=0, atol=1e-3)
    assert len(steps) == 2 * 8 + 4
    assert steps[-4:] == [False, True, True, True]
