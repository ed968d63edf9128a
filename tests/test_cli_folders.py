"""`mien reconstruct` into a folder that has results: merged tables, --resume, locks, and killed runs."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

import mien.cli.reconstruct
import mien.export
import mien.pipeline
import mien.scale.run_record
from mien.errors import ConfigError
from mien.io.folder_lock import LOCK_FILE
from mien.result import Reconstruction
from mien.scale.output_folder import OutputFolder
from mien.scale.summary import PhotoRow, SummaryTable
from tests.command import FakeReconstructor, done_until_killed, photo_with, run, summary, write_numbers

HEADER = "photo,faces,seconds,landmark_error,photometric_error,results,reason\n"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeReconstructor.photos.clear()
    monkeypatch.setattr(mien.pipeline, "Reconstructor", FakeReconstructor)
    monkeypatch.setattr(mien.cli.reconstruct, "core_count", lambda: 1)  # other processes have no fakes
    monkeypatch.setattr(mien.export, "write_files", write_numbers)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def redone() -> list[str]:
    """The photos that were reconstructed since the last call."""
    names = list(FakeReconstructor.photos)
    FakeReconstructor.photos.clear()
    return names


def results(out: Path) -> dict[str, str]:
    """Photo and folder of each row, as names relative to the tables' parent."""
    return {
        Path(row["photo"]).relative_to(out.parent).as_posix(): Path(row["results"]).name if row["results"] else ""
        for row in summary(out)
    }


def test_rows_of_other_photos_stay_and_rows_of_the_same_photo_are_replaced(tmp_path: Path, out: Path) -> None:
    run("reconstruct", photo_with(tmp_path / "a.png", 1), photo_with(tmp_path / "b.png", 1), "-o", out)
    assert run("reconstruct", photo_with(tmp_path / "a.png", 0), photo_with(tmp_path / "c.png", 1), "-o", out) == 1
    assert results(out) == {"a.png": "", "b.png": "b", "c.png": "c"}
    assert [bool(row["reason"]) for row in summary(out)] == [True, False, False]


