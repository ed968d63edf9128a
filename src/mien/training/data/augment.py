"""Random backgrounds, bodies, occluders and uneven light, which a network has to ignore.

Every function takes a `numpy.random.Generator` as its only source of randomness, so that a sample is a function of its
seed. Images are RGB in [0, 1]. Shapes are placed in the coordinates of the face (`FaceFrame`) and so turn with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mien.morphable.landmark_tables import MEDIAPIPE_CHIN, MEDIAPIPE_EYE_CORNERS, MEDIAPIPE_SIDES, MEDIAPIPE_TOP
from mien.typing import Float, Tensor

HAIR_COLOURS = (
    (0.06, 0.05, 0.05), (0.16, 0.11, 0.08), (0.3, 0.2, 0.13), (0.45, 0.3, 0.17),
    (0.72, 0.58, 0.38), (0.5, 0.22, 0.1), (0.6, 0.6, 0.6), (0.85, 0.84, 0.82),
)  # fmt: skip
"""Black, two browns, light brown, blond, red, grey, white; in daylight."""
PLAIN_WALL = 0.04
"""Largest mean deviation from one colour at which the upper edges of an image count as a plain wall."""
WALL_DISTANCE = (0.09, 0.2)
"""Distances from the wall's colour in RGB: below the first a pixel is wall, above the second it is not."""
LIGHT_SLOPE = 0.25
"""Standard deviation of the log brightness that is added between the centre and the edge of an image."""


@dataclass(frozen=True)
class FaceFrame:
    """Coordinates of every pixel in units of the face's half width (u) and half height (v).

    The origin is the centre of the face; v points up.
    """

    u: Float[Tensor, "S S"]
    """Coordinate along the face's width; 1 at its side in a frontal view."""
    v: Float[Tensor, "S S"]
    """Coordinate along the face's height; 1 at the top of the oval, -1 at the chin."""
    eyes: Float[Tensor, "2 2"]
    """Centres of the right and the left eye in u, v."""

    @classmethod
    def of(cls, landmarks468_px: Float[Tensor, "468 2"], size: int) -> FaceFrame:
        """The frame of a face in an image of `size` × `size` pixels, from the extreme points of its oval."""
        centre = (landmarks468_px[MEDIAPIPE_TOP] + landmarks468_px[MEDIAPIPE_CHIN]) / 2
        up = landmarks468_px[MEDIAPIPE_TOP] - landmarks468_px[MEDIAPIPE_CHIN]
        half_height = up.norm().clamp(min=1) / 2
        up = up / (2 * half_height)
        right = torch.stack([-up[1], up[0]])
        # A face in profile has no width of its own: at least 0.8 of a half height keeps shapes from collapsing.
        half_width = ((landmarks468_px[MEDIAPIPE_SIDES[1]] - landmarks468_px[MEDIAPIPE_SIDES[0]]) @ right).abs().clamp(
            min=0.8 * half_height
        ) / 2
        axes = torch.stack([right / half_width, up / half_height], dim=-1)
        steps = torch.arange(size) + 0.5
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        u, v = ((torch.stack([x, y], -1) - centre) @ axes).unbind(-1)
        eyes = torch.stack([(landmarks468_px[a] + landmarks468_px[b]) / 2 for a, b in MEDIAPIPE_EYE_CORNERS])
        return cls(u, v, (eyes - centre) @ axes)


def smooth_noise(rng: np.random.Generator, size: int, *, channels: int, octaves: int) -> Float[Tensor, "C S S"]:
    """Smooth noise, approximately in [-1, 1]: each octave doubles the frequency at 0.6 of the strength."""
    total = torch.zeros(channels, size, size)
    for octave in range(octaves):
        cells = min(2 ** (octave + 1), size)
        shape = (1, channels, cells + 1, cells + 1)
        grid = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        total += F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)[0] * 0.6**octave
    return total * 0.5


def sample_background(rng: np.random.Generator, size: int) -> Float[Tensor, "3 S S"]:
    """A random background of `size` × `size` pixels: a plain wall, smooth shapes, or shapes with edges."""
    colour = torch.from_numpy(rng.uniform(0.02, 0.98, (3, 1, 1)).astype(np.float32))
    grey = colour.mean().expand_as(colour)
    colour = torch.lerp(grey, colour, float(rng.uniform(0, 1)))
    kind = rng.random()
    if kind < 0.2:
        return (colour + 0.02 * smooth_noise(rng, size, channels=1, octaves=2)).clamp(0, 1)
    octaves = int(rng.integers(2, 6))
    image = colour + float(rng.uniform(0.05, 0.5)) * smooth_noise(rng, size, channels=3, octaves=octaves)
    if kind > 0.6:  # edges: furniture, leaves, letters
        steps = float(rng.uniform(2, 6))
        image = torch.lerp(image, (image * steps).round() / steps, 0.8)
    return image.clamp(0, 1)


