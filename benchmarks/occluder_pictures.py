"""Draws masks, glasses, hands and more on portraits, for benchmarks/occluders.py.

The drawings have nothing in common with those that the occluder head learnt from (models/occluder_drawing.py): shapes
follow real things, at the resolution of the photo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# MediaPipe's points. The jaw from the person's right ear to the left one, below the cheekbones.
JAW = (177, 215, 138, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 367, 435, 401)
RIGHT_LENS = (46, 53, 52, 65, 55, 193, 122, 47, 121, 120, 119, 118, 111, 35)
LEFT_LENS = (276, 283, 282, 295, 285, 417, 351, 277, 350, 349, 348, 347, 340, 265)
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Covered:
    """A photo with something drawn in front of the face."""

    pixels: np.ndarray
    """uint8 (H, W, 3)"""
    opacity: np.ndarray
    """(H, W), 0 to 1"""


def draw(kind: str, pixels: np.ndarray, mesh_px: np.ndarray, *, seed: int) -> Covered:
    """Draw one of `KINDS` in front of a face.

    Args:
        kind: What to draw.
        pixels: The photo.
        mesh_px: (468, 2) landmarks of the face, pixels of the photo.
        seed: Varies colours and places.
    """
    return _KINDS[kind](_Canvas(pixels, mesh_px, np.random.default_rng(seed)))


class _Canvas:
    def __init__(self, pixels: np.ndarray, mesh_px: np.ndarray, rng: np.random.Generator) -> None:
        self.pixels, self.mesh, self.rng = pixels.astype(np.float32), mesh_px[:, :2], rng
        self.size = pixels.shape[:2]
        self.face = float(np.ptp(self.mesh[:, 0]))
        self.right = (self.mesh[263] - self.mesh[33]) / np.linalg.norm(self.mesh[263] - self.mesh[33])
        self.down = np.array([-self.right[1], self.right[0]])

    def filled(self, *polygons: np.ndarray) -> np.ndarray:
        image, draw = self._blank()
        for polygon in polygons:
            draw.polygon([tuple(p) for p in (polygon * SUPERSAMPLING).tolist()], fill=255)
        return self._finished(image)

    def lines(self, *lines: np.ndarray, width: float) -> np.ndarray:
        image, draw = self._blank()
        pixels = max(1, round(width * SUPERSAMPLING))
        for line in lines:
            draw.line([tuple(p) for p in (line * SUPERSAMPLING).tolist()], fill=255, width=pixels, joint="curve")
        return self._finished(image)

    def _blank(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.size[1] * SUPERSAMPLING, self.size[0] * SUPERSAMPLING))
        return image, ImageDraw.Draw(image)

    @staticmethod
    def _finished(image: Image.Image) -> np.ndarray:
        return np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255

    def blurred(self, values: np.ndarray, share: float) -> np.ndarray:
        """Blur by a share of the face's width."""
        image = Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))
        return np.asarray(image.filter(ImageFilter.GaussianBlur(self.face * share)), np.float32) / 255

    def painted(self, *layers: tuple[np.ndarray, np.ndarray]) -> Covered:
        """Paint (colour or picture, opacity) over the photo, with a soft shadow below each."""
        picture, opacity = self.pixels, np.zeros(self.size, np.float32)
        for colour, shape in layers:
            shadow = self.blurred(shape, 0.015)[..., None]
            picture = picture * (1 - 0.25 * shadow * (1 - shape[..., None]))
            picture = picture * (1 - shape[..., None]) + np.clip(colour, 0, 255) * shape[..., None]
            opacity = np.maximum(opacity, shape)
        return Covered(np.rint(np.clip(picture, 0, 255)).astype(np.uint8), opacity)

    def cloth(self, colour: np.ndarray, shape: np.ndarray, *, grain: float = 0.03) -> np.ndarray:
        """A lit surface: brighter in the middle of the shape, with grain."""
        light = 0.75 + 0.3 * self.blurred(shape, 0.12)[..., None]
        return colour * light * (1 + self.rng.normal(0, grain, (*self.size, 1)))

    def cheek(self) -> np.ndarray:
        """The colour of the person's own skin."""
        x, y = self.mesh[50]
        radius = max(2, int(self.face * 0.03))
        part = self.pixels[int(y) - radius : int(y) + radius, int(x) - radius : int(x) + radius]
        return part.mean((0, 1))


def _surgical(colour: tuple[int, int, int]) -> Callable[[_Canvas], Covered]:
    def paint(canvas: _Canvas) -> Covered:
        return _mask(canvas, np.array(colour, np.float32), pleats=3, peak=197)

    return paint


