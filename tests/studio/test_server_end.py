"""What a server leaves behind when it ends, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mien.io.folder_lock import locked_folder
from mien.studio import folder as folder_module
from mien.studio.folder import server_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with a fake worker, whose folder is in `folder`; its process and its address."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "tests.studio.fake_server"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        yield server, server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def submitted(address: str, photo: bytes) -> str:
    """The id of a job that is at work."""
    with urllib.request.urlopen(urllib.request.Request(f"{address}api/jobs", photo), timeout=30) as answer:
        job = json.load(answer)["id"]
    while state_of(address, job) == "waiting":
        time.sleep(0.02)
    return job


def state_of(address: str, job: str) -> str:
    with urllib.request.urlopen(f"{address}api/jobs/{job}", timeout=30) as answer:
        return json.load(answer)["state"]


def worker_of(server: subprocess.Popen[str]) -> int:
    """The youngest child: multiprocessing's resource tracker is older."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(children[-1])


def studio_folders(folder: Path) -> list[Path]:
    return list(folder.glob("mien-studio-*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -signal.SIGINT)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_server_that_ends_at_work_leaves_no_folder_and_tells_its_page(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with running(tmp_path) as (server, address):
        job = submitted(address, b"slow")
        assert len(studio_folders(tmp_path)) == 1
        with urllib.request.urlopen(f"{address}api/jobs/{job}/events", timeout=30) as events:
            server.send_signal(number)
            heard = events.read().decode()
        assert "ServerEnded" in heard
        assert server.wait(10) == code
        assert studio_folders(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_killed_worker_costs_its_job_and_leaves_no_folder_at_the_end(tmp_path: Path) -> None:
    with running(tmp_path) as (server, address):
        job = submitted(address, b"slow")
        os.kill(worker_of(server), signal.SIGKILL)
        while state_of(address, job) == "running":
            time.sleep(0.02)
        assert state_of(address, job) == "failed"
        submitted(address, b"good")
        server.terminate()
        assert server.wait(10) == 143
        assert studio_folders(tmp_path) == []


def test_the_next_server_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as (server, address):
        submitted(address, b"slow")
        server.kill()
        server.wait()
    (dead,) = studio_folders(tmp_path)
    assert len([path for path in dead.iterdir() if path.is_dir()]) == 1
    monkeypatch.setattr(folder_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(folder_module.tempfile, "tempdir", str(tmp_path))
    with server_folder() as new:
        assert dead in studio_folders(tmp_path)  # it may have begun just now
    os.utime(dead, (0, 0))
    with server_folder() as new:
        assert studio_folders(tmp_path) == [new]


def test_folders_of_live_servers_and_other_things_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(folder_module.tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    with locked_folder(elsewhere):
        pass
    link, unlocked, file = (tmp_path / f"mien-studio-{name}" for name in ("link", "unlocked", "file"))
    link.symlink_to(elsewhere)
    unlocked.mkdir()
    file.write_text("")
    with running(tmp_path) as (_, address):
        submitted(address, b"slow")
        others = studio_folders(tmp_path)
        for path in others:
            os.utime(path, (0, 0), follow_symlinks=False)
        with server_folder():
            pass
        assert sorted(studio_folders(tmp_path)) == sorted(others)
    assert elsewhere.is_dir()
