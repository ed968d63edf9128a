"""The tasks that wait, are worked on, or are done, and the processes that work on them.

Everything here runs in the event loop of the server, so nothing needs a lock; only waiting for a message of a process
takes a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from mien.studio.protocol import (
    AnyTask,
    Cancelled,
    Detected,
    Failed,
    Finished,
    HeadReady,
    Matched,
    Message,
    OverlayReady,
    PersonTask,
    PersonTracked,
    Progress,
    Ready,
    VideoOpened,
    VideoTask,
)
from mien.threads import interrupt_delayed

_PATIENCE_S = 5.0
"""Time in which a process stops its work before it is killed; the longest step between two reports takes less."""
_ABANDONED_S = 15.0
"""A job whose page has gone is stopped after this time; a page that reloads is back earlier."""
_SMALLER = "use smaller or fewer photos, or a shorter video"
"""What to do if time or memory did not suffice."""
_WORK_PER_VIDEO = 10.0
"""Time for a video over its longest length: one core needs about 2 s for a second of 25 frames (docs/tracking.md)."""
_LOOK_S = 0.2
"""How often a process that says nothing is looked after."""
_COLLECTING_S = 600.0
"""A person whose photos stopped coming is removed after this time."""
_ROUND_S = 2.0
"""How often expired and abandoned jobs are looked for."""


class QueueFull(Exception):
    """More tasks wait than the limit allows."""


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    upload_bytes: int = 50_000_000
    """Size of a photo's file."""
    max_pixels: int = 64_000_000
    """Larger JPEGs are reduced, other files refused."""
    person_photos: int = 50
    """Photos of one person."""
    person_bytes: int = 500_000_000
    """Size of all photos of one person."""
    waiting: int = 32
    """Tasks that wait. As many people may have photos that are still coming."""
    seconds: float = 120.0
    """Time for one photo, and for each photo of a person."""
    video_bytes: int = 500_000_000
    """Size of a video's file."""
    video_seconds: float = 300.0
    """Length of a video."""
    keep_s: float = 3600.0
    """Results are removed this long after they were last asked for."""

    def seconds_for(self, task: AnyTask) -> float:
        """Time for a task."""
        if isinstance(task, PersonTask):
            return self.seconds * len(task.photos)
        return max(self.seconds, _WORK_PER_VIDEO * self.video_seconds) if isinstance(task, VideoTask) else self.seconds


@dataclass(eq=False)
class Job:
    """A task and what is known of its faces."""

    id: str
    task: AnyTask
    state: str = "waiting"
    """collecting, waiting, running, stopping, done, failed or cancelled."""
    uploads: dict[int, int] = field(default_factory=dict)
    """Sizes in bytes of the photos of a person that have come, by their numbers."""
    detected: dict[int, Detected] = field(default_factory=dict)
    """What was found in each photo."""
    matched: dict[int, Matched] = field(default_factory=dict)
    """What each photo of a person counts."""
    heads: dict[int, HeadReady] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failure: Failed | None = None
    video: VideoOpened | None = None
    people: dict[int, PersonTracked] = field(default_factory=dict)
    """The people of a video."""
    has_overlay: bool = False
    progress: Progress | None = None
    messages: list[Message] = field(default_factory=list)
    """All messages but those of progress, for those who listen from the beginning."""
    used: float = field(default_factory=time.monotonic)
    listeners: int = 0
    had_listener: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {"done", "failed", "cancelled"}

    def note(self, message: Message) -> None:
        """Take a message in, and wake those who listen."""
        if isinstance(message, Progress):
            self.progress = message
        else:
            self.messages.append(message)
        match message:
            case Detected():
                self.detected[message.photo] = message
            case Matched():
                self.matched[message.photo] = message
            case HeadReady():
                self.heads[message.face] = message
            case VideoOpened():
                self.video = message
            case PersonTracked():
                self.people[message.person] = message
            case OverlayReady():
                self.has_overlay = True
            case Finished():
                self.state, self.warnings = "done", message.warnings
            case Failed():
                self.state, self.failure = "failed", message
            case Cancelled():
                self.state = "cancelled"
            case _:
                pass
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def events(self, start: int = 0) -> AsyncIterator[tuple[int, Message]]:
        """The messages from number `start` on, as they come, with their numbers; progress has that of the next one."""
        self.listeners, self.had_listener = self.listeners + 1, True
        number, shown = start, None
        try:
            while True:
                changed = self.changed
                while number < len(self.messages):
                    yield number, self.messages[number]
                    number += 1
                if self.ended:
                    return
                if self.progress is not None and self.progress is not shown:
                    shown = self.progress
                    yield number, shown
                await changed.wait()
        finally:
            self.listeners -= 1
            self.used = time.monotonic()


