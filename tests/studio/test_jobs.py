"""Photos that wait, are worked on, and end; processes that die, hang and are stopped."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mien.studio import jobs as jobs_module
from mien.studio.jobs import Job, Jobs, Limits, QueueFull
from mien.studio.protocol import Detected, Finished, HeadReady, Stage, Task
from tests.studio import fake_worker

LIMITS = Limits(waiting=3, seconds=20.0)


def run(tmp_path: Path, scenario: Callable[[Jobs], Awaitable[None]], limits: Limits = LIMITS, workers: int = 1) -> None:
    """Run a scenario with a server's jobs and fake processes."""

    async def running() -> None:
        jobs = Jobs(tmp_path, limits, workers=workers, main=fake_worker.run)
        await jobs.start()
        try:
            await asyncio.wait_for(scenario(jobs), 30)
        finally:
            await jobs.stop()

    asyncio.run(running())


async def submitted(jobs: Jobs, photo: bytes) -> Job:
    folder = jobs.new_folder()
    (folder / "photo").write_bytes(photo)
    return await jobs.submit(Task(folder / "photo", folder, "auto", True, None, (), 10**6))


async def ended(job: Job) -> Job:
    async for _ in job.events():
        pass
    return job


def test_a_photo_goes_through_its_steps(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        job = await submitted(jobs, b"good")
        names = [type(message) async for _, message in job.events()]
        assert [name for name in names if name is not Stage] == [Detected, HeadReady, HeadReady, Finished]
        assert (job.state, job.heads[0].step, job.warnings) == ("done", "detail", ("a warning",))

    run(tmp_path, scenario)


def test_events_are_heard_from_any_number_on(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        job = await ended(await submitted(jobs, b"good"))
        assert [number async for number, _ in job.events(2)] == [2, 3]

    run(tmp_path, scenario)


def test_a_bad_photo_fails_with_its_reason(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        job = await ended(await submitted(jobs, b"bad"))
        assert job.state == "failed"
        assert job.failure is not None and job.failure.kind == "ImageError"
        assert (await ended(await submitted(jobs, b"good"))).state == "done"

    run(tmp_path, scenario)


def test_a_process_that_dies_costs_one_photo(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        three = [await submitted(jobs, photo) for photo in (b"good", b"die", b"good")]
        states = [(await ended(job)).state for job in three]
        assert states == ["done", "failed", "done"]
        failure = three[1].failure
        assert failure is not None and failure.kind == "WorkerDied"

    run(tmp_path, scenario)


def test_a_photo_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        job = await ended(await submitted(jobs, b"stuck"))
        assert job.failure is not None and job.failure.kind == "TimeLimit"
        assert (await ended(await submitted(jobs, b"good"))).state == "done"

    run(tmp_path, scenario, replace(LIMITS, seconds=1.5))


def test_more_photos_than_may_wait_are_refused(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        await jobs.ready.wait()
        slow = await submitted(jobs, b"slow")
        while slow.state == "waiting":
            await asyncio.sleep(0.02)
        waiting = [await submitted(jobs, b"good") for _ in range(LIMITS.waiting)]
        assert [jobs.position(job) for job in waiting] == [0, 1, 2]
        with pytest.raises(QueueFull):
            await submitted(jobs, b"good")
        jobs.cancel(slow)
        assert [(await ended(job)).state for job in waiting] == ["done"] * 3

    run(tmp_path, scenario)


def test_a_photo_can_be_cancelled_while_it_waits_and_while_it_runs(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        running, waiting = await submitted(jobs, b"slow"), await submitted(jobs, b"good")
        while running.state == "waiting":
            await asyncio.sleep(0.02)
        jobs.cancel(waiting)
        assert waiting.state == "cancelled"
        jobs.cancel(running)
        assert (await ended(running)).state == "cancelled"
        assert (await ended(await submitted(jobs, b"good"))).state == "done"

    run(tmp_path, scenario)


def test_the_work_ends_when_its_page_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_ROUND_S", 0.1)
    monkeypatch.setattr(jobs_module, "_ABANDONED_S", 0.3)

    async def scenario(jobs: Jobs) -> None:
        watched, unheard = await submitted(jobs, b"slow"), await submitted(jobs, b"good")
        listening = asyncio.ensure_future(ended(watched))
        while watched.state == "waiting":
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert watched.state == "running"  # somebody listens
        listening.cancel()
        while not watched.ended:
            await asyncio.sleep(0.05)
        assert watched.state == "cancelled"
        assert (await ended(unheard)).state == "done"  # nobody has listened before: a program that asks later

    run(tmp_path, scenario)


def test_results_expire_when_nobody_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_ROUND_S", 0.05)

    async def scenario(jobs: Jobs) -> None:
        job = await ended(await submitted(jobs, b"good"))
        assert job.task.folder.is_dir()
        for _ in range(4):
            await asyncio.sleep(0.2)
            assert jobs.get(job.id) is job  # asked for: it stays
        await asyncio.sleep(0.9)
        assert jobs.get(job.id) is None
        assert not job.task.folder.exists()

    run(tmp_path, scenario, replace(LIMITS, keep_s=0.5))


def test_a_removed_photo_leaves_no_file(tmp_path: Path) -> None:
    async def scenario(jobs: Jobs) -> None:
        job = await submitted(jobs, b"slow")
        while job.state == "waiting":
            await asyncio.sleep(0.02)
        jobs.remove(job)
        await ended(job)
        await ended(await submitted(jobs, b"good"))
        assert not job.task.folder.exists()

    run(tmp_path, scenario)


def test_the_server_answers_while_a_process_is_slow_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> int:
        worker = jobs_module._Worker.start(fake_worker.run)
        monkeypatch.setattr(worker.process, "join", lambda _timeout: time.sleep(0.5))
        ending = asyncio.ensure_future(worker.end())
        turns = 0
        while not ending.done():
            turns += 1
            await asyncio.sleep(0.01)
        return turns

    assert asyncio.run(scenario()) > 3


def test_an_end_that_comes_together_with_a_message_is_not_lost() -> None:
    """asyncio.wait_for lost it before Python 3.12, and the server waited for ever."""

    async def main() -> None:
        worker = jobs_module._Worker(multiprocessing.Process(), multiprocessing.Pipe()[0])
        worker._pending = message = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(worker.message(10.0))
        await asyncio.sleep(0)
        message.set_result(Stage("reading", 0.0))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
