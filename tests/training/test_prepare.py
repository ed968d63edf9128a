"""Preparation: real perception on one public-domain portrait, everything else by names and files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import ConfigError, FormatError, OutputError
from mien.training.data import prepare as module
from mien.training.data.prepare import PhotoFacts, PreparationSettings, photo_facts, prepare, split_of
from mien.training.data.store import STORE_SIZE, FaceStore

skimage_data = pytest.importorskip("skimage.data")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked at")


def facts_of(root: Path, **options: Path) -> dict[str, tuple[str, int | None]]:
    return {facts.name: (facts.identity, facts.age) for facts in photo_facts(root, **options)}


def test_names_folders_and_tables_tell_who_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "53_Robert_Duvall_0001.jpg", "anna/1.jpg", "anna/2.jpg", "alone.png")
    assert facts_of(tmp_path) == {
        "53_Robert_Duvall_0001.jpg": ("Robert_Duvall", 53),
        "alone.png": ("alone", None),
        "anna/1.jpg": ("anna", None),
        "anna/2.jpg": ("anna", None),
    }
    table = tmp_path / "people.csv"
    table.write_text("file,subject,age\nanna/1.jpg,bertha,31\n", encoding="utf-8")
    assert facts_of(tmp_path, table=table)["anna/1.jpg"] == ("bertha", 31)
    table.write_text("name\nanna\n", encoding="utf-8")
    with pytest.raises(FormatError, match="columns file and identity"):
        photo_facts(tmp_path, table=table)


def test_splits_keep_people_together_and_have_the_papers_shares() -> None:
    photos = [PhotoFacts("", f"{k}.jpg", f"person{k // 4}", None) for k in range(4000)]
    by_identity = [split_of(photo, PreparationSettings()) for photo in photos]
    assert all(len(set(by_identity[k : k + 4])) == 1 for k in range(0, 4000, 4))
    at_random = [split_of(photo, PreparationSettings(split_by="random")) for photo in photos]
    assert len({tuple(at_random[k : k + 4]) for k in range(0, 4000, 4)}) > 3
    for splits in (by_identity, at_random):
        shares = [splits.count(name) / 4000 for name in ("train", "validation", "test")]
        assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.035)
    assert by_identity != [split_of(photo, PreparationSettings(seed=1)) for photo in photos]


def test_photos_become_a_store_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    Image.fromarray(skimage_data.astronaut()).save(photos / "47_Eileen_Collins_0001.jpg", quality=95)
    Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(photos / "wall.png")
    touch(photos, "zz_text.jpg")
    monkeypatch.setattr(module, "SMALLEST_SHARD", 1)
    settings = PreparationSettings()
    told = []
    report = prepare(
        photo_facts(photos), store, settings=settings, processes=1, progress=lambda done, total: told.append(done)
    )
    assert told == [1, 2, 3]
    assert (report.photos, report.kept) == (3, 1)
    reasons = {drop.photo: drop.reason for drop in report.dropped}
    assert reasons["wall.png"] == "no face"
    assert reasons["zz_text.jpg"].startswith("ImageError")
    assert "160,000 photos" in report.text()
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
    prepare(photo_facts(photos), store, settings=settings, processes=1)
    after = {path.name: path.stat().st_mtime_ns for path in store.glob("faces-*.tar")}
    assert [name for name in after if after[name] != before[name]] == [first.with_suffix(".tar").name]
    assert json.loads((store / "index.json").read_text(encoding="utf-8")) == content
    with pytest.raises(ConfigError, match="other photos or settings"):
        prepare(photo_facts(photos), store, settings=PreparationSettings(seed=1), processes=1)


def test_a_store_among_its_photos_is_not_taken_for_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "store/contact_sheet.png")
    assert list(facts_of(tmp_path, skip=tmp_path / "store")) == ["a.jpg"]


def test_names_that_are_no_valid_text_are_prepared(tmp_path: Path) -> None:
    photos = [PhotoFacts(str(tmp_path / "b\udcff.jpg"), "b\udcff.jpg", "b\udcff", None)]
    report = prepare(photos, tmp_path / "store", settings=PreparationSettings(), processes=1)
    assert [drop.photo for drop in report.dropped] == ["b\udcff.jpg"]
    assert split_of(photos[0], PreparationSettings()) in ("train", "validation", "test")


def test_nothing_left_to_do_has_no_speed_and_damaged_rows_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg")
    facts, store, settings = photo_facts(tmp_path / "photos"), tmp_path / "store", PreparationSettings()
    assert "photos/s" in prepare(facts, store, settings=settings, processes=1).text()
    assert "photos/s" not in prepare(facts, store, settings=settings, processes=1).text()
    (rows,) = store.glob("faces-*.json")
    rows.write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=f"{rows.name}: damaged"):
        prepare(facts, store, settings=settings, processes=1)


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, settings = tmp_path / "store", PreparationSettings()

    def full(descriptor: int) -> None:
        if (store / "plan.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    touch(tmp_path, "photos/a.jpg")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for _ in range(2):  # the plan outlives it, and so the store can be gone on with
            with pytest.raises(OutputError, match="No space left"):
                prepare(photo_facts(tmp_path / "photos"), store, settings=settings, processes=1)
            assert [path.name for path in store.iterdir()] == ["plan.json"]
    (store / "faces-000000.tar.7.partial").touch()  # as a kill leaves it
    (store / "download.zip.partial").touch()  # somebody else's
    assert prepare(photo_facts(tmp_path / "photos"), store, settings=settings, processes=1).photos == 1
    assert [left.name for left in store.glob("*.partial")] == ["download.zip.partial"]
