"""The protocol: alignment of predictions with scans, and the errors that follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import ConfigError
from mien.evaluation.paired import paired_difference
from mien.evaluation.scan_alignment import align_with_keypoints
from mien.evaluation.scan_camera import ScanCamera, inside_polygon
from mien.evaluation.scan_packs import open_pack
from mien.evaluation.scans import ErrorSummary, FaceScan, PredictedFace, score_face
from mien.geometry import Similarity, Surface
from tests.evaluation.scan_files import (
    CAMERA,
    FOREHEAD_FROM,
    IMAGE_SIZE,
    LANDMARKS_XY,
    grid_mesh,
    landmarks468,
    lifted,
    moved,
    project,
    write_pack,
)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> FaceScan:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, ("a",))
    return open_pack(folder).scan("a")


def surface(vertices: np.ndarray, triangles: np.ndarray | None = None) -> Surface:
    return Surface(torch.from_numpy(vertices), torch.from_numpy(grid_mesh()[1] if triangles is None else triangles))


def prediction(vertices: np.ndarray | None = None, *, scale: float = 1.0) -> PredictedFace:
    """The scan's mesh, or other positions of its vertices, in another frame, with the pixels of the scan."""
    original = grid_mesh()[0]
    changed = original if vertices is None else vertices
    return PredictedFace(surface(moved(changed, scale=scale)), metric=True, pixels=torch.from_numpy(project(original)))


def test_the_scan_itself_in_another_frame_has_no_error(scan: FaceScan) -> None:
    errors = score_face(scan, prediction(scale=0.01))
    assert errors.overall.p90 < 1e-3
    assert errors.scale == pytest.approx(100, rel=1e-4)
    assert errors.start_matches > 0.95


def test_landmarks_start_an_alignment_too(scan: FaceScan) -> None:
    face = replace(
        prediction(scale=0.01), pixels=None, landmarks7=torch.from_numpy(moved(lifted(LANDMARKS_XY), scale=0.01))
    )
    assert score_face(scan, face).overall.p90 < 1e-3


def test_a_dent_is_found_in_its_region_alone(scan: FaceScan) -> None:
    vertices = grid_mesh()[0]
    vertices[vertices[:, 1] > FOREHEAD_FROM + 5, 2] += 6.0
    errors = score_face(scan, prediction(vertices, scale=0.01))
    regions = {region.name: region.errors.mean for region in errors.regions}
    assert set(regions) == {"nose", "cheeks", "forehead"}
    assert regions["forehead"] > 2.5
    assert regions["nose"] < 1.2
    assert regions["forehead"] > 3 * regions["nose"]


def test_the_metric_error_keeps_the_size(scan: FaceScan) -> None:
    large = prediction(scale=1.06)
    similar, metric = score_face(scan, large), score_face(scan, large, rigid=True)
    assert similar.overall.mean < 1e-3
    assert metric.scale == 1.0
    assert metric.overall.mean > 0.15
    with pytest.raises(ConfigError, match="unit"):
        score_face(scan, replace(large, metric=False), rigid=True)


def test_a_missing_part_costs_its_distance_to_the_border(scan: FaceScan) -> None:
    vertices, triangles = grid_mesh()
    upper = triangles[(vertices[triangles, 1] > -66).all(-1)]
    face = replace(prediction(), surface=surface(moved(vertices), upper))
    errors = score_face(scan, face)
    below = scan.points[:, 1].numpy() < -75
    assert below.sum() > 10
    assert errors.distances[below].min() > 8
    assert np.median(errors.distances) < 0.01


def test_the_worst_tenth_does_not_move_the_alignment(scan: FaceScan) -> None:
    points = scan.points.clone()
    spoiled = torch.arange(len(points)) % 16 == 0
    points[spoiled, 2] += 15.0
    errors = score_face(replace(scan, points=points), prediction())
    assert errors.distances[~spoiled.numpy()].max() < 0.01
    assert errors.distances[spoiled.numpy()].min() > 5


def test_a_back_of_the_head_at_the_same_pixels_is_ignored(scan: FaceScan) -> None:
    vertices, triangles = grid_mesh()
    back = vertices * [1, 1, -1] - [0, 0, 120.0]
    both = np.concatenate([vertices, back])
    mesh = surface(moved(both), np.concatenate([triangles, triangles[:, ::-1] + len(vertices)]))
    face = PredictedFace(mesh, metric=True, pixels=torch.from_numpy(project(vertices)).repeat(2, 1))
    errors = score_face(scan, face)
    assert errors.overall.p90 < 1e-3
    assert 0.4 < errors.start_matches < 0.6


def test_a_region_that_is_only_displaced_is_right_on_its_own(scan: FaceScan) -> None:
    vertices = grid_mesh()[0]
    vertices[vertices[:, 1] > FOREHEAD_FROM - 12, 2] += 4.0
    regions = {part.name: part for part in score_face(scan, prediction(vertices), regional=True).regions}
    again = regions["forehead"].realigned
    assert again is not None
    assert regions["forehead"].errors.mean > 0.6
    assert again.mean < 0.1
    assert regions["nose"].realigned is not None
    assert score_face(scan, prediction(vertices)).regions[0].realigned is None