def _own_skin_mask(canvas: _Canvas) -> Covered:
    """A cloth mask in the colour of the wearer's skin."""
    return _mask(canvas, canvas.cheek() * 1.02, pleats=0, peak=195)


def _ffp2(canvas: _Canvas) -> Covered:
    return _mask(canvas, np.array((236, 236, 232), np.float32), pleats=0, peak=6, ridge=True)


def _mask(canvas: _Canvas, colour: np.ndarray, *, pleats: int, peak: int, ridge: bool = False) -> Covered:
    mesh, down = canvas.mesh, canvas.down * canvas.face
    nose, cheeks = mesh[peak], (mesh[280] + mesh[50]) / 2
    top = [
        mesh[401],
        mesh[352] + 0.02 * down,
        (mesh[280] + nose) / 2,
        nose,
        (mesh[50] + nose) / 2,
        mesh[123] + 0.02 * down,
        mesh[177],
    ]
    jaw = mesh[list(JAW)]
    jaw = jaw + (jaw - cheeks) * 0.04
    shape = canvas.filled(np.concatenate([jaw, np.stack(top)]))
    material = canvas.cloth(colour, shape)
    for k in range(pleats):
        share = 0.3 + 0.2 * k
        ends = mesh[[58, 288]] * (1 - share) + mesh[[149, 378]] * share
        fold = canvas.lines(
            np.stack([ends[0], mesh[2] * (1 - share) + mesh[152] * share, ends[1]]), width=0.012 * canvas.face
        )
        material = material * (1 - 0.25 * fold[..., None])
    if ridge:
        seam = canvas.lines(mesh[[6, 4, 0, 17, 152]], width=0.012 * canvas.face)
        material = material * (1 - 0.2 * canvas.blurred(seam, 0.004)[..., None])
    straps = canvas.lines(np.stack([mesh[123], mesh[127]]), np.stack([mesh[352], mesh[356]]), width=0.015 * canvas.face)
    return canvas.painted((np.array([235, 235, 235], np.float32), straps), (material, shape))


def _lenses(canvas: _Canvas, *, size: float, round_lenses: bool) -> list[np.ndarray]:
    outlines = []
    for lens in (RIGHT_LENS, LEFT_LENS):
        points = canvas.mesh[list(lens)]
        centre = points.mean(0)
        if round_lenses:
            angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
            radius = 0.16 * canvas.face
            points = centre + radius * (np.cos(angles)[:, None] * canvas.right + np.sin(angles)[:, None] * canvas.down)
        outlines.append(_smooth(centre + (points - centre) * size))
    return outlines


def _spectacles(canvas: _Canvas, outlines: list[np.ndarray], *, width: float) -> np.ndarray:
    mesh = canvas.mesh
    rims = [np.concatenate([outline, outline[:2]]) for outline in outlines]
    bridge = np.stack(
        [
            outlines[0][(outlines[0] @ canvas.right).argmax()],
            mesh[168],
            outlines[1][(outlines[1] @ canvas.right).argmin()],
        ]
    )
    arms = [
        np.stack([outlines[0][(outlines[0] @ canvas.right).argmin()], mesh[127]]),
        np.stack([outlines[1][(outlines[1] @ canvas.right).argmax()], mesh[356]]),
    ]
    return canvas.lines(*rims, bridge, *arms, width=width * canvas.face)


def _sunglasses(canvas: _Canvas) -> Covered:
    outlines = _lenses(canvas, size=1.05, round_lenses=False)
    shape = canvas.filled(*outlines)
    height = np.mgrid[: canvas.size[0], : canvas.size[1]][0][..., None] / canvas.size[0]
    material = np.array([28, 26, 30], np.float32) * (0.6 + height)
    return canvas.painted(
        (material, shape), (np.array([15, 15, 15], np.float32), _spectacles(canvas, outlines, width=0.02))
    )


def _mirrored(canvas: _Canvas) -> Covered:
    """Round mirrored lenses: sky above, ground below."""
    outlines = _lenses(canvas, size=1.0, round_lenses=True)
    shape = canvas.filled(*outlines)
    middle = canvas.mesh[[33, 263], 1].mean()
    below = np.clip((np.mgrid[: canvas.size[0], : canvas.size[1]][0] - middle) / (0.05 * canvas.face), 0, 1)[..., None]
    material = np.array([120, 160, 215]) * (1 - below) + np.array([95, 85, 60]) * below
    return canvas.painted(
        (material, shape), (np.array([170, 150, 90], np.float32), _spectacles(canvas, outlines, width=0.012))
    )


def _glasses(canvas: _Canvas) -> Covered:
    """Frames with clear lenses; only the frames cover the face."""
    outlines = _lenses(canvas, size=1.1, round_lenses=canvas.rng.random() < 0.5)
    colour = np.array([(20, 18, 18), (110, 60, 30), (40, 50, 110)][canvas.rng.integers(3)], np.float32)
    return canvas.painted((colour, _spectacles(canvas, outlines, width=0.03)))


