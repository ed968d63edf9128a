"""Inputs and results of the fit, and the standard deviations of its errors and priors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mien.batched import SHARED, Batched
from mien.camera import Camera
from mien.errors import ConfigError
from mien.fitting.lighting import LightPriors
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import sample_image
from mien.typing import Float, Tensor

ROBUST_SCALE_SQ = 3.0**2
"""Squared scale of the robust errors, in standard deviations. Larger errors lose their influence, so that a hand in
front of the mouth does not deform the face."""

COLOUR_ROBUST_SCALE_SQ = 3 * ROBUST_SCALE_SQ
"""The same for colours, whose squared error is that of three channels."""
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
"""ARKit's blendshapes that close the eyes."""
BLINK_SIGMA = 1.0
"""Standard deviation of their strength: unlike other expressions, a blink is rarely half. With the standard deviation
of the others, the identity closes the eyes."""


COVERED_WEIGHT = 0.1
"""Weight of landmarks under a mask or behind a hand, where the detector guesses."""


@dataclass(frozen=True)
class FitTargets(Batched):
    """Photos of a batch of faces, each in its own square crop, with what is known about them."""

    crops: Float[Tensor, "B 3 S S"]
    """Photo around each face, RGB in [0, 1]."""
    mask: Float[Tensor, "B S S"]
    """Probability that a pixel shows the skin of the face, 0 to 1."""
    outline: Float[Tensor, "B S S"]
    """Probability that a pixel belongs to the face with its eyes, open mouth, beard and glasses, 0 to 1."""
    exposure: Float[Tensor, "B"]
    """Brightness of the whole photo, 1 if its brightest parts are white: the expected shading of the face."""
    camera: Camera
    """Camera of each crop; its focal length is that of the photo in pixels of the crop."""
    landmarks468_px: Float[Tensor, "B 468 2"]
    """MediaPipe's points, crop pixels."""
    landmarks68_px: Float[Tensor, "B 68 2"]
    """iBUG points, crop pixels."""
    landmarks468_depth_px: Float[Tensor, "B 468"] | None = None
    """Depth of MediaPipe's points in crop pixels, larger away from the camera, up to a plane in x and y; None if it is
    unknown."""
    covered: Float[Tensor, "B S S"] | None = None
    """Where a mask, glasses, a hand or another thing hides the face, 0 to 1; None if that is unknown. What is hidden is
    not part of `mask` and `outline` either; here it lowers the weight of landmarks and of the contour."""

    @property
    def extent_px(self) -> Float[Tensor, "B"]:
        """Size of the face in its crop: the diagonal of the bounding box of MediaPipe's points, pixels."""
        return (self.landmarks468_px.amax(1) - self.landmarks468_px.amin(1)).norm(dim=-1)

    def trust(self, points_px: Float[Tensor, "B N 2"]) -> Float[Tensor, "B N"]:
        """Weight of what was detected at some points: 1, or less where something hides the face.

        Args:
            points_px: Crop pixels.

        Returns:
            1 to `COVERED_WEIGHT`.
        """
        if self.covered is None:
            return torch.ones_like(points_px[..., 0])
        return 1 - (1 - COVERED_WEIGHT) * sample_image(self.covered[:, None], points_px)[..., 0]


