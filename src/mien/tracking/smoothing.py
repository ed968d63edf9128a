"""The most probable motion of a stretch of frames: what the points show, and how heads and faces move.

The energy of the frames (`frame_energy`) is joined by one term: accelerations of all unknowns are small, but now and
then large (Cauchy's distribution), so that a still face stands still and a blink stays a blink. All frames are solved
at once, which is what a Kalman smoother does, but with the exact energy and with the limits of the expressions. Past
and future have the same influence, so the curves do not lag.

The equations of a stretch have a block per frame, which is coupled with two frames before and after it. Two frames form
a block of a block-tridiagonal system, which is solved from the first to the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.geometry import rotmat_to_rotvec
from mien.morphable import MorphableModel
from mien.tracking.frame_energy import (
    DAMPING,
    ExpressionPrior,
    FrameEnergy,
    Motion,
    PointTracks,
    without_held,
)
from mien.typing import Float, Tensor

STEPS, NEAR_STEPS = 3, 2
"""Gauss-Newton steps over a stretch; and from a motion that is known but for the last frame."""
BATCH = 32
"""Frames whose Jacobians are in memory at a time: 0.6 MB each."""
REFERENCE_S = 1 / 30
"""Interval between frames at which an acceleration counts once: at other rates it counts in proportion."""


@dataclass(frozen=True)
class MotionPrior:
    """How fast heads and faces change their speed: scales of Cauchy's distribution.

    They are tuned on clips with known curves (`benchmarks/tracking.py`), beside the standard deviations of points in
    `FitSettings`. Those describe errors of single photos, most of which stay from frame to frame.
    """

    turn: float = 1.0
    """Rotation, rad/s²."""
    shift: float = 0.15
    """Translation across the line of sight, m/s²."""
    approach: float = 0.1
    """Translation along the line of sight, m/s²."""
    expression: float = 8.0
    """Strength of a blendshape, 1/s²."""
    blink: float = 60.0
    """The same of the lids."""
    tail: float = 2.0
    """From this multiple of its scale on, an acceleration loses its influence."""

    def scales(self, model: MorphableModel) -> Float[Tensor, "K"]:
        """The scale of each unknown of a frame."""
        rigid = [self.turn] * 3 + [self.shift] * 2 + [self.approach]
        fast = ("eyeBlink", "eyeSquint", "eyeWide")
        names = model.expression_names or ("",) * model.counts[1]
        return torch.tensor(
            rigid + [self.blink if name.startswith(fast) else self.expression for name in names], dtype=torch.float64
        )


class Smoother:
    """Finds the motion of one person over a stretch of frames.

    Args:
        model: The morphable model.
        energy: The energy of single frames.
        prior: How faces move.
    """

    def __init__(self, model: MorphableModel, energy: FrameEnergy, *, prior: MotionPrior) -> None:
        self.energy, self.prior = energy, prior
        self.precision = prior.scales(model) ** -2

    def __call__(
        self,
        tracks: PointTracks,
        times_s: Float[Tensor, "T"],
        *,
        expression: ExpressionPrior | None = None,
        near: Motion | None = None,
    ) -> Motion:
        """Find the motion.

        Args:
            tracks: The points of each frame; frames without a face are interpolated.
            times_s: Times of the frames, seconds, rising.
            expression: Prior of the expression per frame; None for that of photos.
            near: The motion of the first frames, where the search begins; None if it is unknown.
        """
        motion = self._start(tracks, times_s, expression) if near is None else self._continued(near, tracks, expression)
        if len(tracks) < 3:
            return motion
        differences = second_differences(times_s)
        for step in range(STEPS if near is None else NEAR_STEPS):
            hessian, gradient = self._frames(motion, tracks, expression)
            # Accelerations of frames that were solved by themselves are noise, which must not count as fast motion.
            motion = self._moved(motion, hessian, gradient, differences, robust=step > 0 or near is not None)
        return motion

    def _start(self, tracks: PointTracks, times_s: Float[Tensor, "T"], expression: ExpressionPrior | None) -> Motion:
        """Each frame by itself, and frames without a face like the nearest one with it."""
        found = (tracks.detected > 0).nonzero()[:, 0]
        parts = []
        for some in found.split(BATCH):
            prior = None if expression is None else ExpressionPrior(expression.mean[some], expression.sigma)
            parts.append(self.energy.solve(tracks[some], prior=prior))
        nearest = (times_s[:, None] - times_s[found]).abs().argmin(1)
        return Motion.join(parts)[nearest]

    def _continued(self, near: Motion, tracks: PointTracks, expression: ExpressionPrior | None) -> Motion:
        """The known motion, and the frames after it, each from the one before."""
        motion = near
        for k in range(len(near), len(tracks)):
            one = slice(k, k + 1)
            prior = None if expression is None else ExpressionPrior(expression.mean[one], expression.sigma)
            found = bool(tracks.detected[k])
            last = motion[-1:]
            next_ = self.energy.solve(tracks[one], near=last, prior=prior, steps=2) if found else last
            motion = Motion.join([motion, next_])
        return motion

    def _frames(
        self, motion: Motion, tracks: PointTracks, expression: ExpressionPrior | None
    ) -> tuple[Float[Tensor, "T K K"], Float[Tensor, "T K"]]:
        parts = []
        for first in range(0, len(tracks), BATCH):
            some = slice(first, first + BATCH)
            prior = None if expression is None else ExpressionPrior(expression.mean[some], expression.sigma)
            parts.append(self.energy.expansion(motion[some], tracks[some], prior=prior))
        hessians, gradients = zip(*parts, strict=True)
        return torch.cat(hessians), torch.cat(gradients)

    def _moved(
        self,
        motion: Motion,
        hessian: Float[Tensor, "T K K"],
        gradient: Float[Tensor, "T K"],
        differences: Float[Tensor, "N 3"],
        *,
        robust: bool,
    ) -> Motion:
        """One step: the equations of the frames, joined by those of the accelerations."""
        accelerations = motion_accelerations(motion, differences)
        weights = self.precision * (_intervals_s(differences) / REFERENCE_S)[:, None]
        if robust:
            scaled_sq = accelerations**2 * self.precision / self.prior.tail**2
            weights = weights / (1 + scaled_sq)
        # Row a of D has three entries, for the frames a, a + 1 and a + 2; the system gets DᵀWD and DᵀWa.
        gradient = gradient.clone()
        for k in range(3):
            gradient[k : k + len(weights)] += differences[:, k, None] * weights * accelerations
        held = self.energy.held(motion, gradient)
        matrix, right = without_held(hessian, gradient, held)
        free = (~held).to(matrix)
        couplings = [matrix.new_zeros(len(matrix), matrix.shape[1]) for _ in range(3)]
        for i in range(3):
            for j in range(i, 3):
                couplings[j - i][i : i + len(weights)] += differences[:, i, None] * differences[:, j, None] * weights
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal += couplings[0] * free
        diagonal *= 1 + DAMPING
        for apart in (1, 2):
            couplings[apart][:-apart] *= free[:-apart] * free[apart:]
        return motion.moved(-solve_coupled(matrix, couplings[1], couplings[2], right), self.energy.limits)


def second_differences(times_s: Float[Tensor, "T"]) -> Float[Tensor, "N 3"]:
    """Weights of three successive values in their second derivative; N = T - 2."""
    before, after = times_s[1:-1] - times_s[:-2], times_s[2:] - times_s[1:-1]
    scale = 2 / (before + after)
    return torch.stack([scale / before, -scale * (1 / before + 1 / after), scale / after], dim=1).double()


def _intervals_s(differences: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    """Time between frames, which turns a sum over frames into an integral: of the two around a frame, their mean."""
    # The product of the outer weights is 4 / (before · after · (before + after)²).
    return (differences[:, 0] * differences[:, 2]).pow(-0.25)


def motion_accelerations(motion: Motion, differences: Float[Tensor, "N 3"]) -> Float[Tensor, "N K"]:
    """Second derivatives of all unknowns; those of the rotation from turns between successive frames."""
    turns = rotmat_to_rotvec(motion.rotation[1:] @ motion.rotation[:-1].mT)
    turning = differences[:, 2:] * turns[1:] - differences[:, :1] * turns[:-1]
    values = torch.cat([motion.translation, motion.expression], dim=1)
    parts = [differences[:, k, None] * values[k : k + len(differences)] for k in range(3)]
    return torch.cat([turning, parts[0] + parts[1] + parts[2]], dim=1)


def solve_coupled(
    blocks: Float[Tensor, "T K K"],
    next_: Float[Tensor, "T K"],
    after: Float[Tensor, "T K"],
    right: Float[Tensor, "T K"],
) -> Float[Tensor, "T K"]:
    """Solve a positive definite system whose blocks are coupled with two neighbours on each side by diagonal matrices.

    Args:
        blocks: The blocks on the diagonal.
        next_: Diagonal of the block that couples frame t with t + 1; the last one is ignored.
        after: The same for t + 2; the last two are ignored.
        right: Right side.

    Returns:
        The solution.
    """
    count, size = right.shape
    if count % 2:  # a last frame by itself
        identity = torch.eye(size).to(blocks)[None]
        zero = torch.zeros_like(right[:1])
        next_, after = (torch.cat([x, zero]) for x in _cut(next_, after))
        return solve_coupled(torch.cat([blocks, identity]), next_, after, torch.cat([right, zero]))[:count]
    pairs = count // 2
    diagonal = blocks.new_zeros(pairs, 2 * size, 2 * size)
    diagonal[:, :size, :size], diagonal[:, size:, size:] = blocks[0::2], blocks[1::2]
    within = torch.diag_embed(next_[0::2])
    diagonal[:, :size, size:], diagonal[:, size:, :size] = within, within
    to_next = blocks.new_zeros(pairs - 1, 2 * size, 2 * size)  # rows: this pair, columns: the next one
    to_next[:, :size, :size] = torch.diag_embed(after[0:-2:2])
    to_next[:, size:, size:] = torch.diag_embed(after[1:-2:2])
    to_next[:, size:, :size] = torch.diag_embed(next_[1:-1:2])
    sides = right.reshape(pairs, 2 * size, 1)
    factors, reduced = [], []
    block, side = diagonal[0], sides[0]
    for k in range(pairs):
        if k:
            carried = torch.linalg.solve_triangular(factors[-1], to_next[k - 1], upper=False)
            block = diagonal[k] - carried.mT @ carried
            side = sides[k] - carried.mT @ reduced[-1]
        factors.append(torch.linalg.cholesky(block))
        reduced.append(torch.linalg.solve_triangular(factors[-1], side, upper=False))
    solution = [torch.linalg.solve_triangular(factors[-1].mT, reduced[-1], upper=True)]
    for k in range(pairs - 2, -1, -1):
        carried = torch.linalg.solve_triangular(factors[k], to_next[k] @ solution[-1], upper=False)
        solution.append(torch.linalg.solve_triangular(factors[k].mT, reduced[k] - carried, upper=True))
    return torch.cat(solution[::-1]).reshape(count, size)


def _cut(next_: Float[Tensor, "T K"], after: Float[Tensor, "T K"]) -> tuple[Tensor, Tensor]:
    """The couplings without those that lead beyond the last frame."""
    next_, after = next_.clone(), after.clone()
    next_[-1:], after[-2:] = 0, 0
    return next_, after
