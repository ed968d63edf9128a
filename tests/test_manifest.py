"""Lists of photos, and results at addresses that are not of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from mien.errors import ConfigError, FormatError, MienError, OutputError
from mien.io.manifest import read_manifest
from mien.io.photo_arguments import RemotePhoto
from mien.scale import prepare_on_ray
from mien.scale.addresses import AddressFolder, is_address, open_address
from mien.scale.output_folder import PhotoFolder
from mien.scale.ray_photos import PhotoResumer
from mien.scale.worker import Outcome
from mien.training.data import prepare as preparation
from mien.training.data.store import FaceStore
from tests.astronaut import astronaut
from tests.command import photo_with, run, summary
from tests.ray_fakes import DangerousSettings

SETTINGS = DangerousSettings(formats=("npz",))


def test_a_manifest_lists_photos_in_its_order_and_each_once(tmp_path: Path) -> None:
    rows = ["b.jpg", "/abs/a.jpg", "memory://bucket/c.jpg", "b.jpg", "file:///there/d.jpg"]
    expected = [tmp_path / "b.jpg", Path("/abs/a.jpg"), RemotePhoto("memory://bucket/c.jpg"), Path("/there/d.jpg")]
    (tmp_path / "list.csv").write_text("age,photo\n" + "".join(f"1,{row}\n" for row in rows), encoding="utf-8")
    lines = [json.dumps({"photo": row, "age": 1}) for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    assert read_manifest(tmp_path / "list.csv") == expected
    assert read_manifest(tmp_path / "list.jsonl") == expected


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("list.txt", "a.jpg\n", ConfigError, "is not a manifest; give a .csv file"),
        ("list.csv", "file\na.jpg\n", FormatError, "has no column photo"),
        ("list.csv", "photo\n", FormatError, "lists no photos"),
        ("list.csv", "age,photo\n1\n", FormatError, "row 1 names no photo"),
        ("list.csv", "photo\n-\n", FormatError, "row 1 names no photo"),
        ("list.csv", "photo\nnowhere://a.jpg\n", ConfigError, "another protocol"),
        ("list.jsonl", '{"photo": "a.jpg"}\n{"photo": 1}\n', FormatError, "line 2: damaged"),
        ("list.jsonl", "photo\n", FormatError, "line 1: damaged"),
    ],
)
def test_a_wrong_manifest_is_refused(
    tmp_path: Path, name: str, text: str, error: type[MienError], message: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_manifest(tmp_path / name)


def test_the_command_reads_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.pipeline.Reconstructor", lambda **_: DangerousSettings().reconstructor())
    photo_with(tmp_path / "a.png", 1)
    photo_with(tmp_path / "b.png", 1)
    (tmp_path / "list.csv").write_text("photo\nb.png\nmissing.png\na.png\n", encoding="utf-8")
    options = ["--manifest", tmp_path / "list.csv", "--formats", "npz", "--jobs", "1"]
    assert run("reconstruct", *options, "-o", tmp_path / "out") == 1
    rows = summary(tmp_path / "out")
    assert [Path(row["photo"]).name for row in rows] == ["b.png", "missing.png", "a.png"]
    assert [bool(row["reason"]) for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--manifest", "list.csv"], "give photos, or a list of them with --manifest"),
        (["a.png", "-o", "memory://out"], "add --engine ray, or give a folder"),
        (["a.png", "--ray-address", "auto"], "is only for --engine ray"),
        (["a.png", "--device", "cuda:1", "--engine", "ray"], "each process of Ray sees one GPU"),
        (["a.png", "-o", "face.glb", "--engine", "ray"], "leave --engine out"),
    ],
)
def test_options_that_exclude_each_other(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    photo_with(tmp_path / "a.png", 1)
    assert run("reconstruct", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_only_other_machines_have_addresses(tmp_path: Path) -> None:
    assert is_address("memory://bucket")
    assert not is_address(tmp_path.as_uri())
    assert not is_address(str(tmp_path))


def resume(photos: list[Path | RemotePhoto], address: str) -> list[Outcome]:
    work = PhotoResumer(SETTINGS)
    with open_address(address) as output:
        outcomes = [work(output.folder_of(photo)) for photo in photos]
        for outcome in outcomes:
            output.table.add(outcome.row)
    return outcomes


def files_at(address: str) -> dict[str, bytes]:
    files, root = fsspec.url_to_fs(address)
    return {path.removeprefix(root): files.cat_file(path) for path in files.find(root)}


def test_results_at_an_address_are_those_of_a_folder(tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}/results/"
    photos: list[Path | RemotePhoto] = [photo_with(tmp_path / "a.png", 2), photo_with(tmp_path / "b.png", 0)]
    first = resume(photos, address)
    (name,) = {path.split("/")[1] for path in files_at(address) if "face0" in path}
    folder = PhotoFolder(tmp_path / "local" / name, photos[0])
    PhotoResumer(SETTINGS)(folder)
    local = {
        f"/{name}/{file.relative_to(folder.path).as_posix()}": file.read_bytes()
        for file in folder.path.rglob("*")
        if file.is_file() and file.name != "run.json"
    }
    there = {path: content for path, content in files_at(address).items() if "face" in path}
    assert there == local
    assert len(there) == 4
    assert [outcome.row.reason.partition(":")[0] for outcome in first] == ["", "NoFaceFound"]
    assert first[0].row.results == f"{address.rstrip('/')}/{name}"
    record = json.loads(files_at(address)[f"/{name}/run.json"])
    assert record["summary"]["results"] == first[0].row.results

    before = files_at(address)
    again = resume(photos, address)
    assert [outcome.earlier for outcome in again] == [True, False]
    assert again[0].row == first[0].row
    assert {path for path in before if before[path] != files_at(address)[path]} <= {"/summary.csv"}


def test_a_changed_or_incomplete_result_at_an_address_is_made_again(tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}"
    photo = photo_with(tmp_path / "a.png", 2)
    row = resume([photo], address)[0].row
    files, root = fsspec.url_to_fs(row.results)
    files.rm(f"{root}/face1", recursive=True)
    assert not resume([photo], address)[0].earlier
    assert files.exists(f"{root}/face1")
    photo_with(photo, 1)
    assert resume([photo], address)[0].row.faces == 1
    assert not files.exists(f"{root}/face1")
    assert resume([photo], address)[0].earlier


def test_a_photo_at_an_address_is_redone_when_its_store_has_another_one(tmp_path: Path) -> None:
    store, _ = fsspec.url_to_fs("memory://")
    photo = RemotePhoto(f"memory://{tmp_path.name}/photos/a.png")
    store.pipe_file(f"/{tmp_path.name}/photos/a.png", photo_with(tmp_path / "a.png", 1).read_bytes())
    assert not resume([photo], f"memory://{tmp_path.name}/out")[0].earlier
    assert resume([photo], f"memory://{tmp_path.name}/out")[0].earlier
    store.pipe_file(f"/{tmp_path.name}/photos/a.png", photo_with(tmp_path / "a.png", 2).read_bytes())
    assert resume([photo], f"memory://{tmp_path.name}/out")[0].row.faces == 2
    assert RemotePhoto("https://host.org/a.png").version() == ""
    assert RemotePhoto("memory://nothing/a.png").version() == ""


def test_an_address_that_fails_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no rights")

    photo = photo_with(tmp_path / "a.png", 1)
    store, _ = fsspec.url_to_fs("memory://")
    monkeypatch.setattr(type(store), "put", refuse)
    outcome = PhotoResumer(SETTINGS)(AddressFolder(f"memory://{tmp_path.name}/a", photo))
    assert outcome.row.reason.startswith("OutputError: memory://")
    assert outcome.row.faces == 0
    with pytest.raises(OutputError, match="cannot be reached"), open_address(f"memory://{tmp_path.name}"):
        pass


def test_a_copy_that_is_cut_off_leaves_no_whole_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"memory://{tmp_path.name}"
    photo = photo_with(tmp_path / "a.png", 1)
    folder = resume([photo], address)[0].row.results
    photo_with(photo, 2)
    store, root = fsspec.url_to_fs(folder)
    put = type(store).put

    def fail_at_faces(self: Any, here: list[str], there: list[str]) -> None:
        if "face0" in there[0]:
            raise TimeoutError("too slow")
        put(self, here, there)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put", fail_at_faces)
        assert resume([photo], address)[0].row.reason.startswith("OutputError")
    assert json.loads(store.cat_file(f"{root}/run.json"))["summary"] is None
    assert resume([photo], address)[0].row.faces == 2


def test_photos_with_one_name_have_folders_of_their_own() -> None:
    with open_address("memory://names") as output:
        places = {output.folder_of(RemotePhoto(f"memory://{person}/1.jpg")).address for person in "abc"}
    assert len(places) == 3


def run_here(make: Callable[[], Callable[..., Any]], calls: dict[Any, Any], **_: object) -> Iterator[tuple[Any, Any]]:
    """Stands for `run_on_ray`."""
    work = make()
    return ((key, work(*arguments)) for key, arguments in calls.items())


def test_a_store_at_an_address_is_that_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = fsspec.url_to_fs("memory://")
    address = f"memory://{tmp_path.name}/store"
    monkeypatch.setattr(prepare_on_ray, "run_on_ray", run_here)
    monkeypatch.setattr(preparation, "SMALLEST_SHARD", 1)
    (tmp_path / "anna").mkdir()
    Image.fromarray(astronaut()).save(tmp_path / "anna" / "1.png")
    store.put(str(tmp_path / "anna" / "1.png"), f"/{tmp_path.name}/2.png")
    text = f"photo\nanna/1.png\nmemory://{tmp_path.name}/2.png\nmissing.png\n"
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    options = ["data", "prepare", "--manifest", tmp_path / "list.csv", "--processes", "1", "--quiet", "-o"]
    assert run(*options, tmp_path / "store") == 0
    assert run(*options, address, "--engine", "ray") == 0
    there, here = files_at(address), {f"/{file.name}": file.read_bytes() for file in (tmp_path / "store").iterdir()}
    for changing in ("/report.md", "/.mien.lock"):  # the first has the speed
        there.pop(changing, None), here.pop(changing)
    assert there == here
    faces = FaceStore(address)
    assert [(row.identity, row.photo) for row in faces.faces] == [
        ("anna", "anna/1.png"),
        (f"memory:/{tmp_path.name}", f"memory://{tmp_path.name}/2.png"),
    ]
    store.rm_file(f"/{tmp_path.name}/store/faces-000001.json")
    assert run(*options, address, "--engine", "ray") == 0
    assert files_at(address)["/faces-000001.json"] == here["/faces-000001.json"]
    assert run(*options, address, "--engine", "ray", "--seed", "3") == 1

    def stop(*_: object, **__: object) -> None:
        raise OutputError("stopped")

    monkeypatch.setattr(prepare_on_ray, "run_on_ray", stop)
    assert run(*options, f"{address}2", "--engine", "ray") == 1
    assert files_at(f"{address}2") == {"/plan.json": here["/plan.json"]}
