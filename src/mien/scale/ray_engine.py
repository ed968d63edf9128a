"""Runs independent calls in Ray's processes, on this machine or on a cluster.

Each process is an actor, which loads the model and the networks once and then gets one call at a time. So it is known
which call a lost process had, and that call alone is repeated. Ray Data is not used: it repeats whole blocks, repeats a
call that kills its process without end, and needs pyarrow and pandas.
"""
# ruff: noqa: PLC0415 (only this engine needs Ray, an optional package)

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar, cast

from mien.errors import BackendUnavailable, ConfigError, OutputError, WorkerDied

if TYPE_CHECKING:
    from types import ModuleType

K = TypeVar("K")
T = TypeVar("T")
ATTEMPTS = 2
"""A call whose process dies is repeated once."""
FAILED_STARTS = 3
"""So many processes in a row that die before their first call end the run; with more processes than this, as many as
there are, since a lost machine may have many of them."""
LONGEST_WAIT_S = 3600.0
"""A call takes seconds to minutes; a cluster from which nothing comes for so long hangs."""
_CONNECT_S = 15.0
_AGAIN = object()
_OBJECT_STORE_BYTES = 80 << 20
"""Shared memory of a local Ray, near its minimum: calls and results are small."""
_OWN_TOKEN = secrets.token_hex(32)
"""Ray's ports are open on all network interfaces, and a connection can run code. Ray reads the token once per
process."""


@dataclass(frozen=True)
class RaySettings:
    """Where the processes run, and how many there are."""

    address: str | None = None
    """Address of a running cluster, HOST:PORT or "auto"; None starts Ray on this machine and stops it at the end."""
    workers: int | None = None
    """Number of processes; None for one per core, or one per GPU."""
    gpu: bool = False
    """Whether each process needs a GPU of its own."""


def run_on_ray(
    make: Callable[[], Callable[..., T]], calls: Mapping[K, tuple[Any, ...]], *, settings: RaySettings
) -> Generator[tuple[K, T | WorkerDied], None, None]:
    """Make one function per process with `make`, and call it once per entry of `calls`.

    If a process or its machine is lost, a new process takes its place, and its call is repeated once.

    Args:
        make: Makes the function; it can be pickled, and so can arguments and results.
        calls: The arguments of each call, by a key of the caller's choice.
        settings: Where.

    Yields:
        The key and the result of each call, in the order in which they finish; `WorkerDied` instead of the result if
        the call lost two processes.

    Raises:
        BackendUnavailable: Ray is not installed.
        ConfigError: There is no cluster at the address.
        OutputError: The processes die while they start, or no call finished for `LONGEST_WAIT_S`. Errors of `make` and
            of the calls are raised unchanged.
    """
    if not calls:
        return
    with _session(settings) as ray:
        pool = _Pool(ray, make, calls, settings)
        try:
            yield from pool.results()
        finally:
            pool.close()


class _Actor(Generic[T]):
    """What lives in a process of Ray."""

    def __init__(self, make: Callable[[], Callable[..., T]]) -> None:
        self._make = make
        self._work: Callable[..., T] | None = None

    def start(self) -> None:
        import torch

        torch.set_num_threads(1)  # so that sums are the same in any process
        self._work = self._make()

    def run(self, *arguments: object) -> T:
        assert self._work is not None
        return self._work(*arguments)


@dataclass
class _Call(Generic[K]):
    key: K
    arguments: tuple[Any, ...]
    attempts: int = 0


