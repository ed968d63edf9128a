"""Draws things in front of faces: the training pictures of the occluder head (`train_occluders.py`).

A picture is a window of 192 × 192 pixels, RGB in [0, 1], with MediaPipe's mesh in its pixels. Shapes are random and
mostly coarse: what matters is that something with a boundary and with colours or texture of its own hides the face.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 192
SUPERSAMPLING = 3


@dataclass(frozen=True)
class Scene:
    """A face to draw on."""

    picture: np.ndarray
    """(192, 192, 3)"""
    mesh: np.ndarray
    """(468, 2) MediaPipe's points, pixels of the picture."""
    other: np.ndarray
    """(192, 192, 3) a piece of another photo: a texture."""
    skin: np.ndarray
    """(192, 192, 3) skin of a cheek, of this or of another person: what hands are made of."""


def covered(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw up to two things over a face.

    Args:
        scene: The face.
        rng: Chooses everything.

    Returns:
        The picture; the occluder's opacity (192, 192); and glare on lenses, which is neither skin nor occluder.
    """
    picture, opacity, glare = scene.picture, np.zeros((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE), np.float32)
    count = rng.choice(3, p=[0.3, 0.55, 0.15])
    chosen = rng.choice(len(_KINDS), size=count, replace=False, p=[share for _, share in _KINDS])
    for kind in chosen:
        picture, own, own_glare = _KINDS[kind][0](scene, picture, rng)
        opacity, glare = np.maximum(opacity, own), np.maximum(glare * (1 - own), own_glare)
    return picture, opacity, glare


def made_up(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change what may look like an occluder but is not one: shadows, highlights and make-up."""
    picture = scene.picture.copy()
    if rng.random() < 0.45:
        shadow = _blurred(_shadow_shape(rng), rng.choice([0.5, 2.0, 6.0, 20.0]))[..., None]
        colour = rng.uniform(0.3, 0.9) * np.exp(rng.normal(0, 0.05, 3))
        picture = picture * (1 + shadow * (colour - 1))
    if rng.random() < 0.2:
        spot = _blurred(_blob(rng, scene.mesh[rng.integers(468)], rng.uniform(5, 30)), 8)[..., None]
        picture = picture + spot * rng.uniform(0.1, 0.5)
    for points, chance in ((_LIPS, 0.25), (_EYES[0], 0.1), (_CHEEKS[0], 0.1)):
        if rng.random() < chance:
            shapes = [points] if points is _LIPS else list(_EYES if points is _EYES[0] else _CHEEKS)
            area = np.maximum.reduce([filled([grown(scene.mesh[list(s)], rng.uniform(1, 1.4))]) for s in shapes])
            tint = np.array([rng.uniform(0.5, 1.1), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9)])
            picture = picture * (1 + _blurred(area, rng.uniform(1, 5))[..., None] * (tint - 1) * rng.uniform(0.2, 1))
    return Scene(np.clip(picture, 0, 1), scene.mesh, scene.other, scene.skin)


def photographed(picture: np.ndarray, rng: np.random.Generator, *, sharpest: float) -> np.ndarray:
    """Vary colours, exposure, sharpness, noise and compression.

    Args:
        picture: The picture.
        rng: Chooses.
        sharpest: Pixels that the photo really has across the window.
    """
    picture = np.clip(picture, 1e-4, 1) ** np.exp(rng.normal(0, 0.2))
    picture = picture * np.exp(rng.normal(0, 0.1, 3)) * np.exp(rng.normal(0, 0.12))
    grey = picture.mean(2, keepdims=True)
    picture = grey + (picture - grey) * (0 if rng.random() < 0.08 else rng.uniform(0.5, 1.3))
    side = int(min(SIZE, max(40, sharpest * rng.uniform(0.5, 1.0))))
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    if side < SIZE:
        image = image.resize((side, side), Image.Resampling.BOX)
        noise = rng.normal(0, rng.uniform(0, 6), (side, side, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.uniform(40, 95)))
        image = Image.open(buffer).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255


