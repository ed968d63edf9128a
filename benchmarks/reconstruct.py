"""Speed and memory of photo → face: cold start, first face, further faces, several faces, stages, peak memory.

    python benchmarks/reconstruct.py --data ../shared/data

Cold start is measured in fresh processes. Steady figures are medians with the range over repeats. Several faces are
one picture with that many portraits side by side, as in a group photo.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mien.evaluation.report import Environment, markdown_table, write_json
from mien.export.contact_sheet import SheetLayout, contact_sheet, in_rows

if TYPE_CHECKING:
    from mien.pipeline import Reconstructor
    from mien.result import Reconstruction

_TORCH_ONLY = "import time; s = time.perf_counter(); import torch; print(time.perf_counter() - s)"
# Names of the package are imported when they are asked for: all of them.
_MIEN_ON_TOP = """
import time, torch
start = time.perf_counter()
import mien
for name in dir(mien):
    getattr(mien, name)
print(time.perf_counter() - start)
"""
_FIRST_FACE = """
import sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(int(sys.argv[2]))
from mien.pipeline.reconstructor import Reconstructor
make = Reconstructor(detail=sys.argv[3] == "True", max_faces=1)
ready = time.perf_counter()
make(sys.argv[1])
print(ready - start, time.perf_counter() - ready)
"""
# The same portrait in tiles of this size, so that the number of faces is all that changes.
_TILE = (450, 450)


@dataclass(frozen=True)
class Timing:
    """Seconds over repeats."""

    name: str
    median: float
    least: float
    most: float
    repeats: int

    @classmethod
    def of(cls, name: str, seconds: Sequence[float]) -> Timing:
        return cls(name, float(np.median(seconds)), min(seconds), max(seconds), len(seconds))

    def row(self) -> list[str]:
        return [self.name, f"{self.median:.3f}", f"{self.least:.3f}-{self.most:.3f}", str(self.repeats)]


@dataclass(frozen=True)
class SpeedResults:
    timings: tuple[Timing, ...]
    stages: tuple[Timing, ...]
    peak_memory_mb: tuple[tuple[str, float], ...]


def fresh_process(code: str, *arguments: str) -> tuple[list[float], float]:
    """The numbers a fresh Python prints, and its peak memory in megabytes."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a fresh process failed with exit code {process.returncode}")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return [float(word) for word in text.split()], usage.ru_maxrss / unit


def group_photo(portrait: Path, count: int) -> np.ndarray:
    """One picture of `count` portraits in rows of up to four."""
    with Image.open(portrait) as image:
        side = min(image.size)
        tile = np.asarray(image.convert("RGB").crop((0, 0, side, side)).resize(_TILE))
    return contact_sheet(in_rows([tile] * count, min(count, 4)), SheetLayout(background=(128, 128, 128)))


def timed(reconstructor: Reconstructor, picture: np.ndarray) -> tuple[float, list[Reconstruction]]:
    """Seconds for all faces of a picture, and the faces."""
    start = time.perf_counter()
    faces = reconstructor(picture)
    return time.perf_counter() - start, faces


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with demo/portrait_a.jpg")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--faces", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of faces in one picture")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    portrait = options.data / "demo" / "portrait_a.jpg"

    timings, memory = [], []
    torch_seconds = [fresh_process(_TORCH_ONLY)[0][0] for _ in range(options.repeats)]
    mien_seconds = [fresh_process(_MIEN_ON_TOP)[0][0] for _ in range(options.repeats)]
    timings += [Timing.of("import torch", torch_seconds), Timing.of("import mien, beyond torch", mien_seconds)]
    for detail in (False, True):
        kind = "with detail" if detail else "without detail"
        runs = [
            fresh_process(_FIRST_FACE, str(portrait), str(options.jobs), str(detail)) for _ in range(options.repeats)
        ]
        timings.append(Timing.of(f"fresh process to ready, {kind}", [r[0][0] for r in runs]))
        timings.append(Timing.of(f"first face, {kind}", [r[0][1] for r in runs]))
        memory.append((f"one face, {kind}", max(r[1] for r in runs)))

    import torch  # noqa: PLC0415  # after the fresh processes, so that they do not share its pages warm

    from mien.pipeline import Reconstructor  # noqa: PLC0415

    torch.set_num_threads(options.jobs)
    stages: list[Timing] = []
    # The network takes only a tenth of a second: more repeats.
    rounds = (
        ("fit", options.faces, options.repeats),
        ("auto", [1], options.repeats),
        ("net", [1], 5 * options.repeats),
    )
    for mode, counts, repeats in rounds:
        for detail in (False, True):
            kind = f"mode {mode}, with{'' if detail else 'out'} detail"
            reconstructor = Reconstructor(mode=mode, detail=detail)
            reconstructor(portrait)
            for count in counts:
                picture = group_photo(portrait, count)
                runs = [timed(reconstructor, picture) for _ in range(repeats)]
                if any(len(faces) != count for _, faces in runs):
                    raise SystemExit(f"not {count} faces were found: the figures would not be comparable.")
                label = f"{count} face{'s' if count > 1 else ''} in one picture, {kind}"
                timings.append(Timing.of(label, [seconds for seconds, _ in runs]))
                timings.append(Timing.of("  of that per face", [seconds / count for seconds, _ in runs]))
                if count == 1:
                    per_stage: dict[str, list[float]] = defaultdict(list)
                    for name, value in (stage for _, faces in runs for stage in faces[0].stage_seconds):
                        per_stage[name].append(value)
                    stages += [Timing.of(f"{name}, {kind}", values) for name, values in per_stage.items()]
    memory.append(("this process, all of the above", _own_peak_mb()))

    print(f"{Environment.current()}\n")
    header = ["seconds", "median", "range", "repeats"]
    print(markdown_table(header, [t.row() for t in timings]) + "\n")
    print(markdown_table(["stage, one face", *header[1:]], [t.row() for t in stages]) + "\n")
    print(markdown_table(["peak memory", "MB"], [[name, f"{mb:.0f}"] for name, mb in memory]))
    if options.json:
        write_json(
            options.json,
            environment=Environment.current(),
            results=SpeedResults(tuple(timings), tuple(stages), tuple(memory)),
        )
    return 0


def _own_peak_mb() -> float:
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    sys.exit(main())
