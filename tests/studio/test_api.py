"""The HTTP API over fake processes: photo → job → events → files, and what is refused."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mien.studio.app import make_app
from mien.studio.jobs import Jobs, Limits
from tests.studio import fake_worker

LIMITS = Limits(upload_bytes=1000, waiting=2, seconds=20.0)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Jobs(tmp_path, LIMITS, workers=1, main=fake_worker.run))) as client:
        yield client


def sent(client: TestClient, photo: bytes, **query: str) -> str:
    answer = client.post("/api/jobs", content=photo, params=query)
    assert answer.status_code == 202
    return answer.json()["id"]


def events(client: TestClient, job: str, **headers: str) -> list[tuple[str, Any]]:
    """Name and data of each event until the stream ends."""
    text = client.get(f"/api/jobs/{job}/events", headers=headers).text
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_a_photo_becomes_a_file_that_can_be_downloaded(client: TestClient) -> None:
    job = sent(client, b"good")
    names = [name for name, _ in events(client, job) if name != "stage"]
    assert names == ["detected", "head", "head", "finished"]
    state = client.get(f"/api/jobs/{job}").json()
    assert (state["state"], state["width"], state["height"], state["warnings"]) == ("done", 100, 80, ["a warning"])
    assert state["faces"][0]["step"] == "detail"
    assert len(state["outlines"][0]["landmarks"]) == 68
    answer = client.get(f"/api/jobs/{job}/faces/0/head.glb")
    assert (answer.content, answer.headers["content-type"]) == (b"glTF", "model/gltf-binary")
    assert client.get(f"/api/jobs/{job}/faces/0/network.glb").content == b"light"
    assert client.get(f"/api/jobs/{job}/photo").content == b"jpeg"


def test_a_stream_goes_on_after_the_last_event_that_was_heard(client: TestClient) -> None:
    job = sent(client, b"good")
    events(client, job)
    assert [name for name, _ in events(client, job, **{"Last-Event-ID": "2"})] == ["finished"]
    assert next(name for name, _ in events(client, job, **{"Last-Event-ID": "x"})) == "detected"


@pytest.mark.parametrize(
    "path",
    [
        "faces/0/secret.txt",  # in the folder, and no file of a result
        "faces/0/face.glb",  # a file of a result that was not made
        "faces/1/head.glb",
        "faces/-1/head.glb",
        "faces/0/..%2F..%2Fphoto",
        "faces/0/..",
    ],
)
def test_other_files_cannot_be_downloaded(client: TestClient, path: str) -> None:
    job = sent(client, b"good")
    events(client, job)
    assert client.get(f"/api/jobs/{job}/{path}").status_code == 404


@pytest.mark.parametrize("path", ["", "/events", "/photo", "/faces/0/head.glb"])
def test_unknown_jobs_are_not_found(client: TestClient, path: str) -> None:
    assert client.get(f"/api/jobs/unknown{path}").status_code == 404
    assert client.delete("/api/jobs/unknown").status_code == 404
    assert client.post("/api/jobs/unknown/pins", json=[]).status_code == 404
    assert client.post("/api/jobs/unknown/again", params={"mode": "fit"}).status_code == 404


def test_large_and_empty_photos_are_refused_and_leave_nothing(client: TestClient, tmp_path: Path) -> None:
    assert client.post("/api/jobs", content=b"x" * 1001).status_code == 413
    assert client.post("/api/jobs", content=b"").status_code == 400
    assert list(tmp_path.iterdir()) == []
    assert client.post("/api/jobs", content=b"x" * 1000).status_code == 202


@pytest.mark.parametrize(
    "query", [{"mode": "best"}, {"focal_px": "-1"}, {"focal_px": "nan"}, {"detail": "perhaps"}, {"formats": "glb,exe"}]
)
def test_wrong_options_are_refused(client: TestClient, query: dict[str, str]) -> None:
    assert client.post("/api/jobs", content=b"good", params=query).status_code == 422


def test_too_many_photos_are_refused_and_leave_nothing(client: TestClient, tmp_path: Path) -> None:
    slow = sent(client, b"slow")
    while client.get(f"/api/jobs/{slow}").json()["state"] == "waiting":
        time.sleep(0.02)
    waiting = [sent(client, b"good") for _ in range(LIMITS.waiting)]
    answer = client.post("/api/jobs", content=b"good")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert {path.name for path in tmp_path.iterdir()} == {slow, *waiting}
    assert client.delete(f"/api/jobs/{slow}").status_code == 204
    assert events(client, waiting[-1])[-1][0] == "finished"


def test_a_failed_photo_says_why(client: TestClient) -> None:
    job = sent(client, b"bad")
    name, data = events(client, job)[-1]
    assert (name, data["kind"]) == ("failed", "ImageError")
    state = client.get(f"/api/jobs/{job}").json()
    assert (state["state"], state["error"]) == ("failed", "this is no photo; send another.")


def test_a_removed_job_is_gone(client: TestClient, tmp_path: Path) -> None:
    job = sent(client, b"good")
    events(client, job)
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert client.get(f"/api/jobs/{job}").status_code == 404
    assert list(tmp_path.iterdir()) == []


def test_pins_start_another_job_with_the_same_photo(client: TestClient) -> None:
    job = sent(client, b"good", mode="net")
    events(client, job)
    answer = client.post(f"/api/jobs/{job}/pins", json=[[{"landmark": 30, "x": 5.0, "y": 6.0}]])
    assert answer.status_code == 202
    heads = [data for name, data in events(client, answer.json()["id"]) if name == "head"]
    assert heads[-1]["notes"] == ["net, pins: 1, formats: None"]


@pytest.mark.parametrize(
    ("pins", "status"),
    [
        ([[], []], 409),  # the photo shows one face
        ([[{"landmark": 3, "x": 0, "y": 0}]], 422),  # of the jaw
        ([[{"landmark": 30, "x": "inf", "y": 0}]], 422),
        ([[{"landmark": 30, "x": 0}]], 422),
        ({"landmark": 30}, 422),
    ],
)
def test_wrong_pins_are_refused(client: TestClient, pins: object, status: int) -> None:
    job = sent(client, b"good")
    events(client, job)
    assert client.post(f"/api/jobs/{job}/pins", json=pins).status_code == status


def test_a_shape_starts_another_job_with_a_copy_of_the_face(client: TestClient) -> None:
    job = sent(client, b"good")
    events(client, job)
    answer = client.post(f"/api/jobs/{job}/faces/0/shape", json={"identity:1": 0.5, "phenotype:age": -1})
    assert answer.status_code == 202
    shape = answer.json()["id"]
    client.delete(f"/api/jobs/{job}")
    (head,) = [data for name, data in events(client, shape) if name == "head"]
    copied = "['coefficients.json', 'reconstruction.npz']"
    assert head["notes"] == [f"{copied}, (('identity:1', 0.5), ('phenotype:age', -1.0))"]
    assert client.post(f"/api/jobs/{shape}/pins", json=[]).status_code == 409
    assert client.post(f"/api/jobs/{shape}/again", params={"mode": "fit"}).status_code == 409


def test_the_same_photo_again_in_another_mode(client: TestClient) -> None:
    job = sent(client, b"good", mode="net", formats="glb")
    events(client, job)
    pinned = client.post(f"/api/jobs/{job}/pins", json=[[{"landmark": 30, "x": 5.0, "y": 6.0}]]).json()["id"]
    other = client.post(f"/api/jobs/{pinned}/again", params={"mode": "fit"})
    assert (other.status_code, other.json()["id"] in {job, pinned}) == (202, False)
    client.delete(f"/api/jobs/{job}")
    client.delete(f"/api/jobs/{pinned}")  # the new job has a photo of its own
    heads = [data for name, data in events(client, other.json()["id"]) if name == "head"]
    assert heads[-1]["notes"] == ["fit, pins: 1, formats: ('glb',)"]
    assert client.post(f"/api/jobs/{other.json()['id']}/again", params={"mode": "best"}).status_code == 422
    assert client.post(f"/api/jobs/{other.json()['id']}/again").status_code == 422


@pytest.mark.parametrize(
    ("photo", "face", "strengths", "status"),
    [
        (b"good", 1, {}, 404),
        (b"half", 0, {}, 409),  # only the network's head is there
        (b"good", 0, {"identity:1": 1.5}, 422),
        (b"good", 0, {"identity:1": "nan"}, 422),
        (b"good", 0, [1], 422),
    ],
)
def test_wrong_shapes_are_refused(client: TestClient, photo: bytes, face: int, strengths: object, status: int) -> None:
    job = sent(client, photo)
    events(client, job)
    assert client.post(f"/api/jobs/{job}/faces/{face}/shape", json=strengths).status_code == status


def test_the_description_names_every_path(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/api/jobs",
        "/api/jobs/{job_id}",
        "/api/jobs/{job_id}/again",
        "/api/jobs/{job_id}/events",
        "/api/jobs/{job_id}/pins",
        "/api/jobs/{job_id}/photo",
        "/api/jobs/{job_id}/faces/{face}/shape",
        "/api/jobs/{job_id}/faces/{face}/{name}",
        "/api/people",
        "/api/people/{job_id}/photos/{number}",
        "/api/people/{job_id}/start",
        "/api/videos",
        "/api/videos/{job_id}/video",
        "/api/videos/{job_id}/overlay.mp4",
        "/api/videos/{job_id}/people/{person}/{name}",
    }
    (formats,) = [one for one in paths["/api/jobs"]["post"]["parameters"] if one["name"] == "formats"]
    pattern = formats["schema"]["anyOf"][0]["pattern"]
    assert re.match(pattern, "glb,usd") and not re.match(pattern, "glb,exe") and not re.match(pattern, "")
    assert client.get("/docs").status_code == 404  # its page would load scripts from another host
