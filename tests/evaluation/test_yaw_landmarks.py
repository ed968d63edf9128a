"""Photos with .mat files, as AFLW2000-3D and 300W-LP have them: NME by yaw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.cli import main
from mien.errors import ConfigError, FormatError, NoFaceFound
from mien.evaluation.yaw_landmarks import box_nme, evaluate_yaw, holds_mat_landmarks, read_turned_faces
from mien.morphable.formats.mat5 import write_mat
from mien.pipeline import Reconstructor
from tests.evaluation.scan_files import write_photo

VERTICES = np.arange(68) * 2 + 1
"""The model's vertices at the 68 points."""


def points68(seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).uniform(60, 140, (68, 2))
    points[0], points[1] = (50, 50), (150, 150)  # the box: 100 pixels
    return points


def write_face(folder: Path, name: str, points: np.ndarray, yaw_deg: float, *, three: bool = True) -> None:
    """In MATLAB's pixels; AFLW2000-3D also has the 21 points of AFLW as pt2d."""
    write_photo(folder / f"{name}.jpg")
    pose = np.array([[0.1, np.radians(yaw_deg), -0.2, 5.0, 6.0, 0.0, 0.001]], np.float32)
    own = (points + 0.5).T
    if three:
        arrays = {"pt2d": np.full((2, 21), -1.0), "pt3d_68": np.vstack([own, np.zeros(68)]).astype(np.float32)}
    else:
        arrays = {"pt2d": own}
    write_mat(folder / f"{name}.mat", {"Pose_Para": pose, "roi": np.zeros((1, 4)), **arrays})


@dataclass
class Result:
    xy: np.ndarray


class FakeReconstructor(Reconstructor):
    """Finds each face `shift` pixels to the right of the annotated one, and the faces in `missing` not at all."""

    def __init__(self, points: dict[int, np.ndarray], shift: float) -> None:
        self.points, self.shift, self.calls = points, shift, 0
        self.model = type("Model", (), {"landmarks68": torch.from_numpy(VERTICES)})()

    def __call__(self, photo: object) -> list[Result]:
        points = self.points.get(self.calls)
        self.calls += 1
        if points is None:
            raise NoFaceFound("no face was found")
        xy = np.zeros((200, 2))
        xy[VERTICES] = points + np.array([self.shift, 0])
        return [Result(xy + 1000), Result(xy)]


def run(folder: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "scans", str(folder), *options])
    return int(stop.value.code or 0)


def test_the_error_is_relative_to_the_box() -> None:
    gt = points68(0)
    gt[1] = (250, 100)  # 200 wide, 100 high at most
    gt[2:, 1] = gt[2:, 1].clip(50, 100)
    assert box_nme(gt + np.array([3, 4]), gt) == pytest.approx(5 / np.sqrt(200 * 50))


@pytest.mark.parametrize("three", [True, False])
def test_points_and_yaw_are_read(tmp_path: Path, three: bool) -> None:
    write_face(tmp_path, "image00002", points68(1), -42.0, three=three)
    assert holds_mat_landmarks(tmp_path)
    (face,) = read_turned_faces(tmp_path)
    assert face.path.name == "image00002.jpg"
    assert np.allclose(face.landmarks_px, points68(1), atol=1e-4)
    assert face.yaw_deg == pytest.approx(-42, abs=1e-4)


def test_faces_are_grouped_by_the_size_of_their_yaw(tmp_path: Path) -> None:
    yaws = [0.0, -29.0, 31.0, -59.0, 89.0]
    for k, yaw in enumerate(yaws):
        write_face(tmp_path, f"image{k:05}", points68(k), yaw)
    found = {k: points68(k) for k in range(4)}
    report = evaluate_yaw(tmp_path, FakeReconstructor(found, 2.0))
    assert [row.nme is None for row in report.rows] == [False] * 4 + [True]
    assert report.nme(0, 30) == pytest.approx(0.02, abs=1e-5)
    assert np.isnan(report.nme(60, 90))
    assert report.mean == pytest.approx(0.02, abs=1e-5)
    lines = report.table().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:6]] == ["2", "2", "1", "5"]
    assert [line.split("|")[3].strip() for line in lines[2:6]] == ["2", "2", "0", "4"]
    assert lines[6].startswith("image00004.jpg failed: NoFaceFound")
    with pytest.raises(ConfigError, match="limit=0"):
        evaluate_yaw(tmp_path, FakeReconstructor(found, 2.0), limit=0)


def test_the_mean_weighs_the_groups_equally(tmp_path: Path) -> None:
    for k, yaw in enumerate([5.0, 10.0, 20.0, 70.0]):
        write_face(tmp_path, f"image{k:05}", points68(k), yaw)
    found = {k: points68(k) + np.array([6.0 * (k == 3), 0.0]) for k in range(4)}
    report = evaluate_yaw(tmp_path, FakeReconstructor(found, 2.0))
    assert report.mean == pytest.approx((0.02 + 0.08) / 2, abs=1e-5)


def test_the_command_prints_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    class Prepared(FakeReconstructor):
        def __init__(self, **settings: object) -> None:
            super().__init__({0: points68(0), 1: points68(1)}, 3.0)
            made.append(settings)

    monkeypatch.setattr("mien.pipeline.Reconstructor", Prepared)
    for k, yaw in enumerate([5.0, 45.0]):
        write_face(tmp_path, f"image{k:05}", points68(k), yaw)
    assert run(tmp_path, "--mode", "net", "--seed", "3", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [group["nme68"] for group in shown["groups"]] == [
        pytest.approx(0.03, abs=1e-5),
        pytest.approx(0.03, abs=1e-5),
        None,
    ]
    assert (made[0]["mode"], made[0]["seed"], made[0]["detail"]) == ("net", 3, False)
    assert run(tmp_path, "--mode", "net", "--limit", "1") == 0
    assert "| 0° to 30°" in capsys.readouterr().out
    assert run(tmp_path, "--mode", "mean") == 2


def test_damaged_files_are_format_errors(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no photos"):
        read_turned_faces(tmp_path)
    write_photo(tmp_path / "a.jpg")
    write_mat(tmp_path / "a.mat", {"pt2d": np.zeros((2, 21)), "Pose_Para": np.zeros((1, 7))})
    with pytest.raises(FormatError, match="lacks 68 points"):
        read_turned_faces(tmp_path)
    write_mat(tmp_path / "a.mat", {"pt2d": np.zeros((2, 68))})
    with pytest.raises(FormatError, match="lacks Pose_Para"):
        read_turned_faces(tmp_path)
