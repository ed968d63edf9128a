"""Photos in several processes: the same files as in one, and what happens when a process dies or is stopped."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mien.errors import ConfigError, FaceLeftOut
from mien.io.photo import Photo, read_photo
from mien.pipeline import Reconstructor
from mien.pipeline.joint import PersonFaces
from mien.scale import preload
from mien.scale.output_folder import PersonFolder, PhotoFolder, open_output
from mien.scale.photo_work import PhotoSettings
from mien.scale.processes import reconstruct_here, reconstruct_in_processes
from mien.scale.worker import Outcome
from tests.command import FakeReconstructor, photo_with, summary

pytestmark = pytest.mark.slow  # each process imports torch


class _Fake(FakeReconstructor):
    """Also kills its process at brightness 20, raises an unexpected error at 21, takes very long at 23, and names the
    process that started its own at 24."""

    def __call__(self, photo: Photo, **settings: Any) -> list[Any]:
        level = int(photo.pixels[0, 0, 0])
        if level == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if level == 21:
            raise TypeError("a bug")
        if level == 23:
            time.sleep(600)
        if level == 24:
            raise ConfigError(f"started by {os.getppid()}")
        faces = super().__call__(photo, **settings)
        if torch.get_num_threads() != 1:
            raise AssertionError("more than one thread")
        return faces

    def joint_one_by_one(self, photos: Any, **settings: Any) -> PersonFaces:
        if any(read_photo(photo).pixels[0, 0, 0] == 20 for photo in photos):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().joint_one_by_one(photos, **settings)


@dataclass(frozen=True)
class FakeSettings(PhotoSettings):
    """Settings that need no weights, in any process."""

    formats: str | tuple[str, ...] = ("json",)
    wrong: bool = False

    def reconstructor(self) -> Reconstructor:
        if self.wrong:
            raise ConfigError("wrong=True is wrong.")
        return cast("Reconstructor", _Fake())


def _folders(out: Path, *levels: int) -> list[PhotoFolder]:
    photos = [photo_with(out.parent / "in" / f"{n:02}.png", level) for n, level in enumerate(levels)]
    return [PhotoFolder(out / photo.stem, photo) for photo in photos]


def _outcomes(folders: list[PhotoFolder], settings: PhotoSettings, *, jobs: int = 2) -> dict[str, Outcome]:
    outcomes = list(reconstruct_in_processes(folders, settings, jobs=jobs))
    found = {Path(outcome.row.photo).stem: outcome for outcome in outcomes}
    assert len(found) == len(outcomes) == len(folders), "each photo once"
    return found


def _files(out: Path) -> dict[str, bytes]:
    """All files without the times in them."""
    timed = {"run.json", "coefficients.json"}
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.*") if file.name not in timed}


def test_a_process_that_dies_costs_its_photo_alone(tmp_path: Path) -> None:
    folders = _folders(tmp_path / "out", 1, 20, 0, 2, 20, 1, 1)
    folders[1].begin("", {})
    found = _outcomes(folders, FakeSettings())
    failed = {stem: outcome.row.reason.partition(":")[0] for stem, outcome in found.items() if outcome.row.reason}
    assert failed == {"01": "WorkerDied", "02": "NoFaceFound", "04": "WorkerDied"}
    assert "was ended by SIGKILL, as the system does when memory runs out" in found["01"].row.reason
    assert found["03"].row.faces == 2
    assert (folders[3].path / "face1" / "coefficients.json").is_file()
    assert folders[3].earlier(FakeSettings().options)[0] is not None
    assert folders[1].earlier(FakeSettings().options)[0] is None


def test_a_bad_person_costs_nobody_else(tmp_path: Path) -> None:
    """Two processes: one person cannot be fitted, and one kills the process."""
    people = dict[str, PersonFolder]()
    for name, levels in {"anna": (1, 1), "boris": (1, 9), "cleo": (20, 1), "dora": (1, 0), "emil": (1, 1)}.items():
        photos = tuple(photo_with(tmp_path / name / f"{n}.png", level) for n, level in enumerate(levels))
        people[name] = PersonFolder(tmp_path / "out" / name, str(tmp_path / name), photos)
    outcomes = list(reconstruct_in_processes(people.values(), FakeSettings(), jobs=2))
    reasons = {Path(o.rows[0].photo).parent.name: [row.reason.partition(":")[0] for row in o.rows] for o in outcomes}
    assert reasons == {
        "anna": ["", ""],
        "boris": ["FitDiverged", "FitDiverged"],
        "cleo": ["WorkerDied", "WorkerDied"],
        "dora": ["", "PhotoLeftOut"],
        "emil": ["", ""],
    }
    done = {name for name, folder in people.items() if folder.earlier(FakeSettings().options)[0] is not None}
    assert done == {"anna", "dora", "emil"}
    assert (tmp_path / "out" / "emil" / "1" / "face0" / "coefficients.json").is_file()


def test_warnings_come_back_and_bugs_and_wrong_settings_are_raised(tmp_path: Path) -> None:
    found = _outcomes(_folders(tmp_path / "out", 8, 1), FakeSettings())
    assert found["00"].row.reason == f"{FaceLeftOut.__name__}: face 2 of 2 was left out: lost"
    with pytest.warns(UserWarning, match="something else"):
        found["00"].show_warnings()
    with pytest.raises(TypeError, match="a bug") as raised:
        _outcomes(_folders(tmp_path / "out", 1, 21), FakeSettings())
    assert "in __call__" in str(raised.value.__cause__)
    with pytest.raises(ConfigError, match="wrong=True"):
        _outcomes(_folders(tmp_path / "out", 1, 1), FakeSettings(wrong=True))


def test_one_process_and_several_write_the_same_files(tmp_path: Path) -> None:
    """Real faces: torch's sums depend on the number of threads."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    astronaut = Image.fromarray(data.astronaut())
    (tmp_path / "in").mkdir()
    astronaut.save(tmp_path / "in" / "a.png")
    astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "in" / "b.png")
    settings = PhotoSettings(mode="net", max_faces=1, formats=("npz", "glb"))
    for name in ("one", "two"):
        folders = [PhotoFolder(tmp_path / name / stem, tmp_path / "in" / f"{stem}.png") for stem in "ab"]
        if name == "one":
            assert len(list(reconstruct_here(folders, settings, threads=1))) == 2
        else:
            assert len(list(reconstruct_in_processes(reversed(folders), settings, jobs=2))) == 2
    files = _files(tmp_path / "one")
    assert len(files) == 4
    assert files == _files(tmp_path / "two")


