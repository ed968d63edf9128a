"""run.json in the folder of a photo or person: from which photos and options it was made, and whether it is whole."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mien import __version__
from mien.errors import FormatError
from mien.io.files import write_text, writing
from mien.io.reading import read_json
from mien.scale.summary import PhotoRow

if TYPE_CHECKING:
    from mien.io.photo_arguments import RemotePhoto

RUN_FILE = "run.json"
_FORMAT, _PERSON_FORMAT = "mien-run-1", "mien-person-run-1"
_ADVICE = "delete it, and its photos are redone"

Options = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json."""

    photo: str
    """Absolute path of the photo; the folder belongs to it. For a person, the folder of the photos."""
    photo_sha256: str
    """Hash of the content of the photo or photos."""
    options: Options
    """What `result_options` returns."""
    rows: tuple[PhotoRow, ...] | None
    """The row of the photo in the table, or those of all photos of a person; None until all files are written."""
    person: bool = False
    """Whether the folder belongs to a person."""

    def write(self, folder: Path) -> None:
        """Write run.json atomically.

        Args:
            folder: The folder; it is made if it is missing.

        Raises:
            OutputError: The folder cannot be written.
        """
        rows = None if self.rows is None else [asdict(row) for row in self.rows]
        content = {
            "format": _PERSON_FORMAT if self.person else _FORMAT,
            "photo": self.photo,
            "photo_sha256": self.photo_sha256,
            "options": dict(self.options),
            "summary": rows if self.person or rows is None else rows[0],
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / RUN_FILE, json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class _Stored:
    """run.json."""

    format: str
    photo: str
    photo_sha256: str
    options: dict[str, str | int | float | bool | None]
    summary: PhotoRow | list[PhotoRow] | None


def read_record(folder: Path) -> RunRecord | None:
    """Read the run.json of the folder of a photo or person.

    Args:
        folder: The folder.

    Returns:
        The record; None if the folder has none.

    Raises:
        FormatError: The file is damaged or of another version.
    """
    file = folder / RUN_FILE
    if not file.exists():
        return None
    stored = read_json(file, _Stored, advice=_ADVICE)
    rows = stored.summary if isinstance(stored.summary, list) or stored.summary is None else [stored.summary]
    kinds = {_FORMAT: PhotoRow, _PERSON_FORMAT: list}
    if stored.format not in kinds:
        raise FormatError(f"{file}: its format is {stored.format!r}, this version reads {_FORMAT!r}; {_ADVICE}")
    if stored.summary is not None and not isinstance(stored.summary, kinds[stored.format]):
        raise FormatError(f"{file}: damaged (summary does not fit the format {stored.format!r}); {_ADVICE}")
    person = stored.format == _PERSON_FORMAT
    return RunRecord(stored.photo, stored.photo_sha256, stored.options, None if rows is None else tuple(rows), person)


def result_options(settings: Mapping[str, object]) -> Options:
    """The options that the files of a photo depend on, with the version of mien.

    Args:
        settings: All settings that the files depend on.

    Returns:
        Name and value of each option; a model or network file is represented by its SHA-256.
    """
    return {"mien": __version__, **{name: _value(value) for name, value in sorted(settings.items())}}


def changed_options(before: Options, now: Options) -> str:
    """List the options that differ, as `name (old → new)`; empty if all are equal."""
    names = sorted(before.keys() | now.keys())
    return ", ".join(
        f"{name} ({before.get(name)} → {now.get(name)})" for name in names if before.get(name) != now.get(name)
    )


def file_sha256(path: Path | RemotePhoto) -> str:
    """SHA-256 of a file; empty if it is not a readable file, which `read_photo` reports. For a file that is not of this
    machine, `RemotePhoto.version`."""
    if not isinstance(path, Path):
        return path.version()
    digest = hashlib.sha256()
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _value(value: object) -> str | int | float | bool | None:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file():
        return f"sha256:{file_sha256(Path(value))}"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if value is None or isinstance(value, str | int | float) else str(value)
