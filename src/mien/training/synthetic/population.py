"""Samples the people, poses, lights and cameras of synthetic faces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mien.camera import Camera, Pose
from mien.errors import FormatError
from mien.io.tensors import not_finite, read_tensors
from mien.lighting import directional_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import IBUG_CHIN, IBUG_NOSE_BASE
from mien.networks.weights_file import check_model
from mien.perception.crops import FACE_CROP_SCALE
from mien.training.data.augment import sample_hair_colour
from mien.training.synthetic.disk_names import SKIN_TENSORS, SKINS_FORMAT
from mien.typing import Float, Tensor

UNEVENNESS_WAVES = 12
"""Number of plane waves whose sum is the unevenness of a skin's colour."""
SKIN_SHARE = 0.8
"""Share of the faces with the skin colours of a real person, if a skin bank is given."""
CROP_JITTER_STD = (0.02, 0.02, 0.03)
"""Standard deviations of a crop's x and y position, in its sides, and of its relative size."""
NEUTRAL_SHARE = 0.25
"""Share of the faces with a nearly neutral expression."""
DIRECTIONAL_AMBIENT = 0.5
"""Factor on the ambient share of the light in directional lighting."""
SMILE = {"mouthSmile": (0.3, 1.0), "cheekSquint": (0.0, 0.7), "jawOpen": (0.0, 0.3), "mouthUpperUp": (0.0, 0.4)}
"""Blendshapes of a smile for the camera, and their ranges of strength: most photos on the web show a smile."""
SMILE_SHARE = 0.35
"""Share of smiles among the faces that are not nearly neutral."""
ONE_SIDED = (
    {"eyeBlink": (0.6, 1.0), "eyeSquint": (0.2, 1.0), "cheekSquint": (0.1, 0.9), "mouthSmile": (0.0, 0.4)},
    {"mouthSmile": (0.3, 1.0), "mouthDimple": (0.0, 0.6), "cheekSquint": (0.0, 0.6)},
    {"browOuterUp": (0.4, 1.0), "eyeWide": (0.0, 0.4)},
    {"browDown": (0.4, 1.0), "eyeSquint": (0.0, 0.5)},
    {"mouth": (0.3, 1.0), "jaw": (0.0, 0.5)},
    {"noseSneer": (0.4, 1.0), "mouthUpperUp": (0.2, 0.9), "cheekSquint": (0.0, 0.5)},
)
"""Blendshapes, without "Left" and "Right", of the one-sided expressions, and their ranges of strength: wink, smile,
raised brow, lowered brow, mouth to a side, sneer. In a wink, the cheek helps to close the eye and often lifts the
corner of the mouth."""
ONE_SIDED_SHARE = 0.15
"""Share of the faces with a one-sided expression, all kinds and both sides equally often. Such expressions are rarer in
photos: a wink or a sneer is in fewer than 1 % of them. But an encoder that sees them that rarely predicts the mean of
both sides; with this share it sees each kind on each side in 1.25 % of the faces, and 85 % remain symmetrical."""
OTHER_SIDE = (0.0, 0.25)
"""Strength of the other side during a one-sided expression, as a share: few people move one side alone."""
POPULATION_VERSION = 2
"""Version of the distributions in this module; part of the identity of a synthetic store. 2: one-sided expressions."""


