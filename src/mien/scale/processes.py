"""Reconstructs photos and people in several processes.

Each process has one thread of torch and its own connection to this process, so nothing is shared that a killed process
could leave locked. A process that dies costs the photo or person that it worked on, and another one takes its place.
Processes start with torch and the models loaded where the system allows it (`mien.scale.preload`).
"""
# ruff: noqa: PLC0415 (this process hands out the work and needs no torch)

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING

from mien.errors import WorkerDied
from mien.scale.output_folder import ResultFolder
from mien.scale.photo_work import PhotoSettings
from mien.scale.preload import settings_for_server, take_reconstructor, worker_context
from mien.scale.worker import Outcome, Worker, failed_rows
from mien.threads import interrupt_delayed

if TYPE_CHECKING:
    from mien.fitting import Progress

_PATIENCE_S = 5.0
"""Time in which a process removes its unfinished files before it is killed; one operation of torch takes less."""


def core_count() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reconstruct_here(
    folders: Iterable[ResultFolder], settings: PhotoSettings, *, threads: int | None, progress: Progress | None = None
) -> Generator[Outcome, None, None]:
    """Reconstruct photos or people one by one in this process.

    Args:
        folders: The photos or people, and where their files go.
        settings: How.
        threads: Number of threads of torch; None leaves it to torch. The last bits of the results depend on it.
        progress: Is called with the stages of each.

    Yields:
        The outcome of each.

    Raises:
        MienError: The settings are wrong, or the output cannot be written.
    """
    import torch

    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        work = Worker(settings, reconstructor=take_reconstructor(settings), progress=progress)
        for folder in folders:
            yield work(folder)
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def reconstruct_in_processes(
    folders: Iterable[ResultFolder], settings: PhotoSettings, *, jobs: int
) -> Generator[Outcome, None, None]:
    """Reconstruct photos or people in several processes with one thread each.

    The files are those of `reconstruct_here` with one thread, to the last bit. Close the iterator to stop early: the
    processes then end without unfinished files.

    Args:
        folders: The photos or people, and where their files go; the next one is taken when a process is free.
        settings: How.
        jobs: Number of processes. On Linux they share the memory of torch and of the models.

    Yields:
        The outcome of each, in the order in which they finish. If a process dies, the reasons in the rows of its photo
        or person begin with WorkerDied.

    Raises:
        MienError: The settings are wrong, or the output cannot be written.
    """
    waiting, running, ended = iter(folders), list[_Worker](), list[_Worker]()
    try:
        for folder in islice(waiting, jobs):
            _start(settings, folder, running)
        while running:
            ready = wait([worker.connection for worker in running])
            for worker in [worker for worker in running if worker.connection in ready]:
                yield worker.outcome()
                folder = next(waiting, None)
                running.remove(worker)
                if folder is not None and worker.give(folder):
                    running.append(worker)
                    continue
                worker.connection.close()
                ended.append(worker)
                if folder is not None:
                    _start(settings, folder, running)
    finally:
        begun = [worker for worker in running if worker.process.pid is not None]
        for worker in begun:
            worker.process.terminate()
        for worker in [*begun, *ended]:
            worker.end()


class _RemoteTraceback(Exception):
    """The traceback of another process, as text."""


@dataclass(frozen=True)
class _Failure:
    """An exception that ended a process."""

    error: Exception
    traceback: str


@dataclass
class _Worker:
    """A process, and what it works on."""

    process: BaseProcess
    connection: Connection
    folder: ResultFolder
    since: float

    def give(self, folder: ResultFolder) -> bool:
        """Give the process its next work; False if it has died."""
        self.folder, self.since = folder, time.perf_counter()
        folder = folder.read_here()
        with suppress(OSError):
            self.connection.send(folder)
            return True
        return False

    def outcome(self) -> Outcome:
        """What became of the work.

        Raises:
            Exception: What the process raised.
        """
        try:
            reply: Outcome | _Failure = self.connection.recv()
        except (EOFError, OSError):
            self.folder.forget()
            self.process.join(_PATIENCE_S)
            error = WorkerDied(_reason(self.process.exitcode))
            return Outcome(failed_rows(self.folder, error, seconds=time.perf_counter() - self.since))
        if isinstance(reply, _Failure):
            raise reply.error from _RemoteTraceback(reply.traceback)
        return reply

    def end(self) -> None:
        """Wait until the process has ended; kill it if it takes too long."""
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _start(settings: PhotoSettings, folder: ResultFolder, running: list[_Worker]) -> None:
    """Start a process, and give it its first work.

    It is among the running ones before it starts, so that Ctrl-C at any moment ends it too.
    """
    context = worker_context(settings)
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(settings, theirs), daemon=True)  # pyright: ignore[reportAttributeAccessIssue]
    worker = _Worker(process, ours, folder, time.perf_counter())
    running.append(worker)
    with interrupt_delayed(), settings_for_server(settings):
        process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    worker.give(folder)


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        cause = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        ended = f"was ended by {name}{cause}"
    else:
        ended = f"ended with exit code {code}"
    return f"the process that reconstructed it {ended}; try it again with --resume, and with fewer --jobs"


def _work(settings: PhotoSettings, connection: Connection) -> None:
    """The main function of a process: reconstruct until there is no other folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_first_process, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # for NumPy, which starts its threads when it is imported
    with suppress(ConnectionError):  # the first process has died
        try:
            for outcome in reconstruct_here(_given(connection), settings, threads=1):
                connection.send(outcome)
        except Exception as error:
            connection.send(_Failure(error, traceback.format_exc()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process ends anyway


def _given(connection: Connection) -> Iterator[ResultFolder]:
    """What comes through the connection, until its other side closes it."""
    with suppress(EOFError, ConnectionError):
        while True:
            yield connection.recv()


def _exit(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would interrupt the first one's work
    raise SystemExit(128 + number)  # unfinished files are removed on the way


def _end_with_first_process() -> None:
    """End this process, as SIGTERM does, when the first one has been killed."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os.kill(os.getpid(), signal.SIGTERM)
