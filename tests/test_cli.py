from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mien.pipeline
from mien import assets
from mien.cli import app as cli
from mien.cli.options import DetailMode, GlbMorphs, Mode
from mien.cli.summary import PhotoRow, show_rows
from mien.cli.terminal import stdout
from mien.errors import FaceLeftOut, FitDiverged, NoFaceFound, PhotoReduced
from mien.export.gltf import MORPH_STORAGE
from mien.io.photo import Photo
from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
from mien.result import Reconstruction
from tests.glb_reader import Glb
from tests.tiny_face import tiny_model, tiny_photo, tiny_reconstruction


class FakeReconstructor:
    """Returns as many faces as the brightness of the top-left pixel; loads no weights."""

    made: list[dict[str, Any]] = []  # noqa: RUF012 (shared on purpose: the commands make their own instance)

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)
        self.model = tiny_model()

    def __call__(self, photo: Photo, *, focal_px: float | None = None) -> list[Reconstruction]:
        self.made[-1]["focal_px"] = focal_px
        count = int(photo.pixels[0, 0, 0])
        if count == 0:
            raise NoFaceFound("no face was found")
        if count == 9:
            raise FitDiverged("a number is not finite")
        if count == 8:
            warnings.warn("something else", UserWarning, stacklevel=2)
            warnings.warn(FaceLeftOut("face 2 of 2 was left out: lost"), stacklevel=2)
            count = 1
        height, width = photo.pixels.shape[:2]
        return [replace(tiny_reconstruction(), image_size=(width, height))] * count


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeReconstructor.made.clear()
    monkeypatch.setattr(mien.pipeline, "Reconstructor", FakeReconstructor)
    monkeypatch.setattr("mien.export.images.PANEL_SIDE", 24)  # the sheet is not what is tested here
    monkeypatch.setenv("COLUMNS", "200")


def photo_with(path: Path, faces: int) -> Path:
    pixels = tiny_photo().pixels.copy()
    pixels[0, 0] = faces
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("reconstruct", photo_with(tmp_path / "anna.png", 1), "-o", out) == 0
    assert (out / "anna" / "face0" / "face.glb").is_file()
    shown = capsys.readouterr().out
    assert "3.1 %" in shown
    assert str(out / "anna" / "face0") in shown.replace("\n", "")
    (row,) = summary(out)
    assert (row["faces"], row["landmark_error"], row["photometric_error"]) == ("1", "0.031", "0.022")


def test_a_folder_with_bad_photos_finishes_and_exits_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "photos" / "results"
    photo_with(folder / "a.png", 2)
    photo_with(folder / "b" / "a.png", 1)
    photo_with(folder / "nobody.png", 0)
    photo_with(folder / "odd.png", 9)
    (folder / "text.jpg").write_text("not a photo")
    (folder / "void.png").write_bytes(b"")
    assert run("reconstruct", folder, "-o", out) == 1
    rows = {Path(row["photo"]).relative_to(folder).as_posix(): row for row in summary(out)}
    assert {name: row["faces"] for name, row in rows.items()} == {
        "a.png": "2", "b/a.png": "1", "nobody.png": "0", "odd.png": "0", "text.jpg": "0", "void.png": "0",
    }  # fmt: skip
    assert rows["nobody.png"]["reason"] == "NoFaceFound: no face was found"
    assert rows["odd.png"]["reason"].startswith("FitDiverged")
    assert rows["text.jpg"]["reason"].startswith("ImageError: holds text")
    assert rows["void.png"]["reason"].startswith("ImageError: empty")
    assert sorted(path.name for path in out.iterdir()) == ["a", "a-2", "summary.csv"]
    assert sorted(path.name for path in (out / "a").iterdir()) == ["face0", "face1"]
    shown = capsys.readouterr().out
    assert "6 photos, 3 faces, 4 failed" in shown
    assert "Traceback" not in shown
    # Results inside the folder of photos are not taken for photos the next time.
    assert run("reconstruct", folder, "-o", out) == 1
    assert len(summary(out)) == 6


