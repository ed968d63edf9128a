"""What stands around a face, before it, and between it and the file: all that a network must not mind.

Every function takes a `numpy.random.Generator` as its only source of chance, so that a sample is a function of its
seed. Pictures are RGB in [0, 1]; shapes are drawn in the face's own frame (`FaceFrame`), so that they lean with it.
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
"""Black, two browns, light brown, blond, red, grey, white; seen in daylight."""
PLAIN_WALL = 0.04
"""Mean departure from one colour up to which a picture's upper edges show a plain wall."""
WALL_DISTANCE = (0.09, 0.2)
"""Colour distances from the wall's, in the cube of RGB, at which a pixel is wall and at which it is not."""
LIGHT_SLOPE = 0.25
"""Standard deviation, across half a picture, of the logarithm of added brightness."""


@dataclass(frozen=True)
class FaceFrame:
    """Coordinates of every pixel in units of the face's half width and half height; 0 is its centre, v is up."""

    u: Float[Tensor, "S S"]
    v: Float[Tensor, "S S"]
    eyes: Float[Tensor, "2 2"]
    """Centres of the eyes in u, v."""

    @classmethod
    def of(cls, landmarks468_px: Float[Tensor, "468 2"], size: int) -> FaceFrame:
        """The frame that the outline's extreme points span."""
        centre = (landmarks468_px[MEDIAPIPE_TOP] + landmarks468_px[MEDIAPIPE_CHIN]) / 2
        up = landmarks468_px[MEDIAPIPE_TOP] - landmarks468_px[MEDIAPIPE_CHIN]
        half_height = up.norm().clamp(min=1) / 2
        up = up / (2 * half_height)
        right = torch.stack([-up[1], up[0]])
        half_width = ((landmarks468_px[MEDIAPIPE_SIDES[1]] - landmarks468_px[MEDIAPIPE_SIDES[0]]) @ right).abs().clamp(
            min=0.8 * half_height
        ) / 2
        axes = torch.stack([right / half_width, up / half_height], dim=-1)
        steps = torch.arange(size) + 0.5
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        u, v = ((torch.stack([x, y], -1) - centre) @ axes).unbind(-1)
        eyes = torch.stack([(landmarks468_px[a] + landmarks468_px[b]) / 2 for a, b in MEDIAPIPE_EYE_CORNERS])
        return cls(u, v, (eyes - centre) @ axes)


def noise_picture(rng: np.random.Generator, size: int, *, channels: int, octaves: int) -> Float[Tensor, "C S S"]:
    """A random smooth field with structure at doubling frequencies and falling strength, about in [-1, 1]."""
    total = torch.zeros(channels, size, size)
    for octave in range(octaves):
        cells = min(2 ** (octave + 1), size)
        shape = (1, channels, cells + 1, cells + 1)
        grid = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        total += F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)[0] * 0.6**octave
    return total * 0.5


def background(rng: np.random.Generator, size: int) -> Float[Tensor, "3 S S"]:
    """A wall, a studio, or something out of focus."""
    colour = torch.from_numpy(rng.uniform(0.02, 0.98, (3, 1, 1)).astype(np.float32))
    grey = colour.mean().expand_as(colour)
    colour = torch.lerp(grey, colour, float(rng.uniform(0, 1)))
    kind = rng.random()
    if kind < 0.2:
        return (colour + 0.02 * noise_picture(rng, size, channels=1, octaves=2)).clamp(0, 1)
    octaves = int(rng.integers(2, 6))
    picture = colour + float(rng.uniform(0.05, 0.5)) * noise_picture(rng, size, channels=3, octaves=octaves)
    if kind > 0.6:  # edges: furniture, leaves, letters
        steps = float(rng.uniform(2, 6))
        picture = torch.lerp(picture, (picture * steps).round() / steps, 0.8)
    return picture.clamp(0, 1)


def elsewhere(rng: np.random.Generator, picture: Float[Tensor, "3 S S"], frame: FaceFrame) -> Float[Tensor, "3 S S"]:
    """A portrait before a plain wall, put before another background; any other picture as it is.

    What has the wall's colour, the median along the upper edges, gives way, except within the face.
    """
    size = picture.shape[-1]
    height, width = size // 3, max(size // 12, 1)
    edges = torch.cat([picture[:, :height, :width].flatten(1), picture[:, :height, -width:].flatten(1)], dim=1)
    wall = edges.median(dim=1).values[:, None]
    if float((edges - wall).abs().mean()) > PLAIN_WALL:
        return picture
    low, high = WALL_DISTANCE
    distance = (picture - wall[..., None]).norm(dim=0)
    face = (frame.u.square() + frame.v.square() < 1).float()
    person = torch.maximum(((distance - low) / (high - low)).clamp(0, 1), face)
    return torch.lerp(background(rng, size), picture, person)


