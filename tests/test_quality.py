"""Flags of what makes a face less certain."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from mien.camera import Pose
from mien.cli.summary import show_rows
from mien.cli.terminal import stdout
from mien.errors import FaceDoubtful, FormatError
from mien.fitting import lid_openings
from mien.io.result_files import COEFFICIENTS_FILE
from mien.morphable import FaceCoefficients
from mien.pipeline import PhotoInputs, Reconstructor
from mien.pipeline.inspection import measure_face
from mien.quality import CoveredShares, FaceMeasures, FaceQuality, QualityFlag
from mien.result import Reconstruction
from mien.scale.photo_work import flag_words
from mien.scale.summary import PhotoRow, SummaryTable
from tests.astronaut import astronaut, detector
from tests.tiny_face import tiny_reconstruction

GOOD = FaceMeasures(CoveredShares(), (0.3, 0.3), 5.0, 0.0, 300.0, 0.5, 0.7, 0.0, 0.8)


@pytest.mark.parametrize(
    ("flag", "bad", "fine"),
    [
        (QualityFlag.EYES_SHUT, {"eye_openings": (0.02, 0.05)}, {"eye_openings": (0.02, 0.3)}),
        (QualityFlag.COVERED, {"covered": CoveredShares(0.3, mouth=1.0)}, {"covered": CoveredShares(0.01)}),
        (QualityFlag.COVERED, {"covered": CoveredShares(0.05, eyes=1.0)}, {"covered": CoveredShares(0.05, eyes=0.1)}),
        (QualityFlag.PROFILE, {"turn_degrees": 70.0}, {"turn_degrees": 35.0}),
        (QualityFlag.CUT_OFF, {"cut_off": 0.2}, {"cut_off": 0.02}),
        (QualityFlag.BLURRED, {"blur": 0.93}, {"blur": 0.7}),
        (QualityFlag.TINY, {"height_px": 35.0}, {"height_px": 80.0}),
        (QualityFlag.DARK, {"brightness": 0.1}, {"brightness": 0.3}),
        (QualityFlag.OVEREXPOSED, {"overexposed": 0.6}, {"overexposed": 0.05}),
        (QualityFlag.DISTANCE, {"distance_m": 0.1}, {"distance_m": 0.3}),
        (QualityFlag.DISTANCE, {"distance_m": 500.0}, {"distance_m": 40.0}),
    ],
)
def test_each_flag_is_set_alone_beyond_its_limit(flag: QualityFlag, bad: dict[str, Any], fine: dict[str, Any]) -> None:
    assert FaceQuality.judge(replace(GOOD, **bad), landmark_error=0.02).flags == (flag,)
    assert FaceQuality.judge(replace(GOOD, **fine), landmark_error=0.02).flags == ()


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_a_fit_that_misses_the_landmarks_is_doubtful(error: float) -> None:
    quality = FaceQuality.judge(GOOD, landmark_error=error)
    assert quality.flags == (QualityFlag.DOUBTFUL_FIT,)
    assert "does not fit the landmarks" in quality.advice()


def test_eyes_behind_sunglasses_are_not_shut() -> None:
    covered = replace(GOOD, covered=CoveredShares(0.2, eyes=1.0), eye_openings=(0.0, 0.0))
    assert FaceQuality.judge(covered, landmark_error=0.02).flags == (QualityFlag.COVERED,)


def test_the_advice_names_what_is_covered_and_every_flag_has_one() -> None:
    measures = FaceMeasures(CoveredShares(0.38, nose=0.9, mouth=1.0), (0.0, 0.0), 80.0, 0.5, 20.0, 1.0, 0.0, 1.0, 1e4)
    quality = FaceQuality.judge(measures, landmark_error=1.0)
    assert quality.flags == tuple(QualityFlag)
    texts = quality.advice().split("; ")
    assert "nose and mouth of the face are covered (38% of the face)" in quality.advice()
    assert len(set(texts)) == len(texts) >= 2 * len(QualityFlag)  # what it is, and what to do
    assert FaceQuality.judge(GOOD, landmark_error=0.01).advice() == ""


@cache
def measured(change: str) -> FaceMeasures:
    """Measures of the changed astronaut, with a pose that looks straight into the lens from 0.8 m."""
    image = Image.fromarray(astronaut())
    if change == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(2.5))
    if change == "small":
        image = image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX)
    pixels = np.asarray(image)
    if change == "dark":
        pixels = (pixels * 0.12).astype(np.uint8)
    if change == "bright":
        pixels = np.clip(pixels.astype(float) * 2.2, 0, 255).astype(np.uint8)
    if change == "cut":
        pixels = np.ascontiguousarray(pixels[:, :245])
    (face,) = detector().detect(pixels, max_faces=1)
    inputs = PhotoInputs.of(pixels, [face], device=torch.device("cpu"))
    return measure_face(inputs, facing(0.0), inputs.targets.camera)


def facing(yaw: float) -> FaceCoefficients:
    mean = FaceCoefficients.mean(identity=1, expression=1, albedo=1, distance=0.8)
    pose = Pose(torch.tensor([[0.0, yaw, 0.0]]), torch.tensor([[0.2, 0.0, 0.8]]), torch.ones(1))
    return replace(mean, pose=pose)


def test_a_good_photo_is_within_all_limits() -> None:
    assert FaceQuality.judge(measured(""), landmark_error=0.02).flags == ()


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ("blurred", QualityFlag.BLURRED),
        ("small", QualityFlag.TINY),
        ("dark", QualityFlag.DARK),
        ("bright", QualityFlag.OVEREXPOSED),
        ("cut", QualityFlag.CUT_OFF),
    ],
)
def test_photos_that_were_made_worse_are_flagged_so(change: str, flag: QualityFlag) -> None:
    flags = FaceQuality.judge(measured(change), landmark_error=0.02).flags
    assert flag in flags
    assert set(flags) <= {flag, QualityFlag.COVERED}  # a patch that is burnt out hides the face too


def test_the_turn_is_that_against_the_camera_not_against_the_axis_of_the_lens() -> None:
    pixels = astronaut()
    (face,) = detector().detect(pixels, max_faces=1)
    inputs = PhotoInputs.of(pixels, [face], device=torch.device("cpu"))
    aside = np.degrees(np.arctan2(0.2, 0.8))
    turns = [measure_face(inputs, facing(yaw), inputs.targets.camera).turn_degrees for yaw in (0.0, 0.6, -0.6)]
    np.testing.assert_allclose(turns[0], aside, atol=0.1)
    expected = sorted([np.degrees(0.6) - aside, np.degrees(0.6) + aside])
    np.testing.assert_allclose(sorted(turns[1:]), expected, atol=0.1)


def test_lid_openings_are_shares_of_the_eyes_width() -> None:
    (face,) = detector().detect(astronaut(), max_faces=1)
    points = torch.from_numpy(face.landmarks468_px[None, :, :2]).float()
    right, left = lid_openings(points)[0].tolist()
    up = (points[0, 159] - points[0, 145]).norm() / (points[0, 33] - points[0, 133]).norm()
    assert abs(right - float(up)) < 0.05
    assert 0.2 < left < 0.5
    twice = lid_openings(2 * points)[0]
    torch.testing.assert_close(twice, torch.tensor([right, left]))


def test_quality_is_saved_and_older_results_have_none(tmp_path: Path) -> None:
    measures = replace(GOOD, covered=CoveredShares(0.3, 0.0, 0.5, 1.0, 0.0), turn_degrees=61.25)
    face = replace(tiny_reconstruction(), quality=FaceQuality.judge(measures, landmark_error=0.01))
    face.save(tmp_path / "face0")
    assert Reconstruction.load(tmp_path / "face0").quality == face.quality
    path = tmp_path / "face0" / COEFFICIENTS_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["quality"]["flags"] == ["covered", "profile"]
    assert content["quality"]["measures"]["covered"]["mouth"] == 1.0
    content["quality"]["flags"] = ["haunted"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FormatError, match="haunted"):
        Reconstruction.load(tmp_path / "face0")
    del content["quality"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Reconstruction.load(tmp_path / "face0").quality is None


def test_a_face_with_flags_warns_once_and_a_good_one_does_not() -> None:
    reconstructor = Reconstructor(mode="net", detail=False, max_faces=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (face,) = reconstructor(astronaut())
    assert face.quality is not None
    assert face.quality.flags == ()
    small = np.asarray(Image.fromarray(astronaut()).resize((128, 128), Image.Resampling.BOX))
    with pytest.warns(FaceDoubtful) as caught:
        (face,) = reconstructor(small)
    assert len(caught) == 1
    assert "pixels high" in str(caught[0].message)


def test_words_name_the_faces_only_if_there_are_several() -> None:
    covered = FaceQuality.judge(replace(GOOD, covered=CoveredShares(0.3), cut_off=0.5), landmark_error=0.01)
    good = FaceQuality.judge(GOOD, landmark_error=0.01)
    faces = [replace(tiny_reconstruction(), quality=quality) for quality in (good, covered, None)]
    assert flag_words(faces[1:2]) == "covered, cut off"
    assert flag_words(faces) == "face1: covered, cut off"
    assert flag_words(faces[:1]) == ""


def test_the_table_has_flags_and_reads_those_of_mien_0_2(tmp_path: Path) -> None:
    old = "photo,faces,seconds,landmark_error,photometric_error,results,reason\n/a.png,1,1,0.1,0.1,/out/a,\n"
    (tmp_path / "summary.csv").write_text(old, encoding="utf-8")
    table = SummaryTable(tmp_path)
    table.add(PhotoRow("/b.png", 1, 1.0, 0.1, 0.1, "/out/b", "", flags="covered, tiny"))
    table.write()
    with (tmp_path / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["flags"] for row in rows] == ["", "covered, tiny"]
    assert [Path(row["photo"]).name for row in rows] == ["a.png", "b.png"]


def test_the_terminal_shows_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PhotoRow("a.png", 1, 1.0, 0.1, 0.1, "out/a", "", flags="eyes shut")]
    show_rows(stdout(), rows, tmp_path, skipped=0, only_failed=False)
    assert "(eyes shut)" in capsys.readouterr().out
