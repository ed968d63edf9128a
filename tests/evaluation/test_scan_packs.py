"""The data sets' layouts, predictions from files, and the command `mien evaluate scans`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.cli import main
from mien.errors import ConfigError, FormatError
from mien.evaluation.scan_packs import open_pack, read_picked_points
from mien.evaluation.scan_predictions import (
    PredictionFiles,
    predict_by_reconstruction,
    predict_mean_face,
    reconstructed_face,
    write_prediction,
)
from mien.evaluation.scan_report import evaluate_scans
from mien.evaluation.scans import PredictedFace
from mien.geometry import Surface
from mien.pipeline import Reconstructor
from tests.evaluation.scan_files import (
    IMAGE_SIZE,
    LANDMARKS_XY,
    REALY_FACTOR,
    grid_mesh,
    lifted,
    moved,
    project,
    realy_keypoints,
    write_now,
    write_now_prediction,
    write_obj,
    write_pack,
    write_realy,
    write_realy_prediction,
)
from tests.tiny_face import tiny_model, tiny_reconstruction

NAME = "ANNA_1/selfie/IMG_1"


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write_npz(folder: Path, name: str, *, bump: float = 0.0, **more: object) -> None:
    folder.mkdir(exist_ok=True)
    vertices, triangles = grid_mesh()
    pixels = project(vertices)
    vertices[vertices[:, 1] > 50, 2] += bump
    arrays = {"vertices": moved(vertices), "triangles": triangles, "xy": pixels, "unit": "mm", **more}
    np.savez(folder / f"{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()})


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack")
    return tmp_path / "pack"


def test_the_command_measures_predictions_of_a_folder(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(tmp_path / "one", "a", bump=4.0)
    write_npz(tmp_path / "two", "a", bump=1.0)
    write_npz(tmp_path / "two", "b")
    files = ["--csv", tmp_path / "o" / "t.csv", "--run", tmp_path / "o" / "r.json", "--sheet", tmp_path / "o" / "s.png"]
    assert run("evaluate", "scans", pack, "--predictions", tmp_path / "one", "--metric", *files) == 0
    shown = capsys.readouterr().out
    assert "b failed: FormatError" in shown
    first = json.loads((tmp_path / "o" / "r.json").read_text())
    assert first["n"] == 2
    assert list(first["failures"]) == ["b"]
    assert first["per_photo"]["a"]["metric"]["scale"] == 1.0
    rows = list(csv.DictReader((tmp_path / "o" / "t.csv").read_text().splitlines()))
    assert [row["photo"] for row in rows] == ["a", "b"]
    assert float(rows[0]["sim_forehead_mm"]) == pytest.approx(
        first["per_photo"]["a"]["sim"]["region"]["forehead"]["mean"], abs=1e-4
    )
    assert rows[1]["sim_mean_mm"] == ""
    with Image.open(tmp_path / "o" / "s.png") as sheet:
        assert sheet.size[0] == 4 * 304 + 4
    # The second run is better; the first is its base.
    arguments = ["--predictions", tmp_path / "two", "--base", tmp_path / "o" / "r.json", "--json"]
    assert run("evaluate", "scans", pack, *arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["sim"]["n"] == 2
    assert {(entry["alignment"], entry["statistic"]) for entry in second["paired"]} == {
        ("sim", "median"), ("sim", "mean"),
    }  # fmt: skip
    assert all(entry["photos"] == 1 for entry in second["paired"])
    mean = next(entry for entry in second["paired"] if entry["statistic"] == "mean")
    expected = second["per_photo"]["a"]["sim"]["mean"] - first["per_photo"]["a"]["sim"]["mean"]
    assert mean["difference"] == pytest.approx(expected)
    assert expected < 0


def test_the_table_has_the_means_over_the_photos(pack: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "p", "a", bump=4.0)
    write_npz(tmp_path / "p", "b")
    data = open_pack(pack)
    predict = PredictionFiles(tmp_path / "p").predictor(data)
    report = evaluate_scans(data, predict, regional=True)
    a, b = (row.sim for row in report.rows)
    assert a is not None
    assert b is not None
    assert report.mean("sim", "mean") == pytest.approx((a.overall.mean + b.overall.mean) / 2)
    assert b.overall.mean < 1e-3
    lines = report.table().splitlines()
    assert lines[2].split("|")[1].strip() == "similarity"
    assert f"{report.mean('sim', 'p90'):.2f}" in lines[2]
    assert lines[3].split("|")[1].strip() == "similarity, each region alone"
    assert len(evaluate_scans(data, predict, limit=1).rows) == 1
    with pytest.raises(ConfigError, match="limit=0"):
        evaluate_scans(data, predict, limit=0)


def test_meshes_without_pixels_need_their_seven_vertices(pack: Path, tmp_path: Path) -> None:
    vertices, triangles = grid_mesh()
    seven = [int(np.linalg.norm(vertices[:, :2] - xy, axis=1).argmin()) for xy in LANDMARKS_XY]
    vertices = moved(vertices, scale=0.1)
    write_obj(tmp_path / "p" / "a.obj", vertices, triangles)
    data = open_pack(pack)
    with pytest.raises(ConfigError, match="landmark_vertices has 2"):
        PredictionFiles(tmp_path / "p", landmark_vertices=(1, 2))
    report = evaluate_scans(data, PredictionFiles(tmp_path / "p", "cm", tuple(seven)).predictor(data), metric=True)
    (row,) = [row for row in report.rows if row.name == "a"]
    assert row.metric is not None
    assert row.metric.overall.p90 < 0.02
    (failed,) = evaluate_scans(data, PredictionFiles(tmp_path / "p").predictor(data), limit=1).failed
    assert "no start" in failed.reason


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"xy": np.zeros((3, 2))}, "one row per vertex"),
        ({"lm7": [1, 2, 3]}, "not 7 vertices"),
        ({"unit": "inch"}, "inch"),
        ({"triangles": [[0, 1, 99999]]}, "does not exist"),
        ({"vertices": np.zeros((4, 2))}, "not a mesh"),
    ],
)
def test_a_damaged_prediction_is_a_failed_photo(
    pack: Path, tmp_path: Path, broken: dict[str, object], message: str
) -> None:
    write_npz(tmp_path / "p", "a", **broken)
    data = open_pack(pack)
    report = evaluate_scans(data, PredictionFiles(tmp_path / "p").predictor(data), limit=1)
    assert message in report.failed[0].reason


def test_damaged_and_unknown_data_sets_are_format_errors(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no scans"):
        open_pack(tmp_path)
    (pack / "photos" / "a.jpg").unlink()
    with pytest.raises(FormatError, match="no photo a"):
        open_pack(pack).scan("a")
    (tmp_path / "x.json").write_text('{"per_photo": 3}')
    write_npz(tmp_path / "p", "b")
    report = evaluate_scans(open_pack(pack), PredictionFiles(tmp_path / "p").predictor(open_pack(pack)))
    with pytest.raises(FormatError, match="--run"):
        report.compare(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"per_photo": {"z": {"sim": {"median": 1, "mean": 1}}}}')
    with pytest.raises(FormatError, match="no photo in common"):
        report.compare(tmp_path / "x.json")


def test_now_is_read_in_its_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_now(tmp_path / "now", (NAME, "BEN_2/multiview_neutral/IMG_9"))
    data = open_pack(tmp_path / "now")
    assert data.layout == "now"
    assert data.names == (NAME, "BEN_2/multiview_neutral/IMG_9")
    scan = data.scan(NAME)
    assert scan.photo is not None
    assert scan.photo.name == "IMG_1.jpg"
    assert scan.landmarks7 is not None
    assert np.allclose(scan.landmarks7, lifted(LANDMARKS_XY), atol=1e-5)
    # The crop: a sphere around a point 30 % up from the nose's base to the bridge.
    seven = lifted(LANDMARKS_XY)
    bridge = (seven[1] + seven[2]) / 2
    centre, radius = seven[4] + 0.3 * (bridge - seven[4]), 0.7 * (90.0 + np.linalg.norm(bridge - seven[4]))
    radius = 0.7 * (np.linalg.norm(seven[0] - seven[3]) + np.linalg.norm(bridge - seven[4]))
    inside = np.linalg.norm(grid_mesh()[0] - centre, axis=1) <= radius
    assert 0 < inside.sum() < len(inside)
    assert len(scan.points) == inside.sum()
    # Its predictions in metres, one of them 10 % too large: that costs in the metric error alone.
    for name, scale in ((NAME, 1e-3), (data.names[1], 1.1e-3)):
        vertices, landmarks = moved(grid_mesh()[0], scale=scale), moved(lifted(LANDMARKS_XY), scale=scale)
        write_now_prediction(tmp_path / "p", vertices, landmarks, name)
    assert run("evaluate", "scans", tmp_path / "now", "--predictions", tmp_path / "p", "--unit", "m", "--metric",
               "--run", tmp_path / "r.json") == 0  # fmt: skip
    photos = json.loads((tmp_path / "r.json").read_text())["per_photo"]
    assert all(photos[name]["sim"]["p90"] < 1e-3 for name in data.names)
    assert photos[NAME]["metric"]["mean"] < 1e-3
    assert photos[data.names[1]]["metric"]["mean"] > 0.3
    assert "similarity, all points" in capsys.readouterr().out


def test_now_landmarks_come_as_text_too(tmp_path: Path) -> None:
    write_now(tmp_path / "now", (NAME,))
    write_now_prediction(tmp_path / "p", moved(grid_mesh()[0]), moved(lifted(LANDMARKS_XY)), NAME)
    (tmp_path / "p" / f"{NAME}.npy").unlink()
    data = open_pack(tmp_path / "now")
    files = PredictionFiles(tmp_path / "p").predictor(data)
    assert "no such file; expected 7 landmarks" in evaluate_scans(data, files).failed[0].reason
    np.savetxt(tmp_path / "p" / f"{NAME}.txt", moved(lifted(LANDMARKS_XY)))
    assert evaluate_scans(data, files).mean("sim", "p90") < 1e-3


def test_picked_points_must_be_seven(tmp_path: Path) -> None:
    (tmp_path / "a.pp").write_text('<PickedPoints><point x="1" y="2" z="3" name="0"/></PickedPoints>')
    with pytest.raises(FormatError, match="1 picked points"):
        read_picked_points(tmp_path / "a.pp")
    (tmp_path / "a.pp").write_text('<point x="1" y="2" z="?" name="0"/>' * 7)
    with pytest.raises(FormatError, match="not three numbers"):
        read_picked_points(tmp_path / "a.pp")


def test_predictions_are_written_as_now_reads_them(tmp_path: Path) -> None:
    write_now(tmp_path / "now", (NAME,))
    data = open_pack(tmp_path / "now")
    face = PredictedFace(
        Surface(*(torch.from_numpy(array) for array in grid_mesh())),
        metric=True,
        landmarks7=torch.from_numpy(lifted(LANDMARKS_XY)),
    )
    write_prediction(face, tmp_path / "p", NAME, layout="now")
    assert np.load(tmp_path / "p" / f"{NAME}.npy").shape == (7, 3)
    again = evaluate_scans(data, PredictionFiles(tmp_path / "p", "mm").predictor(data), metric=True)
    assert again.mean("metric", "p90") < 1e-3


def test_predictions_of_the_own_layout_are_read_as_written(pack: Path, tmp_path: Path) -> None:
    vertices, triangles = grid_mesh()
    face = PredictedFace(
        Surface(torch.from_numpy(vertices), torch.from_numpy(triangles)),
        metric=True,
        pixels=torch.from_numpy(project(vertices)),
        landmarks7=torch.from_numpy(vertices[[3, 1, 4, 1, 5, 9, 2]]),
    )
    write_prediction(face, tmp_path / "p", "a", layout="pack")
    data = open_pack(pack)
    read = PredictionFiles(tmp_path / "p").predictor(data)(data.scan("a"))
    assert read.metric
    assert read.pixels is not None
    assert read.landmarks7 is not None
    assert torch.equal(read.surface.vertices, face.surface.vertices)
    assert torch.equal(read.pixels, torch.from_numpy(project(vertices)))
    assert np.array_equal(read.landmarks7, vertices[[3, 1, 4, 1, 5, 9, 2]])


def test_realy_is_read_in_its_layout(tmp_path: Path) -> None:
    write_realy(tmp_path / "realy")
    data = open_pack(tmp_path / "realy")
    assert (data.layout, data.names) == ("realy", ("1", "2"))
    scan = data.scan("1")
    assert scan.region_names == ("nose", "mouth", "forehead", "cheek")
    assert scan.keypoints is not None
    assert np.allclose(scan.keypoints.points, realy_keypoints()[0], atol=1e-3)
    assert float(scan.region_points(0)[:, 0].abs().max()) <= 12.001
    vertices = grid_mesh()[0]
    write_realy_prediction(tmp_path / "p", moved(vertices, scale=0.02), 1)
    vertices[vertices[:, 1] > 25, 2] += 5.0
    write_realy_prediction(tmp_path / "p", moved(vertices, scale=0.02), 2)
    report = evaluate_scans(data, PredictionFiles(tmp_path / "p").predictor(data))
    right, displaced = (row.sim for row in report.rows)
    assert right is not None
    assert displaced is not None
    assert right.scale == pytest.approx(50, rel=1e-3)
    for region in right.regions:
        assert region.realigned is not None
        assert region.realigned.mean < 0.01
    regions = {region.name: region for region in displaced.regions}
    assert regions["forehead"].realigned is not None
    # The forehead is only displaced, but its keypoints include those of the eyes, which stay.
    assert regions["forehead"].errors.mean > regions["forehead"].realigned.mean


def test_realy_measures_in_millimetres(tmp_path: Path) -> None:
    write_realy(tmp_path / "realy", (1,))
    vertices = grid_mesh()[0]
    vertices[vertices[:, 1] > 25, 2] += 5.0
    write_realy_prediction(tmp_path / "p", vertices, 1)
    data = open_pack(tmp_path / "realy")
    files = PredictionFiles(tmp_path / "p").predictor(data)
    small = evaluate_scans(data, files).region_mean("sim", "forehead")
    (tmp_path / "realy" / "metrical_scale.txt").write_text(f"{2 * REALY_FACTOR}\n")
    assert evaluate_scans(open_pack(tmp_path / "realy"), files).region_mean("sim", "forehead") == pytest.approx(
        2 * small, rel=1e-4
    )
    (tmp_path / "realy" / "metrical_scale.txt").write_text("")
    empty = open_pack(tmp_path / "realy")
    with pytest.raises(FormatError, match="no line for subject 1"):
        empty.scan("1")


def test_realy_predictions_need_one_table_of_keypoints(tmp_path: Path) -> None:
    write_realy(tmp_path / "realy", (1,))
    write_realy_prediction(tmp_path / "p", grid_mesh()[0], 1)
    data = open_pack(tmp_path / "realy")
    (tmp_path / "p" / "template.txt").write_text("[[1, 2, 3]]")
    files = PredictionFiles(tmp_path / "p").predictor(data)
    assert "shape (1, 3)" in evaluate_scans(data, files).failed[0].reason
    (tmp_path / "p" / "other.txt").write_text("")
    assert "2 .txt files" in evaluate_scans(data, files).failed[0].reason


class FakeReconstructor(Reconstructor):
    """Returns the tiny face for every photo."""

    def __init__(self) -> None:
        self.photos: list[Path] = []

    def __call__(self, photo: Path) -> list[object]:
        self.photos.append(photo)
        return [tiny_reconstruction(tiny_model())]


def test_a_reconstruction_becomes_millimetres_and_pixels_from_zero() -> None:
    face = tiny_reconstruction(tiny_model())
    found = reconstructed_face(face)
    assert found.metric
    assert found.pixels is not None
    assert found.landmarks7 is not None
    assert found.keypoints is not None
    assert np.allclose(found.surface.vertices, 1000 * face.vertices)
    assert np.allclose(found.pixels, face.xy - 0.5)
    nose_base = face.landmarks68_vertices[33]
    assert np.allclose(found.landmarks7[4], 1000 * face.vertices[nose_base])
    assert np.allclose(found.keypoints[33], found.landmarks7[4])
    assert bool(found.keypoints[68:].isnan().all())


def test_the_photo_of_the_scan_is_reconstructed(pack: Path) -> None:
    reconstructor = FakeReconstructor()
    scan = open_pack(pack).scan("b")
    face = predict_by_reconstruction(reconstructor)(scan)
    assert reconstructor.photos == [pack / "photos" / "b.jpg"]
    assert face.landmarks7 is None
    with pytest.raises(FormatError, match="photo is missing"):
        predict_by_reconstruction(reconstructor)(replace(scan, photo=None))


def test_the_mean_face_needs_no_photo(pack: Path) -> None:
    model = tiny_model()
    face = predict_mean_face(model)(open_pack(pack).scan("a"))
    assert torch.equal(face.surface.vertices, 1000 * model.mean.double())
    assert face.landmarks7 is not None
    assert torch.equal(face.landmarks7[0], 1000 * model.mean[model.landmarks68[36]].double())


def test_wrong_combinations_of_options_are_errors(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "scans", pack, "--unit", "mm") == 2
    assert "--predictions" in capsys.readouterr().err
    assert run("evaluate", "scans", pack, "--predictions", pack, "--landmarks", "1,x") == 2
    assert "vertex numbers" in capsys.readouterr().err
    assert run("evaluate", "scans", pack, "--predictions", pack / "missing") == 2
    assert "does not exist" in capsys.readouterr().err
    assert open_pack(pack).scan("a").camera.image_size == IMAGE_SIZE  # pyright: ignore[reportOptionalMemberAccess]