def uneven_light(rng: np.random.Generator, picture: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
    """The picture lit more from one side: an exponential slope of brightness, not clamped."""
    side = torch.linspace(-1, 1, picture.shape[-1])
    x, y = rng.normal(0, LIGHT_SLOPE, 2).tolist()
    return picture * (x * side + y * side[:, None]).exp()


def hair_colour(rng: np.random.Generator) -> Float[Tensor, "3 1 1"]:
    """A natural hair colour in some light."""
    colour = np.array(HAIR_COLOURS[int(rng.integers(len(HAIR_COLOURS)))]) * rng.uniform(0.5, 1.3)
    return torch.from_numpy(colour.astype(np.float32)).view(3, 1, 1)


def _strands(rng: np.random.Generator, colour: Float[Tensor, "3 1 1"], size: int) -> Float[Tensor, "3 S S"]:
    fine = torch.from_numpy(rng.normal(size=(1, 1, 6, size)).astype(np.float32))
    fine = F.interpolate(fine, size=(size, size), mode="bilinear", align_corners=True)[0]
    return (colour * (1 + 0.25 * fine + 0.3 * noise_picture(rng, size, channels=1, octaves=3))).clamp(0, 1)


def body_behind(
    rng: np.random.Generator, frame: FaceFrame, scene: Float[Tensor, "3 S S"], *, skin: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "3 S S"]:
    """The scene with ears, neck, clothes and hair where a head would be drawn over them."""
    size = scene.shape[-1]
    u, v = frame.u, frame.v
    wobble = noise_picture(rng, size, channels=1, octaves=4)[0]
    cloth = background(rng, size)
    shoulders = (v < -1.25 - 0.25 * (u.abs() - 0.6).clamp(min=0) + 0.05 * wobble).float()
    neck = ((u.abs() < rng.uniform(0.5, 0.75)) & (v < -0.6) & (v > -1.8)).float()
    scene = torch.lerp(scene, cloth, shoulders)
    scene = torch.lerp(scene, (skin * rng.uniform(0.55, 0.95)).expand_as(scene), neck)
    ears = (((u.abs() - 1.0) / 0.2) ** 2 + ((v - 0.1) / 0.35) ** 2 < 1).float()
    scene = torch.lerp(scene, (skin * rng.uniform(0.7, 1.0)).expand_as(scene), ears)
    if rng.random() < 0.12:  # bald
        head = ((u / 1.02) ** 2 + ((v - 0.3) / 1.0) ** 2 < 1).float()
        return torch.lerp(scene, skin.expand_as(scene), head)
    width, height = rng.uniform(1.05, 1.5), rng.uniform(1.0, 1.45)
    cap = 1 - (u / width).square() - ((v - 0.35) / height).square() + 0.25 * wobble
    hair = (cap > 0).float()
    if rng.random() < 0.45:  # long
        fall = (u.abs() < rng.uniform(1.05, 1.6) + 0.2 * wobble) & (v < 0.4) & (v > rng.uniform(-2.5, -0.6))
        hair = torch.maximum(hair, fall.float())
    return torch.lerp(scene, _strands(rng, hair_colour(rng), size), hair)


@dataclass(frozen=True)
class Cover:
    """Something before the face."""

    colours: Float[Tensor, "3 S S"]
    opacity: Float[Tensor, "S S"]


def covers(rng: np.random.Generator, frame: FaceFrame) -> list[Cover]:
    """Hair at and over the forehead, sometimes glasses, sometimes a hand, a microphone or a scarf."""
    size = frame.u.shape[-1]
    found = []
    wobble = noise_picture(rng, size, channels=1, octaves=5)[0]
    if rng.random() < 0.75:
        fringe = rng.random() < 0.3
        line = rng.uniform(0.5, 1.0) if fringe else rng.uniform(0.95, 1.3)
        line = line + 0.15 * wobble + rng.uniform(-0.3, 0.3) * frame.u
        line = line - rng.uniform(0, 0.5) * (frame.u.abs() - 0.6).clamp(min=0)
        found.append(Cover(_strands(rng, hair_colour(rng), size), ((frame.v - line) * 12).sigmoid()))
    if rng.random() < 0.15:
        found.append(_glasses(rng, frame))
    if rng.random() < 0.15:
        centre, radii = rng.uniform(-1.2, 1.2, 2), rng.uniform(0.2, 0.6, 2)
        turn = rng.uniform(0, np.pi)
        du, dv = frame.u - centre[0], frame.v - centre[1]
        a, b = du * np.cos(turn) + dv * np.sin(turn), dv * np.cos(turn) - du * np.sin(turn)
        inside = 1 - (a / radii[0]).square() - (b / radii[1]).square() + 0.3 * wobble
        found.append(Cover(background(rng, size), (inside > 0).float()))
    return found


def _glasses(rng: np.random.Generator, frame: FaceFrame) -> Cover:
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
    return Cover(colour, torch.maximum(rim, tint * lens))


def surrounded(
    rng: np.random.Generator,
    face: Float[Tensor, "3 S S"],
    coverage: Float[Tensor, "S S"],
    landmarks468_px: Float[Tensor, "468 2"],
) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
    """A drawn face in its surroundings, and where its skin is seen."""
    face, alpha = face.clamp(0, 1), coverage
    size = face.shape[-1]
    frame = FaceFrame.of(landmarks468_px, size)
    skin = ((face * alpha).sum((1, 2)) / alpha.sum().clamp(min=1)).view(3, 1, 1)
    picture = body_behind(rng, frame, background(rng, size), skin=skin)
    picture = torch.lerp(picture, face, alpha)
    for cover in covers(rng, frame):
        picture = torch.lerp(picture, cover.colours, cover.opacity)
        alpha = alpha * (1 - cover.opacity)
    return picture, alpha
