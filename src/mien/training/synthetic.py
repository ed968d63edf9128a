"""An endless stream of drawn faces with everything known about them.

    seed, number ──► coefficients, camera ── renderer ──► face ── imaging ──► hair, clothes, covers, camera, JPEG

A face is a function of the stream's seed and its own number: no matter in which batch, process or run it is drawn, it
is the same face. So a run can be resumed, and divided over processes, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mien.arrays import Float, Tensor
from mien.camera import Camera, Pose
from mien.encoder import HEAD_UNITS, appearance, check_model, mean_face_frame
from mien.errors import FormatError
from mien.lighting import directional_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception.alignment import FACE_CROP_SCALE
from mien.rendering import RenderOutput, VertexDetail, landmark_vertices, render
from mien.training.batch import FaceBatch, join_batches
from mien.training.imaging import FaceFrame, background, body_behind, covers, hair_colour, photograph

DETAIL_WAVES = 12
"""Plane waves that make the unevenness of a skin."""
SKIN_SHARE = 0.8
"""How often a face wears the colours of a real skin, where there are some."""
JITTER = (0.02, 0.02, 0.03)
"""Standard deviations of a crop's place, in its sides, and of its size."""
NEUTRAL_SHARE = 0.25
SKINS_FORMAT = "mien-skins-1"
SAMPLE_BATCH, SHEET_COLUMNS = 16, 8


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


class SyntheticFaces:
    """Draws faces of a model in square crops of `size` pixels; `skins` dress some of them in real colours.

    With a `pool` there are only so many faces, kept in memory (16 bytes a pixel of each); each is
    photographed anew, by another camera, whenever its turn comes. That halves the cost of a face.
    """

    def __init__(
        self,
        model: MorphableModel,
        *,
        size: int,
        seed: int = 0,
        skins: SkinBank | None = None,
        pool: int = 0,
        jitter: float = 1.0,
    ) -> None:
        self.model, self.size, self.seed, self.skins, self.pool, self.jitter = model, size, seed, skins, pool, jitter
        self._kept: dict[int, FaceBatch] = {}
        self.sides_per_m = mean_face_frame(model).sides_per_m
        self._pairs = _expression_pairs(model.expression_names)
        extent = model.mean.amax(0) - model.mean.amin(0)
        self._unit_mean = (model.mean - model.mean.mean(0)) / extent.max()
        self._beard = _beard_region(model)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as some camera shows them."""
        faces = [number % self.pool for number in numbers] if self.pool else list(numbers)
        missing = sorted(set(faces) - set(self._kept))
        scenes = dict(zip(missing, _singles(self.draw(missing)), strict=True)) if missing else {}
        if self.pool:
            self._kept |= scenes
        scenes |= self._kept
        drawn = join_batches([scenes[face] for face in faces])
        shots = [
            photograph(np.random.default_rng((self.seed, 1, number)), picture)
            for number, picture in zip(numbers, drawn.images, strict=True)
        ]
        return replace(drawn, images=torch.stack(shots))

    @torch.no_grad()
    def draw(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers and what is around and before them, not yet photographed."""
        chances = [np.random.default_rng((self.seed, number)) for number in numbers]
        parts = [self._sample(rng) for rng in chances]
        coefficients = _join_coefficients([part[0] for part in parts])
        detail = VertexDetail(None, albedo_offset=torch.cat([part[1] for part in parts]))
        camera = self._camera(coefficients, chances)
        drawn = render(self.model, coefficients, camera, detail=detail)
        mesh_px = camera.project(self.model.mediapipe_points(drawn.surface.vertices_camera))
        scenes = [self._scene(drawn, mesh_px, k, rng) for k, rng in enumerate(chances)]
        landmarks = landmark_vertices(self.model, drawn.vertices_px, coefficients.pose.rotmat())
        return FaceBatch(
            images=torch.stack([picture for picture, _ in scenes]),
            mask=torch.stack([mask for _, mask in scenes]),
            camera=camera,
            landmarks68_px=drawn.vertices_px.gather(1, landmarks[..., None].expand(-1, -1, 2)),
            mesh_px=mesh_px,
            truth=appearance(coefficients, camera, sides_per_m=self.sides_per_m),
            names=tuple(f"synthetic-{self.seed}-{number}" for number in numbers),
        )

    def _sample(self, rng: np.random.Generator) -> tuple[FaceCoefficients, Float[Tensor, "1 V 3"]]:
        """One face of the population with its pose and light, and the colours its model lacks."""
        identity_count, expression_count, albedo_count = self.model.counts
        identity = _normal(rng, identity_count) * rng.uniform(0.7, 1.3)
        albedo, offset = _normal(rng, albedo_count), self._unevenness(rng)
        if self.skins is not None and rng.random() < SKIN_SHARE:
            chosen = int(rng.integers(len(self.skins.albedo)))
            worn = self.skins.offset[chosen].float()
            worn = worn[self.model.mirror] if rng.random() < 0.5 else worn
            albedo, offset = self.skins.albedo[chosen] + 0.3 * albedo, worn + 0.3 * offset
        strengths = _expression(rng, expression_count, self._pairs, self.model.expression_names)
        rotation = rng.normal(0, (0.2, 0.38, 0.15)).clip((-0.6, -1.1, -0.5), (0.6, 1.1, 0.5))
        distance = math.exp(rng.uniform(math.log(0.3), math.log(3.0)))
        off_axis = np.tan(rng.uniform(-0.2, 0.2, 2)) * distance
        pose = Pose(
            rotation=torch.from_numpy(rotation.astype(np.float32))[None],
            translation=torch.tensor([[off_axis[0], off_axis[1], distance]], dtype=torch.float32),
            scale=torch.ones(1),
        )
        face = FaceCoefficients(identity[None], strengths[None], albedo[None], _light(rng), pose)
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

    def _camera(self, coefficients: FaceCoefficients, chances: Sequence[np.random.Generator]) -> Camera:
        """Cameras whose crops hold the faces as `face_crop` would cut them, up to the error of found landmarks."""
        vertices = self.model.vertices(coefficients.identity, coefficients.expression)
        points = coefficients.pose.to_camera(self.model.mediapipe_points(vertices))
        flat = points[..., :2] / points[..., 2:]
        low, high = flat.amin(1), flat.amax(1)
        spread = self.jitter * np.array(JITTER)
        jitter = torch.from_numpy(np.stack([rng.normal(0, 1, 3) * spread for rng in chances]).astype(np.float32))
        side = (high - low).amax(-1) * FACE_CROP_SCALE * (1 + jitter[:, 2])
        middle = (low + high) / 2 + jitter[:, :2] * side[:, None]
        focal = self.size / side
        return Camera(focal, self.size / 2 - middle * focal[:, None], image_size=(self.size, self.size))

    def _scene(
        self, drawn: RenderOutput, mesh_px: Float[Tensor, "B 468 2"], k: int, rng: np.random.Generator
    ) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
        """The drawn face in its surroundings, and where its skin is seen."""
        face, alpha = drawn.image[k].clamp(0, 1), drawn.coverage[k]
        frame = FaceFrame.of(mesh_px[k], self.size)
        skin = ((face * alpha).sum((1, 2)) / alpha.sum().clamp(min=1)).view(3, 1, 1)
        picture = body_behind(rng, frame, background(rng, self.size), skin=skin)
        picture = torch.lerp(picture, face, alpha)
        for cover in covers(rng, frame):
            picture = torch.lerp(picture, cover.colours, cover.opacity)
            alpha = alpha * (1 - cover.opacity)
        return picture, alpha