def test_a_run_that_fails_at_once_leaves_the_table(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConfigError("mode='fit' is not used")

    run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", out)
    before = (out / "summary.csv").read_bytes()
    monkeypatch.setattr(mien.pipeline, "Reconstructor", refuse)
    assert run("reconstruct", tmp_path / "a.png", "-o", out) == 2
    assert (out / "summary.csv").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_photo_is_the_same_from_every_folder(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_with(tmp_path / "photos" / "a.png", 1)
    (tmp_path / "link").symlink_to(tmp_path / "photos", target_is_directory=True)
    for folder, name in (("photos", "a.png"), (".", "photos/a.png"), ("photos", "../link/a.png")):
        monkeypatch.chdir(tmp_path / folder)
        run("reconstruct", name, "-o", os.path.relpath(out))
    assert results(out) == {"photos/a.png": "a"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_to_itself_is_a_row(tmp_path: Path, out: Path) -> None:
    photo_with(tmp_path / "in" / "a.png", 1)
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    assert run("reconstruct", tmp_path / "in", "-o", out) == 1
    reasons = {Path(row["photo"]).name: row["reason"].partition(":")[0] for row in summary(out)}
    assert reasons == {"a.png": "", "loop.png": "ImageError"}


def test_photos_of_equal_names_keep_their_folders_from_run_to_run(tmp_path: Path, out: Path) -> None:
    x, y = photo_with(tmp_path / "x" / "a.png", 1), photo_with(tmp_path / "y" / "A.png", 2)
    run("reconstruct", x, "-o", out)
    run("reconstruct", y, "-o", out)
    assert results(out) == {"x/a.png": "a", "y/A.png": "A-2"}
    assert (out / "A-2" / "face1").is_dir()
    run("reconstruct", y, x, "-o", out)
    assert results(out) == {"x/a.png": "a", "y/A.png": "A-2"}
    (out / "summary.csv").unlink()
    run("reconstruct", photo_with(tmp_path / "z" / "a.png", 1), "-o", out)
    assert results(out) == {"z/a.png": "a-3"}


def test_folders_never_collide_and_never_lead_out_of_the_output(out: Path) -> None:
    out.mkdir()
    names = ["a.jpg", "x/a.png", "b.jpg", "A.webp", "a-2.jpg", "summary.csv.jpg", "photos/..jpg", "photos/...jpg"]
    folders = OutputFolder(out)
    found = [folders.folder_of(Path(name)).path for name in names]
    assert [path.name for path in found] == ["a", "a-2", "b", "A-3", "a-2-2", "summary.csv-2", ".-2", "..-2"]
    assert {path.parent for path in found} == {out}


def test_folders_of_mien_0_2_belong_to_the_photo_in_its_table(tmp_path: Path, out: Path) -> None:
    old = photo_with(tmp_path / "x" / "a.png", 1)
    (out / "a" / "face0").mkdir(parents=True)
    (out / "summary.csv").write_text(f"{HEADER}{old},1,2.5,0.03,0.02,{out / 'a'},\n{tmp_path}/x/cut.png,1,2")
    run("reconstruct", photo_with(tmp_path / "y" / "a.png", 1), "-o", out)
    run("reconstruct", old, "-o", out)
    assert results(out) == {"x/a.png": "a", "y/a.png": "a-2"}


@pytest.mark.parametrize("content", [b"name,age\nAnna,7\n", b"photo\xff\n", HEADER.replace(",", ";").encode()])
def test_a_table_of_somebody_else_is_not_overwritten(
    tmp_path: Path, out: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "summary.csv").write_bytes(content)
    assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", out) == 1
    assert "summary.csv: " in capsys.readouterr().err
    assert (out / "summary.csv").read_bytes() == content
    assert redone() == []


def test_writing_a_long_table_takes_a_small_share_of_the_time(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir()
    clock = itertools.count()  # each look at the clock takes a second, and so each writing
    monkeypatch.setattr("mien.scale.summary.time.monotonic", lambda: float(next(clock)))
    table, written = SummaryTable(out), []
    monkeypatch.setattr("mien.scale.summary.write_whole", lambda path, save: written.append(path))
    for index in range(100):
        table.add(PhotoRow(f"{index}.png", 1, 1.0, 0.1, 0.1, f"out/{index}", ""))
    assert 4 <= len(written) <= 6


def test_resume_skips_what_is_done_and_retries_what_failed(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [photo_with(tmp_path / "in" / f"{name}.png", faces) for name, faces in (("a", 1), ("b", 0), ("c", 2))]
    assert run("reconstruct", tmp_path / "in", "-o", out) == 1
    assert redone() == ["a.png", "b.png", "c.png"]
    before = (out / "summary.csv").read_bytes()
    (out / "summary.csv").unlink()  # what a killed run did not write comes back
    photo_with(photos[1], 1)
    assert run("reconstruct", tmp_path / "in", "-o", out, "--resume") == 0
    assert redone() == ["b.png"]
    assert "3 photos, 4 faces, 0 failed, 2 done earlier" in capsys.readouterr().out
    assert [row["photo"] for row in summary(out)] == [str(photo) for photo in photos]
    assert before.splitlines()[1] == (out / "summary.csv").read_bytes().splitlines()[1]
    assert run("reconstruct", tmp_path / "in", "-o", out) == 0
    assert redone() == ["a.png", "b.png", "c.png"]


def test_resume_redoes_changed_photos_options_files_and_results(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, encoder = photo_with(tmp_path / "a.png", 1), tmp_path / "mine.safetensors"
    encoder.write_bytes(b"1")
    command = ["reconstruct", a, "-o", out, "--mode", "net", "--encoder", encoder]

    def resumed(*more: str | Path) -> list[str]:
        capsys.readouterr()
        run(*command, "--resume", *more)
        return redone()

    assert resumed() == ["a.png"]
    assert resumed("--quiet") == []
    photo_with(a, 2)
    assert (resumed(), resumed()) == (["a.png"], [])
    assert resumed("--seed", "3") == ["a.png"]
    assert "photos that were done with other options are reconstructed again: seed (0 → 3)" in capsys.readouterr().err
    encoder.write_bytes(b"2")
    assert (resumed("--seed", "3"), resumed("--seed", "3")) == (["a.png"], [])
    (out / "a" / "face1").rename(out / "a" / "gone")
    assert (resumed("--seed", "3"), resumed("--seed", "3")) == (["a.png"], [])
    monkeypatch.setattr(mien.scale.run_record, "__version__", "9.0")
    assert resumed("--seed", "3") == ["a.png"]


def test_a_photo_that_fails_now_is_retried_although_it_was_done_before(tmp_path: Path, out: Path) -> None:
    a = photo_with(tmp_path / "a.png", 1)
    run("reconstruct", a, "-o", out)
    good = a.read_bytes()
    photo_with(a, 0)
    run("reconstruct", a, "-o", out)
    a.write_bytes(good)
    redone()
    assert run("reconstruct", a, "-o", out, "--resume") == 0
    assert redone() == ["a.png"]


def test_a_damaged_record_is_named(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = photo_with(tmp_path / "a.png", 1)
    run("reconstruct", a, "-o", out)
    for content in ("{", '{"format": "mien-run-9"}', '{"format": "mien-run-1"}', "[]"):
        (out / "a" / "run.json").write_text(content)
        assert run("reconstruct", a, "-o", out) == 1
        assert f"{out / 'a' / 'run.json'}: damaged" in capsys.readouterr().err


def test_ctrl_c_keeps_results_and_names_resume(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, faces in (("a", 1), ("b", 7), ("c", 1)):
        photo_with(tmp_path / "in" / f"{name}.png", faces)
    assert run("reconstruct", tmp_path / "in", "-o", out) == 130
    printed = capsys.readouterr().err
    assert "stopped after 1 of 3 photos" in printed
    assert "--resume" in printed
    assert "Traceback" not in printed
    assert [Path(row["photo"]).name for row in summary(out)] == ["a.png"]
    photo_with(tmp_path / "in" / "b.png", 1)
    redone()
    assert run("reconstruct", tmp_path / "in", "-o", out, "--resume") == 0
    assert redone() == ["b.png", "c.png"]


def test_a_photo_that_needs_too_much_memory_is_a_row(tmp_path: Path, out: Path) -> None:
    for name, faces in (("a", 1), ("b", 6), ("c", 1)):
        photo_with(tmp_path / "in" / f"{name}.png", faces)
    assert run("reconstruct", tmp_path / "in", "-o", out) == 1
    reasons = [row["reason"] for row in summary(out)]
    assert reasons[0] == reasons[2] == ""
    assert reasons[1].startswith("OutOfMemory: memory ran out ([enforce fail")


def test_a_photo_whose_faces_were_written_in_part_is_not_done(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = photo_with(tmp_path / "a.png", 2)
    run("reconstruct", a, "-o", out)
    write = mien.export.write_files

    def stop(face: Reconstruction, model: object, photo: object, folder: Path, **how: object) -> None:
        if folder.name == "face1":
            raise KeyboardInterrupt
        write_numbers(face, model, photo, folder, **how)

    monkeypatch.setattr(mien.export, "write_files", stop)
    assert run("reconstruct", a, "-o", out, "--seed", "1") == 130
    monkeypatch.setattr(mien.export, "write_files", write)
    redone()
    for seed in "01":
        run("reconstruct", a, "-o", out, "--seed", seed, "--resume")
        assert redone() == ["a.png"], seed


def test_two_runs_into_one_folder_are_refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    (out / ".mien.lock-holder").write_text("process 12 on host")
    with FileLock(out / LOCK_FILE):
        assert run("reconstruct", photo_with(tmp_path / "a.png", 1), "-o", out) == 1
    assert f"{out}: another run (process 12 on host) writes into it; wait" in capsys.readouterr().err
    assert redone() == []
    assert run("reconstruct", tmp_path / "a.png", "-o", out) == 0
    assert not (out / ".mien.lock-holder").exists()


@pytest.mark.slow
def test_four_processes_with_one_folder_lose_no_row(tmp_path: Path, out: Path) -> None:
    """Each has three photos, and waits for a fourth one on standard input; those that are refused start again."""
    fourth = photo_with(tmp_path / "fourth.png", 1).read_bytes()
    photos = {k: [str(photo_with(tmp_path / "in" / f"{k}-{n}.png", 1)) for n in range(3)] for k in range(4)}
    waiting = set(photos)
    while waiting:
        command = [sys.executable, "-m", "tests.command", "reconstruct", "-o", str(out), "--quiet"]
        running = {
            k: subprocess.Popen([*command, *photos[k], "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            for k in waiting
        }
        end = time.monotonic() + 200
        while sum(process.poll() is None for process in running.values()) > 1 and time.monotonic() < end:
            time.sleep(0.01)
        alive = [k for k, process in running.items() if process.poll() is None]
        for k, process in running.items():
            _, printed = process.communicate(fourth if [k] == alive else None)
            assert [k] == alive or b"writes into it; wait until it ends" in printed, printed
            assert process.returncode == ([k] != alive), printed
        waiting -= set(alive)
    rows = summary(out)
    expected = [*itertools.chain.from_iterable(photos.values()), "standard input"]
    assert sorted(row["photo"] for row in rows) == sorted(expected)
    assert all(row["reason"] == "" and (Path(row["results"]) / "face0").is_dir() for row in rows)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [LOCK_FILE]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
def test_a_run_that_is_killed_three_times_finishes_with_resume(tmp_path: Path, out: Path) -> None:
    count, rng = 60, random.Random(0)
    bad = {7, 27, 47}
    for index in range(count):
        photo_with(tmp_path / "in" / f"{index:03}.png", 0 if index in bad else 1)
    command = [sys.executable, "-m", "tests.command", "reconstruct", str(tmp_path / "in"), "-o", str(out), "--resume"]
    done: list[str] = []
    for _ in range(3):
        done += done_until_killed([*command, "--json"], after=rng.randint(5, 15))
        rows = summary(out)
        assert all(None not in row.values() for row in rows), "the table is torn"
    finished = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr
    status = {Path(row["photo"]).name: row["status"] for row in map(json.loads, finished.stdout.splitlines())}
    assert len(status) == count
    assert {int(name[:3]) for name, value in status.items() if value == "failed"} == bad
    done += [row["photo"] for row in map(json.loads, finished.stdout.splitlines()) if row["status"] == "done"]
    assert len(done) == len(set(done)), "a photo was done twice"
    assert len(done) + 3 >= count - len(bad)  # a kill between the record and the printed line hides one
    rows = summary(out)
    assert sorted(row["photo"] for row in rows) == [str(tmp_path / "in" / f"{i:03}.png") for i in range(count)]
    assert all((Path(row["results"]) / "face0" / "reconstruction.npz").is_file() for row in rows if not row["reason"])
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        f"{index:03}" for index in range(count) if index not in bad
    ]
