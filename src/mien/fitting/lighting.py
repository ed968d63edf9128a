"""Light and albedo from the colours at the vertices, by Gauss-Newton steps on both together.

The colour of a Lambertian vertex is albedo times shading (eq. 3), each linear in its coefficients. Bright light on dark
skin looks like dim light on light skin. Solving for one and then the other therefore moves slowly along a valley; both
together need a few steps. Robust weights remove highlights, cast shadows, hair and glasses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.lighting import SH_COUNT, sh_basis
from mien.losses import geman_mcclure_weights
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor

LIGHT_COUNT = 3 * SH_COUNT
"""Number of unknowns of the light."""
STEPS, WARM_STEPS = (2, 6), (1, 3)
"""Steps before and after the weights become robust: under the wrong light every vertex is an outlier. The warm ones are
from the fit of another photo of the same face; on 32 augmented photos they reach the colour error of the others."""
ROBUST_SIGMAS = 2.0
"""Scale of the robust weights, in standard deviations of the colour error."""
VERTEX_SHARE = 1 / 3
"""A random third of the vertices is enough for 40 + 27 unknowns and takes a third of the time."""
EFFECTIVE_SAMPLES = 300.0
"""Number of independent colour errors in a face: those of neighbouring vertices are correlated."""
SATURATED = 0.97
"""The sensor clips a channel above this value. Such a channel is ignored: it shows only that the light was bright."""


@dataclass(frozen=True)
class LightPriors:
    """Standard deviations of the light and of the colour error; see the fields of the same name in `FitSettings`."""

    pixel_sigma: float
    """Colour error of a good fit."""
    light_level_sigma: float
    """Shading of a surface that faces the camera, around the exposure."""
    light_sigma: float
    """Each coefficient of the light."""
    light_chroma_sigma: float
    """Differences between the colour channels of the light."""


@dataclass(frozen=True)
class LightFit:
    """Light and albedo of a batch of faces."""

    lighting: Float[Tensor, "B 9 3"]
    """Spherical-harmonics coefficients per colour channel."""
    albedo: Float[Tensor, "B A"]
    """Albedo coefficients, standard deviations."""


def fit_light_and_albedo(
    model: MorphableModel,
    *,
    colours: Float[Tensor, "B V 3"],
    weights: Float[Tensor, "B V"],
    normals: Float[Tensor, "B V 3"],
    exposure: Float[Tensor, "B"],
    priors: LightPriors,
    seed: int = 0,
    start: LightFit | None = None,
) -> LightFit:
    """The most probable light and albedo of faces whose vertices show the given colours.

    Args:
        model: Gives mean and basis of the albedo.
        colours: Colour of the photo at each vertex.
        weights: 0 for vertices that are hidden or show no skin, 1 for those that count.
        normals: Unit normals in view axes.
        exposure: Expected shading.
        priors: Standard deviations.
        seed: Selects the vertices that are used.
        start: The fit of another photo of the same face, from which fewer steps are needed; None starts from white
            light and the mean albedo.

    Returns:
        Light and albedo; not meant to be differentiated.
    """
    problem = LightProblem(model, colours, weights, normals, exposure, priors=priors, seed=seed)
    lighting, albedo = problem.start
    if start is not None:
        lighting, albedo = start.lighting.mT.to(problem.white), start.albedo.to(problem.white)
    plain, robust = STEPS if start is None else WARM_STEPS
    for step in range(plain + robust):
        lighting, albedo = problem.step(lighting, albedo, robust=step >= plain)
    return LightFit(lighting.mT.to(colours), albedo.to(colours))


class LightProblem:
    """The least-squares problem of one batch, in double precision for the reason given in landmarks.py."""

    def __init__(
        self,
        model: MorphableModel,
        colours: Float[Tensor, "B V 3"],
        weights: Float[Tensor, "B V"],
        normals: Float[Tensor, "B V 3"],
        exposure: Float[Tensor, "B"],
        *,
        priors: LightPriors,
        seed: int,
    ) -> None:
        count = len(model.mean)
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: int(count * VERTEX_SHARE)]
        rows = rows.to(colours.device)
        rows = rows[(weights[:, rows] > 0).any(0)]
        self.sigma = priors.pixel_sigma
        self.colours, self.basis = colours[:, rows].double(), sh_basis(normals[:, rows].double())
        self.weights = weights[:, rows].double()[..., None] * (self.colours < SATURATED)
        self.albedo_mean = model.albedo_mean[rows].double()
        self.albedo_columns = model.albedo_basis[:, rows].double().permute(2, 1, 0).contiguous()
        self.light_precision = light_precision(priors).to(self.colours)
        self.white = expected_light(exposure.to(self.colours))

    @property
    def start(self) -> tuple[Float[Tensor, "B 3 9"], Float[Tensor, "B A"]]:
        """White light and the mean albedo."""
        albedo = self.white.new_zeros(len(self.white), self.albedo_columns.shape[2])
        return self.white.unflatten(1, (3, SH_COUNT)), albedo

    def step(
        self, lighting: Float[Tensor, "B 3 9"], albedo: Float[Tensor, "B A"], *, robust: bool
    ) -> tuple[Float[Tensor, "B 3 9"], Float[Tensor, "B A"]]:
        """One Gauss-Newton step."""
        hessian, gradient = self.equations(lighting, albedo, robust=robust)
        hessian.diagonal(dim1=1, dim2=2)[:, LIGHT_COUNT:] += 1  # the prior of the albedo
        gradient[:, LIGHT_COUNT:] += albedo
        delta = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(hessian))[..., 0]
        return self.moved(lighting, albedo, -delta)

    def equations(
        self, lighting: Float[Tensor, "B 3 9"], albedo: Float[Tensor, "B A"], *, robust: bool
    ) -> tuple[Float[Tensor, "B K K"], Float[Tensor, "B K"]]:
        """Gauss-Newton's second and first derivative of the energy without the prior of the albedo.

        The order of the unknowns is light (channel, harmonic), albedo.
        """
        vertex_albedo = self.albedo_mean + (self.albedo_columns @ albedo.mT).permute(2, 1, 0)
        shade = self.basis @ lighting.mT
        residual = vertex_albedo * shade - self.colours
        weights = self.weights * self._robust_weights(residual) if robust else self.weights
        hessian, gradient = self._normal_equations(
            vertex_albedo, shade, residual, _sample_precision(weights, self.sigma)
        )
        hessian[:, :LIGHT_COUNT, :LIGHT_COUNT] += self.light_precision
        gradient[:, :LIGHT_COUNT] += (lighting.flatten(1) - self.white) @ self.light_precision
        return hessian, gradient

    @staticmethod
    def moved(
        lighting: Float[Tensor, "B 3 9"], albedo: Float[Tensor, "B A"], delta: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B 3 9"], Float[Tensor, "B A"]]:
        """Light and albedo after a step."""
        return lighting + delta[:, :LIGHT_COUNT].unflatten(1, (3, SH_COUNT)), albedo + delta[:, LIGHT_COUNT:]

    def _robust_weights(self, residual: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        squared = residual.square().sum(-1, keepdim=True)
        return geman_mcclure_weights(squared, scale_sq=(ROBUST_SIGMAS * self.sigma) ** 2)

    def _normal_equations(
        self,
        vertex_albedo: Float[Tensor, "B N 3"],
        shade: Float[Tensor, "B N 3"],
        residual: Float[Tensor, "B N 3"],
        precision: Float[Tensor, "B N 3"],
    ) -> tuple[Float[Tensor, "B K K"], Float[Tensor, "B K"]]:
        """JᵀWJ and JᵀWr; J is the derivative of the colours by light (channel, harmonic) and albedo.

        A light coefficient changes one channel, so JᵀWJ has blocks of zeros, and J is not built. Arrays are (B, 3, N,
        …) and contain the root of W.
        """
        root = precision.mT.sqrt()
        d_light = self.basis[:, None] * (root * vertex_albedo.mT)[..., None]
        d_albedo = (root * shade.mT)[..., None] * self.albedo_columns
        light = torch.stack([torch.block_diag(*face) for face in d_light.mT @ d_light])
        mixed = (d_light.mT @ d_albedo).flatten(1, 2)
        columns, error = d_albedo.flatten(1, 2), (root * residual.mT)[..., None]
        hessian = torch.cat(
            [torch.cat([light, mixed], dim=2), torch.cat([mixed.mT, columns.mT @ columns], dim=2)], dim=1
        )
        gradient = [(d_light.mT @ error).flatten(1), (columns.mT @ error.flatten(1, 2))[..., 0]]
        return hessian, torch.cat(gradient, dim=1)


def _sample_precision(weights: Float[Tensor, "B N 3"], sigma: float) -> Float[Tensor, "B N 3"]:
    """Inverse variance of each sample: together they count as `EFFECTIVE_SAMPLES` colours."""
    total = weights.sum((1, 2), keepdim=True).clamp(min=1.0)
    return weights * (3 * EFFECTIVE_SAMPLES / total / sigma**2)


def light_precision(priors: LightPriors) -> Float[Tensor, "27 27"]:
    """Inverse covariance of the light, in the order channel, harmonic.

    The prior is on the shading of a surface that faces the camera, not on the constant term. Most photos are lit from
    near the camera; with a prior on the constant alone, the linear terms would brighten every face and darken its skin.
    The mean of the channels and their differences are independent.

    Args:
        priors: Standard deviations.
    """
    facing = sh_basis(torch.tensor([0.0, 0.0, 1.0]))
    grey = torch.outer(facing, facing) / priors.light_level_sigma**2 + torch.eye(SH_COUNT) / priors.light_sigma**2
    chroma = torch.eye(SH_COUNT) / priors.light_chroma_sigma**2
    mixing = torch.full((3, 3), 1 / 3)
    # The square of the mean of three channels is a third of the quadratic form of `mixing`.
    return torch.kron(mixing, grey) / 3 + torch.kron(torch.eye(3) - mixing, chroma)


def expected_light(exposure: Float[Tensor, "B"]) -> Float[Tensor, "B 27"]:
    """Mean of the light prior: white light from all directions whose shading is the exposure of the photo."""
    lighting = exposure.new_zeros(len(exposure), 3, SH_COUNT)
    lighting[..., 0] = exposure[:, None]
    return lighting.flatten(1)