@dataclass(frozen=True)
class SkinBank:
    """Skin colours of real faces, as the albedo model plus an offset per vertex."""

    albedo: Float[Tensor, "B A"]
    """Coefficients of the albedo model."""
    albedo_offset: Float[Tensor, "B V 3"]
    """The part of the colours that the albedo model cannot represent."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the colours; that of the file would depend on the order of its metadata, which is random."""
        digest = hashlib.sha256()
        for tensor in (self.albedo.float(), self.albedo_offset.half()):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path, model: MorphableModel) -> None:
        """Write a safetensors file; offsets are stored in float16.

        Args:
            path: The file.
            model: The face model that the skins belong to.
        """
        tensors = {"albedo": self.albedo.contiguous(), "offset": self.albedo_offset.half().contiguous()}
        save_file(tensors, path, metadata={"format": SKINS_FORMAT, "model_hash": model.fingerprint})

    @classmethod
    def load(cls, path: Path, model: MorphableModel) -> SkinBank:
        """Read what `save` wrote.

        Args:
            path: The file.
            model: The face model that the skins must belong to.

        Raises:
            FormatError: The file is of another format or damaged.
            ModelMismatch: The skins belong to another face model.
        """
        advice = "make it again with `mien data skins`"
        metadata, tensors = read_tensors(path, advice=advice)
        if metadata.get("format") != SKINS_FORMAT or "model_hash" not in metadata:
            raise FormatError(f"{path} is not a file of `mien data skins`; make one from a store of photos.")
        check_model(model, metadata["model_hash"], whose=str(path))
        wrong = not_finite(tensors)
        if wrong is not None:
            raise FormatError(f"{path}: {wrong} holds values that are not finite; {advice}.")
        shapes = [tuple(tensors[name].shape) if name in tensors else None for name in SKIN_TENSORS]
        count = shapes[0][0] if shapes[0] else 0
        expected = [(count, model.counts[2]), (count, len(model.mean), 3)]
        if not count or shapes != expected:
            names = " and ".join(SKIN_TENSORS)
            raise FormatError(f"{path}: {names} have the shapes {shapes}; expected {expected}; {advice}.")
        return cls(*(tensors[name] for name in SKIN_TENSORS))


@dataclass(frozen=True)
class ViewDistribution:
    """How faces are turned and lit."""

    yaw_std_rad: float = 0.38
    """Standard deviation of the yaw."""
    max_yaw_rad: float = 1.1
    """Larger yaws are clipped to this value."""
    directional_share: float = 0.0
    """Share of the faces with little ambient light, so that their relief shows."""


@dataclass(frozen=True)
class FaceSamples:
    """Sampled faces in front of cameras, before rendering."""

    coefficients: FaceCoefficients
    """Identity, expression, albedo, light and pose."""
    camera: Camera
    """The camera of each face's crop."""
    albedo_offset: Float[Tensor, "B V 3"]
    """Colours per vertex that are added to the albedo model."""
    rngs: tuple[np.random.Generator, ...]
    """One generator per face, for everything that is sampled after this."""


