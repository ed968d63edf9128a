"""Motion of known persons: energy of frames, smoothing, windows, gaze."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from mien.camera import Camera, to_camera_axes
from mien.fitting import FitSettings
from mien.geometry import rotvec_to_rotmat
from mien.morphable import load_model
from mien.tracking.frame_energy import RIGID, ExpressionPrior, FrameEnergy, Motion, PointTracks
from mien.tracking.gaze import Pupils, gaze_angles
from mien.tracking.people import Segment
from mien.tracking.person_motion import windows
from mien.tracking.smoothing import MotionPrior, Smoother, second_differences, solve_coupled

CAMERA = Camera(torch.tensor([900.0]), torch.tensor([[320.0, 240.0]]), (480, 640))


@cache
def energy() -> FrameEnergy:
    model = load_model()
    identity = torch.from_numpy(np.random.default_rng(0).normal(size=model.counts[0]) * 0.5).float()
    return FrameEnergy(model, identity, CAMERA, settings=FitSettings())


def motion_at(times_s: np.ndarray, strengths: dict[str, np.ndarray]) -> Motion:
    """A head that nods and turns, with given expressions."""
    names = load_model().expression_names
    turn = np.stack([0.1 * np.sin(2 * times_s), 0.5 * np.sin(times_s), 0 * times_s], axis=1)
    position = np.stack([0.03 * np.sin(times_s), 0 * times_s, 0.8 + 0.02 * np.cos(times_s)], axis=1)
    expression = np.zeros((len(times_s), len(names)))
    for name, strength in strengths.items():
        expression[:, names.index(name)] = strength
    return Motion(rotvec_to_rotmat(torch.from_numpy(turn)), torch.from_numpy(position), torch.from_numpy(expression))


def points_of(motion: Motion, *, noise_px: float = 0.0, seed: int = 0) -> PointTracks:
    """What a mesh network with independent errors finds of a motion."""
    rng = np.random.default_rng(seed)
    own = energy()
    pupils = Pupils.of(load_model())
    assert pupils is not None
    shaped = own.neutral_pupils + torch.einsum("pik,tk->tpi", pupils.expression_basis, motion.expression)
    turned = torch.einsum("tij,tpj->tpi", motion.rotation, shaped)
    both = torch.cat([own.points_camera(motion), to_camera_axes(turned) + motion.translation[:, None]], dim=1)
    projected = 900 * both[..., :2] / both[..., 2:] + torch.tensor([320.0, 240.0])
    projected = projected + torch.from_numpy(rng.normal(scale=noise_px, size=projected.shape))
    depth = 900 * both[..., 2] / both[..., 2].mean(1, keepdim=True)
    return PointTracks(
        projected[:, :468].float(), depth[:, :468].float(), projected[:, 468:].float(), torch.ones(len(both))
    )


def strength(motion: Motion, name: str) -> np.ndarray:
    return motion.expression[:, load_model().expression_names.index(name)].numpy()


def test_pose_expression_and_gaze_follow_from_exact_points() -> None:
    times = np.linspace(0, 1, 6)
    truth = motion_at(times, {"jawOpen": 0.4 * times, "mouthSmileLeft": 0.3 + 0 * times, "eyeLookOutLeft": 0.5 * times})
    found = energy().solve(points_of(truth))
    turn = torch.einsum("tij,tij->t", found.rotation, truth.rotation)
    assert float(torch.arccos(((turn - 1) / 2).clamp(-1, 1)).max()) < np.radians(1.0)
    assert float((found.translation - truth.translation).norm(dim=1).max()) < 0.004
    assert np.abs(strength(found, "jawOpen") - 0.4 * times).max() < 0.08
    assert np.abs(strength(found, "eyeLookOutLeft") - 0.5 * times).max() < 0.12


def test_gradient_is_that_of_the_energy() -> None:
    """Where the points are exact, robust weights do not change, so the gradient is H times a small step."""
    truth = motion_at(np.array([0.3]), {"jawOpen": np.array([0.3])})
    tracks, own = points_of(truth), energy()
    exact = ExpressionPrior(truth.expression, torch.full((52,), 0.25, dtype=torch.float64))
    hessian, gradient = own.expansion(truth, tracks, prior=exact)
    scale = hessian.diagonal(dim1=1, dim2=2).sqrt()
    assert float((gradient / scale).abs().max()) < 0.02
    step = torch.zeros(1, own.unknowns, dtype=torch.float64)
    step[0, :7] = torch.tensor([1e-4, -2e-4, 1e-4, 1e-4, 2e-4, 1e-3, 0.0])
    _, moved = own.expansion(truth.moved(step, (0.0, 1.0)), tracks, prior=exact)
    expected = torch.einsum("tkl,tl->tk", hessian, step)
    error, size = (moved - gradient - expected) / scale, expected / scale
    pupils = Pupils.of(load_model())
    assert pupils is not None
    error[:, RIGID:][:, pupils.looks] = 0  # these follow the irises, which do not move the pose
    assert float(error.norm() / size.norm()) < 0.05


def test_second_differences_are_accelerations_at_any_rate() -> None:
    times = torch.tensor([0.0, 0.04, 0.1, 0.13, 0.3], dtype=torch.float64)
    weights = second_differences(times)
    for values, acceleration in ((3 * times + 1, 0.0), (times**2, 2.0)):
        found = sum(weights[:, k] * values[k : k + 3] for k in range(3))
        expected = torch.full((3,), acceleration, dtype=torch.float64)
        assert torch.allclose(torch.as_tensor(found), expected, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_coupled_blocks_are_solved_like_the_whole_matrix(count: int) -> None:
    size, seeded = 5, torch.Generator().manual_seed(count)
    blocks = torch.randn(count, size, size, generator=seeded, dtype=torch.float64)
    blocks = blocks @ blocks.mT + 8 * torch.eye(size)
    next_, after, right = torch.rand(3, count, size, generator=seeded, dtype=torch.float64)
    whole = torch.block_diag(*blocks)
    for apart, coupling in ((1, next_), (2, after)):
        for k in range(count - apart):
            one, other = slice(k * size, (k + 1) * size), slice((k + apart) * size, (k + apart + 1) * size)
            whole[one, other] = whole[other, one] = torch.diag(coupling[k])
    expected = torch.linalg.solve(whole, right.flatten()).view(count, size)
    assert torch.allclose(solve_coupled(blocks, next_, after, right), expected)


def smoothed(tracks: PointTracks, times: np.ndarray) -> Motion:
    return Smoother(load_model(), energy(), prior=MotionPrior())(tracks, torch.from_numpy(times))


def jitter(motion: Motion, rows: slice) -> float:
    points = energy().points_camera(motion)[rows]
    return float(torch.diff(900 * points[..., :2] / points[..., 2:], n=2, dim=0).norm(dim=-1).mean())


def test_still_face_stands_still_and_motion_does_not_lag() -> None:
    times = np.arange(70) / 25
    curve = np.maximum(times - 1, 0)  # still for a second
    jaw = 0.3 * np.sin(5 * curve) ** 2
    truth = motion_at(curve, {"jawOpen": jaw})
    tracks = points_of(truth, noise_px=0.8)
    alone, found = energy().solve(tracks), smoothed(tracks, times)
    still = slice(2, 23)
    assert jitter(found, still) < 0.25 * jitter(alone, still)
    lags = np.arange(-3, 3.1, 0.25)
    for name, values, reference in (
        ("jaw", strength(found, "jawOpen"), jaw),
        ("x", found.translation[:, 0].numpy(), truth.translation[:, 0].numpy()),
    ):
        steps = np.arange(30, 64)
        errors = [np.std(np.interp(steps + lag, np.arange(70), values) - reference[steps]) for lag in lags]
        assert abs(lags[int(np.argmin(errors))]) < 1, name


def test_blink_stays_a_blink() -> None:
    times = np.arange(40) / 25
    blink = np.exp(-(((times - 0.8) / 0.05) ** 2))
    found = smoothed(points_of(motion_at(0 * times, {"eyeBlinkLeft": blink}), noise_px=0.5), times)
    assert strength(found, "eyeBlinkLeft")[20] > 0.75
    assert strength(found, "eyeBlinkLeft")[[10, 30]].max() < 0.2


def test_gap_is_interpolated() -> None:
    times = np.arange(40) / 25
    truth = motion_at(times, {})
    tracks = points_of(truth)
    detected = tracks.detected.clone()
    detected[15:23] = 0
    broken = tracks.points_px.clone()
    broken[15:23] = tracks.points_px[:1]
    found = smoothed(PointTracks(broken, tracks.depths_px, tracks.irises_px, detected), times)
    assert float((found.translation - truth.translation)[15:23].norm(dim=1).max()) < 0.006


def test_windows_agree_where_they_meet() -> None:
    found = list(windows(Segment(10, 1010), 25.0))
    assert [w.inner.first for w in found[1:]] == [w.inner.end for w in found[:-1]]
    assert (found[0].inner.first, found[-1].inner.end) == (10, 1010)
    assert all(w.outer.first <= w.inner.first - 25 for w in found[1:])
    margin, times = 25, np.arange(56) / 25
    tracks = points_of(motion_at(times, {"jawOpen": 0.2 + 0.2 * np.sin(6 * times)}), noise_px=0.5)
    first = 30  # of the second window, which starts its solution one margin earlier
    whole, part = smoothed(tracks, times), smoothed(tracks[first - margin :], times[first - margin :])
    away = energy().points_camera(whole[first:]) - energy().points_camera(part[margin:])
    assert float(away.norm(dim=-1).max()) < 5e-5


def test_gaze_angles_have_signs_and_sizes_of_eyes() -> None:
    model = load_model()
    look = torch.zeros(2, model.counts[1])
    for row, names in enumerate((("eyeLookOutLeft", "eyeLookInRight"), ("eyeLookUpLeft", "eyeLookUpRight"))):
        for name in names:
            look[row, model.expression_names.index(name)] = 1.0
    angles = torch.rad2deg(gaze_angles(model, look))
    assert (angles[0, :, 0] > 25).all() and (angles[0, :, 0] < 45).all()  # to the subject's left
    assert (angles[1, :, 1] > 10).all() and (angles[1, :, 1] < 30).all()  # upwards