class _Pool(Generic[K, T]):
    """The actors and the calls that are left."""

    def __init__(
        self,
        ray: ModuleType,
        make: Callable[[], Callable[..., T]],
        calls: Mapping[K, tuple[Any, ...]],
        settings: RaySettings,
    ) -> None:
        self._ray, self._make = ray, make
        self._actor = ray.remote(num_cpus=1, num_gpus=int(settings.gpu), max_restarts=0)(_Actor)
        self._waiting = deque(_Call(key, arguments) for key, arguments in calls.items())
        self._running: dict[Future[Any], tuple[Any, _Call[K] | None]] = {}
        self._left, self._failed_starts = len(calls), 0
        count = settings.workers or int(ray.cluster_resources().get("GPU" if settings.gpu else "CPU", 0))
        if count == 0:
            raise ConfigError(f"the Ray cluster has no {'GPU' if settings.gpu else 'processors'}; add a machine to it.")
        self._failed_starts_limit = max(FAILED_STARTS, count)
        for _ in range(min(count, len(calls))):
            self._start()

    def results(self) -> Iterator[tuple[K, T | WorkerDied]]:
        while self._left:  # an actor that waits for a machine is in `_running` too
            # Ray's own wait turns every signal that ends the process into the exit code 1.
            done, _ = wait(self._running, timeout=LONGEST_WAIT_S, return_when=FIRST_COMPLETED)
            if not done:
                raise OutputError(
                    f"no call finished in {LONGEST_WAIT_S / 60:g} minutes; finished work is kept, so look at the "
                    "cluster with `ray status`, and run the command again."
                )
            finished = next(iter(done))
            actor, call = self._running.pop(finished)
            errors = self._ray.exceptions
            try:
                result = finished.result()
                self._failed_starts = 0
                self._next(actor)
            except (errors.RayActorError, errors.OutOfMemoryError) as error:
                result = self._lost(actor, call, error)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayError as error:
                raise OutputError(f"Ray failed ({_last_line(error)}); run the command again.") from error
            if call is not None and result is not _AGAIN:
                self._left -= 1
                yield call.key, result

    def close(self) -> None:
        for actor, _ in self._running.values():
            self._ray.kill(actor)
        self._running.clear()

    def _start(self) -> None:
        actor = self._actor.remote(self._make)
        self._running[actor.start.remote().future()] = actor, None

    def _next(self, actor: Any) -> None:
        """Give an actor its next call; without one it ends, and its core is free for others."""
        if not self._waiting:
            self._ray.kill(actor)
            return
        call = self._waiting.popleft()
        self._running[actor.run.remote(*call.arguments).future()] = actor, call

    def _lost(self, actor: Any, call: _Call[K] | None, error: Any) -> Any:
        """Replace a lost actor. Returns what takes the place of the call's result, or _AGAIN."""
        self._ray.kill(actor)  # it may live on a machine that only the network has lost
        result: Any = _AGAIN
        if call is None:
            self._check_starts(error)
        else:
            # A machine that its owner takes back is not the call's fault.
            call.attempts += not getattr(error, "preempted", False)
            if call.attempts < ATTEMPTS:
                self._waiting.appendleft(call)
            else:
                result = WorkerDied(f"its worker process died {ATTEMPTS} times ({_cause(error)})")
        if self._waiting:
            self._start()
        return result

    def _check_starts(self, error: Exception) -> None:
        self._failed_starts += 1
        if self._failed_starts >= self._failed_starts_limit:
            raise OutputError(
                f"{self._failed_starts} worker processes in a row died while they started ({_cause(error)}); look at "
                "the memory of the machines, and whether all have this version of mien."
            )


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__


def _cause(error: Exception) -> str:
    """What users need of the long message about a lost process."""
    if getattr(error, "actor_init_failed", False):  # mien is missing there, or of another version
        return _last_line(error)
    text = str(error).lower()
    if "low on memory" in text or "out of memory" in text.partition("common causes")[0]:
        return "memory ran out"
    return "its machine was lost" if "node" in text.partition("common causes")[0].partition("node id")[0] else "killed"


@contextmanager
def _session(settings: RaySettings) -> Iterator[ModuleType]:
    """Connect to Ray, or start it on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    if settings.address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _OWN_TOKEN}
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise BackendUnavailable("--engine ray needs the package ray; run pip install 'mien[ray]'.") from error
    with redirect_stdout(cast("TextIO", _WithoutRay(sys.stdout))):
        with _own_sigterm():
            _connect(ray, settings)
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does; Ray 2.60 aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _connect(ray: ModuleType, settings: RaySettings) -> None:
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if settings.address is not None:
        try:
            _check_reachable(settings.address)
            ray.init(address=settings.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{settings.address!r} is not a Ray cluster that can be reached ({reason}).") from error
        return
    ray.init(
        address="local",  # a running cluster is used only if the user names it
        num_cpus=settings.workers or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        **quiet,
    )


def _check_reachable(address: str) -> None:
    """Connect once, since Ray 2.60 tries for minutes, and prints each failure."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise ValueError('expected HOST:PORT or "auto"')
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
        pass


class _WithoutRay:
    """A stdout without what Ray's threads print; Ray 2.60 prints lost processes there in spite of log_to_driver=False.

    Args:
        stream: The stdout.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
