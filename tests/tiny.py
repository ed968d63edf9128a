"""A small synthetic face model: a dome with a nose and masked parts, smooth random bases, every array of a real one."""

from __future__ import annotations

import torch

from mien.morphable import MorphableModel

COLUMNS, ROWS = 21, 25
IDENTITY, EXPRESSION, ALBEDO = 12, 4, 5
PARTS = {
    "brows": (0.24, 0.75, 0.10, 0.03),
    "eyes": (0.24, 0.63, 0.08, 0.04),
    "lips": (0.0, 0.29, 0.14, 0.07),
    "mouth": (0.0, 0.29, 0.10, 0.03),
    "neck": (0.0, 0.0, 0.5, 0.1),
}
"""Distance from the line of symmetry, height, and half width and half height of each part, in units of u and v."""


def tiny_model(seed: int = 0) -> MorphableModel:
    """525 vertices over an ellipsoid cap of head size, symmetric, with seeded bases."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.meshgrid(torch.linspace(0, 1, COLUMNS), torch.linspace(0, 1, ROWS), indexing="xy")
    uv = torch.stack([u, v], -1).view(-1, 2)
    angle, height = (uv[:, 0] - 0.5) * 2.4, (uv[:, 1] - 0.5) * 2.2
    nose = torch.exp(-((uv[:, 0] - 0.5) ** 2) / 0.004 - ((uv[:, 1] - 0.5) ** 2) / 0.01)
    radius = 0.08 + 0.02 * nose
    mean = torch.stack(
        [radius * angle.sin() * height.cos(), 0.1 * height.sin(), radius * angle.cos() * height.cos() - 0.05],
        -1,
    )
    return MorphableModel(
        "tiny",
        {
            "mean": mean,
            "triangles": _grid_triangles(),
            "uv": uv,
            "mirror": torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS).flip(1).reshape(-1),
            "identity_basis": _smooth_fields(uv, IDENTITY, generator) * 2e-3,
            "expression_basis": _smooth_fields(uv, EXPRESSION, generator) * 4e-3,
            "albedo_mean": torch.tensor([0.75, 0.58, 0.5]).expand(len(uv), 3).clone(),
            "albedo_basis": _smooth_fields(uv, ALBEDO, generator) * 0.04,
            "landmarks68": torch.linspace(30, len(uv) - 30, 68).long(),
            "contour_candidates": _contour_strips(),
            "mediapipe_triangles": torch.linspace(0, 2 * (ROWS - 1) * (COLUMNS - 1) - 1, 468).long(),
            "mediapipe_barycentrics": torch.rand(468, 3, generator=generator).softmax(-1),
            **{f"mask_{part}": mask for part, mask in _masks(uv).items()},
        },
        expression_names=tuple(f"action{k}" for k in range(EXPRESSION)),
        licence="made by a test",
    )


def _masks(uv: torch.Tensor) -> dict[str, torch.Tensor]:
    """1 in the rectangle of each part and in its mirror image; skin includes brows and neck, as in packaged models."""
    u, v = (uv[:, 0] - 0.5).abs(), uv[:, 1]
    masks = {
        part: (((u - side).abs() <= half_width) & ((v - height).abs() <= half_height)).float()
        for part, (side, height, half_width, half_height) in PARTS.items()
    }
    masks["lips"] = masks["lips"] - masks["mouth"]
    return masks | {"skin": 1 - masks["lips"] - masks["mouth"] - masks["eyes"]}


def _contour_strips() -> torch.Tensor:
    """Three candidates on the subject's right, two on the left, none at the chin."""
    row = torch.linspace(1, ROWS - 2, 17).long()[:, None]
    right, left = torch.tensor([1, 2, 3]), torch.tensor([COLUMNS - 2, COLUMNS - 4, -1])
    strips = torch.where(torch.arange(17)[:, None] < 8, row * COLUMNS + right, row * COLUMNS + left)
    strips[9:, 2] = -1
    strips[8] = -1
    return strips


def _grid_triangles() -> torch.Tensor:
    corner = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    a, b, c, d = (part.reshape(-1) for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]))
    return torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)])


def _smooth_fields(uv: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    frequency = torch.randn(count, 3, 2, generator=generator) * 4
    phase = torch.rand(count, 3, generator=generator) * 6.28
    return torch.cos(torch.einsum("kcd,vd->kvc", frequency, uv) + phase[:, None])
