"""Makes faults on purpose and prints what became of each try; exit code 1 if anything did not survive."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads do not survive the forks

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.commands import scenarios
from tests.chaos.damage import damage, kinds
from tests.chaos.interruptions import (
    Reference,
    can_mount,
    full_disk,
    kill,
    kill_while_replacing,
    read_only_disk,
    two_writers,
)
from tests.chaos.memory import bombs, small_memory
from tests.chaos.outcome import HEADER, Tally

PARTS = ("kills", "bytes", "disks", "writers", "memory")
TRIES = {"kills": 40, "bytes": 550, "disks": 5, "writers": 5, "memory": 5}
"""Per command, or per kind of file; 200 kills and 20,000 damaged files in all."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", default="all", help=f"parts, with commas: {', '.join(PARTS)}; default: all")
    parser.add_argument("--match", default="", help="run only commands or kinds of files whose name contains this")
    parser.add_argument("--tries", type=int, default=0, help="tries per command or kind of file; 0: the usual number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = PARTS if options.only == "all" else tuple(options.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; use some of {', '.join(PARTS)}")
    print(f"python -m tests.chaos --only {','.join(parts)} --tries {options.tries} --seed {options.seed}\n\n{HEADER}")
    total, begin = Tally("all"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for tally in _tallies(Path(folder), parts, options.match, options.tries, options.seed):
            print(tally.row, flush=True)
            for detail in tally.details[:5]:
                print(f"  {detail}", file=sys.stderr, flush=True)
            total.counts += tally.counts
            total.details += tally.details
    print(f"{total.row}\n\n{time.monotonic() - begin:.0f} s")
    return 1 if total.details else 0


def _tallies(folder: Path, parts: tuple[str, ...], match: str, tries: int, seed: int) -> Iterator[Tally]:
    (folder / "inputs").mkdir()
    commands = scenarios(folder / "inputs")
    references = {name: Reference(scenario, _made(folder / "whole" / name)) for name, scenario in commands.items()}
    chosen = [reference for name, reference in references.items() if match in name]
    disks = "disks" not in parts or can_mount(folder)
    if not disks:
        print("  disks: left out, since only root can make small ones", file=sys.stderr)
    interruptions: dict[str, list[Callable[..., Tally]]] = {
        "kills": [kill], "disks": [full_disk, read_only_disk] if disks else [], "writers": [two_writers],
        "memory": [small_memory],
    }  # fmt: skip
    for part in parts:
        count = tries or TRIES[part]
        for disturb in interruptions.get(part, []):
            for reference in chosen:
                place = _made(folder / disturb.__name__ / reference.scenario.name)
                yield disturb(reference, place, tries=count, seed=seed)
        if part == "kills" and match in "reconstruct":
            yield kill_while_replacing(references["reconstruct"], _made(folder / "replaced"), tries=count, seed=seed)
        if part == "bytes":
            outputs = {name: folder / "whole" / name / reference.scenario.out for name, reference in references.items()}
            for kind in kinds(_made(folder / "files"), outputs, folder / "inputs"):
                if match in kind.name:
                    yield damage(kind, tries=max(round(count * kind.share), 1), seed=seed)
        if part == "memory":
            yield bombs(_made(folder / "bombs"), folder / "whole" / "reconstruct" / "out" / "0" / "face0")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
