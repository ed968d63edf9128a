"""Changes mien's source in small ways, and counts how many of the changes the tests notice.

    make mutants SEED=0 COUNT=80

For each mutant the tests that `suites.py` names for its module run in a copy of the tree. A mutant has survived if all
of them pass; survivors are printed and written as diffs. The exit code is 1 below 90 % killed. A seed chooses the same
mutants as long as their own text does not change.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mien.rasterizer import cpu
from tests.mutants.equivalent import EQUIVALENT, MOST
from tests.mutants.operators import Mutant, mutants
from tests.mutants.suites import SHARES, modules, tests_of

ROOT = Path(__file__).parents[2]
PASS_MARK = 0.9
TIMEOUT_S = 120
SLOWER = 3
"""A mutant hangs if it takes TIMEOUT_S and this many times as long as the unchanged tree."""
COPIED = ("src", "tests", "pyproject.toml", "configs", "docs", "examples", "models", "benchmarks", "README.md")
# An editable installation finds the original tree before PYTHONPATH; this runs in every Python that the tests start.
SITECUSTOMIZE = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"


@dataclass(frozen=True)
class Candidate:
    """A mutant and where it belongs."""

    package: str
    module: str
    """Path below the root."""
    mutant: Mutant

    @property
    def key(self) -> tuple[str, ...]:
        """What does not change with the rest of the file."""
        return (self.module, self.mutant.function, self.mutant.operator, self.mutant.before, self.mutant.after)

    def diff(self) -> str:
        before = (ROOT / self.module).read_text().splitlines(keepends=True)
        after = self.mutant.source.splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, f"a/{self.module}", f"b/{self.module}", n=2))


class Tree:
    """A copy of the project that mutants are tried in, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "fuzz"))
            elif source.exists():
                shutil.copy2(source, target)
        native = Path(cpu.native().__file__ or "")
        shutil.copy2(native, folder / "src/mien/rasterizer" / native.name)
        (folder / ".site").mkdir()
        (folder / ".site/sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(self, tests: Sequence[str], *, timeout_s: float | None) -> tuple[str, str]:
        """Outcome ("passed", "failed" or "timeout") and output of the tests."""
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.folder / '.site'}{os.pathsep}{self.folder / 'src'}",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a run that hangs ends with all its processes
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "timeout", process.communicate()[0]
        return {0: "passed", 1: "failed", 2: "failed"}.get(process.returncode, "failed"), output

    def check(self) -> None:
        """Raises RuntimeError unless the tests import this copy."""
        where = "import mien, pathlib; print(pathlib.Path(mien.__file__).resolve())"
        environment = {**os.environ, "PYTHONPATH": f"{self.folder / '.site'}{os.pathsep}{self.folder / 'src'}"}
        found = subprocess.run(
            [sys.executable, "-c", where], cwd=self.folder, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_relative_to(self.folder.resolve()):
            raise RuntimeError(f"the tests would import {found}, not the copy in {self.folder}")

    def try_mutant(self, candidate: Candidate, tests: Sequence[str], *, timeout_s: float) -> tuple[str, str]:
        path = self.folder / candidate.module
        original = path.read_text()
        try:
            self._write(path, candidate.mutant.source)
            return self.run(tests, timeout_s=timeout_s)
        finally:
            self._write(path, original)

    @staticmethod
    def _write(path: Path, source: str) -> None:
        # Python trusts bytecode of the same second and size.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        path.write_text(source)


def sample(seed: int, count: int, only: str) -> list[Candidate]:
    """Mutants of all packages by their shares, and within a package of all operators alike."""
    chosen = []
    for package, files in modules(ROOT).items():
        by_operator = defaultdict(list)
        for path in files:
            name = path.relative_to(ROOT).as_posix()
            for mutant in mutants(path.read_text()):
                by_operator[mutant.operator].append(Candidate(package, name, mutant))
        for candidates in by_operator.values():
            candidates.sort(key=lambda c: hashlib.sha256(repr((seed, c.key)).encode()).digest())
        turns = sorted((rank, name) for name, found in by_operator.items() for rank in range(len(found)))
        chosen += [by_operator[name][rank] for rank, name in turns][: max(1, round(count * SHARES[package]))]
    return [candidate for candidate in chosen if only in candidate.module]


def run(candidates: Sequence[Candidate], *, jobs: int) -> list[tuple[Candidate, str, str]]:
    """Candidate, outcome and output of each, after a run of the unchanged tree."""
    suites = [tests_of(ROOT / candidate.module, ROOT) for candidate in candidates]
    results: list[tuple[Candidate, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for number in range(jobs):
            tree = Tree(Path(folder) / str(number))
            tree.check()
            free.put(tree)
        usual_s = _run_unchanged(free, sorted({name for suite in suites for name in suite}), pool)

        def one(candidate: Candidate, suite: Sequence[str]) -> None:
            tree = free.get()
            start = time.monotonic()
            try:
                timeout_s = max(TIMEOUT_S, SLOWER * sum(usual_s[name] for name in suite))
                outcome, output = tree.try_mutant(candidate, suite, timeout_s=timeout_s)
            finally:
                free.put(tree)
            results.append((candidate, outcome, output))
            line = f"{candidate.module}:{candidate.mutant.line} {candidate.mutant.operator}"
            print(f"{len(results):3} {outcome:8} {time.monotonic() - start:5.1f} s  {line}", flush=True)

        for future in [pool.submit(one, *pair) for pair in zip(candidates, suites, strict=True)]:
            future.result()
    return results


def _run_unchanged(free: queue.SimpleQueue[Tree], tests: Sequence[str], pool: ThreadPoolExecutor) -> dict[str, float]:
    """Seconds that each test file takes; exits if one of them fails."""

    def seconds(name: str) -> float:
        tree = free.get()
        start = time.monotonic()
        outcome, output = tree.run([name], timeout_s=None)
        free.put(tree)
        if outcome != "passed":
            sys.exit(f"{output}\n{name} does not pass in the unchanged tree")
        return time.monotonic() - start

    usual_s = dict(zip(tests, pool.map(seconds, tests), strict=True))
    print(f"unchanged: {len(tests)} test files passed in {sum(usual_s.values()):.0f} s", flush=True)
    return usual_s


def report(results: Sequence[tuple[Candidate, str, str]], folder: Path) -> float:
    """Print and write what survived; the killed share of those that are not declared equivalent."""
    declared = {(f"src/mien/{e.module}", e.function, e.before, e.after) for e in EQUIVALENT}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for candidate, outcome, _ in results:
        mutant = candidate.mutant
        equivalent = (candidate.module, mutant.function, mutant.before, mutant.after) in declared
        verdict = "killed" if outcome != "passed" else "equivalent" if equivalent else "survived"
        counts[candidate.package][verdict] += 1
        counts[candidate.package]["timeout"] += outcome == "timeout"
        if verdict == "survived":
            survivors.append(f"# {mutant.function or 'module'} ({mutant.operator})\n{candidate.diff()}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "survivors.diff").write_text("\n".join(survivors))
    (folder / "mutants.txt").write_text("".join(f"{outcome} {c.key}\n" for c, outcome, _ in results))
    print("\n".join(["", *survivors]))
    total = sum(counts.values(), Counter())
    print(f"{'':20} killed survived equivalent (of killed: timeouts)")
    for name, found in [*counts.items(), ("all", total)]:
        print(f"{name:20} {found['killed']:6} {found['survived']:8} {found['equivalent']:10} {found['timeout']:8}")
    if total["equivalent"] > MOST * len(results):
        sys.exit(f"{total['equivalent']} of {len(results)} mutants are declared equivalent, more than {MOST:.0%}")
    return total["killed"] / max(total["killed"] + total["survived"], 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=80, help="number of mutants")
    parser.add_argument("--only", default="", help="mutants of modules whose path contains this")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tried at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "out/mutants", help="folder of the reports")
    parser.add_argument("--list", action="store_true", help="print the sample and stop")
    options = parser.parse_args()
    candidates = sample(options.seed, options.count, options.only)
    if options.list:
        for candidate in candidates:
            print(candidate.diff())
        return
    killed = report(run(candidates, jobs=options.jobs), options.out)
    print(f"{killed:.1%} killed; at least {PASS_MARK:.0%} are wanted")
    sys.exit(killed < PASS_MARK)


if __name__ == "__main__":
    main()
