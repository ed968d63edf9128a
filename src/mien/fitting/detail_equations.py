"""The normal equations of the detail fit: its quadratic regularisers, its linearised colours, and their solution.

The unknowns are maps of four channels: texture offset (3), and displacement in millimetres. The regularisers of eq. 8
to 11 are quadratic, and so is the colour error in the offset alone; only the normals depend on the displacement in
another way. A step is therefore the solution of a sparse linear system, which conjugate gradients find without a
matrix: each product is one pass over the texels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.lighting import shading, shading_gradient
from mien.texture import TexelFace, length
from mien.texture.fill import halved
from mien.typing import Float, Tensor

DISPLACEMENT_UNIT_M = 1e-3
"""The displacement is fitted in millimetres."""

_COARSEST = 8
"""The grids on which the offset starts have at least this many texels per side."""
_START_STEPS = 16
"""Steps of conjugate gradients per grid for the start of the offset; each grid starts from the next coarser one."""


@dataclass(frozen=True)
class QuadraticPrior:
    """The regularisers as a quadratic form ½ xᵀ R x."""

    magnitude: Float[Tensor, "#B C #S #S"]
    """Weight of the square of each value."""
    symmetry: Float[Tensor, "#B C #S #S"]
    """Weight of the squared difference to the mirror image, the same on both sides."""
    right: Float[Tensor, "B C S s"]
    """Weight of the squared difference to the right neighbour."""
    down: Float[Tensor, "B C s S"]
    """Weight of the squared difference to the lower neighbour."""

    @classmethod
    def of(
        cls,
        inside: Float[Tensor, "B 1 S S"],
        *,
        magnitude: Float[Tensor, "#B C #S #S"],
        symmetry: Float[Tensor, "#B C #S #S"],
        smoothness: Float[Tensor, "1 C 1 1"],
    ) -> QuadraticPrior:
        """Weigh each pair of neighbours by the smaller value of `inside`, as `map_smoothness_loss` does."""
        right = torch.minimum(inside[..., 1:], inside[..., :-1])
        down = torch.minimum(inside[..., 1:, :], inside[..., :-1, :])
        right, down = (smoothness * pairs / pairs.sum().clamp(min=1) for pairs in (right, down))
        return cls(magnitude, symmetry, right, down)

    def product(self, maps: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
        """R x, the gradient of the regularisers."""
        right = self.right * (maps[..., 1:] - maps[..., :-1])
        down = self.down * (maps[..., 1:, :] - maps[..., :-1, :])
        smooth = F.pad(right, (1, 0)) - F.pad(right, (0, 1)) + F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1))
        return self.magnitude * maps + self.symmetry * (maps - maps.flip(-1)) + smooth

    @property
    def diagonal(self) -> Float[Tensor, "B C S S"]:
        """Diagonal of R; the central column of a map of odd side counts as if it had a mirror image."""
        right, down = self.right, self.down
        smooth = F.pad(right, (1, 0)) + F.pad(right, (0, 1)) + F.pad(down, (0, 0, 1, 0)) + F.pad(down, (0, 0, 0, 1))
        return self.magnitude + self.symmetry + smooth


@dataclass(frozen=True)
class LinearColours:
    """Gradient and Gauss–Newton matrix of the weighted squared colour error at some maps."""

    gradient: Float[Tensor, "B 4 S S"]
    """Derivative by offset and displacement, the latter less where the photo shows gloss."""
    curvature: Float[Tensor, "B 1 S S"]
    """Bound of what the Gauss–Newton matrix leaves out in its diagonal for the displacement: error times bending."""
    shade: Float[Tensor, "B 3 S S"]
    """Derivative of the weighted colours by the offset."""
    along_u: Float[Tensor, "B 3 S S"]
    """Derivative of the weighted colours by the difference quotient of the displacement along u."""
    along_v: Float[Tensor, "B 3 S S"]
    """The same along v."""

    @classmethod
    def of(
        cls,
        face: TexelFace,
        maps: Float[Tensor, "B 4 S S"],
        *,
        photo: Float[Tensor, "B 3 S S"],
        weights: Float[Tensor, "B 1 S S"],
        matte: Float[Tensor, "B 1 S S"],
    ) -> LinearColours:
        """Linearise.

        Args:
            face: The coarse face.
            maps: Offset and displacement.
            photo: Colours of the photo.
            weights: Weight of the squared colour error of each texel.
            matte: 0 where the photo shows gloss, 1 elsewhere; scales the derivative by the displacement.
        """
        normals, slope_u, slope_v = _bent_normals(face, maps[:, 3:])
        shade = shading(normals.movedim(1, -1), face.lighting).movedim(-1, 1).contiguous()
        albedo = face.albedo + maps[:, :3]
        error = albedo * shade - photo
        by_normal = [
            shading_gradient(normals.movedim(1, -1), face.lighting[..., channel]).movedim(-1, 1).contiguous()
            for channel in range(3)
        ]
        by_u, by_v = (
            albedo * torch.cat([(change * slope).sum(1, keepdim=True) for change in by_normal], dim=1)
            for slope in (slope_u, slope_v)
        )
        pull = 2 * weights * error
        relief = _transposed_quotients(
            matte * (pull * by_u).sum(1, keepdim=True), matte * (pull * by_v).sum(1, keepdim=True)
        )
        bending = torch.cat([length(change) for change in by_normal], dim=1)
        bound = matte * (pull * albedo * bending).abs().sum(1, keepdim=True)
        root = (2 * weights).sqrt()
        return cls(
            gradient=torch.cat([pull * shade, relief], dim=1),
            curvature=_around(bound * length(slope_u).square(), bound * length(slope_v).square()),
            shade=root * shade,
            # The geometric mean of the matrix with and without gloss; its square is the derivative of the gradient.
            along_u=root * matte.sqrt() * by_u,
            along_v=root * matte.sqrt() * by_v,
        )

    def product(self, maps: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 4 S S"]:
        """The Gauss–Newton matrix times maps."""
        d_u, d_v = _quotients(maps[:, 3:])
        change = self.shade * maps[:, :3] + self.along_u * d_u + self.along_v * d_v
        along = ((slope * change).sum(1, keepdim=True) for slope in (self.along_u, self.along_v))
        return torch.cat([self.shade * change, _transposed_quotients(*along)], dim=1)

    @property
    def diagonal(self) -> Float[Tensor, "B 4 S S"]:
        """Diagonal of the Gauss–Newton matrix, inside the border of the map."""
        along = (slope.square().sum(1, keepdim=True) for slope in (self.along_u, self.along_v))
        return torch.cat([self.shade.square(), _around(*along)], dim=1)


def conjugate_gradients(
    product: Callable[[Float[Tensor, "B C S S"]], Float[Tensor, "B C S S"]],
    right_side: Float[Tensor, "B C S S"],
    *,
    diagonal: Float[Tensor, "B C S S"],
    steps: int,
) -> Float[Tensor, "B C S S"]:
    """Solve a symmetric positive semidefinite system approximately, starting at zero.

    Args:
        product: Applies the matrix.
        right_side: The right side.
        diagonal: Positive values; the preconditioner divides by them.
        steps: Number of products.
    """
    found, residual = torch.zeros_like(right_side), right_side
    scaled = residual / diagonal
    direction, power = scaled, (residual * scaled).sum()
    for _ in range(steps):
        image = product(direction)
        # With a zero residual the solution is exact, and all further steps are zero.
        rate = power / (direction * image).sum().clamp(min=torch.finfo(image.dtype).tiny)
        found, residual = found + rate * direction, residual - rate * image
        scaled = residual / diagonal
        previous, power = power, (residual * scaled).sum()
        direction = scaled + power / previous.clamp(min=torch.finfo(image.dtype).tiny) * direction
    return found


def offset_without_relief(
    data: Float[Tensor, "B 3 S S"], pull: Float[Tensor, "B 3 S S"], prior: QuadraticPrior
) -> Float[Tensor, "B 3 S S"]:
    """The offset that explains the photo alone, approximately: broad structure from coarse grids.

    The fine steps change what is near; the offset of hidden texels comes from far, which takes few steps on coarse
    grids (cascadic multigrid, Bornemann and Deuflhard 1996).

    Args:
        data: Diagonal of the colour error's matrix.
        pull: Negative gradient of the colour error at zero.
        prior: The regularisers of the offset.
    """
    if min(data.shape[-2:]) < 2 * _COARSEST:
        start = torch.zeros_like(data)
    else:
        coarse = offset_without_relief(4 * halved(data), 4 * halved(pull), _halved_prior(prior))
        start = F.interpolate(coarse, size=data.shape[-2:], mode="bilinear", align_corners=False)

    def product(maps: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        return data * maps + prior.product(maps)

    diagonal = (data + prior.diagonal).clamp(min=torch.finfo(data.dtype).tiny)
    return start + conjugate_gradients(product, pull - product(start), diagonal=diagonal, steps=_START_STEPS)


def _halved_prior(prior: QuadraticPrior) -> QuadraticPrior:
    """The regularisers of maps of half the side: sums over areas, and the same squared gradient."""
    return QuadraticPrior(
        magnitude=4 * prior.magnitude,
        symmetry=4 * halved(prior.symmetry),
        right=F.avg_pool2d(prior.right[..., 1::2], (2, 1), ceil_mode=True),
        down=F.avg_pool2d(prior.down[..., 1::2, :], (1, 2), ceil_mode=True),
    )


def _bent_normals(
    face: TexelFace, displacement_mm: Float[Tensor, "B 1 S S"]
) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"]]:
    """Normals of the displaced surface, and their derivatives by the difference quotients of the displacement."""
    fixed = face.displaced_normals
    tilts = (-DISPLACEMENT_UNIT_M * fixed.inner[..., None] * fixed.gradient).permute(4, 0, 3, 1, 2).contiguous()
    d_u, d_v = _quotients(displacement_mm)
    bent = fixed.normals.movedim(-1, 1) + tilts[0] * d_u + tilts[1] * d_v
    size = length(bent).clamp(min=1e-12)  # the bound of `F.normalize`; texels outside the layout have no normal
    normals = bent / size
    across_u, across_v = ((tilt - normals * (normals * tilt).sum(1, keepdim=True)) / size for tilt in tilts)
    return normals, across_u, across_v


def _quotients(maps: Float[Tensor, "B 1 S S"]) -> tuple[Float[Tensor, "B 1 S S"], Float[Tensor, "B 1 S S"]]:
    """Difference quotients along u and v, as those of `DisplacedNormals`."""
    padded, half = F.pad(maps, (1, 1, 1, 1), mode="replicate"), maps.shape[-1] / 2
    d_u = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    d_v = padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]
    return half * d_u, half * d_v


def _transposed_quotients(by_u: Float[Tensor, "B 1 S S"], by_v: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B 1 S S"]:
    """The transpose of `_quotients`: derivative by the map from derivatives by its quotients."""
    # The transpose of a repeated border is a border with the opposite sign outside.
    row, column = (
        torch.cat([-by_u[..., :1], by_u, -by_u[..., -1:]], -1),
        torch.cat([-by_v[..., :1, :], by_v, -by_v[..., -1:, :]], -2),
    )
    return by_u.shape[-1] / 2 * (row[..., :-2] - row[..., 2:] + column[..., 2:, :] - column[..., :-2, :])


def _around(by_u: Float[Tensor, "B 1 S S"], by_v: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B 1 S S"]:
    """Diagonal of the transposed quotients, weighted, times the quotients, inside the border of the map."""
    row, column = F.pad(by_u, (1, 1)), F.pad(by_v, (0, 0, 1, 1))
    total = row[..., :-2] + row[..., 2:] + column[..., 2:, :] + column[..., :-2, :]
    return (by_u.shape[-1] / 2) ** 2 * total
