"""What the fit is given, what it returns, and the scales of its noise and priors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mien.batched import SHARED, Batched
from mien.camera import Camera
from mien.errors import ConfigError
from mien.fitting.lighting import LightPriors
from mien.morphable import FaceCoefficients, MorphableModel
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class FitTargets(Batched):
    """A batch of faces to be explained, each in its own square crop."""

    crops: Float[Tensor, "B 3 S S"]
    """The photo around each face."""
    mask: Float[Tensor, "B S S"]
    """How sure it is that a pixel shows the face's skin, 0 to 1."""
    outline: Float[Tensor, "B S S"]
    """What belongs on the face, with eyes, open mouth, beard and glasses, 0 to 1."""
    exposure: Float[Tensor, "B"]
    """How bright the photo is as a whole, 1 where its brightest parts are white; the light is expected to be so."""
    camera: Camera
    """The photo's camera seen through each crop."""
    landmarks468_px: Float[Tensor, "B 468 2"]
    """MediaPipe's points in crop pixels."""
    landmarks68_px: Float[Tensor, "B 68 2"]
    """iBUG points in crop pixels."""

    @property
    def extent_px(self) -> Float[Tensor, "B"]:
        """The face's size in its crop: the diagonal of the box of its mesh points, pixels."""
        return (self.landmarks468_px.amax(1) - self.landmarks468_px.amin(1)).norm(dim=-1)


@dataclass(frozen=True)
class FitSettings:
    """Weights and schedule of the fit; every sigma is the standard deviation of a Gaussian error model."""

    landmark_sigma: float = 0.03
    """Error of a mesh point in parts of the face's size in the image. The network's own error is near 0.01, but
    the errors of neighbouring points go together; the larger number makes 468 points weigh like about 50."""
    identity_sigma: float = 1.0
    """The model's coefficients are standard deviations already."""
    expression_sigma: float = 0.25
    """An action's typical strength in a photo; components that are standard deviations are their own measure."""
    pixel_sigma: float = 0.05
    """Colour error of a good fit; beyond it a pixel counts as something the model cannot explain."""
    contour_sigma: float = 0.006
    """Error of the face's outline in parts of its size in the image, where background shows it."""
    light_level_sigma: float = 0.06
    """Spread, around the photo's exposure, of the light on a surface that faces the camera: only this keeps dark skin
    in bright light apart from light skin in dim light."""
    light_sigma: float = 0.2
    """Spread of each single coefficient, which gives the light its direction."""
    light_chroma_sigma: float = 0.06
    """Spread of the light's colour: photos are white-balanced, so it is the skin that has the colour."""
    recognition_weight: float = 1200.0
    """Of eq. 6 in the energy, where an error of one standard deviation counts a half. At 200 the base fit is verified
    on seven of eight portraits, at 1,600 on all of them, with the same photometric error."""
    photometric_steps: int = 100
    warm_photometric_steps: int = 36
    """Steps where a network's guess starts the fit."""
    seed: int = 0
    """Chooses the vertices whose colours decide light and albedo; nothing else in the fit is random."""
    refine_focal: bool = False
    """Whether the focal length is a free variable; it is nearly unobservable in a distant face."""

    @property
    def light_priors(self) -> LightPriors:
        """What the closed-form fit of light and albedo takes of these."""
        return LightPriors(self.pixel_sigma, self.light_level_sigma, self.light_sigma, self.light_chroma_sigma)

    def __post_init__(self) -> None:
        for name in (
            "landmark_sigma",
            "identity_sigma",
            "expression_sigma",
            "pixel_sigma",
            "contour_sigma",
            "light_level_sigma",
            "light_sigma",
            "light_chroma_sigma",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"fit.{name} must be positive and finite, got {getattr(self, name)}.")
        if not 0 <= self.recognition_weight < math.inf:
            raise ConfigError(f"fit.recognition_weight must be finite and not negative, got {self.recognition_weight}.")
        for name in ("photometric_steps", "warm_photometric_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"fit.{name} must not be negative, got {getattr(self, name)}.")

    def expression_sigma_of(self, model: MorphableModel) -> float:
        """Standard deviation of the model's expression coefficients."""
        return self.expression_sigma if model.expression_kind == "strength" else 1.0


@dataclass(frozen=True)
class StageTime:
    """How long one stage took for the whole batch."""

    name: str
    seconds: float


@dataclass(frozen=True)
class FitResult(Batched):
    """The coefficients that explain a batch of faces best."""

    coefficients: FaceCoefficients
    camera: Camera
    """The given camera, or the refined one."""
    photometric_error: Float[Tensor, "B"]
    """Root mean squared colour error inside the mask and the rendering."""
    stage_times: tuple[StageTime, ...] = field(default=(), metadata=SHARED)
