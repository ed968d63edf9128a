"""Work on Ray: a cluster of two machines, both of them here; processes and machines that are lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mien.errors import ConfigError, OutputError, WorkerDied
from mien.io.files import write_text
from mien.scale.output_folder import OutputFolder, PersonFolder, PhotoFolder, open_output
from mien.scale.prepare_on_ray import prepare_on_ray
from mien.scale.ray_engine import FAILED_STARTS, RaySettings, run_on_ray
from mien.scale.ray_photos import reconstruct_on_ray
from mien.scale.summary import PhotoRow
from mien.scale.worker import Outcome, Worker
from mien.training.data import prepare as preparation
from mien.training.data.prepare import PreparationSettings, list_photos, prepare
from tests.astronaut import astronaut
from tests.command import photo_with, summary
from tests.ray_fakes import (
    KILLS,
    KILLS_ONCE,
    SLOW,
    DangerousSettings,
    KillingAddress,
    MissingThere,
    make_doubler,
    make_nothing,
)

pytest.importorskip("ray", reason="needs ray; run pip install 'mien[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
SETTINGS = DangerousSettings(formats=("npz",))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args=NODE)
        nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield nodes
        nodes.shutdown()


@pytest.fixture
def on_cluster(cluster: Any) -> RaySettings:
    return RaySettings(address=cluster.address)


def test_calls_whose_process_dies_are_repeated_once(on_cluster: RaySettings, tmp_path: Path) -> None:
    calls = {number: (number,) for number in range(20)}
    results = list(run_on_ray(partial(make_doubler, tmp_path / "died"), calls, settings=on_cluster))
    assert sorted(key for key, _ in results) == list(range(20))
    lost = {key: str(result) for key, result in results if isinstance(result, WorkerDied)}
    assert lost == {13: "its worker process died 2 times (killed)"}
    assert all(result == 2 * key for key, result in results if key != 13)
    assert (tmp_path / "died").exists()


def test_errors_of_calls_and_starts_are_raised(on_cluster: RaySettings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^-1 is negative$"):
        list(run_on_ray(partial(make_doubler, tmp_path / "died"), {0: (0,), 1: (-1,)}, settings=on_cluster))
    with pytest.raises(OutputError, match=f"{FAILED_STARTS} worker processes in a row died while they started"):
        list(run_on_ray(make_nothing, {0: (0,)}, settings=on_cluster))
    with pytest.raises(OutputError, match="No module named 'not_installed_there'"):
        list(run_on_ray(partial(make_doubler, MissingThere()), {0: (0,)}, settings=on_cluster))
    assert list(run_on_ray(make_nothing, {}, settings=on_cluster)) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "somewhere"])
def test_a_wrong_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match="is not a Ray cluster"):
        list(run_on_ray(make_nothing, {0: (0,)}, settings=RaySettings(address=address)))


def test_a_lost_machine_loses_nothing(cluster: Any, on_cluster: RaySettings, tmp_path: Path) -> None:
    third = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    photos = [photo_with(tmp_path / f"{number}.png", SLOW) for number in range(9)]

    def lose() -> None:
        time.sleep(3)
        cluster.remove_node(third, allow_graceful=False)

    threading.Thread(target=lose).start()
    rows = reconstruct(photos, tmp_path / "out", on_cluster)
    assert sorted(row.photo for row in rows) == sorted(map(str, photos))
    assert not any(row.reason for row in rows)
    assert contents(tmp_path / "out") == plain(photos, tmp_path / "plain")


def test_photos_of_lost_processes_are_redone_and_dangerous_ones_are_told(
    on_cluster: RaySettings, tmp_path: Path
) -> None:
    good = [photo_with(tmp_path / f"{number}.png", 1 + number % 2) for number in range(6)]
    once = photo_with(tmp_path / "once.png", KILLS_ONCE)
    photos = [*good[:3], photo_with(tmp_path / "always.png", KILLS), once, *good[3:]]
    rows = reconstruct(photos, tmp_path / "out", on_cluster)
    assert sorted(row.photo for row in rows) == sorted(map(str, photos))
    assert [row["photo"] for row in summary(tmp_path / "out")] == list(map(str, photos))
    failed = {Path(row.photo).name: row.reason for row in rows if row.reason}
    assert failed == {"always.png": "WorkerDied: its worker process died 2 times (killed)"}
    assert contents(tmp_path / "out") == plain([*good, once], tmp_path / "plain")

    again = list(outcomes([*good, once], tmp_path / "out", on_cluster))
    assert all(outcome.earlier for outcome in again)
    (tmp_path / "out" / "3" / "face0" / "coefficients.json").unlink()
    (tmp_path / "out" / "3" / "run.json").unlink()
    again = list(outcomes([*good, once], tmp_path / "out", on_cluster))
    assert [Path(outcome.row.photo).name for outcome in again if not outcome.earlier] == ["3.png"]
    assert contents(tmp_path / "out") == plain([*good, once], tmp_path / "plain")


def test_a_damaged_record_is_the_row_of_its_photo(on_cluster: RaySettings, tmp_path: Path) -> None:
    photos = [photo_with(tmp_path / f"{name}.png", 1) for name in "ab"]
    folders = [PhotoFolder(tmp_path / "out" / photo.stem, photo) for photo in photos]
    folders[0].path.mkdir(parents=True)
    write_text(folders[0].path / "run.json", "{")
    rows = [outcome.row for outcome in reconstruct_on_ray(folders, SETTINGS, ray=on_cluster)]
    assert [row.reason.partition(":")[0] for row in sorted(rows, key=lambda row: row.photo)] == ["FormatError", ""]


def test_people_are_done_and_skipped(on_cluster: RaySettings, tmp_path: Path) -> None:
    people = [
        PersonFolder(
            tmp_path / "out" / name,
            str(tmp_path / name),
            tuple(photo_with(tmp_path / name / f"{n}.png", level) for n, level in enumerate(levels)),
        )
        for name, levels in (("anna", (1, 1)), ("boris", (9, 1)))
    ]
    for again in (False, True):
        found = {o.rows[0].photo: o for o in reconstruct_on_ray(people, SETTINGS, ray=on_cluster)}
        anna, boris = (found[str(person.photos[0])] for person in people)
        assert anna.earlier is again
        assert [row.reason for row in anna.rows] == ["", ""]
        assert [row.reason.partition(":")[0] for row in boris.rows] == ["FitDiverged", "FitDiverged"]


def outcomes(photos: list[Path], out: Path, ray: RaySettings) -> Iterator[Outcome]:
    with open_output(out) as output:
        folders = [output.folder_of(photo) for photo in photos]
        for outcome in reconstruct_on_ray(folders, SETTINGS, ray=ray):
            output.table.add(outcome.row)
            yield outcome


def reconstruct(photos: list[Path], out: Path, ray: RaySettings) -> list[PhotoRow]:
    return [outcome.row for outcome in outcomes(photos, out, ray)]


def plain(photos: list[Path], out: Path) -> dict[str, bytes]:
    """The files of a run without Ray."""
    out.mkdir(exist_ok=True)
    output, work = OutputFolder(out), Worker(SETTINGS)
    assert not any(work(output.folder_of(photo)).row.reason for photo in photos)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    """All files of the faces."""
    return {str(file.relative_to(out)): file.read_bytes() for file in out.glob("*/face*/*")}


def test_shards_made_on_ray_are_those_of_one_process(
    on_cluster: RaySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(astronaut()).save(photos / "anna.png")
    for name in ("wall", "wall2", "wall3"):
        Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(photos / f"{name}.png")
    monkeypatch.setattr(preparation, "SMALLEST_SHARD", 2)
    monkeypatch.setattr(preparation, "SHARDS", 2)
    entries = list_photos(photos)
    make = partial(prepare_on_ray, settings=PreparationSettings(), processes=2, ray=on_cluster)
    prepare(entries, tmp_path / "plain", settings=PreparationSettings(), processes=1)
    make(entries, tmp_path / "ray")
    assert store_of(tmp_path / "ray") == store_of(tmp_path / "plain")
    dangerous = [*entries[:1], replace(entries[1], path=KillingAddress("kills://wall.png")), *entries[2:]]
    report = make(dangerous, tmp_path / "danger")
    assert (report.photos, report.kept) == (4, 1)
    reasons = {drop.photo: drop.reason for drop in report.dropped}
    assert reasons.pop("wall.png") == "WorkerDied: its worker process died 2 times (killed)"
    assert set(reasons.values()) == {"no face"}
    assert {name: data for name, data in store_of(tmp_path / "danger").items() if name.endswith(".tar")} == {
        name: data for name, data in store_of(tmp_path / "plain").items() if name.endswith(".tar")
    }


def store_of(folder: Path) -> dict[str, bytes]:
    """The files of a store, without the report, which has the speed."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in {"report.md", ".mien.lock"}}


