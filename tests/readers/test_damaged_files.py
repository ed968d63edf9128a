"""Every kind of file that mien reads, damaged at random: a typed error or a value, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.errors import MienError
from tests.readers.mutations import run
from tests.readers.targets import TARGETS

COUNT = 40
"""Damaged files per kind; `python -m tests.readers.mutations` tries any number."""
MAY_BE_MISSING = {"config_change", "encoder_header", "run_metrics", "run_record", "scan", "summary"}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_whole_files_are_read(tmp_path: Path, name: str) -> None:
    assert TARGETS[name].survives(tmp_path, TARGETS[name].honest(tmp_path))


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_harmless(tmp_path: Path, name: str) -> None:
    read, refused, untyped = run(TARGETS[name], tmp_path, count=COUNT, seed=0)
    assert not untyped
    assert read + refused == COUNT


@pytest.mark.parametrize("name", sorted(set(TARGETS) - MAY_BE_MISSING))
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    target.honest(tmp_path)
    path = tmp_path / target.file
    path.unlink(missing_ok=True)
    with pytest.raises(MienError, match=str(path.parent)):
        target.read(path)
