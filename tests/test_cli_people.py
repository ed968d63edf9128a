"""`mien reconstruct` for several photos of one person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mien.cli.reconstruct
import mien.pipeline
from mien.io.result_files import MeshOptions
from tests.command import FakeReconstructor, photo_with, run, summary


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeReconstructor.made.clear()
    FakeReconstructor.photos.clear()
    monkeypatch.setattr(mien.pipeline, "Reconstructor", FakeReconstructor)
    monkeypatch.setattr("mien.export.images.PANEL_SIDE", 24)  # the sheet is not what is tested here
    monkeypatch.setenv("COLUMNS", "200")


def test_photos_of_one_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    photos = [photo_with(tmp_path / name, 1) for name in ("a.png", "b.png", "x/b.png", "face0.png")]
    assert run("reconstruct", "--same-person", *photos, "-o", out, "--focal-px", "800", "--max-megapixels", "5") == 0
    person = out / "person"
    assert sorted(path.name for path in person.iterdir()) == ["a", "b", "b-2", "face0", "face0-2"]
    for folder in (person, person / "a", person / "b-2", person / "face0-2"):
        names = {path.name for path in (folder / "face0").iterdir()}
        assert {"face.glb", "reconstruction.npz", "coefficients.json", "sheet.png", "overlay.png"} <= names
    rows = summary(out)
    assert [Path(row["photo"]).name for row in rows] == [photo.name for photo in photos]
    assert [Path(row["results"]).name for row in rows] == ["a", "b", "b-2", "face0-2"]
    assert FakeReconstructor.made[0] | {"focal_px": 800.0, "max_pixels": 5_000_000} == FakeReconstructor.made[0]
    assert str(person / "a" / "face0") in capsys.readouterr().out


def test_options_of_meshes_hold_for_people_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[dict[str, object]]()

    def write(_face: object, _model: object, _photo: object, _folder: object, **how: object) -> None:
        written.append(how)

    monkeypatch.setattr("mien.export.write_files", write)
    options = ["--formats", "glb,obj", "--units", "mm", "--neutral", "--embed-camera", "--glb", "dense"]
    assert run("reconstruct", "--same-person", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out", *options) == 0
    chosen = MeshOptions(("face",), neutral=True, units="mm", embed_camera=True, morphs="dense")
    assert written == [{"formats": ("glb", "obj", "overlay"), "options": chosen}] * 2  # the person, and the photo
    assert len(written) == 2  # the person's own files, and those of the photo


def test_a_head_of_a_person_needs_a_model_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = photo_with(tmp_path / "a.png", 1)
    assert run("reconstruct", "--same-person", photo, "-o", tmp_path / "out", "--parts", "head") == 1
    assert "no head for the face model" in capsys.readouterr().err
    assert not FakeReconstructor.photos


def test_the_table_has_the_flags_of_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.scale.person_work.flag_words", lambda faces: f"{len(faces)} face covered")
    assert run("reconstruct", "--same-person", photo_with(tmp_path / "a.png", 1), "-o", tmp_path / "out") == 0
    assert [row["flags"] for row in summary(tmp_path / "out")] == ["1 face covered"]


def test_a_photo_without_the_person_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [photo_with(tmp_path / "a.png", 1), photo_with(tmp_path / "b.png", 0)]
    assert run("reconstruct", "--same-person", *photos, "-o", tmp_path / "out", "--json") == 1
    shown = capsys.readouterr()
    first, second = map(json.loads, shown.out.splitlines())
    assert (first["status"], second["status"]) == ("done", "failed")
    assert second["reason"] == "PhotoLeftOut: not the person"
    assert shown.err.count("not the person") == 1
    assert not (tmp_path / "out" / "person" / "b").exists()


def test_each_folder_is_one_person(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name, count in (
        ("anna/1.png", 1),
        ("anna/2.png", 1),
        ("old/anna/1.png", 1),
        ("boris/1.png", 9),
        ("cleo/1.png", 0),
    ):
        photo_with(photos / name, count)
    assert run("reconstruct", "--group-by", "folder", photos, "-o", out) == 1
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["anna", "anna-2"]
    rows = {Path(row["photo"]).relative_to(photos).as_posix(): row for row in summary(out)}
    assert {name for name, row in rows.items() if row["faces"] == "1"} == {"anna/1.png", "anna/2.png", "old/anna/1.png"}
    assert rows["boris/1.png"]["reason"] == "FitDiverged: a number is not finite"
    assert rows["cleo/1.png"]["reason"].startswith("NoFaceFound")
    assert len(FakeReconstructor.made) == 1


def test_a_folder_of_a_single_photo_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = photo_with(tmp_path / "person.png", 1), tmp_path / "out"
    assert run("reconstruct", photo, "-o", out) == 0
    assert run("reconstruct", "--same-person", photo, "-o", out) == 2
    assert "holds the results of a single photo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--same-person", "--group-by", "folder"], "leave one of them out"),
        (["--same-person", "--resume"], "does not use --resume"),
        (["--group-by", "folder", "--jobs", "2"], "does not use --jobs"),
        (["--same-person", "--max-faces", "1"], "does not use --max-faces"),
        (["--same-person", "-o", "anna.glb"], "give a folder"),
        (["--group-by", "name"], "name"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), *options) == 2
    assert message in capsys.readouterr().err
    assert not FakeReconstructor.made