def test_processes_take_what_their_server_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PhotoSettings] = []
    monkeypatch.setattr(PhotoSettings, "reconstructor", lambda settings: made.append(settings) or _Fake())
    settings = PhotoSettings(mode="net", principal_point_px=(1.0, 2.0), formats=("npz", "glb"))
    with preload.settings_for_server(settings):
        text = os.environ["MIEN_PRELOAD"]
    assert "MIEN_PRELOAD" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(gc, "freeze", lambda: None)
    preload.load(text)
    assert made[0].mode == "net"
    assert preload.take_reconstructor(PhotoSettings(mode="fit")) is None
    assert isinstance(preload.take_reconstructor(settings), _Fake)
    assert preload.take_reconstructor(settings) is None
    preload.load(json.dumps({"class": "PhotoSettings", "mode": "of another version", "unknown": 1}))
    assert preload.take_reconstructor(settings) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the fork server is for Linux")
def test_processes_are_forked_from_a_server_that_has_loaded_torch(tmp_path: Path) -> None:
    server = _outcomes(_folders(tmp_path / "out", 24), FakeSettings(), jobs=1)["00"].row.reason.rpartition(" ")[2]
    assert int(server) != os.getpid()
    assert "libtorch_cpu" in Path(f"/proc/{server}/maps").read_text(encoding="utf-8")


def _python_processes(marker: str) -> Iterator[int]:
    """Live processes whose environment has the marker."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker.encode() in (folder / "environ").read_bytes():
                yield int(folder.name)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_command_leaves_no_process_and_no_unfinished_files(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    for name, level in (("a", 1), ("b", 23), ("c", 23), ("d", 1)):
        photo_with(tmp_path / "in" / f"{name}.png", level)
    marker = f"MIEN_TEST={tmp_path}"
    command = [sys.executable, "-m", "tests.test_processes", "reconstruct", str(tmp_path / "in"), "--jobs", "2"]
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")],
        env=os.environ | {"MIEN_TEST": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, which Ctrl-C of a terminal reaches as a whole
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{tmp_path / 'in' / 'a.png'}: 1 face")
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in printed, printed
    assert ("stopped after 1 of 4 photos" in printed) == (number != signal.SIGKILL)
    end = time.monotonic() + 30
    while (left := list(_python_processes(marker))) and number == signal.SIGKILL and time.monotonic() < end:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
    assert [row["photo"] for row in summary(tmp_path / "out")] == [str(tmp_path / "in" / "a.png")]
    assert not list((tmp_path / "out").rglob(".mien-partial*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_while_processes_load_prints_no_traceback(tmp_path: Path) -> None:
    for name in "ab":
        photo_with(tmp_path / "in" / f"{name}.png", 1)
    command = [sys.executable, "-m", "tests.test_processes", "reconstruct", str(tmp_path / "in"), "--jobs", "2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")],
        env=os.environ | {"MIEN_TEST": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    # The command, Python's resource tracker, and the server, which imports torch.
    while len(list(_python_processes(f"MIEN_TEST={tmp_path}"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed, printed
    assert list(_python_processes(f"MIEN_TEST={tmp_path}")) == []


def test_the_table_has_the_order_of_the_photos(tmp_path: Path) -> None:
    with open_output(tmp_path / "out") as output:
        first = output.folder_of(photo_with(tmp_path / "a.png", 1))
        second = output.folder_of(photo_with(tmp_path / "b.png", 1))
        outcomes = list(reconstruct_here([second, first], FakeSettings(), threads=1))
        for outcome in outcomes:
            output.table.add(outcome.row)
    assert [Path(row["photo"]).name for row in summary(tmp_path / "out")] == ["a.png", "b.png"]
    with open_output(tmp_path / "out") as output:
        third = output.folder_of(photo_with(tmp_path / "_.png", 1))
        output.folder_of(second.photo)
        for outcome in reconstruct_here([second, third], FakeSettings(), threads=1):
            output.table.add(outcome.row)
    assert [Path(row["photo"]).name for row in summary(tmp_path / "out")] == ["a.png", "b.png", "_.png"]


def main() -> None:
    """The command with fakes in all processes."""
    import mien.cli.reconstruct
    from mien.cli import app

    mien.cli.reconstruct.PhotoSettings = FakeSettings  # pyright: ignore[reportPrivateImportUsage]
    app.main()


if __name__ == "__main__":
    main()