def replace_background(
    rng: np.random.Generator, image: Float[Tensor, "3 S S"], frame: FaceFrame
) -> Float[Tensor, "3 S S"]:
    """A portrait in front of another background; an image without a plain wall is returned unchanged.

    The wall's colour is the median along the upper left and right edges. Pixels of this colour are replaced, except
    inside the face.
    """
    size = image.shape[-1]
    height, width = size // 3, max(size // 12, 1)
    edges = torch.cat([image[:, :height, :width].flatten(1), image[:, :height, -width:].flatten(1)], dim=1)
    wall = edges.median(dim=1).values[:, None]
    if float((edges - wall).abs().mean()) > PLAIN_WALL:
        return image
    low, high = WALL_DISTANCE
    distance = (image - wall[..., None]).norm(dim=0)
    face = (frame.u.square() + frame.v.square() < 1).float()
    person = torch.maximum(((distance - low) / (high - low)).clamp(0, 1), face)
    return torch.lerp(sample_background(rng, size), image, person)


def uneven_light(rng: np.random.Generator, image: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
    """The image with more light from a random side: an exponential slope of brightness. The result is not clamped."""
    side = torch.linspace(-1, 1, image.shape[-1])
    x, y = rng.normal(0, LIGHT_SLOPE, 2).tolist()
    return image * (x * side + y * side[:, None]).exp()


def sample_hair_colour(rng: np.random.Generator) -> Float[Tensor, "3 1 1"]:
    """A natural hair colour under random light."""
    colour = np.array(HAIR_COLOURS[int(rng.integers(len(HAIR_COLOURS)))]) * rng.uniform(0.5, 1.3)
    return torch.from_numpy(colour.astype(np.float32)).view(3, 1, 1)


def _hair_texture(rng: np.random.Generator, colour: Float[Tensor, "3 1 1"], size: int) -> Float[Tensor, "3 S S"]:
    strands = torch.from_numpy(rng.normal(size=(1, 1, 6, size)).astype(np.float32))
    strands = F.interpolate(strands, size=(size, size), mode="bilinear", align_corners=True)[0]
    return (colour * (1 + 0.25 * strands + 0.3 * smooth_noise(rng, size, channels=1, octaves=3))).clamp(0, 1)


def add_body(
    rng: np.random.Generator, frame: FaceFrame, scene: Float[Tensor, "3 S S"], *, skin: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "3 S S"]:
    """The scene with shoulders, neck, ears and hair, over which the face is composed later.

    Args:
        rng: The only source of randomness.
        frame: The coordinates of the face.
        scene: The background.
        skin: Mean colour of the face's skin.
    """
    size = scene.shape[-1]
    u, v = frame.u, frame.v
    noise = smooth_noise(rng, size, channels=1, octaves=4)[0]
    cloth = sample_background(rng, size)
    shoulders = (v < -1.25 - 0.25 * (u.abs() - 0.6).clamp(min=0) + 0.05 * noise).float()
    neck = ((u.abs() < rng.uniform(0.5, 0.75)) & (v < -0.6) & (v > -1.8)).float()
    scene = torch.lerp(scene, cloth, shoulders)
    scene = torch.lerp(scene, (skin * rng.uniform(0.55, 0.95)).expand_as(scene), neck)
    ears = (((u.abs() - 1.0) / 0.2) ** 2 + ((v - 0.1) / 0.35) ** 2 < 1).float()
    scene = torch.lerp(scene, (skin * rng.uniform(0.7, 1.0)).expand_as(scene), ears)
    if rng.random() < 0.12:  # bald
        head = ((u / 1.02) ** 2 + ((v - 0.3) / 1.0) ** 2 < 1).float()
        return torch.lerp(scene, skin.expand_as(scene), head)
    hair = _hair_region(rng, frame, noise)
    return torch.lerp(scene, _hair_texture(rng, sample_hair_colour(rng), size), hair)


def _hair_region(rng: np.random.Generator, frame: FaceFrame, noise: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
    u, v = frame.u, frame.v
    width, height = rng.uniform(1.05, 1.5), rng.uniform(1.0, 1.45)
    cap = 1 - (u / width).square() - ((v - 0.35) / height).square() + 0.25 * noise
    hair = (cap > 0).float()
    if rng.random() < 0.45:  # long
        fall = (u.abs() < rng.uniform(1.05, 1.6) + 0.2 * noise) & (v < 0.4) & (v > rng.uniform(-2.5, -0.6))
        hair = torch.maximum(hair, fall.float())
    return hair


@dataclass(frozen=True)
class Occluder:
    """An object in front of the face."""

    colours: Float[Tensor, "3 S S"]
    """Its colours, also where it is transparent."""
    opacity: Float[Tensor, "S S"]
    """0 where the face is visible, 1 where it is hidden."""

    def over(self, image: Float[Tensor, "3 S S"], mask: Float[Tensor, "S S"]) -> tuple[Tensor, Tensor]:
        """The image with this object in front of it, and the skin mask without what it hides."""
        return torch.lerp(image, self.colours, self.opacity), mask * (1 - self.opacity)


def sample_occluders(rng: np.random.Generator, frame: FaceFrame) -> list[Occluder]:
    """Random objects in front of a face, from back to front.

    Hair at or over the forehead (75 %), glasses (15 %), and an ellipse that stands for a hand, a microphone or a scarf
    (15 %).
    """
    size = frame.u.shape[-1]
    occluders = []
    noise = smooth_noise(rng, size, channels=1, octaves=5)[0]
    if rng.random() < 0.75:
        fringe = rng.random() < 0.3
        line = rng.uniform(0.5, 1.0) if fringe else rng.uniform(0.95, 1.3)
        line = line + 0.15 * noise + rng.uniform(-0.3, 0.3) * frame.u
        line = line - rng.uniform(0, 0.5) * (frame.u.abs() - 0.6).clamp(min=0)
        hair = _hair_texture(rng, sample_hair_colour(rng), size)
        occluders.append(Occluder(hair, ((frame.v - line) * 12).sigmoid()))
    if rng.random() < 0.15:
        occluders.append(_sample_glasses(rng, frame))
    if rng.random() < 0.15:
        occluders.append(_sample_ellipse(rng, frame, noise))
    return occluders


def _sample_ellipse(rng: np.random.Generator, frame: FaceFrame, noise: Float[Tensor, "S S"]) -> Occluder:
    centre, radii = rng.uniform(-1.2, 1.2, 2), rng.uniform(0.2, 0.6, 2)
    angle = rng.uniform(0, np.pi)
    du, dv = frame.u - centre[0], frame.v - centre[1]
    a, b = du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)
    inside = 1 - (a / radii[0]).square() - (b / radii[1]).square() + 0.3 * noise
    return Occluder(sample_background(rng, frame.u.shape[-1]), (inside > 0).float())


def _sample_glasses(rng: np.random.Generator, frame: FaceFrame) -> Occluder:
    size = frame.u.shape[-1]
    half_width, half_height = rng.uniform(0.26, 0.4), rng.uniform(0.13, 0.26)
    power = rng.choice([2.0, 4.0])
    rim = torch.zeros_like(frame.u)
    lens = torch.zeros_like(frame.u)
    for eye in frame.eyes:
        shape = ((frame.u - eye[0]) / half_width).abs() ** power + ((frame.v - eye[1]) / half_height).abs() ** power
        rim = torch.maximum(rim, (-((shape - 1) / rng.uniform(0.15, 0.4)).square()).exp())
        lens = torch.maximum(lens, (shape < 1).float())
    bridge = ((frame.v - frame.eyes[:, 1].mean()).abs() < 0.03) & (frame.u.abs() < 1.0) & (lens == 0)
    rim = torch.maximum(rim, bridge.float())
    tint = rng.uniform(0.7, 0.98) if rng.random() < 0.2 else rng.uniform(0, 0.15)
    colour = torch.from_numpy(rng.uniform(0, 0.5, (3, 1, 1)).astype(np.float32)).expand(3, size, size)
    return Occluder(colour, torch.maximum(rim, tint * lens))


def compose_scene(
    rng: np.random.Generator,
    face: Float[Tensor, "3 S S"],
    coverage: Float[Tensor, "S S"],
    landmarks468_px: Float[Tensor, "468 2"],
) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
    """A rendered face with a background, a body behind it and occluders in front of it.

    Args:
        rng: The only source of randomness.
        face: Colours of the rendered face; values outside [0, 1] are clamped.
        coverage: Share of each pixel that the face covers.
        landmarks468_px: Points of the face in pixels of the image.

    Returns:
        The image, and the mask of the skin that stays visible, both in [0, 1].
    """
    face, mask = face.clamp(0, 1), coverage
    size = face.shape[-1]
    frame = FaceFrame.of(landmarks468_px, size)
    skin = ((face * mask).sum((1, 2)) / mask.sum().clamp(min=1)).view(3, 1, 1)
    image = add_body(rng, frame, sample_background(rng, size), skin=skin)
    image = torch.lerp(image, face, mask)
    for occluder in sample_occluders(rng, frame):
        image, mask = occluder.over(image, mask)
    return image, mask
