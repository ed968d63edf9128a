"""Surfaces with known distances."""

from __future__ import annotations

import math

import torch

from mien.geometry import Surface


def ellipsoid(*, radii: tuple[float, float, float] = (1.0, 1.0, 1.0), rings: int = 24) -> Surface:
    """A closed ellipsoid about the origin with outward triangles; chords lie up to 0.4 % inside the true surface."""
    polar = torch.linspace(0.03, math.pi - 0.03, rings)
    turn = torch.linspace(0, 2 * math.pi, 2 * rings + 1)[:-1]
    theta, phi = torch.meshgrid(polar, turn, indexing="ij")
    points = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1).reshape(-1, 3)
    row = torch.arange(rings - 1)[:, None] * 2 * rings
    column = torch.arange(2 * rings)[None]
    after = (column + 1) % (2 * rings)
    a, b, c, d = row + column, row + after, row + 2 * rings + column, row + 2 * rings + after
    triangles = torch.cat([torch.stack([a, c, b], -1).reshape(-1, 3), torch.stack([b, c, d], -1).reshape(-1, 3)])
    return Surface(points * torch.tensor(radii), triangles)


def square(*, side: float = 2.0, steps: int = 8) -> Surface:
    """A flat grid in the plane z = 0, centred, facing +z."""
    line = torch.linspace(-side / 2, side / 2, steps + 1)
    x, y = torch.meshgrid(line, line, indexing="xy")
    points = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    corner = (torch.arange(steps)[:, None] * (steps + 1) + torch.arange(steps)).reshape(-1)
    a, b, c, d = corner, corner + 1, corner + steps + 1, corner + steps + 2
    return Surface(points, torch.cat([torch.stack([a, b, d], -1), torch.stack([a, d, c], -1)]))