def write_samples(faces: SyntheticFaces, out: Path, *, count: int) -> Path:
    """Write the first faces of a stream as pictures, their truth as truth.npz, and a sheet, whose path is returned."""
    out.mkdir(parents=True, exist_ok=True)
    batches = [faces.batch(range(k, min(k + SAMPLE_BATCH, count))) for k in range(0, count, SAMPLE_BATCH)]
    batch = join_batches(batches)
    pictures = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(out / f"face-{number:05d}.png")
    if batch.truth is None:
        raise TypeError("drawn faces come with their truth")
    truth = {name: getattr(batch.truth, name).numpy() for name in HEAD_UNITS}
    camera = {"focal_px": batch.camera.focal_px.numpy(), "centre_px": batch.camera.centre_px.numpy()}
    truth["landmarks68_px"] = batch.landmarks68_px.numpy()
    np.savez(out / "truth.npz", allow_pickle=False, **truth, **camera)
    rows = -(-count // SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, *pictures.shape[1:]), np.uint8)
    sheet[:count] = pictures
    side = pictures.shape[1]
    sheet = sheet.reshape(rows, SHEET_COLUMNS, side, side, 3).transpose(0, 2, 1, 3, 4)
    path = out / "sheet.png"
    Image.fromarray(sheet.reshape(rows * side, SHEET_COLUMNS * side, 3)).save(path)
    return path


def _singles(batch: FaceBatch) -> list[FaceBatch]:
    """Each face as a batch of its own, with its own memory."""
    return [batch.face(k) for k in range(len(batch.images))]


def _normal(rng: np.random.Generator, count: int) -> Float[Tensor, "N"]:
    return torch.from_numpy(rng.normal(size=count).astype(np.float32))


def _join_coefficients(faces: Sequence[FaceCoefficients]) -> FaceCoefficients:
    pose = Pose(*(torch.cat([getattr(f.pose, name) for f in faces]) for name in ("rotation", "translation", "scale")))
    groups = ("identity", "expression", "albedo", "lighting")
    return FaceCoefficients(**{name: torch.cat([getattr(f, name) for f in faces]) for name in groups}, pose=pose)


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


def _light(rng: np.random.Generator) -> Float[Tensor, "1 9 3"]:
    """One or two distant lights and what the surroundings throw back, at a photo's usual exposure."""
    share = rng.uniform(0.2, 0.9)  # of the surroundings
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
    nose_base, chin = model.mean[model.landmarks68[33]], model.mean[model.landmarks68[8]]
    reach = (nose_base[1] - chin[1]).clamp(min=1e-3)
    masks = model.masks
    below = ((nose_base[1] - model.mean[:, 1]) / (0.2 * reach)).clamp(0, 1)
    return below * (1 - masks.lips) * (1 - masks.mouth) * (1 - masks.neck)
