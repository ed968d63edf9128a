"""`mien reconstruct` for several photos of one person, and for folders of people: --resume, --jobs, killed runs."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mien.cli.reconstruct
import mien.export
import mien.pipeline
from mien.errors import WorkerDied
from mien.io.result_files import MeshOptions
from mien.scale.output_folder import PersonFolder
from mien.scale.photo_work import PhotoSettings
from mien.scale.ray_photos import PhotoResumer
from mien.scale.run_record import read_record
from mien.scale.worker import Outcome
from tests.command import FakeReconstructor, done_until_killed, photo_with, run, summary, write_numbers


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeReconstructor.made.clear()
    FakeReconstructor.photos.clear()
    FakeReconstructor.paths.clear()
    monkeypatch.setattr(mien.pipeline, "Reconstructor", FakeReconstructor)
    monkeypatch.setattr(mien.cli.reconstruct, "core_count", lambda: 1)  # other processes have no fakes
    monkeypatch.setattr("mien.export.images.PANEL_SIDE", 24)  # the sheet is not what is tested here
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mien.export, "write_files", write_numbers)


def redone() -> list[str]:
    """Folder and name of the photos that were reconstructed since the last call."""
    names = [f"{path.parent.name}/{path.name}" for path in FakeReconstructor.paths]
    FakeReconstructor.paths.clear()
    return names


def without_a_row(file: Path) -> None:
    """Damage the record of a person."""
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(record | {"summary": record["summary"][1:]}), encoding="utf-8")


def test_photos_of_one_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    photos = [photo_with(tmp_path / name, 1) for name in ("a.png", "b.png", "x/b.png", "face0.png")]
    assert run("reconstruct", "--same-person", *photos, "-o", out, "--focal-px", "800", "--max-megapixels", "5") == 0
    person = out / "person"
    assert sorted(path.name for path in person.iterdir()) == ["a", "b", "b-2", "face0", "face0-2", "run.json"]
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


def test_standard_input_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = photo_with(tmp_path / "piped.png", 1).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    photo, out = photo_with(tmp_path / "a.png", 1), tmp_path / "out"
    assert run("reconstruct", "--same-person", "-", photo, "-o", out) == 0
    assert [row["results"] for row in summary(out)] == [str(out / "person" / name) for name in ("stdin", "a")]


def test_a_remote_photo_that_cannot_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers_only: None
) -> None:
    photo, out = photo_with(tmp_path / "a.png", 1), tmp_path / "out"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run("reconstruct", "--same-person", "-", photo, "-o", out) == 1
    missing, found = summary(out)
    assert missing["reason"].startswith("PhotoLeftOut: empty")
    assert (found["faces"], found["results"]) == ("1", str(out / "person" / "a"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run("reconstruct", "--same-person", "-", "-o", tmp_path / "alone") == 1
    assert summary(tmp_path / "alone")[0]["reason"].startswith("ImageError: empty")


@pytest.mark.usefixtures("numbers_only")
def test_one_person_needs_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = list[int]()

    def in_processes(folders: Iterable[PersonFolder], _: PhotoSettings, *, jobs: int) -> Iterator[Outcome]:
        used.append(jobs)
        assert len(list(folders)) > 1
        yield from ()

    monkeypatch.setattr(mien.cli.reconstruct, "core_count", lambda: 3)
    monkeypatch.setattr(mien.cli.reconstruct, "reconstruct_in_processes", in_processes)
    for name in ("anna/1.png", "anna/2.png", "boris/1.png"):
        photo_with(tmp_path / name, 1)
    for people in ([tmp_path / "anna"], [tmp_path / "anna", tmp_path / "boris"]):
        run("reconstruct", "--group-by", "folder", *people, "-o", tmp_path / "out")
    assert used == [3]


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


@pytest.mark.usefixtures("numbers_only")
def test_photos_and_people_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    out, photo = tmp_path / "out", photo_with(tmp_path / "anna.png", 1)
    people = [photo_with(tmp_path / place / "anna" / "1.png", 1) for place in ("x", "y")]
    assert run("reconstruct", photo, "-o", out) == 0
    for person in (people[1], people[0], people[1]):
        assert run("reconstruct", "--group-by", "folder", person, "-o", out) == 0
    owners = {path.name: read_record(path) for path in out.iterdir() if path.is_dir()}
    assert {name: record and record.photo for name, record in owners.items()} == {
        "anna": str(photo),
        "anna-2": str(people[1].parent),
        "anna-3": str(people[0].parent),
    }
    assert run("reconstruct", photo, "-o", out, "--resume") == 0
    assert redone() == ["anna/1.png", "anna/1.png", "anna/1.png"]


@pytest.mark.usefixtures("numbers_only")
def test_resume_skips_people_who_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name, count in (("anna/1", 1), ("anna/2", 1), ("boris/1", 9), ("boris/2", 1), ("cleo/1", 1), ("cleo/2", 0)):
        photo_with(photos / f"{name}.png", count)
    command = ["reconstruct", "--group-by", "folder", photos, "-o", out, "--resume"]
    assert run(*command) == 1
    assert len(redone()) == 6
    before = summary(out)
    (out / "summary.csv").unlink()  # what a killed run did not write comes back
    assert run(*command, "--json") == 1
    assert redone() == ["boris/1.png", "boris/2.png"]  # a failed person is tried again, a photo left out is not
    lines = map(json.loads, capsys.readouterr().out.splitlines()[-6:])
    assert sorted((Path(row["photo"]).parent.name, row["status"]) for row in lines) == [
        ("anna", "skipped"),
        ("anna", "skipped"),
        ("boris", "failed"),
        ("boris", "failed"),
        ("cleo", "skipped"),
        ("cleo", "skipped"),
    ]
    kept = ("photo", "faces", "results", "reason")
    assert [[row[key] for key in kept] for row in summary(out)] == [[row[key] for key in kept] for row in before]
    photo_with(photos / "boris" / "1.png", 1)
    assert run(*command, "--seed", "3") == 1
    assert len(redone()) == 6
    assert "done with other options are reconstructed again: seed (0 → 3)" in capsys.readouterr().err


@pytest.mark.usefixtures("numbers_only")
@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda photos, _: photo_with(photos / "2.png", 2), ["1", "2", "3"]),
        (lambda photos, _: photo_with(photos / "4.png", 1), ["1", "2", "3", "4"]),
        (lambda photos, _: (photos / "2.png").unlink(), ["1", "3"]),
        (lambda photos, _: (photos / "2.png").rename(photos / "5.png"), ["1", "3", "5"]),
        (lambda photos, _: photo_with(photos / "3.png", 0), ["1", "2"]),
        (lambda _, out: (out / "face0").rename(out / "gone"), ["1", "2", "3", "gone"]),
        (lambda _, out: (out / "3" / "face0").rename(out / "3" / "gone"), ["1", "2", "3"]),
        (lambda _, out: without_a_row(out / "run.json"), ["1", "2", "3"]),
    ],
)
def test_resume_redoes_a_person_whose_photos_or_results_changed(
    tmp_path: Path, change: Callable[[Path, Path], object], left: list[str]
) -> None:
    photos, out = tmp_path / "anna", tmp_path / "out"
    for name in ("1", "2", "3"):
        photo_with(photos / f"{name}.png", 1)
    command = ["reconstruct", "--group-by", "folder", photos, "-o", out, "--resume"]
    assert run(*command) == 0
    redone()
    change(photos, out / "anna")
    run(*command)
    assert len(redone()) == len(list(photos.iterdir()))
    run(*command)
    assert not redone()
    assert {path.name for path in (out / "anna").iterdir()} == {*left, "face0", "run.json"}


@pytest.mark.usefixtures("numbers_only")
def test_ctrl_c_keeps_people_and_names_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name, count in (("anna", 1), ("boris", 7), ("cleo", 1)):
        photo_with(photos / name / "1.png", count)
        photo_with(photos / name / "2.png", 1)
    command = ["reconstruct", "--group-by", "folder", photos, "-o", out]
    assert run(*command) == 130
    assert "stopped after 2 of 6 photos" in capsys.readouterr().err
    photo_with(photos / "boris" / "1.png", 1)
    redone()
    assert run(*command, "--resume") == 0
    assert redone() == ["boris/1.png", "boris/2.png", "cleo/1.png", "cleo/2.png"]
    assert len(summary(out)) == 6


def test_a_process_of_ray_does_and_skips_people(tmp_path: Path) -> None:
    """What `reconstruct_on_ray` runs in each process."""
    photos = tuple(photo_with(tmp_path / "anna" / name, 1) for name in ("1.png", "2.png"))
    work = PhotoResumer(PhotoSettings(formats=("npz",)))
    for path, owner in (("anna", str(photos[0].parent)), ("bad", "bad")):
        folder = PersonFolder(tmp_path / "out" / path, owner, photos)
        first, again = work(folder), work(folder)
        assert not first.earlier
        assert again.earlier
        assert again.rows == tuple(row.absolute() for row in first.rows)
        assert [Path(row.results).name for row in first.rows] == ["1", "2"]
    (folder.path / "run.json").write_text("{")
    broken = work(folder)
    assert [row.reason.partition(":")[0] for row in broken.rows] == ["FormatError", "FormatError"]


@pytest.mark.usefixtures("numbers_only")
def test_people_go_to_ray_as_photos_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is replaced by this process; tests/test_ray.py has the cluster."""

    def run_here(make: Callable[[], Any], calls: dict[Any, tuple[Any, ...]], **_: object) -> Iterator[tuple[Any, Any]]:
        work = make()
        for key, arguments in calls.items():
            yield key, WorkerDied("lost") if "boris" in str(key.path) else work(*pickle.loads(pickle.dumps(arguments)))

    monkeypatch.setattr("mien.scale.ray_photos.run_on_ray", run_here)
    for name in ("anna/1", "anna/2", "boris/1"):
        photo_with(tmp_path / "photos" / f"{name}.png", 1)
    command = ["reconstruct", "--group-by", "folder", tmp_path / "photos", "-o", tmp_path / "out", "--engine", "ray"]
    assert run(*command) == 1
    assert redone() == ["anna/1.png", "anna/2.png"]
    assert [row["reason"] for row in summary(tmp_path / "out")] == ["", "", "WorkerDied: lost"]
    assert run(*command) == 1
    assert redone() == []  # Ray always skips what is done


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
def test_a_run_over_people_that_is_killed_finishes_with_resume(tmp_path: Path) -> None:
    photos, out, names = tmp_path / "photos", tmp_path / "out", [f"p{number:02}" for number in range(12)]
    for name in names:
        photo_with(photos / name / "1.png", 9 if name == "p05" else 1)
        photo_with(photos / name / "2.png", 1)
    command = [sys.executable, "-m", "tests.command", "reconstruct", "--group-by", "folder", str(photos), "--json"]
    command += ["-o", str(out), "--resume"]
    done: list[str] = []
    for stop in (3, 6):
        done += done_until_killed(command, after=stop)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    assert {Path(row["photo"]).parent.name for row in rows if row["status"] == "failed"} == {"p05"}
    done += [row["photo"] for row in rows if row["status"] == "done"]
    assert len(done) == len(set(done)), "a person was done twice"
    assert sorted(row["photo"] for row in summary(out)) == sorted(str(path) for path in photos.glob("*/*.png"))
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [name for name in names if name != "p05"]
    for row in summary(out):
        assert row["reason"] or (Path(row["results"]) / "face0" / "reconstruction.npz").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--same-person", "--group-by", "folder"], "leave one of them out"),
        (["--same-person", "--engine", "ray", "-o", "s3://bucket/out"], "give one that all machines see"),
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
