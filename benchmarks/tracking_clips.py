"""Clips with known motion: a drawn head, and photos of real people that move under the camera.

A drawn head has the identity and texture of a portrait and follows given curves of pose, expression and gaze. A moved
photo shows real skin: the photo is shifted, zoomed and turned as a whole, so its landmarks move by a known similarity.
Both get sensor noise and H.264, as a camera would add them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch

from mien.camera import Camera, to_camera_axes
from mien.export.face_view import FaceView
from mien.export.head_looks import head_looks
from mien.geometry import rotvec_to_rotmat
from mien.morphable import MorphableModel, load_head
from mien.result import Reconstruction

SIZE = (1280, 720)
RATE = 25.0
NOISE = 2.5
"""Standard deviation of the sensor noise, 8-bit values: a phone indoors."""
CRF = 23
"""Quality of H.264, the encoder's default."""
FOCAL_PX = 1250.0
PART_COLOURS = {"mouth": (60, 25, 25), "tongue": (150, 80, 75), "teeth": (190, 180, 160), "gums": (140, 70, 65)}


@dataclass(frozen=True)
class Pose:
    """Where a drawn head is in a frame."""

    turn_deg: tuple[float, float, float]
    """Pitch, yaw and roll: rotation vector in model axes, degrees."""
    position_m: tuple[float, float, float]
    expression: dict[str, float]


@dataclass(frozen=True)
class DrawnFrame:
    """A drawn frame and its ground truth."""

    time_s: float
    pixels: np.ndarray
    heads: list[Truth]


@dataclass(frozen=True)
class Truth:
    """What a drawn head is doing."""

    rotation: np.ndarray
    translation: np.ndarray
    expression: np.ndarray
    landmarks68_px: np.ndarray


class DrawnHead:
    """A head with the shape and texture of a reconstruction."""

    def __init__(self, face: Reconstruction, model: MorphableModel) -> None:
        self.face, self.model, self.head = face, model, load_head(model)
        looks = head_looks(face, model, self.head, scalp="skin")
        self.atlas = torch.from_numpy(looks.photo.astype(np.float32)).permute(2, 0, 1)
        vertices, triangles, uv, colours, is_textured = [], [], [], [], []
        first = 0
        for part in self.head.parts:
            count = len(part.vertices)
            vertices.append(part.vertices)
            triangles.append(part.triangles + first)
            place, colour, textured = self._surface(part.name, count)
            uv.append(place)
            colours.append(colour)
            is_textured.append(textured)
            first += count
        self.rows = torch.cat(vertices)
        self.mesh = replace(face, triangles=torch.cat(triangles).numpy().astype(np.int32), uv=torch.cat(uv).numpy())
        self.colours, self.is_textured = np.concatenate(colours), torch.cat(is_textured)
        self.identity = torch.from_numpy(face.identity)[None]

    def _surface(self, name: str, count: int) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
        if name == "skin":
            uv = self.head.skin_uv
        elif name.startswith("eye"):
            first = 0 if name == "eye_left" else count + 1
            uv = self.head.eye_uv[first : first + count]
        else:
            colour = np.tile(np.array(PART_COLOURS[name], np.float32) / 255, (count, 1))
            return torch.zeros(count, 2), colour, torch.zeros(count, dtype=torch.bool)
        return uv, np.zeros((count, 3), np.float32), torch.ones(count, dtype=torch.bool)

    def draw(self, picture: np.ndarray, pose: Pose, camera: Camera) -> tuple[np.ndarray, Truth]:
        names = self.model.expression_names
        expression = torch.zeros(1, len(names))
        for name, strength in pose.expression.items():
            expression[0, names.index(name)] = strength
        rotation = rotvec_to_rotmat(torch.deg2rad(torch.tensor([pose.turn_deg], dtype=torch.float32)))[0]
        translation = torch.tensor(pose.position_m, dtype=torch.float32)
        face = self.model.vertices(self.identity, expression)[0]
        shape = torch.cat([face, self.head.own_vertices(self.identity, expression)[0]])
        placed = to_camera_axes(shape @ rotation.T) + translation
        view = FaceView.of(self.mesh, placed[self.rows], camera=camera)
        painted = torch.where(
            self.is_textured[view.corners[:, 0].long()][:, None],
            view.map_values(self.atlas),
            view.vertex_values(self.colours),
        )
        landmarks = camera.project(placed[self.model.landmarks68][None])[0].numpy()
        truth = Truth(rotation.numpy(), translation.numpy(), expression[0].numpy(), landmarks)
        return view.over(painted, picture), truth


