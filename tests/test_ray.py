"""Work on Ray: a cluster of two machines, both of them here; processes and machines that are lost."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mien.errors import ConfigError, OutputError, WorkerDied
from mien.io.files import write_text
from mien.scale.output_folder import OutputFolder, PhotoFolder, open_output
from mien.scale.photo_work import PhotoOutcome, PhotoWorker
from mien.scale.ray_engine import FAILED_STARTS, RaySettings, run_on_ray
from mien.scale.ray_photos import reconstruct_on_ray
from mien.scale.summary import PhotoRow
from tests.command import photo_with, summary
from tests.ray_fakes import KILLS, KILLS_ONCE, SLOW, DangerousSettings, make_doubler, make_nothing

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
    with pytest.raises(OutputError, match=f"{FAILED_STARTS} worker processes died while they started"):
        list(run_on_ray(make_nothing, {0: (0,)}, settings=on_cluster))
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


def outcomes(photos: list[Path], out: Path, ray: RaySettings) -> Iterator[PhotoOutcome]:
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
    output, work = OutputFolder(out), PhotoWorker(SETTINGS)
    assert not any(work(output.folder_of(photo)).row.reason for photo in photos)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    """All files of the faces."""
    return {str(file.relative_to(out)): file.read_bytes() for file in out.glob("*/face*/*")}