class Jobs:
    """All jobs of a server.

    Args:
        folder: Where photos and results go; each job has a folder of its own there.
        limits: What is accepted.
        workers: Number of processes.
        main: What a process does: `run_worker`, with its settings. It is pickled.
    """

    def __init__(self, folder: Path, limits: Limits, *, workers: int, main: Callable[[Connection], None]) -> None:
        self.limits = limits
        self._folder, self._main = folder, main
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Condition()
        self._count = workers
        self._tasks: list[asyncio.Task[None]] = []
        self.ready = asyncio.Event()
        """Whether a process has loaded its networks."""

    async def start(self) -> None:
        """Start the processes; they load their networks while the server already responds."""
        self._tasks = [asyncio.create_task(self._serve()) for _ in range(self._count)]
        self._tasks.append(asyncio.create_task(self._tidy()))

    async def stop(self) -> None:
        """End the processes, and tell those who listen to unfinished jobs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in self._jobs.values():
            if not job.ended:
                job.note(Failed("ServerEnded", "mien studio was ended; start it again, and send the file again."))

    def new_folder(self) -> Path:
        """A new folder for the files of one job; its name says nothing about the photo."""
        folder = self._folder / secrets.token_urlsafe(12)
        folder.mkdir()
        return folder

    async def submit(self, task: AnyTask) -> Job:
        """Let a task wait for its turn.

        Raises:
            QueueFull: Too many wait already.
        """
        job = Job(task.folder.name, task)
        self._jobs[job.id] = job
        try:
            await self.start_work(job)
        except QueueFull:
            del self._jobs[job.id]
            raise
        return job

    def collect(self, task: PersonTask) -> Job:
        """Begin a job whose photos are still to come; `start_work` lets it wait for its turn.

        Raises:
            QueueFull: Too many such jobs are there.
        """
        if sum(job.state == "collecting" for job in self._jobs.values()) >= self.limits.waiting:
            raise QueueFull
        job = Job(task.folder.name, task, state="collecting")
        self._jobs[job.id] = job
        return job

    async def start_work(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            QueueFull: Too many wait already; nothing has changed.
        """
        if len(self._waiting) >= self.limits.waiting:
            raise QueueFull
        job.state = "waiting"
        self._waiting.append(job)
        async with self._arrived:
            self._arrived.notify()

    def get(self, name: str) -> Job | None:
        """The job of an id; None if there is none or it has expired."""
        job = self._jobs.get(name)
        if job is not None:
            job.used = time.monotonic()
        return job

    def position(self, job: Job) -> int:
        """Number of tasks that come before it."""
        return self._waiting.index(job) if job in self._waiting else 0

    def cancel(self, job: Job) -> None:
        """Stop the work on a job, or forget it if its turn has not come."""
        if job in self._waiting or job.state == "collecting":
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)
            job.note(Cancelled())
        elif not job.ended:
            job.state = "stopping"

    def remove(self, job: Job) -> None:
        """Stop the work, and remove what was sent and its results."""
        self.cancel(job)
        self._jobs.pop(job.id, None)
        if job.ended:
            shutil.rmtree(job.task.folder, ignore_errors=True)

    async def _serve(self) -> None:
        """Give tasks to one process after another; a new one starts when one has died."""
        while True:
            worker = _Worker.start(self._main)
            try:
                if isinstance(await worker.message(), Ready):
                    self.ready.set()
                while worker.alive:
                    job = await self._next()
                    await self._work(worker, job)
                    if job.id not in self._jobs:
                        shutil.rmtree(job.task.folder, ignore_errors=True)
            finally:
                await worker.end()

    async def _next(self) -> Job:
        async with self._arrived:
            await self._arrived.wait_for(lambda: bool(self._waiting))
            return self._waiting.popleft()

    async def _work(self, worker: _Worker, job: Job) -> None:
        """One job, from its task to its last message."""
        job.state = "running"
        worker.send(job.task)
        seconds = self.limits.seconds_for(job.task)
        deadline = time.monotonic() + seconds
        stopping = False
        while not job.ended:
            if job.state == "stopping" and not stopping:
                stopping, deadline = True, time.monotonic() + _PATIENCE_S
                worker.send(Cancelled())
            try:
                message = await worker.message(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
            except asyncio.TimeoutError:
                if time.monotonic() < deadline:
                    continue
                await worker.end()
                late = Failed("TimeLimit", f"the work took longer than {seconds:g} seconds; {_SMALLER}.")
                message = Cancelled() if stopping else late
            if message is None:
                await worker.end()
                message = Failed("WorkerDied", f"the process that worked on it ended; {_SMALLER}.")
            job.note(message)
            job.used = time.monotonic()

    async def _tidy(self) -> None:
        """Remove expired jobs and unfinished collections, and stop jobs whose page has gone."""
        while True:
            await asyncio.sleep(_ROUND_S)
            now = time.monotonic()
            for job in list(self._jobs.values()):
                idle = now - job.used
                if job.listeners == 0 and job.had_listener and not job.ended and idle > _ABANDONED_S:
                    self.cancel(job)
                if job.state == "collecting" and idle > _COLLECTING_S:
                    self.remove(job)
                if job.ended and job.listeners == 0 and idle > self.limits.keep_s:
                    self.remove(job)


@dataclass(eq=False)
class _Worker:
    """A process and the connection to it."""

    process: BaseProcess
    connection: Connection
    _pending: asyncio.Future[Message | None] | None = None

    @classmethod
    def start(cls, main: Callable[[Connection], None]) -> _Worker:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=main, args=(theirs,), daemon=True)
        with interrupt_delayed():
            process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        return cls(process, ours)

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, message: AnyTask | Cancelled) -> None:
        with contextlib.suppress(OSError):  # it has died, which `message` tells
            self.connection.send(message)

    async def message(self, seconds: float | None = None) -> Message | None:
        """The next message; None if the process has died. Waiting for it can be given up and begun again.

        Args:
            seconds: How long to wait; None for as long as it takes.

        Raises:
            asyncio.TimeoutError: No message came in this time.
        """
        if self._pending is None:
            self._pending = asyncio.create_task(asyncio.to_thread(self._receive))
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the message.
        done, _ = await asyncio.wait({self._pending}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        message, self._pending = self._pending.result(), None
        return message

    def _receive(self) -> Message | None:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    async def end(self) -> None:
        """End the process at once: its files belong to jobs, which are removed as a whole.

        A process that the system is slow to end (it writes to a disk that hangs, say) keeps only this photo waiting.
        """
        if self.process.is_alive():
            self.process.kill()
        await asyncio.to_thread(self.process.join, _PATIENCE_S)


def run_worker(connection: Connection, *, device: str, threads: int, memory_bytes: int) -> None:
    """`mien.studio.worker.run`, which imports torch: in its own process, since the server needs none."""
    from mien.studio.worker import run  # noqa: PLC0415

    run(connection, device=device, threads=threads, memory_bytes=memory_bytes)
