"""SIGTERM during a run. Schedulers, containers and torchrun send it some seconds before they kill a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports for a process that SIGTERM ended."""


class _SignalReceived(BaseException):
    """Ends the work in `StopSignal.interruptible`."""


class StopSignal:
    """Notes SIGTERM instead of ending the process, so that a training step ends whole. Get it from `noted`."""

    def __init__(self) -> None:
        self.received = False
        self._raises = False

    @classmethod
    @contextmanager
    def noted(cls) -> Iterator[StopSignal]:
        """Note the signal while the block runs; but a handler of the application stays, and threads can have none."""
        stop = cls()
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield stop
            return
        signal.signal(signal.SIGTERM, stop._note)
        try:
            yield stop
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Call `work`, which may stop anywhere: None if the signal arrives before its end."""
        with suppress(_SignalReceived):
            try:
                self._raises = True
                if self.received:
                    raise _SignalReceived
                return work()
            finally:
                self._raises = False
        return None

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True
        if self._raises:
            raise _SignalReceived
