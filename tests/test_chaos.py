"""`make chaos` finds what it looks for: each outcome is counted as what it is."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from mien.errors import FormatError
from tests.chaos import damage as module
from tests.chaos.damage import Kind, damage, damaged
from tests.chaos.outcome import Ended

WHOLE = b"0123456789" * 5

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the tries are forked processes")


def refuse() -> None:
    raise FormatError("damaged")


def fail() -> None:
    raise KeyError("x")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("read", "checked", "outcome"),
    [
        (refuse, True, "survived"),
        (int, False, "survived"),
        (int, True, "silent"),
        (fail, False, "untyped"),
        (crash, False, "untyped"),
        (lambda: sys.exit(0), False, "untyped"),
        (lambda: time.sleep(60), False, "hung"),
    ],
)
def test_each_end_of_a_reader_is_counted_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: object, checked: bool, outcome: str
) -> None:
    monkeypatch.setattr(module, "READ_LIMIT_S", 1)
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    tally = damage(Kind("kind", path, read, checked=checked), tries=2, seed=0)  # pyright: ignore[reportArgumentType]
    assert tally.counts == {outcome: 2}
    assert len(tally.details) == (0 if outcome == "survived" else 2)
    assert path.read_bytes() == WHOLE


def test_a_seed_repeats_a_damage() -> None:
    files = [damaged(WHOLE, random.Random(k)) for k in range(200)]
    assert files == [damaged(WHOLE, random.Random(k)) for k in range(200)]
    assert len(set(files) - {WHOLE}) > 150


@pytest.mark.parametrize(
    ("ended", "untyped"),
    [
        (Ended(1, 0.1, "error: photo.png: damaged"), False),
        (Ended(None, 0.1, ""), False),
        (Ended(1, 0.1, "Traceback (most recent call last):\n..."), True),
        (Ended(-11, 0.1, ""), True),
    ],
)
def test_a_traceback_and_a_signal_are_untyped(ended: Ended, untyped: bool) -> None:
    assert ended.untyped == untyped
