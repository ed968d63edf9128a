"""Fuzzes every reader for so many processor seconds each and prints the table of docs/security.md.

    python -m tests.formats.fuzz.campaign FOLDER [--seconds 600] [--jobs 1] [--targets NAME …]

FOLDER keeps each target's finds and the record of the runs, so that a campaign that was cut off goes on where it was;
seconds count only while the readers, byte for byte, are the ones that were fuzzed. Needs atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import mien.morphable.formats
from tests.formats.targets import TARGETS

# Long enough that starting (about 5 s) does not count, short enough that a campaign that is killed loses little.
_RUN_SECONDS = (20, 120)
# As run.py tells libFuzzer; a reader takes milliseconds.
_LONGEST_READ_SECONDS = 60


@dataclass(frozen=True)
class Run:
    """One libFuzzer process: what it fuzzed, for how long, and what it came to."""

    target: str
    readers: str
    """SHA-256 over the readers' sources."""
    files: int
    seconds: float
    """Of processor time, its children's included."""
    finding: str
    """libFuzzer's summary of what ended the run; empty after a run that found nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0, help="of processor time for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets fuzzed at once")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    record, readers = options.folder / "runs.jsonl", _readers()

    def fuzz_enough(target: str) -> None:
        while (left := options.seconds - _total(_recorded(record, readers), target).seconds) > 0:
            shortest, longest = _RUN_SECONDS
            run = _fuzz(target, readers, options.folder, seconds=round(min(max(left, shortest), longest)))
            with record.open("a") as lines:
                lines.write(json.dumps(asdict(run)) + "\n")
            if run.finding:
                return

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(fuzz_enough, options.targets))
    runs = _recorded(record, readers)
    print("| target | files tried | CPU seconds | findings |\n|---|---|---|---|")
    for target in TARGETS:
        total = _total(runs, target)
        print(f"| {target} | {total.files:,} | {total.seconds:.0f} | {total.finding or 0} |")
    sys.exit(any(run.finding for run in runs))


def _readers() -> str:
    folder = Path(str(mien.morphable.formats.__file__)).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _recorded(record: Path, readers: str) -> list[Run]:
    lines = record.read_text().splitlines() if record.is_file() else []
    return [run for run in (Run(**json.loads(line)) for line in lines) if run.readers == readers]


def _total(runs: list[Run], target: str) -> Run:
    mine = [run for run in runs if run.target == target]
    findings = "; ".join(run.finding for run in mine if run.finding)
    return Run(target, "", sum(run.files for run in mine), sum(run.seconds for run in mine), findings)


def _fuzz(target: str, readers: str, folder: Path, *, seconds: int) -> Run:
    corpus = folder / target
    corpus.mkdir(exist_ok=True)
    log = folder / f"{target}.log"
    command = [sys.executable, "-m", "tests.formats.fuzz.run", target, f"-max_total_time={seconds}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "-print_final_stats=1", f"-artifact_prefix={folder}/{target}-", str(corpus)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # wait4 and not communicate: it says what this child and its children cost, and not all children of ours.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    output = log.read_text(errors="replace")
    tried = re.search(r"stat::number_of_executed_units: (\d+)", output)
    return Run(
        target,
        readers,
        int(tried.group(1)) if tried else 0,
        usage.ru_utime + usage.ru_stime,
        _finding(target, output) if process.returncode else "",
    )


def _finding(target: str, output: str) -> str:
    """What ended a run; empty after a timeout on a file that is read in no time when it is read once more.

    libFuzzer goes by the clock: a process that was stopped for a minute looks to it like a reader that hangs.
    """
    summary, kept = (
        re.search(r"^SUMMARY: (.*)$", output, re.MULTILINE),
        re.search(r"Test unit written to (\S+)", output),
    )
    finding = summary.group(1) if summary else f"no summary: {output[-200:]!r}"
    if kept is None or "timeout" not in finding:
        return finding
    again = [sys.executable, "-m", "tests.formats.fuzz.run", target, kept.group(1)]
    try:
        harmless = (
            subprocess.run(again, check=False, timeout=_LONGEST_READ_SECONDS, capture_output=True).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return finding
    return "" if harmless else f"{finding}, {kept.group(1)}"


if __name__ == "__main__":
    main()
