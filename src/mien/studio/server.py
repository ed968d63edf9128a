"""Starts the server of the studio."""

from __future__ import annotations

import secrets
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from mien.errors import ConfigError
from mien.studio.app import make_app
from mien.studio.guard import Guard
from mien.studio.jobs import Jobs, Limits, run_worker

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
    """Serve the page and the API until the process is interrupted.

    Photos and results lie in a temporary folder, which is removed at the end.

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
    """
    bound = _bound(host, port)
    port = bound.getsockname()[1]
    own = host in _LOOPBACK
    token = None if own else secrets.token_urlsafe(24)
    names = _LOOPBACK if own else (host, socket.gethostname(), *_LOOPBACK)
    hosts = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names]
    with bound, tempfile.TemporaryDirectory(prefix="mien-studio-") as folder:
        main = partial(run_worker, device=device, threads=threads, memory_bytes=memory_bytes)
        jobs = Jobs(Path(folder), limits, workers=workers, main=main)
        app = Guard(make_app(jobs), hosts=hosts, token=token)
        shown = f"http://{hosts[0]}/" + ("" if token is None else f"?token={token}")
        server = _Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"), shown, started)
        server.run(sockets=[bound])


class _Server(uvicorn.Server):
    """Tells when it responds."""

    def __init__(self, config: uvicorn.Config, address: str, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self._address, self._tell = address, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell(self._address)


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
