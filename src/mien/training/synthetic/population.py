"""The people, poses, lights and cameras that drawn faces are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mien.camera import Camera, Pose
from mien.errors import FormatError
from mien.lighting import directional_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import IBUG_CHIN, IBUG_NOSE_BASE
from mien.networks.weights_file import check_model
from mien.perception.crops import FACE_CROP_SCALE
from mien.training.data.augment import hair_colour
from mien.typing import Float, Tensor

DETAIL_WAVES = 12
"""Plane waves that make the unevenness of a skin."""
SKIN_SHARE = 0.8
"""How often a face wears the colours of a real skin, where there are some."""
JITTER = (0.02, 0.02, 0.03)
"""Standard deviations of a crop's place, in its sides, and of its size."""
NEUTRAL_SHARE = 0.25
DIRECTED = 0.5
"""What a directed light leaves of the share of the surroundings."""
SKINS_FORMAT = "mien-skins-1"


@dataclass(frozen=True)
class SkinBank:
    """Colours of real faces: coefficients of the albedo model, and what it lacks at each vertex."""

    albedo: Float[Tensor, "B A"]
    offset: Float[Tensor, "B V 3"]

    def save(self, path: Path, model: MorphableModel) -> None:
        """Write a safetensors file; offsets in float16."""
        tensors = {"albedo": self.albedo.contiguous(), "offset": self.offset.half().contiguous()}
        save_file(tensors, path, metadata={"format": SKINS_FORMAT, "model_hash": model.fingerprint})

    @classmethod
    def load(cls, path: Path, model: MorphableModel) -> SkinBank:
        """Read what `save` wrote; FormatError for other files, ModelMismatch for another face model."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != SKINS_FORMAT:
                    raise FormatError(f"{path} is not a file of `mien data skins`.")
                check_model(model, metadata["model_hash"], whose=str(path))
                return cls(file.get_tensor("albedo"), file.get_tensor("offset"))
        except (SafetensorError, OSError, KeyError) as error:
            raise FormatError(f"{path} is not a readable file of `mien data skins`: {error}") from error


@dataclass(frozen=True)
class View:
    """How faces are turned and lit."""

    yaw: float = 0.38
    """Standard deviation in radians."""
    largest_yaw: float = 1.1
    directed_share: float = 0.0
    """How often the surroundings hardly add to the lights, so that relief shows."""


@dataclass(frozen=True)
class FaceSamples:
    """People before cameras, not yet drawn."""

    coefficients: FaceCoefficients
    camera: Camera
    offset: Float[Tensor, "B V 3"]
    """Colours that their albedo lacks at each vertex."""
    rngs: tuple[np.random.Generator, ...]
    """What each of them is drawn with from here on."""


class Population:
    """Draws people of a model before cameras with crops of `size` pixels; `skins` dress some in real colours."""

    def __init__(
        self, model: MorphableModel, *, size: int, skins: SkinBank | None, jitter: float, view: View | None = None
    ) -> None:
        self.model, self.size, self.skins, self.jitter, self.view = model, size, skins, jitter, view or View()
        self._pairs = _expression_pairs(model.expression_names)
        extent = model.mean.amax(0) - model.mean.amin(0)
        self._unit_mean = (model.mean - model.mean.mean(0)) / extent.max()
        self._beard = _beard_region(model)

    def sample_faces(self, rngs: Sequence[np.random.Generator]) -> FaceSamples:
        """One person for each generator."""
        parts = [self._sample(rng) for rng in rngs]
        coefficients = FaceCoefficients.join([part[0] for part in parts])
        offset = torch.cat([part[1] for part in parts])
        return FaceSamples(coefficients, self._cameras(coefficients, rngs), offset, tuple(rngs))

    def _sample(self, rng: np.random.Generator) -> tuple[FaceCoefficients, Float[Tensor, "1 V 3"]]:
        """One face of the population with its pose and light, and the colours its model lacks."""
        view = self.view
        identity_count, expression_count, albedo_count = self.model.counts
        identity = _normal(rng, identity_count) * rng.uniform(0.7, 1.3)
        albedo, offset = _normal(rng, albedo_count), self._unevenness(rng)
        if self.skins is not None and rng.random() < SKIN_SHARE:
            chosen = int(rng.integers(len(self.skins.albedo)))
            worn = self.skins.offset[chosen].float()
            worn = worn[self.model.mirror] if rng.random() < 0.5 else worn
            albedo, offset = self.skins.albedo[chosen] + 0.3 * albedo, worn + 0.3 * offset
        strengths = _expression(rng, expression_count, self._pairs, self.model.expression_names)
        rotation = rng.normal(0, (0.2, view.yaw, 0.15)).clip(
            (-0.6, -view.largest_yaw, -0.5), (0.6, view.largest_yaw, 0.5)
        )
        distance = math.exp(rng.uniform(math.log(0.3), math.log(3.0)))
        off_axis = np.tan(rng.uniform(-0.2, 0.2, 2)) * distance
        pose = Pose(
            rotation=torch.from_numpy(rotation.astype(np.float32))[None],
            translation=torch.tensor([[off_axis[0], off_axis[1], distance]], dtype=torch.float32),
            scale=torch.ones(1),
        )
        face = FaceCoefficients(identity[None], strengths[None], albedo[None], _light(rng, view), pose)
        return face, offset[None]

    def _unevenness(self, rng: np.random.Generator) -> Float[Tensor, "V 3"]:
        """Blotches, a beard's shadow, made-up lips and brows: colour that the albedo model does not have."""
        waves = torch.from_numpy((rng.normal(size=(DETAIL_WAVES, 3)) * rng.uniform(8, 60, (DETAIL_WAVES, 1))).T)
        phases = torch.from_numpy(rng.uniform(0, 2 * np.pi, DETAIL_WAVES))
        tints = torch.from_numpy(rng.normal(0.6, 0.4, (DETAIL_WAVES, 3)) * rng.normal(0, 0.006, (DETAIL_WAVES, 1)))
        offset = torch.cos(self._unit_mean @ waves.float() + phases.float()) @ tints.float()
        masks = self.model.masks
        for part in (masks.lips, masks.brows):
            offset += part[:, None] * torch.from_numpy(rng.normal(0, 0.06, 3).astype(np.float32))
        if rng.random() < 0.25:
            dark = hair_colour(rng)[:, 0, 0] - self.model.albedo_mean
            offset += self._beard[:, None] * dark * rng.uniform(0.2, 0.9)
        return offset

    def _cameras(self, coefficients: FaceCoefficients, rngs: Sequence[np.random.Generator]) -> Camera:
        """Cameras whose crops hold the faces as `face_crop` would cut them, up to the error of found landmarks."""
        vertices = self.model.vertices(coefficients.identity, coefficients.expression)
        points = coefficients.pose.to_camera(self.model.mediapipe_points(vertices))
        flat = points[..., :2] / points[..., 2:]
        low, high = flat.amin(1), flat.amax(1)
        spread = self.jitter * np.array(JITTER)
        jitter = torch.from_numpy(np.stack([rng.normal(0, 1, 3) * spread for rng in rngs]).astype(np.float32))
        side = (high - low).amax(-1) * FACE_CROP_SCALE * (1 + jitter[:, 2])
        middle = (low + high) / 2 + jitter[:, :2] * side[:, None]
        focal = self.size / side
        return Camera(focal, self.size / 2 - middle * focal[:, None], image_size=(self.size, self.size))