@dataclass(frozen=True)
class FitSettings:
    """Weights and number of steps of the fit; every sigma is the standard deviation of a Gaussian error.

    Raises:
        ConfigError: A field is out of its range.

    Example:
        >>> import mien
        >>> mien.FitSettings(photometric_steps=50).photometric_steps
        50
    """

    landmark_sigma: float = 0.02
    """Error of one of MediaPipe's points, as a share of the size of the face in the image. The error of the network is
    near 0.01, but the errors of neighbouring points are correlated; the larger value makes 468 points count like about
    120."""
    depth_sigma: float = 0.05
    """Error of the depth of one of MediaPipe's points, as a share of the size of the face in the image, see
    `mien.fitting.depth`."""
    lid_sigma: float = 0.03
    """Error of the distance between upper and lower lid, as a share of the eye's width, see `mien.fitting.lids`."""
    identity_sigma: float = 1.0
    """Factor of the standard deviations of the identity, see `mien.fitting.identity_prior`."""
    prediction_sigma: float = 0.002
    """Position of a vertex in the identity that a network predicts, metres, see `mien.fitting.prediction`."""
    expression_sigma: float = 0.25
    """Typical strength of a blendshape in a photo. Not used for models whose expressions are in standard deviations."""
    pixel_sigma: float = 0.05
    """Colour error of a good fit; a pixel with a much larger error shows something that the model does not cover."""
    contour_sigma: float = 0.006
    """Error of the occluding contour, as a share of the size of the face in the image."""
    light_level_sigma: float = 0.06
    """Shading of a surface that faces the camera, around the exposure of the photo. Only this prior distinguishes dark
    skin in bright light from light skin in dim light."""
    light_sigma: float = 0.2
    """Each coefficient of the light, and with it the strength of directional light."""
    light_chroma_sigma: float = 0.06
    """Differences between the colour channels of the light: photos are white-balanced, so the skin has the colour."""
    recognition_weight: float = 1200.0
    """Weight of eq. 6 in the energy, in which an error of one standard deviation counts 0.5. With 200 the recognition
    network verifies the fit of seven of eight portraits, with 1,600 of all eight, at the same photometric error."""
    photometric_steps: int = 12
    """Largest number of steps of the photometric fit; it ends earlier if it has converged."""
    warm_photometric_steps: int = 8
    """The same for a fit that starts from the prediction of a network."""
    seed: int = 0
    """Selects the vertices that light and albedo are fitted to; nothing else in the fit is random."""
    refine_focal: bool = False
    """Whether the focal length is fitted too; in a distant face it is nearly unobservable."""

    def __post_init__(self) -> None:
        for name in (
            "landmark_sigma",
            "depth_sigma",
            "lid_sigma",
            "identity_sigma",
            "prediction_sigma",
            "expression_sigma",
            "pixel_sigma",
            "contour_sigma",
            "light_level_sigma",
            "light_sigma",
            "light_chroma_sigma",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"fit.{name}={getattr(self, name)} is out of range; use a positive, finite number.")
        if not 0 <= self.recognition_weight < math.inf:
            raise ConfigError(
                f"fit.recognition_weight={self.recognition_weight} is out of range; use 0 or a positive, finite number."
            )
        for name in ("photometric_steps", "warm_photometric_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"fit.{name}={getattr(self, name)} is out of range; use 0 or more steps.")

    @property
    def light_priors(self) -> LightPriors:
        """The settings that `fit_light_and_albedo` uses."""
        return LightPriors(self.pixel_sigma, self.light_level_sigma, self.light_sigma, self.light_chroma_sigma)

    def expression_sigma_of(self, model: MorphableModel) -> float:
        """Standard deviation of the expression coefficients of a model.

        Args:
            model: A model whose expression coefficients are blendshape weights, or standard deviations already.

        Returns:
            `expression_sigma` for blendshape weights, 1 otherwise.
        """
        return self.expression_sigma if model.expression_kind == "strength" else 1.0

    def expression_sigmas(self, model: MorphableModel) -> Float[Tensor, "E"]:
        """Standard deviation of each expression coefficient of a model.

        Args:
            model: The morphable model.

        Returns:
            `expression_sigma_of`, but `BLINK_SIGMA` for ARKit's blinks.
        """
        sigmas = torch.full_like(model.mean[:1, 0], self.expression_sigma_of(model)).repeat(model.counts[1])
        blinks = [k for k, name in enumerate(model.expression_names) if name in BLINKS]
        sigmas[blinks] = BLINK_SIGMA
        return sigmas


Progress = Callable[[str, float], None]
"""Is called with the name of a stage and the share of it that is done, 0 to 1. If it raises, the computation ends."""


@dataclass(frozen=True)
class StageTime:
    """Duration of one stage for the whole batch."""

    name: str
    """Name of the stage."""
    seconds: float
    """Wall-clock time."""


@dataclass(frozen=True)
class FitResult(Batched):
    """Fitted faces of a batch."""

    coefficients: FaceCoefficients
    """Identity, expression, albedo, light and pose per face."""
    camera: Camera
    """The given cameras, or those with the fitted focal length."""
    photometric_error: Float[Tensor, "B"]
    """Root mean square colour error over the pixels of mask and rendering."""
    stage_times: tuple[StageTime, ...] = field(default=(), metadata=SHARED)
    """Durations of the stages for the whole batch, also after a slice."""