# Kinds of occluders. Each returns the picture, the occluder's opacity and glare.

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def _mask(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    """A mask over mouth and chin, mostly over the nose too; sometimes pulled down to the chin."""
    mesh = scene.mesh
    right, left = rng.choice([93, 132, 234, 58]), rng.choice([323, 361, 454, 288])
    top = mesh[rng.choice([6, 197, 195, 5, 4, 2, 0], p=[0.15, 0.25, 0.25, 0.15, 0.1, 0.05, 0.05])]
    jaw = mesh[[172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397]]
    jaw = mesh[1] + (jaw - mesh[1]) * rng.uniform(0.92, 1.15)
    droop = rng.uniform(0, 8)
    upper = [mesh[left], (mesh[left] + top) / 2 + [0, droop], top, (mesh[right] + top) / 2 + [0, droop], mesh[right]]
    outline = np.concatenate([jaw, np.stack(upper)]) + rng.normal(0, 1.5, (18, 2))
    shape = filled([_rounded(outline)])
    material = _material(scene, rng, colours=_MASK_COLOURS)
    if rng.random() < 0.5:  # pleats or a seam
        height = (np.mgrid[:SIZE, :SIZE][rng.integers(2)] / rng.uniform(8, 25) + rng.random()) % 1
        material = material * (1 - rng.uniform(0.05, 0.35) * (height < rng.uniform(0.05, 0.2)))[..., None]
    drawn, opacity, glare = _over(picture, material, shape, rng)
    if rng.random() < 0.6:  # straps
        strap = _strokes([np.stack([mesh[93], mesh[127]]), np.stack([mesh[323], mesh[356]])], rng.uniform(0.7, 2.5))
        drawn, own, _ = _over(drawn, np.full_like(picture, rng.uniform(0.3, 1)), strap, rng, shadow=False)
        opacity = np.maximum(opacity, own)
    return drawn, opacity, glare


def _sunglasses(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    lenses, frame = _spectacles(scene, rng, thickness=rng.uniform(0.5, 5))
    colour = _colour(rng) * rng.uniform(0.05, 0.5)
    material = np.broadcast_to(colour, picture.shape) * _gradient(rng, 0.6)
    if rng.random() < 0.5:
        material = material + scene.other * rng.uniform(0, 0.5)  # reflections
    drawn, opacity, glare = _over(picture, material, lenses * rng.uniform(0.75, 1), rng)
    drawn, own, _ = _over(drawn, _material(scene, rng), frame, rng, shadow=False)
    return drawn, np.maximum((opacity > 0.5).astype(np.float32), own), glare


def _glasses(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    lenses, frame = _spectacles(scene, rng, thickness=rng.uniform(1, 5))
    glare = np.zeros_like(lenses)
    if rng.random() < 0.4:
        glare = lenses * _blurred(_blob(rng, scene.mesh[rng.choice([159, 386])], rng.uniform(4, 12)), 1)
        picture = picture + (1 - picture) * glare[..., None] * rng.uniform(0.1, 0.8)
    drawn, opacity, _ = _over(picture * (1 - 0.1 * lenses[..., None] * rng.random()), _material(scene, rng), frame, rng)
    return drawn, opacity, glare * (1 - opacity)


def _hand(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    """Fingers and a palm in the colours of skin, from outside the face."""
    tip = scene.mesh[rng.integers(468)] + rng.normal(0, 8, 2)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    width, fingers = rng.uniform(9, 17), int(rng.integers(1, 6))
    shade, shape = np.ones((SIZE, SIZE)), np.zeros((SIZE, SIZE), np.float32)
    for finger in range(fingers):
        offset = (finger - (fingers - 1) / 2) * width * rng.uniform(0.85, 1.1)
        start = tip + across * offset + along * abs(offset) * rng.uniform(0, 0.5)
        lean = along + across * rng.normal(0, 0.1)
        stroke = _strokes([np.stack([start, start + lean * 70])], width, round_ends=True)
        shape = np.maximum(shape, stroke)
        # Round fingers: darker towards their edges, and a dark line between them.
        soft = _blurred(stroke, width / 4)
        shade = np.where(stroke > 0.5, 0.55 + 0.45 * np.clip(soft, 0.4, 1), shade)
    if rng.random() < 0.7:
        palm = _blob(rng, tip + along * rng.uniform(45, 70), rng.uniform(25, 45))
        shape = np.maximum(shape, palm)
    material = scene.skin * np.exp(rng.normal(0, 0.05, 3)) * rng.uniform(0.75, 1.25)
    return _over(picture, material * shade[..., None] * _gradient(rng, 0.25), shape, rng)


def _object(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    """A microphone, phone, cup or stick: a bar or a rounded shape with a handle."""
    place = scene.mesh[rng.integers(468)] + rng.normal(0, 5, 2)
    angle, width = rng.uniform(0, 2 * np.pi), rng.uniform(4, 30)
    direction = np.array([np.cos(angle), np.sin(angle)])
    shape = _strokes(
        [np.stack([place, place + direction * rng.uniform(40, 150)])], width, round_ends=rng.random() < 0.5
    )
    if rng.random() < 0.5:
        shape = np.maximum(shape, _blob(rng, place, width * rng.uniform(0.6, 1.2)))
    return _over(picture, _material(scene, rng), shape, rng)


def _patch(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    """A random shape: a scarf, a veil, a plaster, another head."""
    size = np.exp(rng.uniform(np.log(8), np.log(60)))
    shape = _blob(rng, scene.mesh[rng.integers(468)], size, rough=rng.uniform(0, 0.5))
    return _over(picture, _material(scene, rng), shape, rng)


def _hair(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Drawn:
    """Strands that hang over one side or the forehead."""
    top = scene.mesh[rng.choice([54, 103, 67, 109, 10, 338, 297, 332, 284])] - [0, rng.uniform(5, 30)]
    ends = scene.mesh[rng.choice([105, 334, 117, 346, 187, 411, 9, 151])]
    strands = []
    for _ in range(int(rng.integers(5, 60))):
        start, end = top + rng.normal(0, 14, 2), ends + rng.normal(0, 14, 2)
        bend = (start + end) / 2 + rng.normal(0, 8, 2)
        share = np.linspace(0, 1, 12)[:, None]
        strands.append((1 - share) ** 2 * start + 2 * share * (1 - share) * bend + share**2 * end)
    shape = _strokes(strands, rng.uniform(0.6, 2.5))
    colour = np.array([1.0, rng.uniform(0.6, 0.9), rng.uniform(0.3, 0.8)]) * rng.uniform(0.03, 0.75)
    grain = 1 + rng.normal(0, 0.2, (SIZE, SIZE, 1))
    return _over(picture, np.clip(colour * grain, 0, 1), shape, rng, shadow=False)


_KINDS: tuple[tuple[Callable[[Scene, np.ndarray, np.random.Generator], Drawn], float], ...] = (
    (_mask, 0.28),
    (_sunglasses, 0.14),
    (_glasses, 0.12),
    (_hand, 0.2),
    (_object, 0.1),
    (_patch, 0.1),
    (_hair, 0.06),
)


# Colours and textures.

_MASK_COLOURS = np.array(
    [(0.65, 0.8, 0.9), (0.35, 0.6, 0.8), (0.95, 0.95, 0.95), (0.06, 0.06, 0.07), (0.5, 0.5, 0.5), (0.6, 0.8, 0.7),
     (0.9, 0.65, 0.7), (0.85, 0.75, 0.65), (0.15, 0.2, 0.4), (0.75, 0.6, 0.5)]
)  # fmt: skip


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Any colour; a third are those of skin, a third are grey."""
    kind = rng.integers(3)
    if kind == 0:
        return rng.random(3)
    if kind == 1:
        return rng.random() * np.exp(rng.normal(0, 0.05, 3))
    red = rng.uniform(0.15, 1)
    green = red * rng.uniform(0.55, 0.9)
    return np.array([red, green, green * rng.uniform(0.6, 1.0)])


def _material(scene: Scene, rng: np.random.Generator, *, colours: np.ndarray | None = None) -> np.ndarray:
    """(192, 192, 3) an opaque surface: plain, patterned, or a piece of a photo; with shading and grain."""
    if rng.random() < 0.2:
        return np.clip(scene.other * np.exp(rng.normal(0, 0.3)), 0, 1)
    chosen = rng.random()
    if colours is not None and chosen < 0.5:
        base = colours[rng.integers(len(colours))] * np.exp(rng.normal(0, 0.08, 3))
    elif chosen < 0.75:
        base = _colour(rng)
    else:  # a colour of this face
        rows, columns = (scene.mesh[rng.integers(468)].round().astype(int).clip(0, SIZE - 1))[::-1]
        base = scene.picture[rows, columns] * np.exp(rng.normal(0, 0.15, 3))
    surface = np.broadcast_to(base, scene.picture.shape) * _gradient(rng, 0.4)
    if rng.random() < 0.2:
        y, x = np.mgrid[:SIZE, :SIZE]
        angle, period = rng.uniform(0, np.pi), rng.uniform(3, 20)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        if rng.random() < 0.5:
            wave = wave * np.sin((y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period)
        surface = surface + (wave > rng.uniform(-0.5, 0.8))[..., None] * (_colour(rng) - base) * rng.random()
    if rng.random() < 0.5:  # the light of the face
        light = np.asarray(_image(scene.picture.mean(2)).filter(ImageFilter.GaussianBlur(12)), np.float32) / 255
        surface = surface * (light / max(float(light.mean()), 0.05))[..., None] ** rng.uniform(0.3, 1)
    grain = rng.normal(0, rng.uniform(0, 0.08), (SIZE, SIZE, 1))
    return np.clip(surface * (1 + grain), 0, 1)


def _gradient(rng: np.random.Generator, strength: float) -> np.ndarray:
    """(192, 192, 1) smooth shading around 1."""
    coarse = rng.normal(0, 1, (int(rng.integers(2, 7)),) * 2).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.exp(smooth * rng.uniform(0, strength))[..., None]


def _over(
    picture: np.ndarray, material: np.ndarray, shape: np.ndarray, rng: np.random.Generator, *, shadow: bool = True
) -> Drawn:
    """Put a material over the picture, mostly with a shadow beside it."""
    shape = _blurred(shape, rng.uniform(0, 1.2))
    if shadow and rng.random() < 0.6:
        moved = np.roll(shape, tuple(rng.integers(-4, 5, 2)), (0, 1))
        picture = picture * (1 - rng.uniform(0, 0.5) * _blurred(moved, rng.uniform(1, 6))[..., None])
    drawn = picture * (1 - shape[..., None]) + material * shape[..., None]
    return drawn.astype(np.float32), shape, np.zeros_like(shape)


# Shapes.

_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
_EYES = ((33, 145, 133, 159), (362, 374, 263, 386))
_CHEEKS = ((117, 118, 101, 36, 205, 187, 123), (346, 347, 330, 266, 425, 411, 352))
# Around each eye, in order: lower points from the outer to the inner side, then the upper ones.
_LENSES = (
    (143, 111, 117, 118, 119, 120, 121, 128, 193, 55, 65, 52, 53, 46),
    (372, 340, 346, 347, 348, 349, 350, 357, 417, 285, 295, 282, 283, 276),
)


def _spectacles(scene: Scene, rng: np.random.Generator, *, thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of two lenses and of their frame."""
    mesh, style = scene.mesh, rng.integers(3)
    stretch = np.array([rng.uniform(0.75, 1.25), rng.uniform(0.6, 1.3)])
    drop = np.array([0, rng.uniform(-3, 6)])
    outlines = []
    for lens in _LENSES:
        points = mesh[list(lens)]
        centre = points.mean(0)
        if style == 0:
            angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            spread = points.std(0) * 1.4
            power = rng.uniform(0.5, 1)
            circle = np.stack([np.cos(angles), np.sin(angles)], 1)
            points = centre + np.sign(circle) * np.abs(circle) ** power * spread
        outlines.append(_rounded(centre + (points - centre) * stretch + drop))
    lenses = filled(outlines)
    bridge = np.stack([outlines[0][outlines[0][:, 0].argmax()], outlines[1][outlines[1][:, 0].argmin()]])
    arms = [
        np.stack([outlines[0][outlines[0][:, 0].argmin()], mesh[127]]),
        np.stack([outlines[1][outlines[1][:, 0].argmax()], mesh[356]]),
    ]
    rims = [np.concatenate([outline, outline[:1]]) for outline in outlines]
    return lenses, _strokes([*rims, bridge, *arms], thickness)


def _shadow_shape(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    angle = rng.uniform(0, 2 * np.pi)
    side = (x - SIZE / 2) * np.cos(angle) + (y - SIZE / 2) * np.sin(angle)
    edge = side > rng.normal(0, 25)
    if rng.random() < 0.3:
        edge &= side < rng.uniform(5, 40)
    return edge.astype(np.float32)


def _blob(rng: np.random.Generator, centre: np.ndarray, radius: float, *, rough: float = 0.2) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = radius * np.exp(rough * rng.normal(0, 1, 24))
    turned = rng.uniform(0, np.pi)
    points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], 1) * radii[:, None]
    rotation = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    return filled([_rounded(centre + points @ rotation)])


def grown(points: np.ndarray, factor: float) -> np.ndarray:
    return points.mean(0) + (points - points.mean(0)) * factor


def _rounded(points: np.ndarray) -> np.ndarray:
    """Chaikin's corner cutting, twice."""
    for _ in range(2):
        following = np.roll(points, -1, 0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1).reshape(-1, 2)
    return points


def filled(polygons: list[np.ndarray]) -> np.ndarray:
    canvas = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon([tuple(p) for p in (polygon * SUPERSAMPLING - 0.5).tolist()], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def _strokes(lines: list[np.ndarray], width: float, *, round_ends: bool = False) -> np.ndarray:
    canvas = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(canvas)
    pixels = max(1, round(width * SUPERSAMPLING))
    for line in lines:
        points = [tuple(p) for p in (line * SUPERSAMPLING - 0.5).tolist()]
        draw.line(points, fill=255, width=pixels, joint="curve")
        if round_ends:
            for x, y in points:
                draw.ellipse([x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    if radius < 0.3:
        return values
    return np.asarray(_image(values).filter(ImageFilter.GaussianBlur(float(radius))), np.float32) / 255
