"""The command `mien reconstruct`."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console

import mien.cli.reconstruct
import mien.pipeline
from mien.cli.formats import Turntable, all_formats, check_mesh_options
from mien.cli.options import GlbMorphs
from mien.cli.summary import show_rows
from mien.cli.terminal import stdout
from mien.errors import FaceDoubtful, PhotoReduced
from mien.io.result_files import MORPH_STORAGE, MeshOptions
from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
from mien.quality import CoveredShares, FaceMeasures, FaceQuality
from mien.result import Reconstruction
from mien.scale.summary import PhotoRow
from tests.command import FakeReconstructor, photo_with, run, summary
from tests.glb_reader import Glb
from tests.tiny_face import tiny_photo, tiny_reconstruction


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeReconstructor.made.clear()
    FakeReconstructor.photos.clear()
    monkeypatch.setattr(mien.pipeline, "Reconstructor", FakeReconstructor)
    monkeypatch.setattr(mien.cli.reconstruct, "core_count", lambda: 1)  # other processes have no fakes
    monkeypatch.setattr("mien.export.images.PANEL_SIDE", 24)  # the sheet is not what is tested here
    monkeypatch.setenv("COLUMNS", "200")


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
    assert sorted(path.name for path in out.iterdir()) == [".mien.lock", "a", "a-2", "summary.csv"]
    assert sorted(path.name for path in (out / "a").iterdir()) == ["face0", "face1", "run.json"]
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
    assert sorted(path.name for path in (out / "a").iterdir()) == ["face0", "face7", "face_notes", "run.json"]


@pytest.mark.parametrize("options", [("--parts", "head"), ("--formats", "expressions"), ("--turntable", "webp")])
def test_a_head_is_refused_before_the_first_photo_if_the_face_model_has_none(
    options: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo_with(tmp_path / "a.png", 1)
    assert run("reconstruct", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *options) == 1
    assert "only mien-face has one" in capsys.readouterr().err
    assert FakeReconstructor.photos == []


def test_a_video_without_pyav_is_refused_before_the_first_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    photo = photo_with(tmp_path / "a.png", 1)
    assert run("reconstruct", photo, "-o", tmp_path / "out", "--turntable", "mp4") == 2
    assert "mien[video]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert FakeReconstructor.photos == []


def test_formats_choose_the_files(tmp_path: Path) -> None:
    photo, out = photo_with(tmp_path / "a.png", 2), tmp_path / "out"
    assert run("reconstruct", photo, "-o", out) == 0
    names = {path.name for path in (out / "a" / "face1").iterdir()}
    assert names == {"face.glb", "sheet.png", "reconstruction.npz", "coefficients.json"}
    assert run("reconstruct", photo, "-o", out, "--formats", "ply,json") == 0
    assert {path.name for path in (out / "a" / "face1").iterdir()} == {"face.ply", "coefficients.json"}
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", out, "--formats", "ply")
    # face1 is removed although it holds no reconstruction.npz.
    assert sorted(path.name for path in (out / "a").iterdir()) == ["face0", "run.json"]


def test_options_of_meshes_reach_the_files(tmp_path: Path) -> None:
    photo, out = photo_with(tmp_path / "a.png", 1), tmp_path / "out"
    choice = ("--formats", "glb,obj,json", "--neutral", "--units", "mm", "--embed-camera")
    assert run("reconstruct", photo, "-o", out, *choice) == 0
    document = Glb((out / "a" / "face0" / "face.glb").read_bytes()).document
    assert not any(document["meshes"][0]["weights"])
    assert document["cameras"][0]["extras"]["photoPx"]
    assert "# mien: mm," in (out / "a" / "face0" / "face.obj").read_text()
    assert json.loads((out / "a" / "run.json").read_text())["options"]["units"] == "mm"
    assert run("reconstruct", photo, "-o", tmp_path / "anna.obj", "--units", "cm", "--neutral") == 0
    assert "# mien: cm," in (tmp_path / "anna.obj").read_text()


def test_a_mesh_file_is_the_most_prominent_face_alone(tmp_path: Path) -> None:
    photo = photo_with(tmp_path / "a.png", 2)
    assert run("reconstruct", photo, "-o", tmp_path / "new" / "anna.glb") == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["anna.glb"]
    assert FakeReconstructor.made[-1]["max_faces"] == 1
    none = photo_with(tmp_path / "nobody.png", 0)
    assert run("reconstruct", none, "-o", tmp_path / "nobody.glb") == 1
    assert not (tmp_path / "nobody.glb").exists()


def test_a_doubtful_face_of_one_file_gives_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = FaceMeasures(CoveredShares(), (0.3, 0.3), 5.0, 0.0, 20.0, 0.5, 0.6, 0.0, 0.8)
    face = replace(tiny_reconstruction(), quality=FaceQuality.judge(measures, landmark_error=0.02))

    def found(*_: object, **__: object) -> list[Reconstruction]:
        warnings.warn(FaceDoubtful("the face is tiny"), stacklevel=2)
        return [face]

    monkeypatch.setattr(FakeReconstructor, "__call__", found)
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "a.ply") == 0
    shown = capsys.readouterr().err
    assert "note: the face is 20 pixels high" in shown
    assert "FaceDoubtful" not in shown


def test_the_texture_of_an_obj_does_not_replace_the_photo(tmp_path: Path) -> None:
    photo = photo_with(tmp_path / "anna.png", 1)
    content = photo.read_bytes()
    assert run("reconstruct", photo, "-o", tmp_path / "anna.obj") == 0
    assert photo.read_bytes() == content
    assert (tmp_path / "anna_texture.png").is_file()


def test_results_are_not_photos_of_a_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_with(tmp_path / "a.png", 1)
    photo_with(tmp_path / "face7" / "b.png", 1)
    monkeypatch.chdir(tmp_path)
    for out in ("out", ".", "out2"):
        for formats in ("sheet", "maps,json"):
            FakeReconstructor.photos.clear()
            assert run("reconstruct", ".", "-o", out, "--formats", formats) == 0
            assert FakeReconstructor.photos == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--formats glb,stl", "formats contains 'stl'; choose from glb"),
        ("a.png -o one.glb", "one.glb is one file, but there are 2 photos"),
        ("-o one.glb --formats glb", "--formats: --out one.glb is one file; leave --formats out, or give a folder"),
        ("-o one.glb --json", "--out one.glb is one file; leave --json out"),
        ("-o one.glb --resume", "--out one.glb is one file; leave --resume out"),
        ("--parts hand", "parts contains 'hand'; choose from face, head"),
        ("-o one.glb --parts face,head", "one.glb is one file, but there are two parts; choose one"),
        ("-o one.glb --units cm", "units='cm' has no effect on the formats glb; choose one of obj, ply, usd"),
        ("--formats obj,json --embed-camera", "embed_camera=True has no effect on the formats obj, json"),
        ("--formats json --parts head", "parts='head' has no effect on the formats json; choose one of glb, obj, ply"),
        ("--formats json --neutral", "neutral=True has no effect on the formats json"),
        ("--formats obj --glb dense", "morphs='dense' has no effect on the formats obj; choose one of glb, vrm"),
        ("--formats glb --scalp skin", "scalp='skin' changes only heads"),
    ],
)
def test_wrong_choices_of_files_are_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photo_with(tmp_path / "a.png", 1)
    photo_with(tmp_path / "b.png", 1)
    assert run("reconstruct", "b.png", *options.split()) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not FakeReconstructor.made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_options_reach_the_reconstructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = photo_with(tmp_path / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    for name in ("x", "mine", "maps"):
        (tmp_path / f"{name}.safetensors").touch()
    options = (
        "--model x.safetensors --device cuda --no-detail --max-faces 3 --seed 7 --resolution 512 --focal-px 900 "
        "--texture-size 2048 --principal-point 320.5 -40 "
        "--refine-focal --mode auto --encoder mine.safetensors --detail-mode net --detail-network maps.safetensors"
    )
    run("reconstruct", photo, "-o", tmp_path / "out", *options.split())
    assert FakeReconstructor.made == [
        {
            "model": "x.safetensors", "device": "cuda", "detail": False, "resolution": 512, "seed": 7, "max_faces": 3,
            "texture_size": 2048, "refine_focal": True, "mode": "auto",
            "encoder": "mine.safetensors", "focal_px": 900.0,
            "principal_point_px": (320.5, -40.0),
            "detail_mode": "net", "detail_network": "maps.safetensors",
        }
    ]  # fmt: skip


def test_large_photos_are_reduced_or_read_whole(tmp_path: Path) -> None:
    photo = tmp_path / "large.jpg"
    Image.new("RGB", (1250, 1000), (1, 1, 1)).save(photo)
    with pytest.warns(PhotoReduced, match="more than 1 megapixels, decoded at 1/2 of its size, 625 × 500"):
        assert run("reconstruct", photo, "-o", tmp_path / "out", "--max-megapixels", "1") == 0
    assert run("reconstruct", photo, "-o", tmp_path / "out") == 0


@pytest.mark.parametrize("choice", [[], ["--glb", "sparse"], ["--glb", "dense"]])
def test_the_user_chooses_how_the_glb_stores_morph_targets(tmp_path: Path, choice: list[str]) -> None:
    assert [kind.value for kind in GlbMorphs] == list(MORPH_STORAGE)
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "--out", tmp_path / "out", *choice) == 0
    accessors = Glb((tmp_path / "out" / "a" / "face0" / "face.glb").read_bytes()).document["accessors"]
    assert any("sparse" in accessor for accessor in accessors) == ("dense" not in choice)


def test_a_turntable_shows_the_scalp() -> None:
    head_skin = MeshOptions.parsed("face", scalp="skin")
    check_mesh_options(head_skin, Path("out"), all_formats("json", Turntable.WEBP))
    with pytest.raises(typer.BadParameter, match="changes only heads"):
        check_mesh_options(head_skin, Path("out"), all_formats("json", None))


@pytest.mark.parametrize(("below", "code"), [("", 2), ("below", 1)])
def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str, code: int
) -> None:
    (tmp_path / "out").write_text("a file")
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out" / below) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert FakeReconstructor.made == []


def test_a_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", out)
    before = (out / "summary.csv").read_bytes()
    FakeReconstructor.made.clear()
    monkeypatch.setattr(os, "fsync", full)
    assert run("reconstruct", photo_with(tmp_path / "b.png", 1), "-o", out) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert "cannot be written (No space left on device)" in shown.err
    assert not FakeReconstructor.made
    assert (out / "summary.csv").read_bytes() == before


def test_a_narrow_terminal_cuts_nothing_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    lady, nobody = "portrait_of_a_lady", "portrait_of_nobody"
    rows = [
        PhotoRow(f"{lady}.png", 1, 1.0, 0.1, 0.1, f"results/{lady}", ""),
        PhotoRow(f"{nobody}.png", 0, 1.0, None, None, "", "NoFaceFound: no face was found"),
    ]
    show_rows(stdout(), rows, tmp_path, skipped=0, only_failed=False)
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
    show_rows(stdout(), rows, tmp_path, skipped=0, only_failed=False)
    shown = capsys.readouterr().out
    assert "p0.jpg" in shown
    assert "p50.jpg" not in shown
    assert "100 photos, 99 faces, 1 failed" in shown


def test_without_options_the_packaged_networks_are_used(tmp_path: Path) -> None:
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out")
    (made,) = FakeReconstructor.made
    assert made == {
        "model": "mien-face", "device": "cpu", "detail": True, "resolution": 224, "seed": 0, "max_faces": None,
        "texture_size": None, "refine_focal": False, "mode": None, "encoder": DEFAULT_ENCODER, "focal_px": None,
        "principal_point_px": None,
        "detail_mode": None, "detail_network": DEFAULT_DETAIL,
    }  # fmt: skip


def test_overlay_of_a_written_result_is_a_picture(tmp_path: Path) -> None:
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out", "--formats", "overlay")
    with Image.open(tmp_path / "out" / "a" / "face0" / "overlay.png") as overlay:
        assert np.asarray(overlay).shape == tiny_photo().pixels.shape


def test_in_a_pipe_each_photo_is_a_line_and_errors_go_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, none = photo_with(tmp_path / "one.png", 2), photo_with(tmp_path / "none.png", 0)
    assert run("reconstruct", one, none, "-o", tmp_path / "out") == 1
    shown = capsys.readouterr()
    first = shown.out.splitlines()[0]
    assert re.fullmatch(rf"{one}: 2 faces in \d+\.\d s, .*/out/one/face0 … face1, landmark error 3\.1 %", first)
    assert shown.err == f"error: {none}: NoFaceFound: no face was found\n"
    assert str(one) not in "".join(shown.out.splitlines()[1:])  # the table has the failures only
    assert "none.png" in shown.out


def test_json_is_one_object_per_photo_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [photo_with(tmp_path / f"{name}.png", count) for name, count in (("a", 2), ("b", 0), ("c", 8))]
    with pytest.warns(UserWarning, match="something else"):
        assert run("reconstruct", *photos, "-o", tmp_path / "out", "--json") == 1
    a, b, c = map(json.loads, capsys.readouterr().out.splitlines())
    assert a.pop("seconds") > 0
    assert a == {
        "status": "done", "photo": str(photos[0]), "faces": 2, "landmark_error": 0.031, "photometric_error": 0.022,
        "results": str(tmp_path / "out" / "a"), "reason": "", "flags": "",
    }  # fmt: skip
    assert (b["status"], b["landmark_error"], b["reason"]) == ("failed", None, "NoFaceFound: no face was found")
    assert (c["status"], c["faces"]) == ("incomplete", 1)
    assert run("reconstruct", photos[0], "-o", tmp_path / "out", "--json", "--resume") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "skipped"


def test_quiet_prints_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, none = photo_with(tmp_path / "one.png", 1), photo_with(tmp_path / "none.png", 0)
    assert run("reconstruct", one, none, "-o", tmp_path / "out", "--quiet") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {none}: NoFaceFound: no face was found\n"
    assert [bool(row["reason"]) for row in summary(tmp_path / "out")] == [False, True]


@pytest.mark.parametrize(("count", "options", "bar"), [(1, [], True), (2, [], True), (2, ["--quiet"], False)])
def test_a_terminal_shows_the_stage_of_the_photo(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    count: int,
    options: list[str],
    bar: bool,
) -> None:
    def terminal() -> Console:
        return Console(stderr=True, force_terminal=True)

    monkeypatch.setattr("mien.cli.progress.stderr", terminal)
    photos = [photo_with(tmp_path / f"{index}.png", 0) for index in range(count)]
    run("reconstruct", *photos, "-o", tmp_path / "out", *options)
    shown = capsys.readouterr()
    assert ("fitting colours 40 %" in shown.err) == bar
    assert (f"{count}/{count}" in shown.err) == (bar and count > 1)
    assert "fitting" not in shown.out


def test_a_bar_on_stderr_leaves_the_json_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mien.cli.progress.stderr", lambda: Console(stderr=True, force_terminal=True))
    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out", "--json")
    shown = capsys.readouterr()
    assert json.loads(shown.out)["faces"] == 1
    assert "loading the model" in shown.err
