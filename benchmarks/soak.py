"""Does a long run need more memory than a short one? `mien reconstruct` over many copies of one photo.

    python benchmarks/soak.py [--photos 2000] [--jobs 2]

Prints the resident memory of the command's processes, in MB, while the photos are done. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from mien.evaluation.report import markdown_table

PHOTO = Path(__file__).parents[1] / "examples" / "astronaut.png"
SIDE_PX = 256
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.99)
"""When memory is measured, as shares of the photos."""


def write_photos(folder: Path, count: int) -> None:
    """Copies that differ in one pixel, so that none is taken for another."""
    photo = Image.open(PHOTO).convert("RGB").resize((SIDE_PX, SIDE_PX))
    for number in range(count):
        photo.putpixel((0, 0), (number % 256, number // 256, 0))
        photo.save(folder / f"{number:05d}.png")


def resident_mb(command: int) -> Iterator[int]:
    """Memory of the command and of the processes that it started, largest first."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if str(command) in {lines["Pid"], lines["PPid"]} and "VmRSS" in lines:
                found.append(int(lines["VmRSS"].split()[0]) // 1024)
    yield from sorted(found, reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    moments = {max(round(share * options.photos), 1) for share in SHARES}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photos, start = Path(folder) / "photos", time.monotonic()
        photos.mkdir()
        write_photos(photos, options.photos)
        command = [
            sys.executable, "-m", "mien", "reconstruct", str(photos), "-o", str(Path(folder) / "out"), "--mode", "net",
            "--no-detail", "--formats", "json", "--jobs", str(options.jobs),
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout, start=1):
                if number in moments:
                    seconds = time.monotonic() - start
                    rows.append((number, f"{seconds:.0f}", ", ".join(map(str, resident_mb(process.pid)))))
    print(markdown_table(("photos done", "seconds", "resident MB per process"), rows))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
