"""Files cut, changed and emptied, for every reader: FormatError or a model, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mien.errors import FormatError
from mien.io import reading
from mien.morphable.formats.generic import read_generic
from tests.formats import files
from tests.formats.targets import TARGETS

CHEAP = [name for name in TARGETS if name != "bfm2017"]
"""bfm2017 starts a process for every file; it has tests of its own below."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_valid_files_are_read(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    assert target.survives(tmp_path, target.honest(tmp_path))


@dataclass(frozen=True)
class Honest:
    folder: Path
    content: bytes = field(repr=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Honest]:
    made = {}
    for name, target in TARGETS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = Honest(folder, target.honest(folder))
    return made


@pytest.mark.parametrize("name", CHEAP)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | st.integers(0, 255)), max_size=4
    ),
    kept=st.none() | st.integers(0, 1 << 20),
)
def test_damaged_bytes_are_refused_or_harmless(
    folders: dict[str, Honest], name: str, edits: list[tuple[int, int]], kept: int | None
) -> None:
    content = bytearray(folders[name].content)
    for place, value in edits:
        content[place % len(content)] = value
    TARGETS[name].survives(folders[name].folder, bytes(content if kept is None else content[: kept % len(content)]))


@pytest.mark.parametrize("name", [name for name in CHEAP if name not in ("generic_array", "mat_packed")])
def test_a_file_cut_anywhere_is_refused(folders: dict[str, Honest], name: str) -> None:
    folder, honest = folders[name].folder, folders[name].content
    places = np.unique(np.linspace(0, len(honest) - 8, 40).astype(int))
    read = [int(place) for place in places if TARGETS[name].survives(folder, honest[:place])]
    # A text may lose its last faces and still be a mesh; nothing else may.
    assert not read or name == "ict_folder"


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_missing_and_empty_files_are_named(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    target.honest(tmp_path)
    path = tmp_path / target.file
    path.write_bytes(b"")
    with pytest.raises(FormatError, match=target.file):
        target.read(path)
    path.unlink()
    if name != "bfm2009_expressions":  # without its expressions it is another honest model
        with pytest.raises(FormatError, match="no such file"):
            target.read(path)


def test_files_above_the_size_limit_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FormatError, match="expected 1 to 1000"):
        read_generic(files.write_generic(tmp_path / "a.npz"))
