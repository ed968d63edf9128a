"""Runs independent calls in several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

from mien.errors import OutputError
from mien.threads import interrupt_delayed

K = TypeVar("K")
LONGEST_WAIT_S = 3600.0
"""A shard takes seconds to minutes; a process from which nothing comes for so long hangs."""


def run_calls(work: Callable[..., object], calls: Mapping[K, tuple[Any, ...]], *, processes: int) -> Iterator[K]:
    """Call `work` once per entry of `calls` and yield the key of each call when it is finished.

    Every call has one torch thread, so that its sums are the same in any process. After an error, or when the caller
    stops iterating, running calls finish and no further call starts. After Ctrl-C running calls are cut off.

    Args:
        work: A function that can be pickled.
        calls: The arguments of each call, by a key of the caller's choice.
        processes: Number of processes; 1 runs the calls in this process.

    Yields:
        The keys, in the order in which the calls finish.

    Raises:
        OutputError: The system killed a process, or no call finished for `LONGEST_WAIT_S`. Errors of `work` are raised
            unchanged.
    """
    if processes == 1 or len(calls) < 2:
        for key, arguments in calls.items():
            with _one_thread():
                work(*arguments)
            yield key
        return
    # Fresh processes: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        waiting = iter(calls.items())
        try:
            with interrupt_delayed():
                running = {pool.submit(work, *arguments): key for key, arguments in islice(waiting, processes)}
            while running:
                done, _ = wait(running, timeout=LONGEST_WAIT_S, return_when=FIRST_COMPLETED)
                if not done:
                    _kill_children()
                    raise OutputError(
                        f"no worker process finished its work in {LONGEST_WAIT_S / 60:g} minutes; finished work is "
                        "kept, so run the command again, with --processes 1 if it stops again."
                    )
                for future in done:
                    key = running.pop(future)
                    future.result()
                    running |= {pool.submit(work, *arguments): other for other, arguments in islice(waiting, 1)}
                    yield key
        except KeyboardInterrupt:
            _kill_children()
            raise
        except BrokenProcessPool as error:
            raise OutputError(
                "the system killed a worker process, probably because memory ran out; finished work is kept, so run "
                "the command again with fewer --processes."
            ) from error


def _kill_children() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
