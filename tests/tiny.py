"""A small made-up face model: a dome with a nose, smooth random bases, every array of the real one."""

from __future__ import annotations

import torch

from mien.morphable import MorphableModel

COLUMNS, ROWS = 21, 25
IDENTITY, EXPRESSION, ALBEDO = 12, 4, 5


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
            "contour_candidates": torch.linspace(30, len(uv) - 30, 51).long().view(17, 3),
            "mediapipe_triangles": torch.linspace(0, 2 * (ROWS - 1) * (COLUMNS - 1) - 1, 468).long(),
            "mediapipe_barycentrics": torch.rand(468, 3, generator=generator).softmax(-1),
            "mask_skin": torch.ones(len(uv)),
            **{f"mask_{part}": torch.zeros(len(uv)) for part in ("lips", "brows", "eyes", "neck", "mouth")},
        },
        expression_names=tuple(f"action{k}" for k in range(EXPRESSION)),
        licence="made by a test",
    )


def _grid_triangles() -> torch.Tensor:
    corner = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    a, b, c, d = (part.reshape(-1) for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]))
    return torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)])


def _smooth_fields(uv: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    frequency = torch.randn(count, 3, 2, generator=generator) * 4
    phase = torch.rand(count, 3, generator=generator) * 6.28
    return torch.cos(torch.einsum("kcd,vd->kvc", frequency, uv) + phase[:, None])