class Population:
    """Samples faces of a model and cameras that see them in square crops.

    Args:
        model: The face model.
        size: Side of the crops, pixels.
        skins: Real skin colours; None uses the albedo model alone.
        jitter: Multiplies the random shift and size of the crops.
        view: How faces are turned and lit.
    """

    def __init__(
        self,
        model: MorphableModel,
        *,
        size: int,
        skins: SkinBank | None,
        jitter: float,
        view: ViewDistribution | None = None,
    ) -> None:
        self.model, self.size, self.skins, self.jitter = model, size, skins, jitter
        self.view = view or ViewDistribution()
        self._pairs = _expression_pairs(model.expression_names)
        extent = model.mean.amax(0) - model.mean.amin(0)
        self._unit_mean = (model.mean - model.mean.mean(0)) / extent.max()
        self._beard = _beard_region(model)

    def sample_faces(self, rngs: Sequence[np.random.Generator]) -> FaceSamples:
        """One face per generator."""
        faces = [self._sample_face(rng) for rng in rngs]
        coefficients = FaceCoefficients.join([face for face, _ in faces])
        offset = torch.cat([offset for _, offset in faces])
        return FaceSamples(coefficients, self._cameras(coefficients, rngs), offset, tuple(rngs))

    def _sample_face(self, rng: np.random.Generator) -> tuple[FaceCoefficients, Float[Tensor, "1 V 3"]]:
        """The coefficients of one face, and its albedo offset."""
        identity_count, expression_count, _ = self.model.counts
        identity = _normal(rng, identity_count) * rng.uniform(0.7, 1.3)
        albedo, offset = self._sample_skin(rng)
        names = self.model.expression_names
        strengths = _sample_expression(rng, expression_count, self._pairs, names)
        # With a generator of its own: all else of a face is as in version 1.
        strengths = _with_one_sided(rng.spawn(1)[0], strengths, names)
        pose = self._sample_pose(rng)
        lighting = _sample_lighting(rng, self.view)
        return FaceCoefficients(identity[None], strengths[None], albedo[None], lighting, pose), offset[None]

    def _sample_skin(self, rng: np.random.Generator) -> tuple[Float[Tensor, "A"], Float[Tensor, "V 3"]]:
        albedo, offset = _normal(rng, self.model.counts[2]), self._sample_unevenness(rng)
        if self.skins is None or rng.random() >= SKIN_SHARE:
            return albedo, offset
        chosen = int(rng.integers(len(self.skins.albedo)))
        real = self.skins.albedo_offset[chosen].float()
        real = real[self.model.mirror] if rng.random() < 0.5 else real
        return self.skins.albedo[chosen] + 0.3 * albedo, real + 0.3 * offset

    def _sample_pose(self, rng: np.random.Generator) -> Pose:
        """A head 0.3 to 3 m from the camera, up to 0.2 rad off its axis; pitch, yaw and roll are clipped normals."""
        view = self.view
        rotation = rng.normal(0, (0.2, view.yaw_std_rad, 0.15)).clip(
            (-0.6, -view.max_yaw_rad, -0.5), (0.6, view.max_yaw_rad, 0.5)
        )
        distance = math.exp(rng.uniform(math.log(0.3), math.log(3.0)))
        off_axis = np.tan(rng.uniform(-0.2, 0.2, 2)) * distance
        return Pose(
            rotation=torch.from_numpy(rotation.astype(np.float32))[None],
            translation=torch.tensor([[off_axis[0], off_axis[1], distance]], dtype=torch.float32),
            scale=torch.ones(1),
        )

    def _sample_unevenness(self, rng: np.random.Generator) -> Float[Tensor, "V 3"]:
        """Blotches, a beard's shadow, coloured lips and brows: colours that the albedo model does not have."""
        waves = torch.from_numpy((rng.normal(size=(UNEVENNESS_WAVES, 3)) * rng.uniform(8, 60, (UNEVENNESS_WAVES, 1))).T)
        phases = torch.from_numpy(rng.uniform(0, 2 * np.pi, UNEVENNESS_WAVES))
        tints = torch.from_numpy(
            rng.normal(0.6, 0.4, (UNEVENNESS_WAVES, 3)) * rng.normal(0, 0.006, (UNEVENNESS_WAVES, 1))
        )
        offset = torch.cos(self._unit_mean @ waves.float() + phases.float()) @ tints.float()
        masks = self.model.masks
        for part in (masks.lips, masks.brows):
            offset += part[:, None] * torch.from_numpy(rng.normal(0, 0.06, 3).astype(np.float32))
        if rng.random() < 0.25:
            dark = sample_hair_colour(rng)[:, 0, 0] - self.model.albedo_mean
            offset += self._beard[:, None] * dark * rng.uniform(0.2, 0.9)
        return offset

    def _cameras(self, coefficients: FaceCoefficients, rngs: Sequence[np.random.Generator]) -> Camera:
        """Cameras whose crops hold the faces as `face_crop` would cut them, up to the error of detected landmarks."""
        vertices = self.model.vertices(coefficients.identity, coefficients.expression)
        points = coefficients.pose.to_camera(self.model.mediapipe_points(vertices))
        flat = points[..., :2] / points[..., 2:]
        low, high = flat.amin(1), flat.amax(1)
        std = self.jitter * np.array(CROP_JITTER_STD)
        jitter = torch.from_numpy(np.stack([rng.normal(0, 1, 3) * std for rng in rngs]).astype(np.float32))
        side = (high - low).amax(-1) * FACE_CROP_SCALE * (1 + jitter[:, 2])
        middle = (low + high) / 2 + jitter[:, :2] * side[:, None]
        focal = self.size / side
        return Camera(focal, self.size / 2 - middle * focal[:, None], image_size=(self.size, self.size))


def _normal(rng: np.random.Generator, count: int) -> Float[Tensor, "N"]:
    return torch.from_numpy(rng.normal(size=count).astype(np.float32))


