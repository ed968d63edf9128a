"""A manifest: a file that lists photos, one per row. A folder of millions of photos takes hours to walk.

photos.csv      a table with a column `photo`
photos.jsonl    one JSON object per line, with the key "photo"
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from mien.errors import ConfigError, FormatError
from mien.io.addresses import URL, check_protocol, local_path
from mien.io.photo_arguments import STDIN, RemotePhoto
from mien.io.reading import parse_json, read_csv, read_text

_ADVICE = "give a .csv file with a column photo, or a .jsonl file of objects with the key photo"


class _Entry(msgspec.Struct):
    photo: str


def read_manifest(path: Path) -> list[Path | RemotePhoto]:
    """Read a manifest.

    Args:
        path: The file. Relative paths in it start at its folder.

    Returns:
        The photos in the order of the file, each once. Whether they exist is seen when they are read.

    Raises:
        ConfigError: The name ends in something else than .csv and .jsonl, or an address has an unknown protocol.
        BackendUnavailable: A package for the protocol of an address is missing.
        FormatError: The file cannot be read, has no photos, or a row has none.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path} is not a manifest; {_ADVICE}")
    addresses = readers[path.suffix.lower()](path)
    if not addresses:
        raise FormatError(f"{path}: lists no photos; {_ADVICE}")
    found: dict[str, Path | RemotePhoto] = {}
    protocols = set[str]()
    for number, address in enumerate(addresses, 1):
        if not address or address == STDIN:
            raise FormatError(f"{path}: row {number} names no photo; {_ADVICE}")
        found.setdefault(address, _photo(address, path.parent.absolute(), protocols))
    return list(found.values())


def _photo(address: str, folder: Path, protocols: set[str]) -> Path | RemotePhoto:
    if not URL.match(address):
        return folder / address
    here = local_path(address)
    if here is not None:
        return here
    protocol = address.partition("://")[0]
    if protocol not in protocols or "::" in address:
        check_protocol(address)
        protocols.add(protocol)
    return RemotePhoto(address)


def _read_csv(path: Path) -> list[str]:
    names, rows = read_csv(path, advice=_ADVICE)
    if "photo" not in names:
        raise FormatError(f"{path}: has no column photo; {_ADVICE}")
    column = names.index("photo")
    return [row[column] if column < len(row) else "" for row in rows]


def _read_json_lines(path: Path) -> list[str]:
    lines = read_text(path, advice=_ADVICE).splitlines()
    return [
        parse_json(line, _Entry, f"{path}, line {number}", advice=_ADVICE).photo
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
