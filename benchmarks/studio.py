"""How soon does `mien studio` show a head, and does it stay well over many photos? Linux only.

    python benchmarks/studio.py [--photos 200] [--at-once 20] [--times 7]

Prints the seconds from the start of the command to the page and to the head of a photo that was sent at once; from
sending a photo to having its first head when all is warm; the resident memory of server and worker in MB over photos in
a row, of which every 20th is none; and what became of photos sent at the same time.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

PHOTO = Path(__file__).parents[1] / "examples" / "astronaut.png"
SIDE_PX = 256
BAD_EVERY = 20
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""When memory is measured, as shares of the photos."""
_SETTINGS = "mode=net&detail=false&formats=json"


class Client:
    """A program that uses the HTTP API.

    Args:
        address: Of the server.
    """

    def __init__(self, address: str) -> None:
        self._jobs = f"{address.rstrip('/')}/api/jobs"

    def submit(self, photo: bytes) -> str:
        """Send a photo; returns the id of its job."""
        return json.load(self._open(f"?{_SETTINGS}", data=photo))["id"]

    def events(self, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and data of the events of a job, as they come."""
        name = ""
        with self._open(f"/{job}/events") as stream:
            for line in stream:
                if line.startswith(b"event: "):
                    name = line[7:].decode().strip()
                elif line.startswith(b"data: "):
                    yield name, json.loads(line[6:])

    def end(self, job: str) -> str:
        """Wait for a job and remove it; returns the name of its last event."""
        last = [name for name, _ in self.events(job)][-1]
        self._open(f"/{job}", method="DELETE").close()
        return last

    def first_sight(self, photo: bytes) -> float:
        """Seconds from sending a photo to having the file of its first head; then wait for the end of the job."""
        start = time.monotonic()
        job = self.submit(photo)
        events = self.events(job)
        head = next(data for name, data in events if name == "head")
        with self._open(f"/{job}/faces/0/{head['step']}.glb") as file:
            assert file.read(4) == b"glTF"
            file.read()
        seconds = time.monotonic() - start
        self.end(job)
        return seconds

    def _open(self, path: str, *, data: bytes | None = None, method: str | None = None) -> Any:
        return urllib.request.urlopen(urllib.request.Request(self._jobs + path, data, method=method), timeout=600)


@contextmanager
def studio() -> Iterator[tuple[int, str]]:
    """A running `mien studio`: its process and its address."""
    command = [sys.executable, "-m", "mien", "studio", "--port", "0", "--no-open"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        yield server.pid, next(word for word in server.stderr.readline().split() if word.startswith("http"))
    finally:
        server.terminate()
        server.wait(30)


def encoded(photo: Image.Image) -> bytes:
    """The photo as PNG."""
    content = io.BytesIO()
    photo.save(content, "PNG")
    return content.getvalue()


def bad_files(photo: bytes) -> list[bytes]:
    """No photo, a broken one, one without a face, and one that claims to be huge."""
    huge = photo[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + photo[24:]
    return [b"this is no photo", photo[: len(photo) // 2], encoded(Image.new("RGB", (SIDE_PX, SIDE_PX), "grey")), huge]


def resident_mb(server: int) -> int:
    """Memory of the server and of the processes that it started."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if str(server) in {lines["Pid"], lines["PPid"]} and "VmRSS" in lines:
                total += int(lines["VmRSS"].split()[0]) // 1024
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    photo = Image.open(PHOTO).convert("RGB")
    whole, small = encoded(photo), encoded(photo.resize((SIDE_PX, SIDE_PX)))
    bad = bad_files(small)

    start = time.monotonic()
    with studio() as (server, address):
        client = Client(address)
        page = time.monotonic() - start
        client.first_sight(whole)
        print(f"cold: page after {page:.2f} s, photo and head after {time.monotonic() - start:.2f} s", flush=True)
        seconds = sorted(client.first_sight(whole) for _ in range(options.times))
        print(
            f"warm: head after {statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f} s)\n",
            flush=True,
        )

        moments = {max(round(share * options.photos), 1) for share in SHARES}
        answers: Counter[tuple[str, str]] = Counter()
        for number in range(1, options.photos + 1):
            wrong = number % BAD_EVERY == 0
            sent = bad[number // BAD_EVERY % len(bad)] if wrong else small
            answers["bad" if wrong else "good", client.end(client.submit(sent))] += 1
            if number in moments:
                print(f"{number} photos in a row: {resident_mb(server)} MB", flush=True)
        for (kind, answer), count in sorted(answers.items()):
            print(f"{kind}: {count} {answer}")

        with ThreadPoolExecutor(options.at_once) as users:
            ends = Counter(users.map(lambda _: client.end(client.submit(small)), range(options.at_once)))
        print(f"{options.at_once} at once: {dict(ends)}")
    expected = {("good", "finished"), ("bad", "failed")}
    return 0 if set(answers) <= expected and set(ends) == {"finished"} else 1


if __name__ == "__main__":
    sys.exit(main())
