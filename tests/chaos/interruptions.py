"""Kills at random moments, full and read-only disks, and two processes that write to one place."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mien.errors import MienError
from tests.chaos.commands import Content, Scenario, small_shards
from tests.chaos.outcome import Ended, Tally, command, finish, run, start


class Reference:
    """What a command writes when nothing disturbs it, and how long it takes."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        out = folder / scenario.out
        ended = run(command(*scenario.arguments(out), prepare=small_shards), folder / "log.txt")
        self.content = scenario.content(out)
        if ended.untyped or ended.hung or not self.content:
            raise RuntimeError(f"{scenario.name} fails without any fault: {ended.output[-2000:]}")
        self.code, self.seconds = ended.code, ended.seconds
        self.kilobytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 10

    def call(self, out: Path, *, again: bool = False) -> Callable[[], int]:
        more = self.scenario.again if again else ()
        return command(*self.scenario.arguments(out), *more, prepare=small_shards)

    def judge(self, tally: Tally, out: Path, ended: Ended, detail: str) -> None:
        """Compare what is there after a fault, run the command again, and compare the end."""
        problem = ("untyped", ended.last_line) if ended.untyped else ("hung", "") if ended.hung else None
        problem = problem or self._unlike(out, complete=False)
        if problem is None:
            ended = run(self.call(out, again=True), out.parent / "log.txt")
            if ended.hung or ended.untyped:
                problem = ("hung" if ended.hung else "untyped", f"run again: {ended.last_line}")
            elif ended.code != self.code:
                problem = ("lost", f"run again: exit code {ended.code}: {ended.last_line}")
            else:
                problem = self._unlike(out, complete=True)
        if problem is None:
            tally.add("survived")
        else:
            tally.add(problem[0], f"{detail}: {problem[1]}")

    def _unlike(self, out: Path, *, complete: bool) -> tuple[str, str] | None:
        when = "in the end" if complete else "after the fault"
        try:
            found: Content = self.scenario.content(out)
        except MienError as error:
            return "lost", f"{when}: {error}"
        except Exception as error:
            return "lost", f"{when}: {type(error).__name__}: {error}"
        wrong = [name for name, value in found.items() if self.content.get(name, value) != value]
        missing = [name for name in self.content if name not in found] if complete else []
        left = [path.name for path in out.parent.rglob("*") if "partial" in path.name] if complete else []
        if wrong:
            return "silent", f"{when}: other content of {wrong[:3]}"
        if missing:
            return "lost", f"{when}: lacks {missing[:3]}"
        return ("silent", f"temporary files stay: {left[:3]}") if left else None


def kill(reference: Reference, folder: Path, *, tries: int, seed: int) -> Tally:
    """Kill the command at random moments, once or twice in a row."""
    tally = Tally(f"kill: {reference.scenario.name}")
    for number in range(tries):
        rng = random.Random(f"{seed}/{tally.part}/{number}")
        with _fresh(folder / f"try{number}") as place:
            out, log = place / reference.scenario.out, place / "log.txt"
            # Half of the moments are in the last fifth, in which the commands write most.
            starts = [rng.choice((0, 0.8)) for _ in range(rng.choice((1, 1, 2)))]
            moments = [reference.seconds * rng.uniform(start_at, 1) for start_at in starts]
            for again, moment in enumerate(moments):
                ended = run(reference.call(out, again=again > 0), log, kill_after=moment)
            reference.judge(tally, out, ended, f"seed {seed}, try {number}, after {moments} s")
    return tally