def _expression_pairs(names: Sequence[str]) -> list[list[int]]:
    """Indices of the blendshapes, each left one together with its right twin."""
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        groups.setdefault(name.replace("Left", "*").replace("Right", "*") if _is_sided(name) else name, []).append(k)
    return list(groups.values())


def _is_sided(name: str) -> bool:
    """Whether a blendshape has a twin on the other side of the face."""
    # jawLeft and mouthLeft are movements to a side, not one of two muscles.
    return name.endswith(("Left", "Right")) and name not in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")


def _sample_expression(
    rng: np.random.Generator, count: int, pairs: Sequence[Sequence[int]], names: Sequence[str]
) -> Float[Tensor, "E"]:
    """Strengths of a few blendshapes, similar on both sides; a quarter of the faces is nearly neutral."""
    strengths = np.zeros(count, np.float32)
    neutral = rng.random() < NEUTRAL_SHARE
    if neutral:
        active = rng.random(len(pairs)) < 0.1
        size = 0.15
    else:
        active = rng.random(len(pairs)) < rng.uniform(0.05, 0.25)
        size = 0.9
    for group, on in zip(pairs, active, strict=True):
        if on:
            level = rng.beta(1.2, 2.0) * size
            strengths[list(group)] = (level * rng.uniform(0.7, 1.0, len(group))).astype(np.float32)
    if not neutral and rng.random() < SMILE_SHARE:
        for blendshape, (low, high) in SMILE.items():
            level = rng.uniform(low, high)
            for k, name in enumerate(names):
                if name.startswith(blendshape):
                    strengths[k] = level
    return torch.from_numpy(strengths.clip(0, 1))


def _with_one_sided(
    rng: np.random.Generator, strengths: Float[Tensor, "E"], names: Sequence[str]
) -> Float[Tensor, "E"]:
    """The same expression; in some faces with a one-sided one, which replaces the strengths of its blendshapes."""
    if rng.random() >= ONE_SIDED_SHARE:
        return strengths
    expression = ONE_SIDED[int(rng.integers(len(ONE_SIDED)))]
    side, other = ("Left", "Right") if rng.random() < 0.5 else ("Right", "Left")
    strengths = strengths.clone()
    for blendshape, (low, high) in expression.items():
        level, share = rng.uniform(low, high), rng.uniform(*OTHER_SIDE)
        for name, strength in ((blendshape + side, level), (blendshape + other, level * share)):
            if name in names:
                strengths[names.index(name)] = strength
    return strengths


def _sample_lighting(rng: np.random.Generator, view: ViewDistribution) -> Float[Tensor, "1 9 3"]:
    """Ambient light and one or two distant lights, with the usual exposure of a photo."""
    ambient = rng.uniform(0.2, 0.9)
    if view.directional_share > 0 and rng.random() < view.directional_share:
        ambient *= DIRECTIONAL_AMBIENT
    lighting = torch.zeros(1, 9, 3)
    lighting[:, 0] = ambient
    for strength in (1 - ambient, rng.uniform(0, 0.4) * (rng.random() < 0.4)):
        direction = rng.normal(size=3) * (1.0, 0.6, 0.5) + (0.0, 0.5, 0.8)
        direction = torch.from_numpy((direction / np.linalg.norm(direction)).astype(np.float32))[None]
        colour = torch.from_numpy(rng.normal(1, 0.06, 3).astype(np.float32))[None]
        # A clamped cosine is 0.6 on average over the lit part of a face.
        lighting = lighting + directional_lighting(direction, colour * (strength / 0.6))
    exposure = math.exp(rng.normal(math.log(0.9), 0.2))
    return lighting * exposure


def _beard_region(model: MorphableModel) -> Float[Tensor, "V"]:
    """Where a beard grows: skin below the nose, without lips, fading into the cheeks."""
    nose_base, chin = model.mean[model.landmarks68[[IBUG_NOSE_BASE, IBUG_CHIN]]]
    height = (nose_base[1] - chin[1]).clamp(min=1e-3)
    masks = model.masks
    below = ((nose_base[1] - model.mean[:, 1]) / (0.2 * height)).clamp(0, 1)
    return below * (1 - masks.lips) * (1 - masks.mouth) * (1 - masks.neck)