def _hand(canvas: _Canvas) -> Covered:
    """A hand in the colour of the person's skin over one cheek and half of the mouth."""
    mesh, face = canvas.mesh, canvas.face
    side = 1 if canvas.rng.random() < 0.5 else -1
    across, up = canvas.right * side, -canvas.down
    wrist = mesh[152] + across * 0.45 * face + canvas.down * 0.55 * face
    palm = mesh[17] + across * 0.28 * face + canvas.down * 0.2 * face
    shape = canvas.lines(np.stack([wrist, palm]), width=0.34 * face)
    shade = np.ones((*canvas.size, 1), np.float32)
    for k in range(4):
        base = palm + across * (k - 1.5) * 0.085 * face
        tip = base + up * (0.42 + 0.06 * (1.5 - abs(k - 1.5))) * face - across * 0.03 * (k - 1.5) * face
        finger = canvas.lines(np.stack([base, (base + tip) / 2 + across * 0.01 * face, tip]), width=0.075 * face)
        end = tip + 0.037 * face * np.stack([np.cos(np.linspace(0, 6.28, 24)), np.sin(np.linspace(0, 6.28, 24))], 1)
        finger = np.maximum(finger, canvas.filled(end))
        round_light = 0.6 + 0.4 * np.clip(2 * canvas.blurred(finger, 0.02) - 0.6, 0, 1)
        shade = np.where(finger[..., None] > 0.5, round_light[..., None], shade)
        shape = np.maximum(shape, finger)
    skin = canvas.cheek() * (0.95 + 0.1 * canvas.rng.random())
    return canvas.painted((canvas.cloth(skin, shape, grain=0.02) * shade, shape))


def _strands(canvas: _Canvas) -> Covered:
    """Strands of hair from the forehead over one eye and cheek."""
    mesh, face = canvas.mesh, canvas.face
    side = 103 if canvas.rng.random() < 0.5 else 332
    end = 123 if side == 103 else 352
    lines = []
    for _ in range(40):
        start = mesh[10] * 0.5 + mesh[side] * 0.5 - 0.12 * face * canvas.down + canvas.rng.normal(0, 0.05 * face, 2)
        finish = mesh[end] + canvas.rng.normal(0, 0.05 * face, 2)
        middle = (start + finish) / 2 + canvas.rng.normal(0, 0.03 * face, 2)
        share = np.linspace(0, 1, 16)[:, None]
        lines.append((1 - share) ** 2 * start + 2 * share * (1 - share) * middle + share**2 * finish)
    shape = canvas.lines(*lines, width=0.012 * face)
    colour = np.array([(40, 28, 20), (150, 115, 70), (90, 50, 30)][canvas.rng.integers(3)], np.float32)
    return canvas.painted((colour * (1 + canvas.rng.normal(0, 0.15, (*canvas.size, 1))), shape))


def _microphone(canvas: _Canvas) -> Covered:
    mesh, face = canvas.mesh, canvas.face
    head = mesh[17] + 0.1 * face * canvas.down
    angles = np.linspace(0, 2 * np.pi, 40)
    ball = canvas.filled(head + 0.16 * face * np.stack([np.cos(angles), np.sin(angles)], 1))
    handle = canvas.lines(
        np.stack([head, head + 0.9 * face * canvas.down + 0.3 * face * canvas.right]), width=0.16 * face
    )
    y, x = np.mgrid[: canvas.size[0], : canvas.size[1]]
    mesh_pattern = 70 + 40 * ((x // max(1, int(face / 80)) + y // max(1, int(face / 80))) % 2)[..., None]
    return canvas.painted((np.array([25, 25, 28], np.float32), handle), (mesh_pattern * np.ones(3), ball))


def _smooth(points: np.ndarray) -> np.ndarray:
    for _ in range(2):
        following = np.roll(points, -1, 0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1).reshape(-1, 2)
    return points


_KINDS: dict[str, Callable[[_Canvas], Covered]] = {
    "blue mask": _surgical((150, 190, 215)),
    "black mask": _surgical((25, 25, 28)),
    "pink mask": _surgical((225, 160, 160)),
    "mask in skin colour": _own_skin_mask,
    "white FFP2 mask": _ffp2,
    "sunglasses": _sunglasses,
    "mirrored glasses": _mirrored,
    "hand": _hand,
    "microphone": _microphone,
    "strands of hair": _strands,
    "frames of glasses": _glasses,
}
KINDS = tuple(_KINDS)
"""What can be drawn."""
