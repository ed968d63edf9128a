"""Small files that claim much memory, and processes that may use little."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image

from mien.errors import MienError
from mien.io.photo import read_photo
from mien.io.result_folder import _read_map
from mien.morphable.formats import read_model
from mien.result import Reconstruction
from mien.training.data.store import FaceRecord, decode_record, encode_record
from tests.chaos.commands import Scenario, small_shards
from tests.chaos.interruptions import Reference
from tests.chaos.outcome import Tally, command, run
from tests.formats.files import generic_arrays

ALLOWED_MB = 300
PHOTO_MB = 300 + 192
"""Of a photo of 64 megapixels: the result has 192 MB."""


def bombs(folder: Path, result: Path) -> Tally:
    """Read small files of huge content, and the largest photos, and measure the peak of memory."""
    tally = Tally("memory: small files of huge content")
    record = _record_with_huge_mask()
    cases: list[tuple[str, Callable[[], object], int]] = [
        ("arrays of a result", lambda: Reconstruction.load(_npz_bomb(folder / "result", result)), ALLOWED_MB),
        ("array of a face model", lambda: read_model(folder / "generic.npz"), ALLOWED_MB),
        ("map", lambda: _read_map(folder / "8192.png", channels=3), ALLOWED_MB),
        ("mask of a photo store", lambda: decode_record(record), ALLOWED_MB),
        ("grey photo of 16 bits", lambda: read_photo(folder / "deep.png"), PHOTO_MB),
        ("colour photo", lambda: read_photo(folder / "8000.png"), PHOTO_MB),
        ("photo of 400 megapixels", lambda: read_photo(folder / "20000.png"), ALLOWED_MB),
    ]
    _write_bombs(folder)
    _npz_bomb(folder / "result", result)
    for name, read, allowed_mb in cases:
        problem, peak = _peak_mb(read)
        if problem:
            tally.add("untyped", f"{name}: {problem}")
        elif peak > allowed_mb:
            tally.add("lost", f"{name}: {peak:.0f} MB, more than {allowed_mb}")
        else:
            tally.add("survived")
    return tally


def small_memory(reference: Reference, folder: Path, *, tries: int, seed: int) -> Tally:
    """Run a command with a limit on its address space, then without."""
    tally = Tally(f"memory: {reference.scenario.name} with little of it")
    for number in range(tries):
        megabytes = random.Random(f"{seed}/{tally.part}/{number}").randint(10, 400)
        place = folder / f"try{number}"
        place.mkdir(parents=True)
        out = place / reference.scenario.out
        ended = run(_limited(reference.scenario, out, megabytes), place / "log.txt")
        reference.judge(tally, out, ended, f"seed {seed}, try {number}, {megabytes} MB more than at the start")
    return tally


def _limited(scenario: Scenario, out: Path, megabytes: int) -> Callable[[], int]:
    def limit() -> None:
        small_shards()
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        most = used + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return command(*scenario.arguments(out), prepare=limit)


def _write_bombs(folder: Path) -> None:
    for side in (8000, 8192, 20_000):
        Image.new("RGB", (side, side)).save(folder / f"{side}.png")
    Image.fromarray(np.full((8000, 8000), 40_000, np.uint16)).save(folder / "deep.png")
    arrays = {**generic_arrays(), "identity_basis": np.zeros((1000, 100_000, 3), np.float32)}
    np.savez_compressed(folder / "generic.npz", allow_pickle=False, **arrays)


def _record_with_huge_mask() -> bytes:
    """A face of a photo store whose mask has 13,000 pixels on a side: 169 MB of zeros in 170 kB."""
    side = torch.zeros(8, 8)
    record = FaceRecord(side.expand(3, 8, 8), side, torch.zeros(68, 2), torch.zeros(468, 2), 10.0, (4.0, 4.0), 1.0)
    whole, stream, huge = encode_record("face", record, notes={}), io.BytesIO(), io.BytesIO()
    Image.new("L", (13_000, 13_000)).save(huge, "PNG")
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            data = huge.getvalue() if "mask" in member.name else cast(IO[bytes], old.extractfile(member)).read()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _npz_bomb(folder: Path, result: Path) -> Path:
    """A result whose texture has 27,000 texels on a side: 2 GB of zeros in 2 MB."""
    if not folder.exists():
        folder.mkdir()
        (folder / "coefficients.json").write_bytes((result / "coefficients.json").read_bytes())
        header = io.BytesIO()
        side = 27_000
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (side, side, 3)})
        with (
            zipfile.ZipFile(result / "reconstruction.npz") as whole,
            zipfile.ZipFile(folder / "reconstruction.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name in whole.namelist():
                if name == "texture.npy":
                    with archive.open(name, "w", force_zip64=True) as file:
                        file.write(header.getvalue())
                        for _ in range(side):
                            file.write(bytes(side * 3))
                else:
                    archive.writestr(name, whole.read(name))
    return folder


def _peak_mb(read: Callable[[], object]) -> tuple[str, float]:
    """What went wrong in a process of its own, and the memory that it took at most."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        problem = ""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again
        before = _memory("VmRSS")
        try:
            read()
        except MienError:
            pass
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"[:300]
        with os.fdopen(writing, "w") as result:
            json.dump([problem, (_memory("VmHWM") - before) / 1024], result)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        text = result.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return tuple(json.loads(text)) if status == 0 else (f"the process ended by signal {-status}", 0.0)


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
