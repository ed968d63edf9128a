"""Eyeballs behind the lids of the face, in place of its eye caps."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from surface import similarity

CORNEA_RADIUS_MM, CORNEA_HEIGHT_MM = 5.9, 0.6
"""The cornea's edge (W. Bron et al., Wolff's anatomy of the eye: 11.7 mm across) and its height over the ball, a
quarter of the real one: the model's lids lie closer to the ball than a real cornea is high."""
CLEARANCE_MM = 0.35
"""Space between the eyeball and the face's eye caps, on which the lids of some people lie."""
EYE_RINGS, EYE_SECTORS = 20, 32
GAZE = re.compile(r"eyeLook\w+(Left|Right)")


@dataclass(frozen=True)
class Ball:
    """A unit ball around the origin that looks along +z, with a cornea."""

    directions: np.ndarray
    """(N, 3) unit vectors; the last one points forward."""
    triangles: np.ndarray


def unit_ball() -> Ball:
    """Rings around the axis of sight, denser in front."""
    polar = np.pi * (1 - np.linspace(0, 1, EYE_RINGS + 1)[:-1] ** 0.7)  # from the back to the front
    turn = 2 * np.pi * np.arange(EYE_SECTORS) / EYE_SECTORS
    rings = [np.stack([np.sin(p) * np.cos(turn), np.sin(p) * np.sin(turn), np.full_like(turn, np.cos(p))], 1)
             for p in polar[1:]]  # fmt: skip
    directions = np.concatenate([[[0, 0, -1.0]], *rings, [[0, 0, 1.0]]])
    first = 1 + EYE_SECTORS * np.arange(len(rings))[:, None] + np.arange(EYE_SECTORS)
    following = np.roll(first, -1, axis=1)
    front = len(directions) - 1
    back_fan = [[0, b, a] for a, b in zip(first[0], following[0], strict=True)]
    front_fan = [[front, a, b] for a, b in zip(first[-1], following[-1], strict=True)]
    walls = [
        [[a, b, d], [a, d, c]]
        for low, low_next, high, high_next in zip(first[:-1], following[:-1], first[1:], following[1:], strict=True)
        for a, b, c, d in zip(low, low_next, high, high_next, strict=True)
    ]
    return Ball(directions, np.array(back_fan + [t for pair in walls for t in pair] + front_fan))


def eyeball(ball: Ball, radius: float) -> np.ndarray:
    """Vertices (N, 3) of an eyeball around the origin, in millimetres, with its cornea."""
    from_axis = radius * np.linalg.norm(ball.directions[:, :2], axis=1)
    bulge = np.where(ball.directions[:, 2] > 0, np.clip(1 - (from_axis / CORNEA_RADIUS_MM) ** 2, 0, None), 0.0)
    return ball.directions * (radius + CORNEA_HEIGHT_MM * bulge)[:, None]


class EyeFollower:
    """An eyeball behind the lids of the face, in place of one of its eye caps.

    Args:
        cap: (N, 3) the cap in the mean face.
    """

    def __init__(self, cap: np.ndarray) -> None:
        equations = np.concatenate([2 * cap, np.ones((len(cap), 1))], 1)
        solution = np.linalg.lstsq(equations, (cap**2).sum(1), rcond=None)[0]
        self.centre = solution[:3]
        self.radius = float(np.sqrt(solution[3] + self.centre @ self.centre))
        self.ball = unit_ball()
        self._cap = cap - self.centre

    @property
    def vertices(self) -> np.ndarray:
        """(M, 3) the eyeball in the mean head, and its centre as the last one."""
        return np.concatenate([eyeball(self.ball, self.radius - CLEARANCE_MM), np.zeros((1, 3))]) + self.centre

    def grow(self, offsets: np.ndarray) -> np.ndarray:
        """Changes (K, M, 3) by translation and size, for changes (K, N, 3) of the cap."""
        out = self._cap / self.radius
        equations = np.concatenate([np.tile(np.eye(3), (len(out), 1)), out.reshape(-1, 1)], 1)
        solution = np.linalg.lstsq(equations, offsets.reshape(len(offsets), -1).T, rcond=None)[0].T
        shape = (self.vertices - self.centre) / self.radius
        return solution[:, None, :3] + solution[:, 3, None, None] * shape

    def turn(self, offsets: np.ndarray) -> np.ndarray:
        """Change (M, 3) by the rotation about the centre that follows a change (N, 3) of the cap best."""
        _, rotation, _ = similarity(self._cap, self._cap + offsets, with_scale=False)
        relative = self.vertices - self.centre
        return relative @ rotation.T - relative
