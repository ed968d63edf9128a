"""The API for several photos of one person, over fake processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Request
from starlette.testclient import TestClient

from mien.studio import jobs as jobs_module
from mien.studio import people
from mien.studio.app import make_app
from mien.studio.jobs import Jobs, Limits
from mien.studio.requests import job_of, jobs_of
from tests.studio import fake_worker
from tests.studio.test_api import events, sent

LIMITS = Limits(upload_bytes=1000, waiting=2, seconds=20.0, person_photos=4, person_bytes=1500)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Jobs(tmp_path, LIMITS, workers=1, main=fake_worker.run))) as client:
        yield client


def begun(client: TestClient, *photos: bytes) -> str:
    """A person whose photos were sent."""
    answer = client.post("/api/people", params={"mode": "net"})
    assert (answer.status_code, answer.json()["state"], answer.json()["kind"]) == (201, "collecting", "person")
    person = answer.json()["id"]
    for number, photo in enumerate(photos):
        assert client.put(f"/api/people/{person}/photos/{number}", content=photo).status_code == 204
    return person


def started(client: TestClient, *photos: bytes) -> str:
    person = begun(client, *photos)
    assert client.post(f"/api/people/{person}/start").status_code == 202
    return person


def test_photos_become_one_person(client: TestClient) -> None:
    person = started(client, b"anna1", b"other", b"anna2")
    found = [(name, data.get("photo", data.get("face"))) for name, data in events(client, person) if name != "stage"]
    assert found == [
        *[("detected", k) for k in range(3)],
        *[("matched", k) for k in range(3)],
        ("head", 0),
        ("head", 2),
        ("finished", None),
    ]
    state = client.get(f"/api/jobs/{person}").json()
    assert [(one["photo"], one["height"], one["weight"], one["best"]) for one in state["photos"]] == [
        (0, 80, 0.9, True),
        (1, 81, 0.0, False),
        (2, 82, 0.9, False),
    ]
    assert state["photos"][1]["reason"] == "no face in it is the person"
    assert [face["face"] for face in state["faces"]] == [0, 2]
    assert client.get(f"/api/jobs/{person}/faces/2/head.glb").content == b"glTF of anna2"
    assert client.get(f"/api/jobs/{person}/faces/1/head.glb").status_code == 404
    assert client.get(f"/api/people/{person}/photos/1").content == b"jpeg of other"
    assert client.get(f"/api/people/{person}/photos/3").status_code == 404


def test_a_photo_can_be_sent_again_and_numbers_may_be_missing(client: TestClient) -> None:
    person = begun(client, b"wrong")
    client.put(f"/api/people/{person}/photos/0", content=b"right")
    client.put(f"/api/people/{person}/photos/3", content=b"last")
    client.post(f"/api/people/{person}/start")
    events(client, person)
    assert [client.get(f"/api/people/{person}/photos/{k}").content for k in (0, 3)] == [
        b"jpeg of right",
        b"jpeg of last",
    ]


def test_too_few_photos_do_not_start(client: TestClient) -> None:
    person = begun(client, b"one")
    assert client.post(f"/api/people/{person}/start").status_code == 409
    client.put(f"/api/people/{person}/photos/1", content=b"two")
    assert client.post(f"/api/people/{person}/start").status_code == 202


def test_nothing_comes_after_the_start(client: TestClient) -> None:
    person = started(client, b"one", b"two")
    assert client.put(f"/api/people/{person}/photos/2", content=b"late").status_code == 409
    assert client.post(f"/api/people/{person}/start").status_code == 409


def test_too_many_and_too_large_photos_are_refused_and_the_others_stay(client: TestClient, tmp_path: Path) -> None:
    person = begun(client, b"x" * 900, b"x" * 500)
    for number, content, status in [
        (2, b"x" * 101, 413),  # of all photos
        (2, b"x" * 1001, 413),  # of one photo
        (4, b"x", 413),
        (-1, b"x", 413),
        (2, b"", 400),
        (1, b"x" * 601, 413),
    ]:
        answer = client.put(f"/api/people/{person}/photos/{number}", content=content)
        assert answer.status_code == status, (number, len(content))
    assert {path.name: path.stat().st_size for path in (tmp_path / person).iterdir()} == {"photo0": 900, "photo1": 500}
    assert client.put(f"/api/people/{person}/photos/1", content=b"x" * 600).status_code == 204
    assert client.put(f"/api/people/{person}/photos/2", content=b"x").status_code == 413  # the new size counts


def test_a_photo_that_is_still_coming_when_the_work_starts_is_refused(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = begun(client, b"one", b"two")
    save_body = people.save_body

    async def save_late(request: Request, path: Path, largest: int) -> int:
        jobs = jobs_of(request)
        await jobs.start_work(job_of(request, person))
        return await save_body(request, path, largest)

    monkeypatch.setattr(people, "save_body", save_late)
    assert client.put(f"/api/people/{person}/photos/1", content=b"late").status_code == 409
    assert (tmp_path / person / "photo1").read_bytes() == b"two"
    assert not list((tmp_path / person).glob(".*"))


def test_other_jobs_are_no_people(client: TestClient) -> None:
    photo = sent(client, b"good")
    for path in (photo, "unknown"):
        assert client.put(f"/api/people/{path}/photos/0", content=b"x").status_code == 404
        assert client.post(f"/api/people/{path}/start").status_code == 404
    person = started(client, b"one", b"two")
    events(client, person)
    assert client.post(f"/api/jobs/{person}/pins", json=[]).status_code == 409


def test_a_person_waits_in_the_same_queue_and_can_be_stopped(client: TestClient, tmp_path: Path) -> None:
    slow = started(client, b"slow", b"two")
    while client.get(f"/api/jobs/{slow}").json()["state"] == "waiting":
        time.sleep(0.02)
    waiting = [sent(client, b"good"), started(client, b"one", b"two")]
    person = begun(client, b"one", b"two")
    assert client.post(f"/api/people/{person}/start").status_code == 503
    assert client.get(f"/api/jobs/{person}").json()["state"] == "collecting"  # and can be started later
    assert client.delete(f"/api/jobs/{slow}").status_code == 204
    assert [events(client, job)[-1][0] for job in waiting] == ["finished"] * 2
    assert client.post(f"/api/people/{person}/start").status_code == 202
    assert events(client, person)[-1][0] == "finished"
    assert not (tmp_path / slow).exists()


def test_too_many_people_at_once_are_refused(client: TestClient, tmp_path: Path) -> None:
    people = [begun(client) for _ in range(LIMITS.waiting)]
    assert client.post("/api/people").status_code == 503
    assert {path.name for path in tmp_path.iterdir()} == set(people)
    client.delete(f"/api/jobs/{people[0]}")
    assert client.post("/api/people").status_code == 201


def test_a_person_whose_photos_stop_coming_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_ROUND_S", 0.05)
    monkeypatch.setattr(jobs_module, "_COLLECTING_S", 0.3)
    with TestClient(make_app(Jobs(tmp_path, LIMITS, workers=1, main=fake_worker.run))) as client:
        person = begun(client, b"one")
        assert (tmp_path / person).is_dir()
        end = time.monotonic() + 10
        while (tmp_path / person).exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert client.get(f"/api/jobs/{person}").status_code == 404
