"""Change a grey ball into a shape that is only known from images: the rasterizer with any mesh, no face needed.

Usage: python examples/01_rasterizer.py [FOLDER]      writes FOLDER/rasterizer.png

The image shows four steps, the target, and the result with a texture map instead of vertex colours.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from PIL import Image

from mien.rasterizer import interpolate, rasterize, rasterize_hard, texture

SIZE, RINGS, STEPS, DISTANCE = 160, 40, 240, 4.0
torch.manual_seed(0)


def ball() -> tuple[torch.Tensor, torch.Tensor]:
    """Points (V,3) on the unit sphere and triangles (T,3)."""
    p, t = torch.meshgrid(
        torch.linspace(0, math.pi, RINGS + 1), torch.arange(2 * RINGS) * math.pi / RINGS, indexing="ij"
    )
    points = torch.stack([p.sin() * t.cos(), p.cos(), p.sin() * t.sin()], -1).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(RINGS), torch.arange(2 * RINGS), indexing="ij")
    a, b = row * 2 * RINGS + column, row * 2 * RINGS + (column + 1) % (2 * RINGS)
    c, d = a + 2 * RINGS, b + 2 * RINGS
    return points, torch.cat([torch.stack(corners, -1).reshape(-1, 3) for corners in ((a, b, d), (a, d, c))])


def to_ndc(points: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Vertices (B,V,3) for cameras that look at the origin and are turned about the vertical axis."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack([cos, zero, sin, zero, zero + 1, zero, -sin, zero, cos], -1).reshape(-1, 3, 3)
    x, y, z = (points @ turn).unbind(-1)
    depth = DISTANCE - z
    return torch.stack([2.2 * x / depth, -2.2 * y / depth, depth], -1)  # y down


def draw(points: torch.Tensor, colours: torch.Tensor, angles: torch.Tensor, sigma: float) -> torch.Tensor:
    """Soft images (B,4,H,W) of colour and alpha."""
    colours = colours.expand(len(angles), -1, -1)
    out = rasterize(to_ndc(points, angles), TRIANGLES, colours, image_size=(SIZE, SIZE), sigma=sigma, near=2.0, far=6.0)
    return torch.cat([out.image, out.alpha[:, None]], 1)


def draw_textured(points: torch.Tensor, uv: torch.Tensor, maps: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Hard images (B,4,H,W) of a texture map (1,3,S,S) and alpha."""
    fragments = rasterize_hard(to_ndc(points, angles), TRIANGLES, image_size=(SIZE, SIZE), near=2.0, far=6.0)
    image = texture(maps, interpolate(uv, TRIANGLES, fragments), fragments)
    return torch.cat([image, (fragments.triangle_ids >= 0)[:, None].to(image)], 1)


SPHERE, TRIANGLES = ball()
x, y, z = SPHERE.unbind(-1)
bumps = (
    1 + 0.22 * torch.sin(5 * torch.atan2(z, x)) * (1 - y * y) ** 2 + 0.18 * torch.cos(4 * torch.acos(y.clamp(-1, 1)))
)
target = SPHERE * bumps[:, None]
light = 0.55 + 0.45 * torch.nn.functional.normalize(target, dim=-1) @ torch.tensor([0.4, 0.8, 0.45])
target_colours = (torch.stack([0.9 * bumps - 0.25, 0.45 + 0.3 * y, 1.3 - 0.8 * bumps], -1) * light[:, None]).clamp(0, 1)

offsets = torch.zeros_like(SPHERE).requires_grad_()
paint = torch.zeros_like(SPHERE).requires_grad_()
optimiser = torch.optim.Adam([{"params": offsets, "lr": 8e-3}, {"params": paint, "lr": 4e-2}])
edges = torch.cat([TRIANGLES[:, [0, 1]], TRIANGLES[:, [1, 2]], TRIANGLES[:, [2, 0]]])
front, sheet = torch.tensor([0.35]), []
for step in range(STEPS + 1):
    if step in {0, STEPS // 16, STEPS // 4, STEPS}:
        sheet.append(draw(SPHERE + offsets, paint.sigmoid(), front, 1e-5).detach())
    angles = 2 * math.pi * torch.rand(3)
    sigma = 1e-3 * 0.02 ** (step / STEPS)  # soft first, so that edges far away have a gradient, then sharp
    wanted = draw(target, target_colours, angles, sigma)
    loss = (draw(SPHERE + offsets, paint.sigmoid(), angles, sigma) - wanted).square().mean()
    smooth = (offsets[edges[:, 0]] - offsets[edges[:, 1]]).square().sum(-1).mean()
    optimiser.zero_grad()
    (loss + 2.0 * smooth).backward()
    optimiser.step()

sheet.append(draw(target, target_colours, front, 1e-5))
squares = (torch.arange(256) // 16 + torch.arange(256)[:, None] // 16) % 2
maps = torch.stack([0.2 + 0.7 * squares, 0.45 - 0.1 * squares, 0.7 - 0.5 * squares])[None]  # a checkerboard
uv = 0.5 + 0.5 * SPHERE[:, :2]  # projected from the front, so that the map has no seam there
sheet.append(draw_textured((SPHERE + offsets).detach(), uv, maps, front))
images = torch.cat([p[0, :3] + (1 - p[0, 3:]) * 0.96 for p in sheet], -1)  # on a light background
out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
Image.fromarray((images.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(out / "rasterizer.png")
print(f"error of colour and alpha {float(loss.detach()) ** 0.5:.3f} (root mean square), {out / 'rasterizer.png'}")
