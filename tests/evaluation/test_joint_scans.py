"""Photos of one person together against each alone: `mien evaluate scans --joint`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.cli import evaluate, main
from mien.errors import ConfigError, NoFaceFound
from mien.evaluation.joint_scans import evaluate_joint_scans
from mien.evaluation.scan_packs import open_pack
from mien.pipeline import Reconstructor
from mien.result import PersonReconstruction, Reconstruction
from tests.evaluation.scan_files import grid_mesh, moved, project, write_now, write_pack, write_realy
from tests.tiny_face import tiny_model, tiny_reconstruction

LEFT_OUT = "p02b.jpg: another person"


def face_with_dent(depth_mm: float) -> Reconstruction:
    """The scan with a displaced forehead, as a reconstruction in metres."""
    vertices, triangles = grid_mesh()
    pixels, count = project(vertices) + 0.5, len(vertices)
    vertices[vertices[:, 1] > 50, 2] += depth_mm
    return replace(
        tiny_reconstruction(tiny_model()),
        vertices=(moved(vertices) / 1000).astype(np.float32),
        triangles=triangles.astype(np.int32),
        xy=pixels.astype(np.float32),
        vertices_model=np.zeros((count, 3), np.float32),
        uv=np.zeros((count, 2), np.float32),
        visible=np.ones(count, bool),
        vertex_albedo=np.ones((count, 3), np.float32),
    )


class FakeReconstructor(Reconstructor):
    """Errs by 4 mm alone and by 1 mm together; leaves out p02b, and does not find the person p03."""

    def __init__(self) -> None:
        self.together: list[list[str]] = []

    def __call__(self, photo: Path) -> list[Reconstruction]:
        return [face_with_dent(4.0)]

    def joint(self, photos: Sequence[Path]) -> PersonReconstruction:
        names = [photo.stem for photo in photos]
        self.together.append(names)
        if "p03a" in names:
            raise NoFaceFound("no face in the photos of p03")
        out = [name == "p02b" for name in names]
        faces = tuple(None if missing else face_with_dent(1.0) for missing in out)
        reasons = tuple(LEFT_OUT if missing else "" for missing in out)
        return PersonReconstruction(faces, tuple(0.0 if missing else 1.0 for missing in out), reasons, 0)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", ("p01a", "p01b", "p02a", "p02b", "p03a", "p03b", "p04a"))
    return tmp_path / "pack"


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_people_are_compared_on_the_photos_that_have_both(pack: Path) -> None:
    reconstructor, done = FakeReconstructor(), list[tuple[int, int]]()
    report = evaluate_joint_scans(
        open_pack(pack), reconstructor, metric=True, progress=lambda *counts: done.append(counts)
    )
    assert reconstructor.together == [["p01a", "p01b"], ["p02a", "p02b"], ["p03a", "p03b"]]
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [row.name for row in report.alone.rows] == ["p01a", "p01b", "p02a", "p02b", "p03a", "p03b"]
    assert [(p.person, p.photos) for p in report.people()] == [("p01", 2), ("p02", 1)]
    for person in (*report.people(), *report.people("metric")):
        assert person.joint < 0.5 * person.alone
        assert person.difference == person.joint - person.alone
    assert report.people()[0].alone == pytest.approx(report.alone.mean("sim", "mean"))
    paired = report.difference()
    assert paired is not None
    assert paired.photos == 2
    assert paired.difference == pytest.approx(np.mean([person.difference for person in report.people()]))
    assert [(row.name, row.reason) for row in report.joint.failed] == [
        ("p02b", f"NoFaceFound: {LEFT_OUT}"),
        ("p03a", "NoFaceFound: no face in the photos of p03"),
        ("p03b", "NoFaceFound: no face in the photos of p03"),
    ]


def test_the_limit_counts_people(pack: Path) -> None:
    reconstructor = FakeReconstructor()
    evaluate_joint_scans(open_pack(pack), reconstructor, limit=2)
    assert reconstructor.together == [["p01a", "p01b"], ["p03a", "p03b"]]


def test_a_run_without_a_person_with_both_has_no_difference(pack: Path) -> None:
    for photo in (pack / "scans").glob("p0[12]*.npz"):
        photo.unlink()
    report = evaluate_joint_scans(open_pack(pack), FakeReconstructor())
    assert report.difference() is None
    assert report.run()["joint_minus_alone"] is None
    assert "p03a failed" in report.table()
    assert "| all" not in report.table()


def test_people_with_one_photo_alone_are_refused(tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", ("a", "b", "p1a", "p2a"))
    with pytest.raises(ConfigError, match="no person with two photos"):
        evaluate_joint_scans(open_pack(tmp_path / "pack"), FakeReconstructor())


def test_layouts_know_their_people(tmp_path: Path) -> None:
    write_now(tmp_path / "now", ("ANNA_1/selfie/IMG_1", "ANNA_1/occlusion/IMG_2", "BEN_2/selfie/IMG_1"))
    assert open_pack(tmp_path / "now").people() == {
        "ANNA_1": ("ANNA_1/selfie/IMG_1", "ANNA_1/occlusion/IMG_2"),
        "BEN_2": ("BEN_2/selfie/IMG_1",),
    }
    write_realy(tmp_path / "realy", (1,))
    photo = tmp_path / "realy" / "REALY_image" / "1.jpg"
    photo.with_name("1_2.jpg").write_bytes(photo.read_bytes())
    assert open_pack(tmp_path / "realy").people() == {"1": ("1", "1_2")}


def test_the_command_writes_the_comparison(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "_reconstructor", lambda *_: FakeReconstructor())
    out = tmp_path / "out"
    files = ["--csv", out / "t.csv", "--run", out / "r.json", "--sheet", out / "s.png", "--write", out / "faces"]
    assert run("evaluate", "scans", pack, "--joint", "--limit", 1, *files) == 0
    shown = capsys.readouterr().out
    stored = json.loads((out / "r.json").read_text())
    (row,) = csv.DictReader((out / "t.csv").read_text().splitlines())
    (person,) = stored["people"]
    assert (row["person"], row["photos"]) == ("p01", "2")
    assert float(row["difference_mm"]) == pytest.approx(person["joint"] - person["alone"], abs=1e-4)
    line = next(line for line in shown.splitlines() if line.startswith("| p01 "))
    assert [cell.strip() for cell in line.split("|")[2:5]] == [
        "2", f"{person['alone']:.2f}", f"{person['joint']:.2f}",
    ]  # fmt: skip
    assert stored["sim"]["mean"] == pytest.approx(person["joint"])
    assert stored["alone"]["sim"]["mean"] == pytest.approx(person["alone"])
    with Image.open(out / "s.png") as sheet:
        assert sheet.size[1] > 4 * 360  # two photos, each alone and together
    assert sorted(path.name for path in (out / "faces").iterdir()) == ["p01a.npz", "p01b.npz"]
    # The stored run is that of the joint results.
    assert run("evaluate", "scans", pack, "--joint", "--limit", 1, "--base", out / "r.json", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert [found["difference"] for found in again["paired"]] == [0.0, 0.0]


def test_joint_goes_with_photos_alone(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--predictions", pack], ["--mode", "mean"]):
        assert run("evaluate", "scans", pack, "--joint", *more) == 2
        assert "--joint" in capsys.readouterr().err