def kill_while_replacing(reference: Reference, folder: Path, *, tries: int, seed: int) -> Tally:
    """Kill the command while it replaces whole results by equal ones."""
    tally = Tally(f"kill while replacing: {reference.scenario.name}")
    with _fresh(folder / "whole") as whole:
        run(reference.call(whole / reference.scenario.out), whole / "log.txt")
        for number in range(tries):
            moment = random.Random(f"{seed}/{tally.part}/{number}").uniform(0, reference.seconds)
            place = folder / f"try{number}"
            shutil.copytree(whole, place)
            out = place / reference.scenario.out
            ended = run(reference.call(out), place / "log.txt", kill_after=moment)
            problem = reference._unlike(out, complete=False)
            found = {} if problem else reference.scenario.content(out)
            gone = sum(name not in found for name in reference.content if "row" not in name)
            if problem is None and gone > 1:  # the one that is being replaced may be gone for a moment
                tally.add("lost", f"seed {seed}, try {number}, after {moment} s: {gone} finished results")
            else:
                reference.judge(tally, out, ended, f"seed {seed}, try {number}, after {moment} s")
            shutil.rmtree(place)
    return tally


def full_disk(reference: Reference, folder: Path, *, tries: int, seed: int) -> Tally:
    """Run the command on a small disk that becomes full, then on the same disk with room."""
    tally = Tally(f"full disk: {reference.scenario.name}")
    for number in range(tries):
        size = random.Random(f"{seed}/{tally.part}/{number}").randint(16, max(reference.kilobytes, 32))
        with _fresh(folder / f"try{number}") as place, _disk(place / "disk", size) as disk:
            out = disk / reference.scenario.out
            ended = run(reference.call(out), place / "log.txt")
            detail = f"seed {seed}, try {number}, {size} KB"
            left = [path.name for path in disk.rglob("*") if ".partial" in path.name]
            _mount("-o", "remount,size=512m", str(disk))
            if ended.code and not ended.untyped and "written" not in ended.output and "space" not in ended.output:
                tally.add("untyped", f"{detail}: another reason is given: {ended.last_line}")
            elif left:
                tally.add("lost", f"{detail}: temporary files fill the disk: {left[:3]}")
            else:
                reference.judge(tally, out, ended, detail)
    return tally


def read_only_disk(reference: Reference, folder: Path, *, tries: int, seed: int) -> Tally:
    """The disk is read-only from the start or after a kill; later it can be written again."""
    tally = Tally(f"read-only disk: {reference.scenario.name}")
    for number in range(tries):
        moment = random.Random(f"{seed}/{tally.part}/{number}").uniform(0, reference.seconds)
        with _fresh(folder / f"try{number}") as place, _disk(place / "disk", 512 << 10) as disk:
            out, log = disk / reference.scenario.out, place / "log.txt"
            begun = number % 2 > 0
            if begun:
                run(reference.call(out), log, kill_after=moment)
            _mount("-o", "remount,ro", str(disk))
            ended = run(reference.call(out, again=begun), log)
            _mount("-o", "remount,rw", str(disk))
            reference.judge(tally, out, ended, f"seed {seed}, try {number}, after {moment} s")
    return tally


def two_writers(reference: Reference, folder: Path, *, tries: int, seed: int) -> Tally:
    """Start the command twice with one output, a random time apart."""
    tally = Tally(f"two writers: {reference.scenario.name}")
    for number in range(tries):
        moment = random.Random(f"{seed}/{tally.part}/{number}").uniform(0, reference.seconds / 2)
        with _fresh(folder / f"try{number}") as place:
            out, logs = place / reference.scenario.out, (place / "log.txt", place / "log2.txt")
            first = start(reference.call(out), logs[0])
            subprocess.run(["sleep", f"{moment:.3f}"], check=True)
            second = start(reference.call(out), logs[1])
            both = [finish(process, log) for process, log in zip((first, second), logs, strict=True)]
            bad = next((ended for ended in both if ended.untyped or ended.hung), None)
            if all(ended.code not in (reference.code, None) for ended in both) and bad is None:
                tally.add("lost", f"seed {seed}, try {number}: both end: {both[0].last_line} / {both[1].last_line}")
            else:
                reference.judge(tally, out, bad or both[1], f"seed {seed}, try {number}, {moment:.3f} s apart")
    return tally


def can_mount(folder: Path) -> bool:
    """Whether this process may make small disks; on Linux, root may."""
    try:
        with _disk(folder / "disk", 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk(place: Path, size_kb: int) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