@pytest.mark.external
def test_the_command_starts_ray_and_prints_nothing_of_it(tmp_path: Path) -> None:
    Image.fromarray(astronaut()).save(tmp_path / "a.png")
    Image.fromarray(astronaut()[:, ::-1].copy()).save(tmp_path / "b.png")
    (tmp_path / "list.csv").write_text("photo\na.png\nb.png\n", encoding="utf-8")
    options = ["--manifest", "list.csv", "--mode", "net", "--no-detail", "--formats", "npz,glb", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def command(*more: str) -> list[dict[str, Any]]:
        line = [sys.executable, "-m", "mien", "reconstruct", *options, *more]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        assert done.stderr == ""
        return [json.loads(row) for row in done.stdout.splitlines()]

    command("-o", "plain", "--jobs", "1")
    rows = command("-o", "ray", "--engine", "ray", "--jobs", "2")
    assert sorted(Path(row["photo"]).name for row in rows) == ["a.png", "b.png"]
    assert {row["status"] for row in rows} == {"done"}
    assert {row["status"] for row in command("-o", "ray", "--engine", "ray", "--jobs", "2")} == {"skipped"}
    ray, plain_files = timeless(contents(tmp_path / "ray")), timeless(contents(tmp_path / "plain"))
    assert ray == plain_files
    assert len(ray) > 4


def timeless(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files without the line of coefficients.json that has measured times."""
    return {name: re.sub(rb'\n  "stage_seconds":[^\n]*', b"", content) for name, content in files.items()}
