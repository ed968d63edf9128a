"""Preparation of photos: real perception on one public-domain portrait, everything else by names and files."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.errors import ConfigError, FormatError, OutputError
from mien.io.folder_lock import LOCK_FILE, locked_folder
from mien.morphable import MorphableModel
from mien.perception import FaceDetection, FaceParts
from mien.quality import CoveredShares
from mien.training.data import people
from mien.training.data import prepare as module
from mien.training.data.prepare import (
    PhotoEntry,
    PreparationSettings,
    _flags,
    assign_split,
    list_photos,
    prepare,
)
from mien.training.data.store import STORE_SIZE, FaceRecord, FaceStore
from tests.training.tiny_data import write_store

skimage_data = pytest.importorskip("skimage.data")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked at")


def people_of(root: Path, **options: Path) -> dict[str, tuple[str, int | None]]:
    return {entry.name: (entry.identity, entry.age) for entry in list_photos(root, **options)}


def test_identities_come_from_tables_names_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "53_First_Last_0001.jpg", "anna/1.jpg", "anna/2.jpg", "alone.png")
    assert people_of(tmp_path) == {
        "53_First_Last_0001.jpg": ("First_Last", 53),
        "alone.png": ("alone", None),
        "anna/1.jpg": ("anna", None),
        "anna/2.jpg": ("anna", None),
    }
    table = tmp_path / "people.csv"
    table.write_text("file,subject,age\nanna/1.jpg,bertha,31\n", encoding="utf-8")
    assert people_of(tmp_path, table=table)["anna/1.jpg"] == ("bertha", 31)
    table.write_text("\ufefffile,identity,age\nalone.png, ,7\nanna/1.jpg,,\nanna/2.jpg\n", encoding="utf-8")
    assert people_of(tmp_path, table=table) == {
        "53_First_Last_0001.jpg": ("First_Last", 53),
        "alone.png": ("alone", 7),
        "anna/1.jpg": ("anna", None),
        "anna/2.jpg": ("anna", None),
    }
    table.write_text("name\nanna\n", encoding="utf-8")
    with pytest.raises(FormatError, match="columns file and identity"):
        list_photos(tmp_path, table=table)


def test_splits_keep_people_together_and_have_the_papers_shares() -> None:
    photos = [PhotoEntry("", f"{k}.jpg", f"person{k // 4}", None) for k in range(4000)]
    by_identity = [assign_split(photo, PreparationSettings()) for photo in photos]
    assert all(len(set(by_identity[k : k + 4])) == 1 for k in range(0, 4000, 4))
    at_random = [assign_split(photo, PreparationSettings(split_by="random")) for photo in photos]
    assert len({tuple(at_random[k : k + 4]) for k in range(0, 4000, 4)}) > 3
    for splits in (by_identity, at_random):
        shares = [splits.count(name) / 4000 for name in ("train", "validation", "test")]
        assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.035)
    assert by_identity != [assign_split(photo, PreparationSettings(seed=1)) for photo in photos]


def judged(
    *, brightness: float = 0.5, checks: float = 0.01, skin: float = 1.0, nose: float = 0.5, outside: float = 0.0
) -> tuple[str, ...]:
    """Flags of a flat grey crop with a chequered pattern inside the oval, and another one outside."""
    size, oval = 64, torch.zeros(64, 64)
    oval[16:48, 16:48] = 1.0
    signs = ((torch.arange(size)[:, None] + torch.arange(size)) % 2 * 2 - 1).float()
    near = torch.nn.functional.max_pool2d(oval[None], 3, 1, 1)[0]
    crop = (brightness + signs * (checks * near + outside * (1 - near))).expand(3, size, size)
    points = np.zeros((468, 3), np.float32)
    points[234, 0], points[454, 0], points[1, 0] = 10, 110, 10 + 100 * nose
    face = FaceDetection(1.0, np.zeros(4), np.zeros((6, 2)), points, np.zeros((2, 5, 2)), 1.0)
    mask = torch.zeros(size, size)
    mask[16 : 16 + round(32 * skin), 16:48] = 1.0
    record = FaceRecord(crop, mask, torch.zeros(68, 2), torch.zeros(468, 2), 1.0, (0.0, 0.0), 1.0)
    return _flags(
        face,
        record,
        FaceParts(
            skin=mask,
            eyes=mask,
            mouth=mask,
            oval=oval,
            inner=oval,
            covered=torch.zeros(size, size),
            covered_shares=CoveredShares(),
            cut_off=0.0,
        ),
    )


def test_flags_name_blur_darkness_cover_and_profile_at_their_limits() -> None:
    assert judged() == ()
    # The Laplacian of a chequered pattern of ±a is ∓8a, its variance 64a²: 2e-4 at a = 0.00177.
    assert judged(checks=0.0019) == ()
    assert judged(checks=0.0016) == ("blurred",)
    assert judged(checks=0.0016, outside=0.2) == ("blurred",)  # the background does not count
    assert judged(brightness=0.125) == ()
    assert judged(brightness=0.115) == ("dark",)
    assert judged(skin=15 / 32) == ()
    assert judged(skin=14 / 32) == ("covered",)
    # The nose is 0.72 of the way from the middle to a side at 0.14 and 0.86.
    for nose in (0.15, 0.85):
        assert judged(nose=nose) == ()
    for nose in (0.13, 0.87):
        assert judged(nose=nose) == ("profile",)
    assert judged(checks=0.0, brightness=0.05, skin=0.0, nose=0.0) == ("blurred", "profile", "covered", "dark")


def test_photos_become_a_store_and_an_interrupted_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    Image.fromarray(skimage_data.astronaut()).save(photos / "47_Eileen_Collins_0001.jpg", quality=95)
    Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(photos / "wall.png")
    touch(photos, "zz_text.jpg")
    monkeypatch.setattr(module, "SMALLEST_SHARD", 1)
    settings = PreparationSettings()
    progress = []
    report = prepare(
        list_photos(photos), store, settings=settings, processes=1, progress=lambda done, total: progress.append(done)
    )
    assert progress == [1, 2, 3]
    assert (report.photos, report.kept) == (3, 1)
    reasons = {drop.photo: drop.reason for drop in report.dropped}
    assert reasons["wall.png"] == "no face"
    assert reasons["zz_text.jpg"].startswith("ImageError")
    assert "160,000 photos" in report.text()
    assert f"people: {report.people}, {report.single} of them with one face" in report.text()
    faces = FaceStore(str(store))
    assert (faces.faces[0].identity, faces.faces[0].age) == ("Eileen_Collins", 47)
    record = faces[0]
    assert record.crop.shape == (3, STORE_SIZE, STORE_SIZE)
    inner = record.landmarks68_px[17:]
    assert ((inner > 0.2 * STORE_SIZE) & (inner < 0.8 * STORE_SIZE)).all()
    assert 0.1 < record.mask.mean() < 0.5
    with Image.open(store / "contact_sheet.png") as sheet:
        assert sheet.width > 0

    first = sorted(store.glob("faces-*.json"))[0]
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("faces-*.tar")}
    content = json.loads((store / "index.json").read_text(encoding="utf-8"))
    first.unlink()
    prepare(list_photos(photos), store, settings=settings, processes=1)
    after = {path.name: path.stat().st_mtime_ns for path in store.glob("faces-*.tar")}
    assert [name for name in after if after[name] != before[name]] == [first.with_suffix(".tar").name]
    assert json.loads((store / "index.json").read_text(encoding="utf-8")) == content
    with pytest.raises(ConfigError, match="other photos or settings"):
        prepare(list_photos(photos), store, settings=PreparationSettings(seed=1), processes=1)


def test_a_store_among_its_photos_is_not_taken_for_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "store/contact_sheet.png")
    assert list(people_of(tmp_path, skip=tmp_path / "store")) == ["a.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="links and these names are not possible on Windows")
def test_dropped_photos_are_rows_without_formulas(tmp_path: Path) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    touch(photos, "=1+1.jpg", "@a.jpg", "-1.jpg", "a;=1.jpg")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    report = prepare(list_photos(photos), store, settings=PreparationSettings(), processes=1)
    assert [drop.photo for drop in report.dropped] == ["-1.jpg", "=1+1.jpg", "@a.jpg", "a;=1.jpg", "loop.jpg"]
    with (store / "dropped.csv").open(encoding="utf-8", newline="") as file:
        names = [row["photo"] for row in csv.DictReader(file)]
    assert names == ["'-1.jpg", "'=1+1.jpg", "'@a.jpg", "a;=1.jpg", "loop.jpg"]


def test_names_that_are_no_valid_text_are_prepared(tmp_path: Path) -> None:
    photos = [PhotoEntry(str(tmp_path / "b\udcff.jpg"), "b\udcff.jpg", "b\udcff", None)]
    report = prepare(photos, tmp_path / "store", settings=PreparationSettings(), processes=1)
    assert [drop.photo for drop in report.dropped] == ["b\udcff.jpg"]
    assert assign_split(photos[0], PreparationSettings()) in ("train", "validation", "test")


def test_nothing_left_to_do_has_no_speed_and_damaged_rows_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg")
    entries, store, settings = list_photos(tmp_path / "photos"), tmp_path / "store", PreparationSettings()
    assert "photos/s" in prepare(entries, store, settings=settings, processes=1).text()
    assert "photos/s" not in prepare(entries, store, settings=settings, processes=1).text()
    (rows,) = store.glob("faces-*.json")
    rows.write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=f"{rows.name}: damaged"):
        prepare(entries, store, settings=settings, processes=1)


def test_two_runs_into_one_store_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg")
    photos, store = list_photos(tmp_path / "photos"), tmp_path / "store"
    with locked_folder(store), pytest.raises(OutputError, match=r"store: another run \(process \d+ on .*wait"):
        prepare(photos, store, settings=PreparationSettings(), processes=1)
    assert prepare(photos, store, settings=PreparationSettings(), processes=1).photos == 1


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, settings = tmp_path / "store", PreparationSettings()

    def full(descriptor: int) -> None:
        if (store / "plan.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    touch(tmp_path, "photos/a.jpg")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for _ in range(2):  # the plan stays, so the store can be continued
            with pytest.raises(OutputError, match="No space left"):
                prepare(list_photos(tmp_path / "photos"), store, settings=settings, processes=1)
            assert sorted(path.name for path in store.iterdir()) == [LOCK_FILE, "plan.json"]
    (store / ".mien-partial-7").mkdir()  # left by a killed process
    (store / "download.zip.partial").touch()  # not of this store
    assert prepare(list_photos(tmp_path / "photos"), store, settings=settings, processes=1).photos == 1
    assert [left.name for left in store.glob("*partial*")] == ["download.zip.partial"]


def test_people_who_are_mixed_in_a_folder_are_told(
    tiny: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three photos in a folder one shows somebody else; another person has one photo, and one two photos."""
    store = write_store(tiny, tmp_path / "store", splits={"train": 6})
    index = json.loads((store / "index.json").read_text())
    names, features = ["anna", "anna", "anna", "boris", "cleo", "cleo"], iter([0.0, 0.1, 5.0, 3.0, 3.1])
    for row, name in zip(index["faces"], names, strict=True):
        row["identity"] = name
    (store / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(people, "_features", lambda *_: torch.full((1, 1), next(features)).expand(1, 128) / 128**0.5)
    found = people.check_people(store)
    assert (found.people, found.single) == (3, 1)
    assert [row.photo for row in found.unlike] == [index["faces"][2]["photo"]]
    assert (store / "people.csv").read_text().splitlines() == ["photo,identity", f"{index['faces'][2]['photo']},anna"]