def background(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A blurred room: smooth patches of muted colours."""
    from PIL import Image, ImageFilter  # noqa: PLC0415

    small = (70 + 110 * rng.random((9, 16, 1)) + 25 * rng.random((9, 16, 3))).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return np.array(picture.filter(ImageFilter.GaussianBlur(6)))


def camera_of(size: tuple[int, int] = SIZE) -> Camera:
    width, height = size
    return Camera(torch.tensor([FOCAL_PX * width / 1280]), torch.tensor([[width / 2, height / 2]]), (height, width))


def with_noise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(scale=NOISE, size=pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def write_clip(path: Path, frames: Iterator[np.ndarray], *, size: tuple[int, int] = SIZE, rate: float = RATE) -> None:
    """Write frames as a camera or phone would: H.264 with the encoder's default quality."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(rate))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": str(CRF), "preset": "fast"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def talking(t: float) -> Pose:
    """A person who is still for 1.6 s, then speaks, smiles, blinks, nods and turns by 30 degrees."""
    still, s = t < 1.6, max(t - 1.6, 0.0)
    wave = np.sin
    turn = (6 * wave(1.9 * s), 30 * wave(1.1 * s), 5 * wave(0.7 * s))
    position = (0.03 * wave(0.9 * s), 0.01 * wave(1.7 * s), 0.75 + 0.03 * wave(0.5 * s))
    speech = 0 if still else 0.28 * (wave(7.5 * s) ** 2) * (0.6 + 0.4 * wave(1.3 * s))
    smile = 0.0 if still else 0.6 * np.clip(wave(0.8 * s), 0, 1)
    blink = sum(np.exp(-(((t - centre) / 0.055) ** 2)) for centre in (0.9, 2.4, 4.1, 5.3))
    brow = 0.0 if still else 0.6 * np.clip(wave(1.6 * s + 2), 0, 1)
    look = 0.0 if still else 0.5 * wave(2.2 * s)
    expression = {
        "jawOpen": speech,
        "mouthSmileLeft": smile,
        "mouthSmileRight": smile,
        "eyeBlinkLeft": blink,
        "eyeBlinkRight": blink,
        "browInnerUp": brow,
        "mouthPucker": 0.0 if still else 0.4 * np.clip(wave(3.1 * s + 1), 0, 1) * (1 - smile),
        "eyeLookOutLeft": max(look, 0),
        "eyeLookInRight": max(look, 0),
        "eyeLookInLeft": max(-look, 0),
        "eyeLookOutRight": max(-look, 0),
    }
    return Pose(turn, position, {name: float(min(value, 1)) for name, value in expression.items()})


def drawn_clip(
    heads: list[DrawnHead],
    poses: Callable[[float], list[Pose]],
    *,
    seconds: float,
    seed: int = 0,
    shake_px: float = 0.0,
    size: tuple[int, int] = SIZE,
) -> Iterator[DrawnFrame]:
    """Draw a clip frame by frame; the farthest head first."""
    rng = np.random.default_rng(seed)
    room, camera, shift = background(rng, size), camera_of(size), np.zeros(2)
    for k in range(round(seconds * RATE)):
        t = k / RATE
        placed = sorted(zip(heads, poses(t), range(len(heads)), strict=True), key=lambda item: -item[1].position_m[2])
        shift = 0.8 * shift + rng.normal(scale=shake_px, size=2) if shake_px else shift
        moved = replace(camera, centre_px=camera.centre_px + torch.from_numpy(shift).float())
        picture, truths = np.roll(room, shift.round().astype(int)[::-1], axis=(0, 1)), {}
        for head, pose, number in placed:
            picture, truths[number] = head.draw(picture, pose, moved)
        yield DrawnFrame(t, with_noise(picture, rng), [truths[number] for number in range(len(heads))])


def crossing(t: float) -> list[Pose]:
    """Two people who walk past each other and meet after 1.5 s; the first one is in front."""
    x = -0.25 + 0.5 * t / 3
    first, second = talking(t), talking(t + 3)
    return [
        replace(first, position_m=(x, 0.0, 0.85), turn_deg=(0.0, 8 * np.sin(t), 0.0)),
        replace(second, position_m=(-x, -0.04, 1.05), turn_deg=(0.0, -8 * np.sin(t), 0.0)),
    ]


def occluded(frames: Iterator[DrawnFrame]) -> Iterator[DrawnFrame]:
    """A grey board hides the face from 1.2 to 1.5 s: long enough to lose it, short enough to interpolate."""
    for frame in frames:
        if 1.2 <= frame.time_s < 1.5:
            low, high = (np.asarray(f(frame.heads[0].landmarks68_px, axis=0)) for f in (np.min, np.max))
            (left, top), (right, bottom) = (low - 60).astype(int), (high + 40).astype(int)
            frame.pixels[max(top, 0) : bottom, max(left, 0) : right] = 120
        yield frame


def moved_photo(
    photo: np.ndarray,
    *,
    seconds: float,
    still_s: float,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    flicker: float = 0.0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A photo of a real person that is still, and then shifted, zoomed and turned as a whole.

    Args:
        photo: The photo.
        seconds: Length of the clip.
        still_s: How long nothing moves.
        seed: Of the background and the noise.
        size: Width and height of the frames.
        flicker: Share by which the brightness then rises and falls.

    Yields:
        The frame, and the 2 × 3 matrix from pixels of the photo to pixels of the frame.
    """
    from PIL import Image  # noqa: PLC0415

    rng = np.random.default_rng(seed)
    room, image = background(rng, size), Image.fromarray(photo)
    fit = 0.95 * size[1] / photo.shape[0]
    for k in range(round(seconds * RATE)):
        s = max(k / RATE - still_s, 0.0)
        zoom, angle = fit * (1 + 0.06 * np.sin(1.3 * s)), np.radians(7) * np.sin(1.7 * s)
        shift = np.array([90 * np.sin(1.1 * s), 18 * np.sin(2.3 * s)]) + np.array(size) / 2
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        offset = shift - linear @ np.array([photo.shape[1] / 2, photo.shape[0] / 2])
        back = np.linalg.inv(linear)
        coefficients = (*np.concatenate([back, (-back @ offset)[:, None]], axis=1).ravel(),)
        # At the size of the photo first: bicubic sampling of a reduced picture would alias.
        moved = image.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
        covered = Image.new("L", image.size, 255).transform(size, Image.Transform.AFFINE, coefficients)
        pixels = np.where(np.array(covered)[..., None] > 127, np.array(moved), room)
        yield (
            with_noise(pixels * (1 + flicker * np.sin(2.1 * s)), rng),
            np.concatenate([linear, offset[:, None]], axis=1),
        )
