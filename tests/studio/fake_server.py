"""A studio server whose processes need no networks: `python -m tests.studio.fake_server [PORT]` prints its address."""

from __future__ import annotations

import signal
import sys

from mien.studio import server
from mien.studio.jobs import Limits
from tests.studio import fake_worker


def main(port: int) -> None:
    """Serve until a signal comes, even one that the tests' own shell ignores (nohup, a job in the background)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    server.run_worker = fake_worker.run_with_options
    server.serve(
        host="127.0.0.1",
        port=port,
        limits=Limits(),
        workers=1,
        device="cpu",
        threads=1,
        memory_bytes=0,
        started=lambda address: print(address, flush=True),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
