from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import ConfigError, FormatError
from mien.evaluation import LandmarkReport
from mien.evaluation.landmarks import (
    LandmarkErrors,
    LandmarkRow,
    area_under_ced,
    landmark_nme,
    matching_face,
    read_annotated,
    spread_over_groups,
)


def face(offset: float = 0.0, *, size: float = 100.0) -> np.ndarray:
    """68 points in a square whose outer eye corners are half its side apart."""
    points = np.random.default_rng(0).uniform(0, size, (68, 2))
    points[0], points[1] = (0, 0), (size, size)
    points[36], points[45] = (size / 4, size / 2), (3 * size / 4, size / 2)
    return points + offset


def write_set(folder: Path, name: str, *, split: str, count: int = 3) -> None:
    (folder / name).mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", (40, 40)).save(folder / name / f"{k}.png")
    np.savez(
        folder / f"{name}.npz",
        files=np.array([f"{k}.png" for k in range(count)]),
        landmarks=np.stack([face(k) for k in range(count)]).astype(np.float32),
        split=np.array(split),
    )


def test_nme_is_the_mean_distance_over_the_outer_eye_corners():
    gt = face()
    assert landmark_nme(gt + np.array([3.0, 4.0]), gt, inner=False) == pytest.approx(5 / 50)
    jaw_only = gt.copy()
    jaw_only[:17] += 10
    assert landmark_nme(jaw_only, gt, inner=True) == 0
    assert landmark_nme(jaw_only, gt, inner=False) == pytest.approx(17 / 68 * np.sqrt(200) / 50)


def test_the_annotated_face_is_the_one_that_overlaps_most():
    gt = face()
    assert matching_face([face(300), face(20), face(5)], gt) == 2
    assert matching_face([face(300)], gt) is None
    assert matching_face([], gt) is None


def test_area_under_the_cumulative_distribution():
    assert area_under_ced(np.array([0.0, 0.08, np.inf, 0.04])) == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert area_under_ced(np.array([])) == 0


def test_a_folder_of_sets_gives_its_test_splits_in_corner_pixels(tmp_path: Path):
    write_set(tmp_path, "seen", split="train")
    write_set(tmp_path, "unseen", split="test")
    photos = read_annotated(tmp_path)
    assert [(p.group, p.path.name) for p in photos] == [("unseen", f"{k}.png") for k in range(3)]
    assert all(p.path.exists() for p in photos)
    np.testing.assert_allclose(photos[1].landmarks_px, face(1.5), atol=1e-4)
    assert len(read_annotated(tmp_path / "seen")) == 3


def test_pts_files_count_from_one(tmp_path: Path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    lines = "\n".join(f"{x:.6f} {y:.6f}" for x, y in face())
    (tmp_path / "a.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
    (photo,) = read_annotated(tmp_path)
    np.testing.assert_allclose(photo.landmarks_px, face(-0.5), atol=1e-5)


@pytest.mark.parametrize("content", ["{\n1 2\n}", "no points", "{\nx y\n}"])
def test_broken_pts_files_are_named_in_the_error(tmp_path: Path, content: str):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.pts").write_text(content)
    with pytest.raises(FormatError, match=r"a\.pts"):
        read_annotated(tmp_path)


def test_other_folders_are_refused(tmp_path: Path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(FormatError, match="neither"):
        read_annotated(tmp_path)
    with pytest.raises(FormatError, match="not a folder"):
        read_annotated(tmp_path / "missing")


def test_damaged_tables_are_named_in_the_error(tmp_path: Path):
    (tmp_path / "set.npz").write_bytes(b"not a zip file")
    with pytest.raises(FormatError, match=r"set\.npz"):
        read_annotated(tmp_path)


def test_limit_spreads_over_every_set(tmp_path: Path):
    write_set(tmp_path, "one", split="test", count=9)
    write_set(tmp_path, "two", split="test", count=2)
    chosen = spread_over_groups(read_annotated(tmp_path), limit=3)
    assert [(p.group, p.path.stem) for p in chosen] == [
        ("one", "0"), ("one", "4"), ("one", "8"), ("two", "0"), ("two", "1"),
    ]  # fmt: skip
    with pytest.raises(ConfigError):
        spread_over_groups(chosen, limit=0)


def test_report_counts_missed_faces_as_failures_and_averages_the_found():
    rows = (
        LandmarkRow("a.jpg", "set", LandmarkErrors(0.05, 0.04), LandmarkErrors(0.06, 0.02)),
        LandmarkRow("b.jpg", "set", LandmarkErrors(0.15, 0.12), None),
        LandmarkRow("c.jpg", "set", None, None, "NoFaceFound: no face"),
    )
    perception, model = LandmarkReport(rows, with_model=True).summaries()
    assert (perception.photos, perception.found, perception.failures) == (3, 2, 2)
    assert perception.nme51 == pytest.approx(0.08)
    assert perception.nme68 == pytest.approx(0.10)
    assert perception.auc51 == pytest.approx(0.5 / 3)
    assert (model.found, model.failures, model.nme51) == (1, 2, pytest.approx(0.02))
    table = LandmarkReport(rows, with_model=False).table()
    assert len(table.splitlines()) == 3
    assert "66.7" in table