def test_a_face_that_is_left_out_is_named_beside_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="something else"):
        assert run("reconstruct", photo_with(tmp_path / "two.png", 8), "-o", out) == 1
    (row,) = summary(out)
    assert (row["faces"], row["results"]) == ("1", str(out / "two"))
    assert row["reason"] == "FaceLeftOut: face 2 of 2 was left out: lost"
    assert (out / "two" / "face0" / "face.glb").is_file()


def test_faces_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("reconstruct", photo_with(tmp_path / "a.png", 3), "-o", out)
    (out / "a" / "face_notes").mkdir()
    (out / "a" / "face7").mkdir()  # somebody else's: no reconstruction in it
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", out)
    assert sorted(path.name for path in (out / "a").iterdir()) == ["face0", "face7", "face_notes"]


def test_options_reach_the_reconstructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = photo_with(tmp_path / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    for name in ("x", "mine", "maps"):
        (tmp_path / f"{name}.safetensors").touch()
    options = (
        "--model x.safetensors --device cuda --no-detail --max-faces 3 --seed 7 --resolution 512 --focal-px 900 "
        "--refine-focal --mode auto --encoder mine.safetensors --detail-mode net --detail-network maps.safetensors"
    )
    run("reconstruct", photo, "-o", tmp_path / "out", *options.split())
    assert FakeReconstructor.made == [
        {
            "model": "x.safetensors", "device": "cuda", "detail": False, "resolution": 512, "seed": 7, "max_faces": 3,
            "refine_focal": True, "mode": "auto", "encoder": "mine.safetensors", "focal_px": 900.0,
            "detail_mode": "net", "detail_network": "maps.safetensors",
        }
    ]  # fmt: skip


def test_large_photos_are_reduced_or_read_whole(tmp_path: Path) -> None:
    photo = tmp_path / "large.jpg"
    Image.new("RGB", (1250, 1000), (1, 1, 1)).save(photo)
    with pytest.warns(PhotoReduced, match="more than 1 megapixels, decoded at 1/2 of its size, 625 × 500"):
        assert run("reconstruct", photo, "-o", tmp_path / "out", "--max-megapixels", "1") == 0
    assert run("reconstruct", photo, "-o", tmp_path / "out") == 0


def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert FakeReconstructor.made == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = photo_with(tmp_path / "a.png", 1), tmp_path / "out"
    out.mkdir()
    (out / "summary.csv").symlink_to("/dev/full")
    assert run("reconstruct", photo, "-o", out) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert "cannot be written (No space left on device)" in shown.err
    assert not FakeReconstructor.made


def test_a_narrow_terminal_cuts_nothing_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    photo = photo_with(tmp_path / "portrait_of_a_lady.png", 1)
    none = photo_with(tmp_path / "portrait_of_nobody.png", 0)
    monkeypatch.chdir(tmp_path)
    assert run("reconstruct", photo.name, none.name, "-o", "results") == 1
    lines = capsys.readouterr().out.splitlines()
    start = lines[1].index("result")
    last = "".join(line[start:].strip() for line in lines)
    assert "results/portrait_of_a_lady/face0" in last
    assert "no face was found" in " ".join(line[start:].strip() for line in lines)


def test_a_file_where_results_go_fails_that_photo_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("in the way")
    photos = [photo_with(tmp_path / f"{name}.png", 1) for name in "ab"]
    assert run("reconstruct", *photos, "-o", out) == 1
    first, second = summary(out)
    assert first["reason"].startswith("OutputError")
    assert second["reason"] == ""


def test_an_empty_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run("reconstruct", tmp_path / "empty", "-o", tmp_path / "out") == 1
    assert "no photos in this folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_valid_text_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = photo_with(tmp_path / "a.png", 1)
    odd = photo.rename(tmp_path / "[red]\x1b[31m\udcff\n.png")
    assert run("reconstruct", odd, "-o", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]\\x1b[31m" in shown


def test_long_tables_show_the_failures_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PhotoRow(f"p{i}.jpg", int(i > 0), 1.0, 0.1, 0.1, "x", "" if i else "bad") for i in range(100)]
    show_rows(stdout(), rows, tmp_path)
    shown = capsys.readouterr().out
    assert "p0.jpg" in shown
    assert "p50.jpg" not in shown
    assert "100 photos, 99 faces, 1 failed" in shown


def test_model_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mien.morphable.load_model", lambda name: tiny_model())
    assert run("model", "info") == 0
    shown = capsys.readouterr().out
    assert "30 vertices, 40 triangles" in shown
    assert "4 identity, 3 expression, 2 albedo" in shown
    assert "jawOpen, mouthSmileLeft, tongueOut" in shown


def test_doctor_lists_assets_and_finds_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.safetensors").write_bytes(b"")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    row = '{{"name": "{}.safetensors", "bytes": 0, "sha256": "{}", "licence": "CC0-1.0", "source": "-"}}'
    manifest = tmp_path / "manifest.json"
    manifest.write_text(f"[{row.format('good', empty)}]")
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    monkeypatch.setattr(assets, "MANIFEST", manifest)
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    for word in ("python", "torch", "photos", "WebP, TIFF", "native rasterizer", "good.safetensors", "CC0-1.0", "ok"):
        assert word in shown
    manifest.write_text(f"[{row.format('bad', empty)}]")
    assert run("doctor") == 1
    assert "is damaged" in capsys.readouterr().out


def test_evaluate_landmarks_prints_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mien import evaluation

    asked: dict[str, Any] = {}

    class Report:
        def table(self) -> str:
            return "| set | NME |"

    def fake_evaluate(folder: Path, **settings: Any) -> Report:
        asked.update(settings, folder=folder)
        settings["progress"](1, 1)
        return Report()

    monkeypatch.setattr(evaluation, "evaluate_landmarks", fake_evaluate)
    assert run("evaluate", "landmarks", tmp_path, "--perception-only", "--limit", "5") == 0
    assert capsys.readouterr().out == "| set | NME |\n"
    assert (asked["folder"], asked["reconstructor"], asked["limit"]) == (tmp_path, None, 5)


def test_the_command_line_itself_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from mien.cli import app as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "reconstruct" in finished.stdout


def test_modes_are_choices_and_the_same_as_the_reconstructors(capsys: pytest.CaptureFixture[str]) -> None:
    from mien.pipeline.reconstructor import DETAIL_MODES, MODES

    assert tuple(mode.value for mode in Mode) == MODES
    assert tuple(mode.value for mode in DetailMode) == DETAIL_MODES
    assert run("reconstruct", "a.jpg", "--mode", "guess") == 2
    assert "guess" in capsys.readouterr().err


@pytest.mark.parametrize("choice", [[], ["--glb", "sparse"], ["--glb", "dense"]])
def test_the_user_chooses_how_the_glb_stores_morph_targets(tmp_path: Path, choice: list[str]) -> None:
    assert [kind.value for kind in GlbMorphs] == list(MORPH_STORAGE)
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "--out", tmp_path / "out", *choice) == 0
    accessors = Glb((tmp_path / "out" / "a" / "face0" / "face.glb").read_bytes()).document["accessors"]
    assert any("sparse" in accessor for accessor in accessors) == ("dense" not in choice)


def test_without_options_the_packaged_networks_are_used(tmp_path: Path) -> None:
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out")
    (made,) = FakeReconstructor.made
    assert made == {
        "model": "mien-face", "device": "cpu", "detail": True, "resolution": 224, "seed": 0, "max_faces": None,
        "refine_focal": False, "mode": "fit", "encoder": DEFAULT_ENCODER, "focal_px": None,
        "detail_mode": None, "detail_network": DEFAULT_DETAIL,
    }  # fmt: skip


def test_wrong_usage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reconstruct") == 2
    assert run("reconstruct", "a.jpg", "--max-faces", "0") == 2
    assert "max-faces" in capsys.readouterr().err


def test_overlay_of_a_written_result_is_a_picture(tmp_path: Path) -> None:
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out")
    with Image.open(tmp_path / "out" / "a" / "face0" / "overlay.png") as overlay:
        assert np.asarray(overlay).shape == tiny_photo().pixels.shape
