"""Light and albedo from the colours under the vertices: two ridge regressions that take turns.

Given albedo, the colour of a Lambertian vertex is linear in the light; given the light it is linear in the albedo's
coefficients (eq. 2 and 3). Each half has a closed form, and robust weights drop highlights, cast shadows, hair and
glasses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.arrays import Float, Tensor
from mien.lighting import SH_COUNT, sh_basis
from mien.morphable import MorphableModel

ROUNDS = 6
VERTEX_SHARE = 1 / 3
"""A random third of the vertices is enough for 40 + 27 unknowns and takes a third of the time."""
EFFECTIVE_SAMPLES = 300.0
"""Colour errors of neighbouring vertices go together; the whole face counts as this many independent samples."""
SATURATED = 0.97
"""A channel above this is clipped by the sensor and says only that it was bright."""


@dataclass(frozen=True)
class LightPriors:
    """Standard deviations of the light and of the colour error."""

    pixel_sigma: float
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
    priors: LightPriors,
    seed: int = 0,
) -> LightFit:
    """The most probable light and albedo of faces whose vertices show the given colours.

    `weights` tell which vertices are seen and show skin; `normals` are in view axes; `seed`
    chooses the vertices that take part.
    """
    count = len(model.mean)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: int(count * VERTEX_SHARE)]
    rows = rows.to(colours.device)
    single = colours.dtype
    # In double precision for the reason given in landmarks.py.
    colours, weights, basis = colours[:, rows].double(), weights[:, rows].double(), sh_basis(normals[:, rows].double())
    albedo_mean, albedo_basis = model.albedo_mean[rows].double(), model.albedo_basis[:, rows].double()
    seen = weights[..., None] * (colours < SATURATED)
    albedo = colours.new_zeros(len(colours), len(albedo_basis))
    robust = torch.ones_like(colours)
    lighting = _solve_light(colours, albedo_mean.expand_as(colours), basis=basis, weights=seen, priors=priors)
    for _ in range(ROUNDS):
        shade = basis @ lighting
        albedo = _solve_albedo(
            colours,
            shade,
            weights=seen * robust,
            albedo_mean=albedo_mean,
            albedo_basis=albedo_basis,
            priors=priors,
        )
        vertex_albedo = albedo_mean + torch.einsum("ba,avc->bvc", albedo, albedo_basis)
        lighting = _solve_light(colours, vertex_albedo, basis=basis, weights=seen * robust, priors=priors)
        error = (vertex_albedo * (basis @ lighting) - colours).square().sum(-1, keepdim=True)
        robust = (1 + error / (2 * priors.pixel_sigma) ** 2).reciprocal().square().expand_as(colours)
    return LightFit(lighting.to(single), albedo.to(single))


def _sample_precision(weights: Float[Tensor, "B V 3"], sigma: float) -> Float[Tensor, "B V 3"]:
    total = weights.sum((1, 2), keepdim=True).clamp(min=1.0)
    return weights * (3 * EFFECTIVE_SAMPLES / total / sigma**2)


def _solve_light(
    colours: Float[Tensor, "B V 3"],
    albedo: Float[Tensor, "B V 3"],
    *,
    basis: Float[Tensor, "B V 9"],
    weights: Float[Tensor, "B V 3"],
    priors: LightPriors,
) -> Float[Tensor, "B 9 3"]:
    """27 unknowns at once, because the chroma prior ties the channels together."""
    precision = _sample_precision(weights, priors.pixel_sigma)
    design = basis[:, :, None, :] * albedo[..., None]  # B V 3 9
    per_channel = torch.einsum("bvc,bvck,bvcl->bckl", precision, design, design)
    data = torch.einsum("bvc,bvck,bvc->bck", precision, design, colours)
    hessian = torch.diag_embed(per_channel.permute(0, 2, 3, 1), dim1=1, dim2=3).reshape(-1, 27, 27)
    # Unknown order: channel, then harmonic. Grey part and chroma part of each harmonic have their own spread.
    eye = torch.eye(SH_COUNT, dtype=colours.dtype, device=colours.device)
    mixing = torch.full((3, 3), 1 / 3, dtype=colours.dtype, device=colours.device)
    grey_part, chroma_part = (
        torch.kron(mixing, eye),
        torch.kron(torch.eye(3, dtype=colours.dtype, device=colours.device) - mixing, eye),
    )
    # Grey light at light_sigma: the precision of the mean of three channels, spread over them.
    prior = grey_part * priors.light_sigma**-2 + chroma_part * priors.light_chroma_sigma**-2
    centre = torch.zeros(3, SH_COUNT, dtype=colours.dtype, device=colours.device)
    centre[:, 0] = 1.0
    right = data.reshape(-1, 27) + prior @ centre.reshape(-1)
    return torch.linalg.solve(hessian + prior, right).view(-1, 3, SH_COUNT).mT


def _solve_albedo(
    colours: Float[Tensor, "B V 3"],
    shade: Float[Tensor, "B V 3"],
    *,
    weights: Float[Tensor, "B V 3"],
    albedo_mean: Float[Tensor, "V 3"],
    albedo_basis: Float[Tensor, "A V 3"],
    priors: LightPriors,
) -> Float[Tensor, "B A"]:
    precision = _sample_precision(weights, priors.pixel_sigma)
    flat_basis = albedo_basis.flatten(1)
    scaled = (precision * shade * shade).flatten(1)[:, None] * flat_basis
    hessian = scaled @ flat_basis.mT + torch.eye(len(flat_basis), dtype=colours.dtype, device=colours.device)
    residual = (precision * shade * (colours - albedo_mean * shade)).flatten(1)
    return torch.linalg.solve(hessian, residual @ flat_basis.mT)
