"""The UV layout of a model, prepared for maps of many faces: vectors are stored by component, not by texel."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from mien.morphable import MorphableModel
from mien.morphable.per_model import per_model
from mien.texture import TexelAtlas
from mien.texture.fill import pull_push
from mien.typing import Float, Int, Tensor

_FLAT_UV = 1e-12
"""A triangle counts as flat in UV space if twice its area is below this; a texel is far larger."""
_LARGEST_KEPT = 512
"""Side of the largest map whose texels are kept: 7 MB."""
_MOST_KEPT = 4


@dataclass(frozen=True)
class Texels:
    """The P texels of a square map that lie in the layout."""

    size: int
    """Side of the map."""
    index: Int[Tensor, "P"]
    """Number of each texel, counted row by row; row 0 is v = 1."""
    triangles: Int[Tensor, "P"]
    """Triangle at each texel."""
    corners: Int[Tensor, "P 3"]
    """Its vertices."""
    weights: Float[Tensor, "P 3"]
    """Weights of these vertices."""
    inner: Float[Tensor, "P"]
    """1 where all eight texels around it are in the layout too, 0 at its border."""

    @classmethod
    def of(cls, model: MorphableModel, size: int) -> Texels:
        """Rasterize the layout of a model."""
        atlas = TexelAtlas.of(model, size)
        index = atlas.valid.flatten().nonzero()[:, 0]
        triangles = atlas.triangle_ids.flatten()[index].long()
        inner = -F.max_pool2d(-atlas.valid.float()[None, None], 3, stride=1, padding=1).flatten()[index]
        return cls(
            size,
            index,
            triangles,
            corners=model.triangles[triangles].int(),  # 32 bits are read at twice the speed of 64
            weights=atlas.fragments.barycentrics.reshape(-1, 3)[index],
            inner=inner,
        )

    def interpolate(self, values: Float[Tensor, "V C"]) -> Float[Tensor, "C P"]:
        """Interpolate values per vertex."""
        mixed = F.embedding_bag(self.corners, values, per_sample_weights=self.weights, mode="sum")
        return mixed.T.contiguous()

    def as_map(self, values: Float[Tensor, "C P"]) -> Float[Tensor, "C S S"]:
        """The map with these values, continued beyond the layout."""
        maps, known = torch.zeros(len(values) + 1, self.size * self.size), torch.ones(1, len(self.index))
        maps[:, self.index] = torch.cat([values, known])
        maps = maps.view(1, -1, self.size, self.size)
        return pull_push(maps[:, :-1], maps[:, -1:])[0]


@dataclass(frozen=True)
class UvLayout:
    """Triangles of a model in UV space."""

    triangles: Int[Tensor, "3 T"]
    """Vertices of each triangle."""
    inverse: Float[Tensor, "2 2 T"]
    """From an edge's u and v back to its share of the triangle's two edges: inverse[k, 0] is the k-th share of u."""
    signs: Float[Tensor, "T"]
    """1 for triangles that are counter-clockwise in UV space, -1 for mirrored ones, 0 for those without area."""
    kept: dict[int, Texels] = field(default_factory=dict)

    @classmethod
    def of(cls, model: MorphableModel) -> UvLayout:
        """The layout of a model, computed once per model."""
        return per_model(model, _uv_layout)

    @classmethod
    def from_uv(cls, uv: Float[Tensor, "V 2"], triangles: Int[Tensor, "T 3"]) -> UvLayout:
        """The layout of a mesh that is no model, such as the skin of a head."""
        a, b, c = (uv[triangles[:, k]] for k in range(3))
        edges = torch.stack([b - a, c - a], dim=-1)
        determinants = torch.linalg.det(edges)
        # A triangle without area in UV space covers no texel; the identity keeps its inverse finite.
        edges = torch.where((determinants.abs() < _FLAT_UV)[:, None, None], torch.eye(2), edges)
        inverse = torch.linalg.inv(edges).permute(1, 2, 0).contiguous()
        return cls(triangles.T.contiguous(), inverse, determinants.sign())

    def along_uv(self, vertices: Float[Tensor, "3 V"]) -> tuple[Float[Tensor, "3 T"], Float[Tensor, "3 T"]]:
        """∂p/∂u and ∂p/∂v of each triangle, metres per unit of u and v."""
        a, b, c = (vertices[:, corner] for corner in self.triangles)
        first, second = b - a, c - a
        along_u, along_v = (first * self.inverse[0, k] + second * self.inverse[1, k] for k in range(2))
        return along_u, along_v


def texels_of(model: MorphableModel, size: int) -> Texels:
    """The texels of maps of one size; those of the last small sizes are kept with the model."""
    kept = UvLayout.of(model).kept
    texels = kept.pop(size, None) or Texels.of(model, size)
    if size <= _LARGEST_KEPT:
        kept[size] = texels
        while len(kept) > _MOST_KEPT:
            del kept[next(iter(kept))]
    return texels


def _uv_layout(model: MorphableModel) -> UvLayout:
    return UvLayout.from_uv(model.uv, model.triangles)