def _normal(rng: np.random.Generator, count: int) -> Float[Tensor, "N"]:
    return torch.from_numpy(rng.normal(size=count).astype(np.float32))


def _expression_pairs(names: Sequence[str]) -> list[list[int]]:
    """The actions, each left one together with its right twin."""
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        groups.setdefault(name.replace("Left", "*").replace("Right", "*") if _is_sided(name) else name, []).append(k)
    return list(groups.values())


def _is_sided(name: str) -> bool:
    # jawLeft and mouthLeft are movements to a side, not twins of one muscle.
    return name.endswith(("Left", "Right")) and name not in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")


SMILE = {"mouthSmile": (0.3, 1.0), "cheekSquint": (0.0, 0.7), "jawOpen": (0.0, 0.3), "mouthUpperUp": (0.0, 0.4)}
"""Actions that a photographed smile is made of, and their strengths: most photos on the web show one."""
SMILE_SHARE = 0.35


def _expression(
    rng: np.random.Generator, count: int, pairs: Sequence[Sequence[int]], names: Sequence[str]
) -> Float[Tensor, "E"]:
    strengths = np.zeros(count, np.float32)
    if rng.random() < NEUTRAL_SHARE:
        active = rng.random(len(pairs)) < 0.1
        size = 0.15
    else:
        active = rng.random(len(pairs)) < rng.uniform(0.05, 0.25)
        size = 0.9
    for group, on in zip(pairs, active, strict=True):
        if on:
            level = rng.beta(1.2, 2.0) * size
            strengths[list(group)] = (level * rng.uniform(0.7, 1.0, len(group))).astype(np.float32)
    if size > NEUTRAL_SHARE and rng.random() < SMILE_SHARE:
        for action, (low, high) in SMILE.items():
            level = rng.uniform(low, high)
            for k, name in enumerate(names):
                if name.startswith(action):
                    strengths[k] = level
    return torch.from_numpy(strengths.clip(0, 1))


def _light(rng: np.random.Generator, view: View) -> Float[Tensor, "1 9 3"]:
    """One or two distant lights and what the surroundings throw back, at a photo's usual exposure."""
    share = rng.uniform(0.2, 0.9)  # of the surroundings
    if view.directed_share > 0 and rng.random() < view.directed_share:
        share *= DIRECTED
    lighting = torch.zeros(1, 9, 3)
    lighting[:, 0] = share
    for strength in (1 - share, rng.uniform(0, 0.4) * (rng.random() < 0.4)):
        direction = rng.normal(size=3) * (1.0, 0.6, 0.5) + (0.0, 0.5, 0.8)
        direction = torch.from_numpy((direction / np.linalg.norm(direction)).astype(np.float32))[None]
        colour = torch.from_numpy(rng.normal(1, 0.06, 3).astype(np.float32))[None]
        # A clamped cosine is 0.6 on average over what of a face the light reaches.
        lighting = lighting + directional_lighting(direction, colour * (strength / 0.6))
    level = math.exp(rng.normal(math.log(0.9), 0.2))
    return lighting * level


def _beard_region(model: MorphableModel) -> Float[Tensor, "V"]:
    """Where a beard grows: skin below the nose, without lips, fading into the cheeks."""
    nose_base, chin = model.mean[model.landmarks68[[IBUG_NOSE_BASE, IBUG_CHIN]]]
    reach = (nose_base[1] - chin[1]).clamp(min=1e-3)
    masks = model.masks
    below = ((nose_base[1] - model.mean[:, 1]) / (0.2 * reach)).clamp(0, 1)
    return below * (1 - masks.lips) * (1 - masks.mouth) * (1 - masks.neck)
