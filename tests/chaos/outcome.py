"""Runs a call in a forked process, and counts what became of each try."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mien.cli import main

OUTCOMES = ("survived", "lost", "untyped", "silent", "hung")
LIMIT_S = 120.0
_UNTYPED = 99
_POLL_S = 0.002


@dataclass
class Tally:
    """Outcomes of the tries of one part.

    survived: the result is whole, or the damage is reported by a typed error.
    lost: finished work is gone or unreadable, or the command cannot be finished by running it again.
    untyped: a traceback, a signal, or an exception that is no MienError.
    silent: something else than without the fault, without a message.
    hung: no end after two minutes.
    """

    part: str
    counts: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    """How to repeat what did not survive."""

    def add(self, outcome: str, detail: str = "") -> None:
        self.counts[outcome] += 1
        if outcome != "survived":
            self.details.append(f"{self.part}: {outcome}: {detail}")

    @property
    def row(self) -> str:
        counts = (f"{self.counts[name]:,}" for name in OUTCOMES)
        return f"| {self.part} | {self.counts.total():,} | {' | '.join(counts)} |"


HEADER = f"| part | tries | {' | '.join(OUTCOMES)} |\n|---|{'---:|' * (len(OUTCOMES) + 1)}"


@dataclass(frozen=True)
class Ended:
    """The end of a process."""

    code: int | None
    """Its exit code; None if it was killed by this program or did not end."""
    seconds: float
    output: str
    hung: bool = False

    @property
    def untyped(self) -> bool:
        """Whether it ended by a traceback or a signal of its own."""
        return "Traceback" in self.output or self.code == _UNTYPED or (self.code is not None and self.code < 0)

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1][:300]


def command(*arguments: object, prepare: Callable[[], object] | None = None) -> Callable[[], int]:
    """A call of the command `mien`, for `run`."""

    def call() -> int:
        if prepare is not None:
            prepare()
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        return 0

    return call


def start(call: Callable[[], int], log: Path) -> int:
    """Start a call in a forked process, which is fast since it need not import torch; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number:
        return number
    code = _UNTYPED
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = call()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(number: int, log: Path, *, kill_after: float | None = None, limit_s: float = LIMIT_S) -> Ended:
    """Wait for a process, or kill it and its children after a time."""
    begin = time.monotonic()
    while True:
        ended, status = os.waitpid(number, os.WNOHANG)
        seconds = time.monotonic() - begin
        if ended:
            return Ended(os.waitstatus_to_exitcode(status), seconds, _text(log))
        if seconds > (limit_s if kill_after is None else kill_after):
            os.killpg(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return Ended(None, seconds, _text(log), hung=kill_after is None)
        time.sleep(_POLL_S)


def run(call: Callable[[], int], log: Path, *, kill_after: float | None = None, limit_s: float = LIMIT_S) -> Ended:
    """`start` and `finish`."""
    return finish(start(call, log), log, kill_after=kill_after, limit_s=limit_s)


def _text(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
