"""Normals, pose and light of a mesh: in PyTorch, and for float32 on a CPU in one native pass in each direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mien.camera import Pose
from mien.geometry import vertex_normals
from mien.lighting import shading
from mien.morphable import MorphableModel
from mien.morphable.per_model import per_model
from mien.rasterizer.cpu import native
from mien.typing import Float, Int, Tensor


@dataclass(frozen=True)
class PosedSurface:
    """A mesh in front of its camera, in the light."""

    camera: Float[Tensor, "B V 3"]
    """Positions in camera space, metres."""
    normals: Float[Tensor, "B V 3"]
    """Unit normals in view axes."""
    shading: Float[Tensor, "B V 3"]
    """Light per colour channel, eq. 3."""


def posed_surface(
    model: MorphableModel, vertices: Float[Tensor, "B V 3"], pose: Pose, lighting: Float[Tensor, "B 9 3"]
) -> PosedSurface:
    """Place and light the mesh of a model.

    Args:
        model: Gives the triangles.
        vertices: Model space, metres.
        pose: One pose per mesh.
        lighting: Spherical-harmonics coefficients per colour channel.

    Returns:
        The surfaces; differentiable in all arguments, on a CPU once.
    """
    inputs = (vertices, pose.rotation, pose.scale, pose.translation, lighting)
    compiled = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if compiled or any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in inputs):
        return reference(model, vertices, pose, lighting)
    scenes = torch.cat(
        [pose.rotmat().flatten(1), pose.scale[:, None], pose.translation, lighting.flatten(1)], dim=1
    ).expand(len(vertices), -1)
    return PosedSurface(*_PosedSurface.apply(vertices, scenes, per_model(model, _topology)))


def reference(
    model: MorphableModel, vertices: Float[Tensor, "B V 3"], pose: Pose, lighting: Float[Tensor, "B 9 3"]
) -> PosedSurface:
    """`posed_surface` in PyTorch, for every device and type."""
    normals = pose.to_view_axes(vertex_normals(vertices, model.triangles))
    return PosedSurface(pose.to_camera(vertices), normals, shading(normals, lighting))


@dataclass(frozen=True)
class _Topology:
    """Triangles, and where they meet: see `MeshTopology` in csrc/surface.hpp."""

    corners: Int[Tensor, "T 3"]
    first_corner: Int[Tensor, "N"]
    corner_of: Int[Tensor, "C"]

    def arrays(self) -> list[Any]:
        return [tensor.numpy() for tensor in (self.corners, self.first_corner, self.corner_of)]


def _topology(model: MorphableModel) -> _Topology:
    flat = model.triangles.flatten()
    counts = torch.bincount(flat, minlength=len(model.mean))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    order = flat.argsort(stable=True)
    return _Topology(model.triangles.int().contiguous(), starts.int(), order.int())


class _PosedSurface(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, scenes: Tensor, topology: _Topology) -> tuple[Tensor, Tensor, Tensor]:
        vertices, scenes = vertices.detach().contiguous(), scenes.detach().contiguous()
        outputs = camera, normals, shaded, lengths = (
            *(torch.empty_like(vertices) for _ in range(3)),
            vertices.new_empty(vertices.shape[:2]),
        )
        inputs = [*topology.arrays(), vertices.numpy(), scenes.numpy()]
        native().surface_forward(*inputs, torch.get_num_threads(), *(tensor.numpy() for tensor in outputs))
        ctx.topology = topology
        ctx.save_for_backward(vertices, scenes, normals, lengths)
        return camera, normals, shaded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        vertices, scenes, normals, lengths = ctx.saved_tensors
        outputs = torch.empty_like(vertices), torch.empty_like(scenes)
        native().surface_backward(
            *ctx.topology.arrays(),
            *(tensor.detach().numpy() for tensor in (vertices, scenes, normals, lengths)),
            torch.get_num_threads(),
            *(gradient.contiguous().numpy() for gradient in gradients),
            *(tensor.numpy() for tensor in outputs),
        )
        return *outputs, None
