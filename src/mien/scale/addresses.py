"""Results at an address such as s3://bucket/results, which fsspec writes.

A photo is reconstructed in a temporary folder of the machine that works on it, and its files are copied to the address.
run.json is the last of them, so a photo with a run.json that has a row is whole. The address has no lock: two runs with
equal options write equal files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mien.errors import MienError, OutputError
from mien.io.addresses import check_protocol, local_path
from mien.scale.output_folder import PhotoFolder
from mien.scale.run_record import RUN_FILE, read_record
from mien.scale.summary import SUMMARY_FILE, SummaryTable, photo_key

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from mien.io.photo_arguments import RemotePhoto

_KEY_LENGTH = 10
"""Hexadecimal digits of a photo's key in the name of its folder: among 10 million photos with one stem, two share a key
with a probability of 1 %; in practice stems differ."""


def is_address(out: str) -> bool:
    """Whether results go to an address that is not a path of this machine."""
    return "://" in out and local_path(out) is None


@dataclass(frozen=True)
class AddressFolder:
    """The folder of one photo below an address; it can be pickled."""

    address: str
    """Where its faces go."""
    photo: Path | RemotePhoto
    """The photo."""

    @contextmanager
    def here(self) -> Iterator[PhotoFolder]:
        """Yield a temporary folder of this machine with the run.json of an earlier run.

        Raises:
            OutputError: The address cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="mien-") as parent:
            folder = PhotoFolder(Path(parent) / "photo", self.photo)
            with reaching(self.address):
                files, root = file_system(self.address)
                content = read_file(files, f"{root}/{RUN_FILE}")
                if content is not None:
                    folder.path.mkdir()
                    (folder.path / RUN_FILE).write_bytes(content)
                    record = read_record(folder.path)
                    for index in range(record.rows[0].faces if record and record.rows else 0):
                        if files.exists(f"{root}/face{index}"):
                            (folder.path / f"face{index}").mkdir()
            yield folder

    def publish(self, folder: PhotoFolder) -> None:
        """Copy the files of a photo from this machine to the address, and remove faces of an earlier run.

        Args:
            folder: The folder of `here`, after the photo was reconstructed or failed.

        Raises:
            OutputError: The address cannot be written.
        """
        record = read_record(folder.path)
        if record is None:
            return
        faces = sorted(path for path in folder.path.glob("face*") if any(path.iterdir()))
        with reaching(self.address):
            files, root = file_system(self.address)
            replace(record, rows=None).write(folder.path)
            put_files(files, folder.path, [folder.path / RUN_FILE], root)
            if not faces:
                return
            index = 0
            while files.exists(f"{root}/face{index}"):
                files.rm(f"{root}/face{index}", recursive=True)
                index += 1
            put_files(files, folder.path, [file for face in faces for file in sorted(face.iterdir())], root)
            if record.rows is not None:
                rows = tuple(replace(row, results=self.address) for row in record.rows)
                replace(record, rows=rows).write(folder.path)
                put_files(files, folder.path, [folder.path / RUN_FILE], root)


class AddressOutput:
    """All results at an address. Get it from `open_address`.

    Args:
        address: The address.
        table: The table, in a temporary folder of this machine.
    """

    def __init__(self, address: str, table: SummaryTable) -> None:
        self.address, self.table = address, table

    def folder_of(self, photo: Path | RemotePhoto) -> AddressFolder:
        """The folder of a photo: a function of the photo's address alone, so nothing is listed."""
        key = hashlib.sha256(photo_key(str(photo)).encode("utf-8", "surrogateescape")).hexdigest()[:_KEY_LENGTH]
        return AddressFolder(f"{self.address}/{photo.stem}-{key}", photo)


@contextmanager
def open_address(address: str) -> Iterator[AddressOutput]:
    """Open the address of all results. At the end the table is written there; rows of earlier runs stay.

    Args:
        address: The address.

    Raises:
        ConfigError: fsspec does not know the protocol.
        BackendUnavailable: The package for the protocol is missing.
        OutputError: The address cannot be read or written, or its summary.csv is not mien's.
    """
    check_protocol(address)
    address = address.rstrip("/")
    with tempfile.TemporaryDirectory(prefix="mien-") as folder:
        here = Path(folder)
        with reaching(address):
            files, root = file_system(address)
            content = read_file(files, f"{root}/{SUMMARY_FILE}")
            if content is not None:
                (here / SUMMARY_FILE).write_bytes(content)
        table = SummaryTable(here)
        _write_table(table, address)  # a place that cannot be written is an error before the work starts
        try:
            yield AddressOutput(address, table)
        finally:
            _write_table(table, address)


def _write_table(table: SummaryTable, address: str) -> None:
    table.write()
    with reaching(address):
        files, root = file_system(address)
        put_files(files, table.path.parent, [table.path], root)


def file_system(address: str) -> tuple[AbstractFileSystem, str]:
    """What reads and writes an address, and the path in it."""
    import fsspec  # noqa: PLC0415 (only addresses need it)

    files, root = fsspec.url_to_fs(address)
    return files, str(root).rstrip("/")


def read_file(files: AbstractFileSystem, path: str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    try:
        return cast("bytes", files.cat_file(path))
    except FileNotFoundError:
        return None


def put_files(files: AbstractFileSystem, folder: Path, sources: list[Path], root: str) -> None:
    """Copy files of `folder` to the same places below `root`."""
    files.put([str(file) for file in sources], [f"{root}/{file.relative_to(folder).as_posix()}" for file in sources])


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn the exceptions of fsspec's file systems into `OutputError`.

    Args:
        address: What the message names.

    Raises:
        OutputError: The block raised something else than a `MienError`.
    """
    try:
        yield
    except MienError:
        raise
    except Exception as error:  # each protocol has errors of its own
        raise OutputError(
            f"{address}: cannot be reached ({type(error).__name__}: {error}); check the address and your rights there."
        ) from error
