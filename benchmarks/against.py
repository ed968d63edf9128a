"""Processor time of two checkouts of mien, in turns on one machine.

    git worktree add ../old af0329d && make -C ../old .venv/.installed        # or any other commit
    python benchmarks/against.py ../old . --data ../shared/data [--rows "fit,net"] [--turns 3]

Each piece of work runs in a new process of each checkout's own interpreter (`.venv/bin/python`), old and new by turns.
A figure is the median over the turns of the best repeat. Ratios above 1 say that the new checkout is faster.
One thread, if the row's name does not say otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from against_worker import THREADS, WORK
from rich.console import Console
from rich.progress import track

from mien.evaluation.report import Environment, markdown_table, write_json

WORKER = Path(__file__).with_name("against_worker.py")
FOLDER_PHOTOS = 24
"""Photos of the folder rows, so that start-up is a small part."""
TRAINING = (
    "loop.batch_size=8", "loop.workers=0", "loop.threads=1", "loop.log_every=1", "data.synthetic_share=1.0",
    "data.synthetic_faces=32", "loop.precision=32-true", "loop.validate_every=10000", "loop.sheet_every=10000",
)  # fmt: skip
ALL_FORMATS = "glb,obj,ply,maps,sheet,overlay,npz,json"
SHORT, LONG = 4, 12
"""Steps of two runs whose difference is the time of training: 32 faces are one pass over the data, 96 are three."""


@dataclass(frozen=True)
class Row:
    """A piece of work in both checkouts."""

    name: str
    old: float
    """Seconds per photo, pass or image."""
    new: float

    @property
    def ratio(self) -> float:
        """How many times faster the new checkout is."""
        return self.old / self.new


@dataclass(frozen=True)
class Checkout:
    """A built working tree."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ".venv" / "bin" / "python"

    def work(self, name: str, data: Path) -> list[float]:
        """Run a piece of `against_worker`."""
        environment = os.environ if name == THREADS else {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [self.python, WORKER, name, data]
        done = subprocess.run(command, env=environment, cwd=self.folder, check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout.splitlines()[-1])

    def offers(self, command: str, option: str) -> bool:
        """Whether a `mien` command of this checkout has an option."""
        done = subprocess.run(
            [self.python, "-m", "mien.cli", command, "--help"], check=True, capture_output=True, text=True
        )
        return option in done.stdout

    def processor_seconds(self, *arguments: str) -> float:
        """Processor time of a `mien` command, with all processes that it starts."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [str(self.python), "-m", "mien.cli", *arguments]
        before = _of_ended_processes()
        code = subprocess.run(
            command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode
        if code:
            raise SystemExit(f"{' '.join(command)} ended with {code}")
        with suppress(ChildProcessError):  # those that the command did not wait for, such as its fork server
            while True:
                os.wait()
        return _of_ended_processes() - before


def adopt_processes() -> None:
    """Become the parent of processes whose parent has ended, so that their time is counted too (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _of_ended_processes() -> float:
    """Processor seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def reconstruct_folder(checkout: Checkout, data: Path, *options: str) -> list[float]:
    """`mien reconstruct --mode net` over a folder, per photo, start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for path in sorted((data / "portraits_pd").rglob("*.jpg"))[:FOLDER_PHOTOS]:
            shutil.copy(path, photos)
        count = len(list(photos.iterdir()))
        out = str(Path(folder) / "out")
        return [checkout.processor_seconds("reconstruct", str(photos), "-o", out, "--mode", "net", *options) / count]


def reconstruct_one(checkout: Checkout, data: Path) -> list[float]:
    """`mien reconstruct --mode net` of one photo: mostly start-up."""
    with tempfile.TemporaryDirectory() as out:
        photo = str(data / "demo" / "portrait_a.jpg")
        return [checkout.processor_seconds("reconstruct", photo, "-o", out, "--mode", "net")]


def train(checkout: Checkout, network: str, *changes: str) -> list[float]:
    """Training on drawn faces, per image: the difference of a long and a short run."""
    options = [word for change in (*TRAINING, *changes) for word in ("--set", change)]
    spent = []
    for steps in (SHORT, LONG):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "run")
            spent.append(
                checkout.processor_seconds("train", network, "-o", out, *options, "--set", f"loop.steps={steps}")
            )
    return [(spent[1] - spent[0]) / (LONG - SHORT) / 8]


def _folder(checkout: Checkout, data: Path, *, everything: bool) -> list[float]:
    """All files of the last column are what the first versions wrote without being asked."""
    options = ["--formats", ALL_FORMATS] if everything and checkout.offers("reconstruct", "--formats") else []
    return reconstruct_folder(checkout, data, *options)


Work = Callable[[Checkout, Path], list[float]]
ROWS: dict[str, Work] = {
    **{name: lambda tree, data, name=name: tree.work(name, data) for name in WORK if name != THREADS},
    "one photo, command, net": reconstruct_one,
    "folder, net, default files": lambda tree, data: _folder(tree, data, everything=False),
    "folder, net, all files": lambda tree, data: _folder(tree, data, everything=True),
    "training image, encoder": lambda tree, data: train(tree, "base"),
    "training image, detail": lambda tree, data: train(tree, "detail"),
}


def compare(name: str, old: Checkout, new: Checkout, data: Path, turns: int) -> Row:
    """Run a row's work in both checkouts by turns."""
    best = [[min(ROWS[name](tree, data)) for tree in (old, new)] for _ in range(turns)]
    return Row(name, statistics.median(pair[0] for pair in best), statistics.median(pair[1] for pair in best))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, help="checkout to measure")
    parser.add_argument("--data", type=Path, required=True, help="folder with demo and portraits_pd")
    parser.add_argument("--rows", default="", help="rows whose names begin with one of these, with ; between")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    adopt_processes()
    old, new = Checkout(options.old.resolve()), Checkout(options.new.resolve())
    data, console = options.data.resolve(), Console(stderr=True)
    wanted = tuple(options.rows.split(";"))
    chosen = [name for name in ROWS if name.startswith(wanted)]
    results = [compare(name, old, new, data, options.turns) for name in track(chosen, console=console)]
    print(f"{Environment.current()}\n")
    table = [(row.name, f"{row.old:.3f}", f"{row.new:.3f}", f"{row.ratio:.2f}") for row in results]
    print(markdown_table(("processor seconds per photo, pass or image", "old", "new", "old / new"), table))
    if THREADS.startswith(wanted):
        cells = [(tree.folder.name, *tree.work(THREADS, data)) for tree in (old, new)]
        rows = [(name, f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}") for name, one, two in cells]
        print(f"\n{markdown_table(('fit, seconds by the clock', 'one thread', 'two threads', 'ratio'), rows)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
