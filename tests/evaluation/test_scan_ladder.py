"""The error ladder: true points of a scan, fits with known parts, and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.scan_ladder import ErrorStore, code_digest, ladder_table, write_ladder_csv
from benchmarks.scan_points import point_errors, summarize_points
from benchmarks.scan_truth import PhotoTruth, fit_points, fit_to_scan
from mien.camera import Camera, Pose
from mien.errors import ConfigError
from mien.evaluation.scan_camera import ScanCamera
from mien.evaluation.scans import ErrorSummary, FaceScan, RegionErrors, ScanErrors
from mien.fitting import FitSettings, FitTargets, mesh_point_weights
from mien.fitting.depth import depth_px
from mien.fitting.landmarks import LandmarkFit, LandmarkPriors, fit_landmarks
from mien.geometry import Similarity, Surface, rotvec_to_rotmat
from mien.morphable import MorphableModel
from mien.typing import Tensor
from tests.evaluation.scan_files import CAMERA, IMAGE_SIZE, landmarks468, project

# Torch's forward-mode derivatives load their rules with its own deprecated torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

SIZE = 224


def shape_of(model: MorphableModel) -> tuple[Tensor, Tensor]:
    return 0.7 * torch.randn(1, model.counts[0]), torch.tensor([[0.0, 0.4, 0.8, 0.0]])


def posed_points(model: MorphableModel, pose: Pose, camera: Camera) -> FitTargets:
    points = pose.to_camera(model.mediapipe_points(model.vertices(*shape_of(model))))
    px = camera.project(points)
    image = torch.zeros(1, SIZE, SIZE)
    depths = depth_px(points, camera) + 0.1 * px[..., 0]  # up to a plane
    return FitTargets(image[:, None].repeat(1, 3, 1, 1), image, image, torch.ones(1), camera, px, px[:, :68], depths)


@pytest.fixture
def targets(tiny: MorphableModel) -> FitTargets:
    pose = Pose(torch.tensor([[0.1, 0.3, 0.0]]), torch.tensor([[0.05, -0.02, 0.8]]), torch.ones(1))
    return posed_points(tiny, pose, Camera.from_fov(30.0, image_size=(SIZE, SIZE)))


def test_with_nothing_held_the_points_fit_is_that_of_the_product(tiny: MorphableModel, targets: FitTargets) -> None:
    settings = FitSettings()
    priors = LandmarkPriors(0.02, 0.05, 0.03, 1.0, settings.expression_sigmas(tiny), focal_sigma=None)
    noisy = replace(targets, landmarks468_px=targets.landmarks468_px + torch.randn(1, 468, 2))
    expected = fit_landmarks(
        tiny,
        noisy.landmarks468_px,
        noisy.camera,
        point_weights=mesh_point_weights(tiny)[None],
        priors=priors,
        depths_px=noisy.landmarks468_depth_px,
    )
    found = fit_points(tiny, noisy, settings=settings)
    for name in ("identity", "expression"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pose.translation, expected.pose.translation, atol=1e-5, rtol=0)


def test_held_parts_stay_and_the_rest_is_found(tiny: MorphableModel, targets: FitTargets) -> None:
    identity, expression = shape_of(tiny)
    true = LandmarkFit(identity, expression, fit_points(tiny, targets, settings=FitSettings()).pose, targets.camera)
    sharp = FitSettings(landmark_sigma=0.002, depth_sigma=0.004)
    posed = fit_points(tiny, targets, settings=sharp, start=true, hold="shape")
    torch.testing.assert_close(posed.identity, identity)
    torch.testing.assert_close(posed.expression, expression)

    wrong = replace(posed, pose=replace(posed.pose, rotation=torch.tensor([[0.1, 0.5, 0.0]])))
    turned = fit_points(tiny, targets, settings=sharp, start=wrong, hold="rotation")
    torch.testing.assert_close(turned.pose.rotation, wrong.pose.rotation, atol=1e-5, rtol=0)
    assert (turned.identity - identity).norm() > 0.5


def test_the_model_finds_its_own_shape_on_a_scan(tiny: MorphableModel) -> None:
    identity, expression = shape_of(tiny)
    frame = Similarity(
        torch.tensor([1010.0]), rotvec_to_rotmat(torch.tensor([[0.3, -0.5, 0.1]])), torch.tensor([[20.0, -8, 500]])
    )
    moved = frame(tiny.vertices(identity, expression))[0].double()
    corners = moved[tiny.triangles[torch.randint(len(tiny.triangles), (1200,))]]
    weights = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 1200))
    scan = FaceScan("a", None, Surface(moved, tiny.triangles.long()), (corners * weights[..., None]).sum(1))
    landmarks = tiny.mediapipe_points(moved[None])[0]
    landmarks[::7] = torch.nan
    face = fit_to_scan(tiny, scan, landmarks)
    relaxed = fit_to_scan(tiny, scan, landmarks, start=face, prior=0.01)
    errors = [(found.vertices_mm(tiny) - moved).norm(dim=-1).mean() for found in (face, relaxed)]
    assert errors[0] < 1.0
    assert errors[1] < 0.2
    assert relaxed.similarity.scale.item() == pytest.approx(1010, abs=5)


def test_true_points_are_projections_with_depths_along_the_line_of_sight() -> None:
    camera = ScanCamera(3.0 * CAMERA, IMAGE_SIZE, project(landmarks468()))
    points = torch.tensor([[0.0, 0, 0], [0, 0, 50], [10, 0, -50]], dtype=torch.float64)
    truth = PhotoTruth.of(camera, points)
    assert truth.focal_px == pytest.approx(520)
    np.testing.assert_allclose(truth.points_px.numpy(), project(points.numpy()) + 0.5)
    # 520 pixels of focal length, 1 m away: 0.52 pixels per millimetre; a larger depth is farther from the camera.
    assert (truth.depths_px[0] - truth.depths_px[1]).item() == pytest.approx(26, rel=0.02)
    turned = (
        torch.from_numpy(CAMERA) @ torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double()
    )
    same = PhotoTruth.of(ScanCamera(turned.numpy(), IMAGE_SIZE, project(landmarks468())), points)
    assert same.focal_px == pytest.approx(520)


def errors_of_turn(tilt: tuple[float, float], offset: Tensor) -> Tensor:
    """Detected points whose depth is turned and which are off by some pixels."""
    xy = torch.from_numpy(project(landmarks468()))
    depth = -torch.from_numpy(landmarks468()[:, 2])
    return torch.cat([xy, (depth + xy @ torch.tensor(tilt).double())[:, None]], dim=1) + offset


def test_errors_of_points_split_into_turn_systematic_and_random() -> None:
    true_px, depth = torch.from_numpy(project(landmarks468())), -torch.from_numpy(landmarks468()[:, 2])
    regions = torch.zeros(468, dtype=torch.long)
    regions[400:] = 1
    photos = []
    for sign in (-1.0, 1.0):
        offset = torch.zeros(468, 3, dtype=torch.float64)
        offset[:400, 0], offset[400:, 1] = 2.0, 3.0 * sign
        detected = errors_of_turn((0.1, -0.2), offset)
        photos.append(point_errors(detected, gt_px=true_px, gt_depth_px=depth, regions=regions))
    size = (true_px.amax(0) - true_px.amin(0)).norm().item()
    np.testing.assert_allclose(photos[0].turn_deg, np.degrees(np.arctan([0.1, -0.2])), atol=1)
    rows = {row.region: row for row in summarize_points(photos, ("nose", "chin"))}
    assert sum(rows[name].points for name in ("nose", "chin", "oval")) == 468
    assert rows["all but the oval"].points == 468 - rows["oval"].points
    assert rows["oval"].systematic[2] < 0.5  # without removing the turn: 6
    assert rows["nose"].systematic[0] == pytest.approx(200 / size, rel=0.05)
    assert rows["nose"].random[0] == pytest.approx(0, abs=0.05)
    assert rows["chin"].systematic[1] == pytest.approx(0, abs=0.05)
    assert rows["chin"].random[1] == pytest.approx(300 / size, rel=0.05)


def errors(mean: float) -> ScanErrors:
    summary = ErrorSummary(median=mean / 2, mean=mean, std=0.1, p90=2 * mean)
    identity = Similarity(torch.ones(1), torch.eye(3)[None], torch.zeros(1, 3))
    return ScanErrors(summary, (RegionErrors("nose", summary, None),), 1.0, 1.0, 0.5, identity, np.zeros(3))


def test_the_ladder_compares_rows_photo_by_photo_and_keeps_them(tmp_path: Path) -> None:
    store = ErrorStore(tmp_path, "code")
    for photo, fit, better in (("a", 1.0, 0.9), ("b", 2.0, 1.7), ("c", 9.0, None)):
        store.add(photo, "fit", errors(fit))
        if better is not None:
            store.add(photo, "true points", errors(better))
    again = ErrorStore(tmp_path, "code")
    fit, better = (again.result(name, base="fit", photos="abc") for name in ("fit", "true points"))
    assert fit is not None and better is not None
    assert (fit.photos, fit.errors["mean"], fit.difference) == (3, 4.0, None)
    assert better.difference is not None
    assert (better.photos, better.difference.photos) == (2, 2)
    assert better.difference.difference == pytest.approx(-0.2)
    assert again.result("net", base="fit", photos="abc") is None
    assert again.result("fit", base="fit", photos="ab").errors["nose"] == pytest.approx(1.5)  # pyright: ignore

    table = ladder_table([fit, better], ("nose", "chin"))
    assert "-0.20 [-0.30, -0.10]" in table
    write_ladder_csv([fit, better], ("nose", "chin"), tmp_path / "ladder.csv")
    lines = (tmp_path / "ladder.csv").read_text().splitlines()
    assert lines[2].split(",")[:4] == ["true points", "2", "0.6500", "1.3000"]
    assert lines[2].split(",")[7] == "fit"


def test_errors_of_other_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    source = tmp_path / "code" / "a.py"
    source.write_text("1")
    first = code_digest([source.parent])
    ErrorStore(tmp_path / "out", first)
    source.write_text("2")
    with pytest.raises(ConfigError, match="other code"):
        ErrorStore(tmp_path / "out", code_digest([source.parent]))
