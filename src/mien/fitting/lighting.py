"""Light and albedo from the colours under the vertices, by Gauss-Newton on both at once.

A Lambertian vertex shows albedo times shading (eq. 3), each linear in its coefficients. Bright light on dark skin looks
like dim light on light skin, so solving for one and then the other creeps along a valley; together they take a few
steps. Robust weights drop highlights, cast shadows, hair and glasses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.lighting import SH_COUNT, sh_basis
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor

ITERATIONS = 8
PLAIN_ITERATIONS = 2
"""Steps before the weights become robust: under the wrong light everything is an outlier."""
VERTEX_SHARE = 1 / 3
"""A random third of the vertices is enough for 40 + 27 unknowns and takes a third of the time."""
EFFECTIVE_SAMPLES = 300.0
"""Colour errors of neighbouring vertices go together; the whole face counts as this many independent samples."""
SATURATED = 0.97
"""A channel above this is clipped by the sensor and says only that it was bright."""


@dataclass(frozen=True)
class LightPriors:
    """Standard deviations of the light and of the colour error; FitSettings says more."""

    pixel_sigma: float
    light_level_sigma: float
    light_sigma: float
    light_chroma_sigma: float


@dataclass(frozen=True)
class LightFit:
    """What the colours say of a batch of faces."""

    lighting: Float[Tensor, "B 9 3"]
    albedo: Float[Tensor, "B A"]


def fit_light_and_albedo(
    model: MorphableModel,
    *,
    colours: Float[Tensor, "B V 3"],
    weights: Float[Tensor, "B V"],
    normals: Float[Tensor, "B V 3"],
    exposure: Float[Tensor, "B"],
    priors: LightPriors,
    seed: int = 0,
) -> LightFit:
    """The most probable light and albedo of faces whose vertices show the given colours.

    `weights` tell which vertices are seen and show skin; `normals` are in view axes; `exposure`
    is the expected level of the light; `seed` chooses the vertices that take part.
    """
    count = len(model.mean)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: int(count * VERTEX_SHARE)]
    rows = rows.to(colours.device)
    single = colours.dtype
    # In double precision for the reason given in landmarks.py.
    colours, weights, basis = colours[:, rows].double(), weights[:, rows].double(), sh_basis(normals[:, rows].double())
    albedo_mean, albedo_basis = model.albedo_mean[rows].double(), model.albedo_basis[:, rows].double()
    seen = weights[..., None] * (colours < SATURATED)
    prior = light_precision(priors).to(colours)
    white = expected_light(exposure.to(colours))
    lighting = white.unflatten(1, (3, SH_COUNT))
    albedo = colours.new_zeros(len(colours), len(albedo_basis))
    for iteration in range(ITERATIONS):
        vertex_albedo = albedo_mean + torch.einsum("ba,avc->bvc", albedo, albedo_basis)
        shade = basis @ lighting.mT
        residual = vertex_albedo * shade - colours
        robust = 1.0
        if iteration >= PLAIN_ITERATIONS:
            squared = residual.square().sum(-1, keepdim=True)
            robust = (1 + squared / (2 * priors.pixel_sigma) ** 2).reciprocal().square()
        precision = _sample_precision(seen * robust, priors.pixel_sigma)
        d_light = torch.einsum("bvc,bvk,cd->bvcdk", vertex_albedo, basis, torch.eye(3).to(basis)).flatten(3)
        d_albedo = shade[..., None] * albedo_basis.permute(1, 2, 0)
        jacobian = torch.cat([d_light, d_albedo], dim=-1).flatten(1, 2)
        weighted = jacobian * precision.flatten(1)[..., None]
        hessian = weighted.mT @ jacobian + torch.block_diag(prior, torch.eye(albedo.shape[1]).to(prior))
        gradient = (weighted * residual.flatten(1)[..., None]).sum(1)
        gradient = gradient + torch.cat([(lighting.flatten(1) - white) @ prior, albedo], dim=1)
        delta = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(hessian))[..., 0]
        lighting = lighting - delta[:, : 3 * SH_COUNT].unflatten(1, (3, SH_COUNT))
        albedo = albedo - delta[:, 3 * SH_COUNT :]
    return LightFit(lighting.mT.to(single), albedo.to(single))


def _sample_precision(weights: Float[Tensor, "B V 3"], sigma: float) -> Float[Tensor, "B V 3"]:
    total = weights.sum((1, 2), keepdim=True).clamp(min=1.0)
    return weights * (3 * EFFECTIVE_SAMPLES / total / sigma**2)


def light_precision(priors: LightPriors) -> Float[Tensor, "27 27"]:
    """Inverse covariance of the light, in the order channel, harmonic.

    What is expected is the shading of a surface that faces the camera, not the constant term: most photos are lit from
    somewhere near the camera, and with the constant alone held, the linear terms would brighten every face and darken
    its skin. The channels' mean and their differences are independent.
    """
    facing = sh_basis(torch.tensor([0.0, 0.0, 1.0]))
    grey = torch.outer(facing, facing) / priors.light_level_sigma**2 + torch.eye(SH_COUNT) / priors.light_sigma**2
    chroma = torch.eye(SH_COUNT) / priors.light_chroma_sigma**2
    mixing = torch.full((3, 3), 1 / 3)
    # The square of the mean of three channels is a third of `mixing`'s quadratic form.
    return torch.kron(mixing, grey) / 3 + torch.kron(torch.eye(3) - mixing, chroma)


def expected_light(exposure: Float[Tensor, "B"]) -> Float[Tensor, "B 27"]:
    """The prior's mean: white light from everywhere that shades every surface as the photo is exposed."""
    lighting = exposure.new_zeros(len(exposure), 3, SH_COUNT)
    lighting[..., 0] = exposure[:, None]
    return lighting.flatten(1)
