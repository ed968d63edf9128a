from __future__ import annotations

import torch

from mien.fitting.lighting import LightPriors, LightProblem, expected_light, fit_light_and_albedo, light_precision
from mien.geometry import vertex_normals
from mien.lighting import ambient_lighting, sh_basis, shading
from mien.morphable import MorphableModel

PRIORS = LightPriors(pixel_sigma=0.02, light_level_sigma=0.35, light_sigma=0.35, light_chroma_sigma=0.06)


def scene(tiny: MorphableModel, albedo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    normals = vertex_normals(tiny.mean[None], tiny.triangles)
    lighting = ambient_lighting(1, level=0.8)
    lighting[:, 1:4] = torch.tensor([0.2, 0.25, -0.15])[:, None]
    return normals, lighting, tiny.albedo(albedo) * shading(normals, lighting)


def test_light_and_albedo_reproduce_the_colours(tiny: MorphableModel) -> None:
    albedo = torch.tensor([[0.5, -0.5, 0.8, 0.0, 0.3]])
    normals, lighting, colours = scene(tiny, albedo)
    found = fit_light_and_albedo(
        tiny, colours=colours, weights=torch.ones(1, 525), normals=normals, exposure=torch.ones(1), priors=PRIORS
    )
    again = tiny.albedo(found.albedo) * shading(normals, found.lighting)
    assert (again - colours).abs().mean() < 0.01
    assert (found.lighting - lighting).abs().max() < 0.12


def test_glasses_and_highlights_are_ignored(tiny: MorphableModel) -> None:
    normals, lighting, colours = scene(tiny, torch.zeros(1, 5))
    colours[:, 200:260] = 0.02
    colours[:, 300:330] = 1.0
    found = fit_light_and_albedo(
        tiny, colours=colours, weights=torch.ones(1, 525), normals=normals, exposure=torch.ones(1), priors=PRIORS
    )
    assert (found.lighting - lighting).abs().max() < 0.12


def test_without_visible_skin_the_result_is_the_mean_of_the_priors(tiny: MorphableModel) -> None:
    normals, _, colours = scene(tiny, torch.zeros(1, 5))
    found = fit_light_and_albedo(
        tiny, colours=colours, weights=torch.zeros(1, 525), normals=normals, exposure=torch.tensor([0.5]), priors=PRIORS
    )
    torch.testing.assert_close(found.lighting, ambient_lighting(1, level=0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.albedo, torch.zeros(1, 5), atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_light(tiny: MorphableModel) -> None:
    normals, _, colours = scene(tiny, torch.ones(1, 5))
    first, again = (
        fit_light_and_albedo(
            tiny,
            colours=colours,
            weights=torch.ones(1, 525),
            normals=normals,
            exposure=torch.ones(1),
            priors=PRIORS,
            seed=3,
        )
        for _ in range(2)
    )
    torch.testing.assert_close(first.albedo, again.albedo, rtol=0, atol=0)


def test_the_prior_limits_the_shading_of_surfaces_that_face_the_camera() -> None:
    priors = LightPriors(pixel_sigma=0.05, light_level_sigma=0.06, light_sigma=0.2, light_chroma_sigma=0.06)
    covariance = light_precision(priors).double().inverse().reshape(3, 9, 3, 9)
    grey = covariance.sum((0, 2)) / 9

    def spread(normal: list[float]) -> float:
        basis = sh_basis(torch.tensor(normal).double())
        return float((basis @ grey @ basis).sqrt())

    assert 0.9 * 0.06 < spread([0.0, 0.0, 1.0]) <= 0.06
    assert spread([1.0, 0.0, 0.0]) > 3 * 0.06


def test_expected_light_is_white_in_every_channel() -> None:
    found = expected_light(torch.tensor([0.5, 1.0])).view(2, 3, 9)
    assert found[..., 0].tolist() == [[0.5] * 3, [1.0] * 3]
    assert found[..., 1:].abs().max() == 0


def test_the_light_is_pulled_towards_the_exposure(tiny: MorphableModel) -> None:
    """The same colours are mean skin under an exposure of 0.5, and skin in brighter light under an exposure of 1."""
    normals = vertex_normals(tiny.mean[None], tiny.triangles)
    colours = tiny.albedo(torch.zeros(1, 5)) * shading(normals, ambient_lighting(1, level=0.5))
    priors = LightPriors(pixel_sigma=0.05, light_level_sigma=0.06, light_sigma=0.2, light_chroma_sigma=0.06)
    right, wrong = (
        fit_light_and_albedo(
            tiny,
            colours=colours,
            weights=torch.ones(1, 525),
            normals=normals,
            exposure=torch.tensor([exposure]),
            priors=priors,
        )
        for exposure in (0.5, 1.0)
    )
    torch.testing.assert_close(right.albedo, torch.zeros(1, 5), atol=1e-3, rtol=0)
    torch.testing.assert_close(right.lighting, ambient_lighting(1, level=0.5), atol=1e-3, rtol=0)
    assert wrong.lighting[:, 0].mean() > 0.56


def test_saturated_channels_are_ignored(tiny: MorphableModel) -> None:
    """The sensor clips the red of the brightest third; the fit must not take 0.97 and more for a colour."""
    normals, lighting, colours = scene(tiny, torch.zeros(1, 5))
    clip = colours[0, :, 0].quantile(2 / 3)
    scale = 0.98 / clip
    colours, lighting = scale * colours, scale * lighting
    clipped = colours.clone()
    clipped[..., 0] = clipped[..., 0].clamp(max=0.98)
    loose = LightPriors(pixel_sigma=0.02, light_level_sigma=2.0, light_sigma=2.0, light_chroma_sigma=2.0)
    assert (clipped[..., 0] > 0.97).float().mean() > 0.3
    found = fit_light_and_albedo(
        tiny,
        colours=clipped,
        weights=torch.ones(1, 525),
        normals=normals,
        exposure=torch.full((1,), float(scale)),
        priors=loose,
    )
    assert (shading(normals, found.lighting) - shading(normals, lighting)).abs().max() < 0.02


def test_the_weight_of_a_vertex_falls_to_a_quarter_at_two_sigmas(tiny: MorphableModel) -> None:
    normals, _, colours = scene(tiny, torch.zeros(1, 5))
    problem = LightProblem(tiny, colours, torch.ones(1, 525), normals, torch.ones(1), priors=PRIORS, seed=0)
    residual = torch.zeros(1, 3, 3)
    residual[0, 1, 2], residual[0, 2, 0] = 2 * PRIORS.pixel_sigma, 6 * PRIORS.pixel_sigma
    torch.testing.assert_close(problem._robust_weights(residual)[0, :, 0], torch.tensor([1.0, 0.25, 0.01]))
