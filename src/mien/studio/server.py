"""Starts the server of the studio."""

from __future__ import annotations

import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn

from mien.errors import ConfigError
from mien.studio.app import make_app
from mien.studio.folder import server_folder
from mien.studio.guard import Guard
from mien.studio.jobs import Jobs, Limits, run_worker

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""Ctrl-C, kill, a terminal that is closed, and Ctrl-Break on Windows."""
_GOODBYE_S = 5.0
"""Time for requests that are still coming in when the server ends."""


def serve(
    *,
    host: str,
    port: int,
    limits: Limits,
    workers: int,
    device: str,
    threads: int,
    memory_bytes: int,
    started: Callable[[str], None],
) -> None:
    """Serve the page and the API until the process gets a signal to end.

    Photos and results lie in a temporary folder, which is removed at the end. That of a server that was killed is
    removed by the next one.

    Args:
        host: The address to listen at. Others than this machine's own can be reached by everybody in the network, so
            they need a token, which is part of the address that `started` gets.
        port: The port; 0 for any free one.
        limits: What is accepted.
        workers: Number of processes that reconstruct.
        device: As in `Reconstructor`.
        threads: Number of threads of each process.
        memory_bytes: Limit of the data of each process, on Linux; 0 for no limit.
        started: Is called with the address of the page when it responds.

    Raises:
        ConfigError: The address is in use or is not one of this machine.
        KeyboardInterrupt: The signal was SIGINT.
        SystemExit: It was another one.
    """
    bound = _bound(host, port)
    port = bound.getsockname()[1]
    own = host in _LOOPBACK
    token = None if own else secrets.token_urlsafe(24)
    names = _LOOPBACK if own else (host, socket.gethostname(), *_LOOPBACK)
    hosts = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names]
    with _signals(_exit), bound, server_folder() as folder:
        main = partial(run_worker, device=device, threads=threads, memory_bytes=memory_bytes)
        jobs = Jobs(folder, limits, workers=workers, main=main)
        app = Guard(make_app(jobs), hosts=hosts, token=token)
        shown = f"http://{hosts[0]}/" + ("" if token is None else f"?token={token}")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=round(_GOODBYE_S)
        )
        _Server(config, jobs, lambda: started(shown)).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Tells when it responds, and ends at once: the work on jobs is stopped, and their pages hear of it."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._jobs, self._tell = jobs, started
        self._ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._jobs.stop()  # or else the streams of events keep it waiting
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ended_by = sig
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but with SIGHUP, too."""
        with _signals(self.handle_exit):
            yield
        if self._ended_by is not None:
            signal.raise_signal(self._ended_by)


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals to end; those that are ignored (nohup) stay so."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _exit(number: int, _frame: FrameType | None) -> None:
    """Let the blocks that are open end as after an error, so that the folder is removed."""
    for ignored in _ENDING:  # a second signal must not stop the removal
        signal.signal(ignored, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"host={host!r}, port={port} cannot be used ({error.strerror}); choose another port."
        ) from error
    return bound