def test_a_prediction_without_pixels_and_landmarks_has_no_start(scan: FaceScan) -> None:
    with pytest.raises(ConfigError, match="7 landmarks"):
        score_face(scan, replace(prediction(), pixels=None))
    outside = torch.full((len(grid_mesh()[0]), 2), -5.0, dtype=torch.float64)
    with pytest.raises(ConfigError, match="7 landmarks"):
        score_face(scan, replace(prediction(), pixels=outside))


def test_pixels_find_their_points_on_the_scan_except_in_openings() -> None:
    camera = ScanCamera(CAMERA, IMAGE_SIZE, project(landmarks468()))
    xy = np.array([[10.3, -20.2], [-30.0, 30.0], [0.0, -45.0], [40.1, 5.4], [0.0, 94.0], [31.0, 30.0], [-10.0, -11.0]])
    face = Surface(
        torch.from_numpy(lifted(xy)), torch.tensor([[0, 1, 2], [3, 4, 5]])
    )  # the last vertex has no triangle
    source, target = camera.matches(face, torch.from_numpy(project(lifted(xy))), surface(grid_mesh()[0]))
    assert torch.equal(source, face.vertices[[0, 3]])
    assert (source - target).norm(dim=-1).max() < 0.6  # the mesh is coarser than the surface
    assert np.abs(project(target.numpy()) - project(source.numpy())).max() < 1e-9


def test_an_occluded_part_of_the_scan_is_not_matched() -> None:
    vertices, triangles = grid_mesh()
    wall = np.array([[-20, -20, 90], [20, -20, 90], [20, 20, 90], [-20, 20, 90]], float)
    both = np.concatenate([vertices, wall])
    count = len(vertices)
    mesh = surface(both, np.concatenate([triangles, np.array([[0, 1, 2], [0, 2, 3]]) + count]))
    camera = ScanCamera(CAMERA, IMAGE_SIZE, project(landmarks468()))
    face = Surface(torch.from_numpy(lifted(np.array([[0.0, 10], [5, 10], [0, 60]]))), torch.tensor([[0, 1, 2]]))
    _, target = camera.matches(face, torch.from_numpy(project(face.vertices.numpy())), mesh)
    assert target[:2, 2].tolist() == pytest.approx([90, 90], abs=1e-6)
    assert float(target[2, 2]) < 60


def test_points_inside_a_polygon() -> None:
    polygon = np.array([[0, 0], [10, 0], [10, 10], [5, 2], [0, 10]], float)
    points = np.array([[1, 1], [5, 5], [9, 7], [-1, 1], [5, 1.5], [11, 1]], float)
    assert inside_polygon(points, polygon).tolist() == [True, False, True, False, True, False]


def test_keypoints_hold_a_flat_region_that_could_slide() -> None:
    plane = torch.tensor([[-90.0, -90, 0], [90, -90, 0], [90, 90, 0], [-90, 90, 0]], dtype=torch.float64)
    flat = Surface(plane, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    grid = torch.linspace(-20, 20, 9, dtype=torch.float64)
    points = torch.cat([torch.cartesian_prod(grid, grid), torch.zeros(81, 1, dtype=torch.float64)], dim=-1)
    shift = torch.tensor([[4.0, 0, 0]], dtype=torch.float64)
    start = Similarity(torch.ones(1).double(), torch.eye(3)[None].double(), shift)
    corners = points[[0, 8, 72, 80]]
    for weight, left in ((1.0, 0.05), (1e-6, 3.9)):
        found = align_with_keypoints(
            flat, points, start, keypoints=corners, gt_keypoints=corners, weight=weight, tolerance_mm2=1e-6
        )
        assert (float(found.translation[0, 0]) < left) == (weight == 1.0)


def test_a_summary_of_errors() -> None:
    summary = ErrorSummary.of(np.arange(11.0))
    assert (summary.median, summary.mean, summary.p90) == (5.0, 5.0, 9.0)
    assert summary.std == pytest.approx(np.sqrt(10))


def test_paired_differences_use_the_shared_photos_alone() -> None:
    rng = np.random.default_rng(1)
    other = {str(k): float(v) for k, v in enumerate(rng.normal(2.0, 1.0, 60))}
    better = {name: value - 0.2 + 0.05 * float(rng.normal()) for name, value in other.items() if name != "7"}
    found = paired_difference({**better, "new": 9.0}, other)
    assert found is not None
    assert found.photos == 59
    assert found.difference == pytest.approx(-0.2, abs=0.02)
    assert found.low < found.difference < found.high < -0.17  # the photos' own spread of 1 mm does not count
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(59), rel=0.3)
    assert found.better == 1.0
    assert paired_difference({"x": 1.0}, {"y": 1.0}) is None


def test_two_runs_on_the_pack_of_one_person(tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", ("b", "a", "c"))
    assert open_pack(tmp_path / "pack").names == ("a", "b", "c")
