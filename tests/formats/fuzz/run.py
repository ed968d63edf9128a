"""Coverage-guided fuzzing of one reader: anything but a model or a FormatError is a finding.

    python -m tests.formats.fuzz.run TARGET -max_total_time=120 [CORPUS]
    python -m tests.formats.fuzz.run TARGET FILE

TARGET is a name of tests/formats/targets.py or tests/readers/targets.py; the rest goes to libFuzzer, also a folder that
keeps what it finds from run to run. Needs atheris (pip install atheris). A finding is written by libFuzzer as crash-*,
and that file's bytes belong into the tests beside this folder; the second form reads it once more.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
import warnings
from importlib.machinery import PathFinder
from pathlib import Path

import atheris

# An editable installation has a loader of its own, through which atheris silently instruments nothing.
sys.meta_path.insert(0, PathFinder)
with atheris.instrument_imports(include=["mien"]):
    from mien.morphable.formats import detect
from tests.formats import targets as models  # noqa: E402 (what it imports is instrumented by now)
from tests.readers import targets as others  # noqa: E402


def main() -> None:
    if not any(inspect.ismodule(constant) for constant in detect.__code__.co_consts):
        sys.exit("atheris did not instrument the readers: it would fuzz blindly")
    target = {**models.TARGETS, **others.TARGETS}[sys.argv.pop(1)]
    warnings.simplefilter("ignore")
    scratch = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder, corpus = Path(name) / "files", Path(name) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        honest = target.honest(folder)
        if len(sys.argv) == 2 and Path(sys.argv[1]).is_file():
            target.survives(folder, Path(sys.argv[1]).read_bytes())
            return
        (corpus / "honest").write_bytes(honest)
        # libFuzzer leaves by os._exit, so the folder has to be named for who cleans up afterwards.
        atheris.Setup(
            [*sys.argv, "-timeout=60", "-rss_limit_mb=4096", "-max_len=65536", str(corpus)],
            lambda content: target.survives(folder, content) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
