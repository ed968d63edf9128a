"""The API for videos, over fake processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mien.studio.app import make_app
from mien.studio.jobs import Jobs, Limits
from mien.studio.protocol import PersonTask, Task, VideoTask
from tests.studio import fake_worker
from tests.studio.test_api import events, sent

LIMITS = Limits(upload_bytes=10, video_bytes=1000, waiting=2, seconds=20.0)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Jobs(tmp_path, LIMITS, workers=1, main=fake_worker.run))) as client:
        yield client


def sent_video(client: TestClient, video: bytes, **query: str) -> str:
    answer = client.post("/api/videos", content=video, params=query)
    assert (answer.status_code, answer.json()["kind"]) == (202, "video")
    return answer.json()["id"]


def test_a_video_becomes_files_of_each_person_and_an_overlay(client: TestClient) -> None:
    job = sent_video(client, b"a video that is larger than a photo may be")
    found = events(client, job)
    assert [name for name, _ in found if name != "frames"] == ["video", "person", "overlay", "finished"]
    state = client.get(f"/api/jobs/{job}").json()
    assert state["video"] == {"width": 100, "height": 80, "rate": 25.0, "frames": 50}
    (person,) = state["people"]
    assert (person["person"], person["frames"], person["spans_s"]) == (0, 40, [[0.0, 0.8], [1.0, 2.0]])
    assert (person["interpolated_s"], state["has_overlay"]) == ([[0.4, 0.6]], True)
    glb = client.get(f"/api/videos/{job}/people/0/head.glb")
    assert (glb.content, glb.headers["content-type"]) == (b"head.glb", "model/gltf-binary")
    assert client.get(f"/api/videos/{job}/overlay.mp4").content == b"overlay"


def test_the_video_comes_back_whole_and_in_parts(client: TestClient) -> None:
    job = sent_video(client, b"0123456789")
    whole = client.get(f"/api/videos/{job}/video")
    assert (whole.content, whole.headers["content-type"]) == (b"0123456789", "video/mp4")
    part = client.get(f"/api/videos/{job}/video", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    webm = sent_video(client, b"\x1a\x45\xdf\xa3 and so on")
    assert client.get(f"/api/videos/{webm}/video").headers["content-type"] == "video/webm"


@pytest.mark.parametrize(
    "path",
    ["people/0/secret.txt", "people/0/sheet.png", "people/1/head.glb", "people/0/..%2Fvideo", "people/-1/head.glb"],
)
def test_other_files_cannot_be_downloaded(client: TestClient, path: str) -> None:
    job = sent_video(client, b"video")
    events(client, job)
    assert client.get(f"/api/videos/{job}/{path}").status_code == 404


def test_an_overlay_that_is_not_drawn_is_not_found(client: TestClient) -> None:
    job = sent_video(client, b"undrawn")
    events(client, job)
    assert client.get(f"/api/videos/{job}/overlay.mp4").status_code == 404


def test_large_and_empty_videos_and_wrong_options_are_refused(client: TestClient, tmp_path: Path) -> None:
    assert client.post("/api/videos", content=b"x" * 1001).status_code == 413
    assert client.post("/api/videos", content=b"").status_code == 400
    for query in ({"mode": "auto"}, {"focal_px": "0"}, {"max_faces": "0"}):
        assert client.post("/api/videos", content=b"video", params=query).status_code == 422
    assert list(tmp_path.iterdir()) == []


def test_other_jobs_are_no_videos(client: TestClient) -> None:
    job = sent(client, b"good")
    for path in ("video", "overlay.mp4", "people/0/head.glb"):
        assert client.get(f"/api/videos/{job}/{path}").status_code == 404
    video = sent_video(client, b"video")
    assert client.post(f"/api/jobs/{video}/again", params={"mode": "fit"}).status_code == 409
    assert client.post(f"/api/people/{video}/start").status_code == 404


def test_a_video_is_stopped_and_its_files_are_removed(client: TestClient, tmp_path: Path) -> None:
    job = sent_video(client, b"slow")
    while client.get(f"/api/jobs/{job}").json()["state"] == "waiting":
        time.sleep(0.02)
    begun = time.monotonic()
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    events(client, sent(client, b"good"))
    assert time.monotonic() - begun < 5
    assert not (tmp_path / job).exists()


def test_time_grows_with_photos_and_is_longer_for_videos(tmp_path: Path) -> None:
    photo = Task(tmp_path, tmp_path, "net", True, None, (), 1)
    person = PersonTask(tmp_path, (0, 1, 4), "net", True, None, 1)
    video = VideoTask(tmp_path, tmp_path, "net", None, None, 30.0)
    limits = replace(LIMITS, video_seconds=30.0)
    assert [limits.seconds_for(task) for task in (photo, person, video)] == [20.0, 60.0, 300.0]
