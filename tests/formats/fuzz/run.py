"""Coverage-guided fuzzing of one reader: anything but a model or a FormatError is a finding.

    python -m tests.formats.fuzz.run TARGET -max_total_time=120

TARGET is a name of tests/formats/targets.py; the rest goes to libFuzzer. Needs atheris (pip install atheris). A finding
is written by libFuzzer as crash-*, and that file's bytes belong into tests/formats/test_hostile.py.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mien.morphable.formats"]):
    from mien.morphable import formats  # noqa: F401 (instruments every reader)
from tests.formats.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    warnings.simplefilter("ignore")
    scratch = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder, corpus = Path(name) / "files", Path(name) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        (corpus / "honest").write_bytes(target.honest(folder))
        # libFuzzer leaves by os._exit, so the folder has to be named for who cleans up afterwards.
        atheris.Setup(
            [*sys.argv, "-timeout=60", "-rss_limit_mb=4096", "-max_len=65536", str(corpus)],
            lambda content: target.survives(folder, content) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
