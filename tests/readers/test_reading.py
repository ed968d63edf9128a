"""The guarded readers of text, JSON, TOML, CSV and NPZ, and that nothing else reads them."""

from __future__ import annotations

import ast
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mien
from mien.errors import ConfigError, FormatError, OutputError
from mien.io.npz import NpzReader, read_npy
from mien.io.reading import parse_toml, read_csv, read_json, read_numbers, read_text, read_toml
from mien.io.tensors import open_tensors

SOURCE = Path(mien.__file__).parent
READERS = {"io/reading.py", "io/npz.py", "io/tensors.py"}
UNGUARDED = {
    ("json", "load"), ("json", "loads"), ("tomllib", "load"), ("tomllib", "loads"), ("csv", "reader"),
    ("csv", "DictReader"), ("np", "load"), ("np", "loadtxt"), ("np", "genfromtxt"), ("zipfile", "ZipFile"),
}  # fmt: skip
"""Functions that read what anybody wrote, without limits and with untyped errors."""
UNGUARDED_NAMES = {"safe_open", "load_file", "tomllib", "tomli"}
WRITES = {"io/result_folder.py": {("zipfile", "ZipFile")}, "export/usd.py": {("zipfile", "ZipFile")}}
"""Uses that write."""


def _unguarded(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = (node.value.id, node.attr)
            if used in UNGUARDED - WRITES.get(path.relative_to(SOURCE).as_posix(), set()):
                yield f"{path.name}:{node.lineno} {'.'.join(used)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"{path.name}:{node.lineno} {name.name}" for name in node.names if name.name in UNGUARDED_NAMES)


def test_files_are_read_by_the_guarded_readers_alone() -> None:
    files = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).as_posix() not in READERS]
    assert len(files) > 100
    assert [use for path in files for use in _unguarded(path)] == []


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"count={self.count} is negative")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b'{"name": "a"}', "missing required field `count`"),
        (b'{"name": "a", "count": "b"}', r"Expected `int`, got `str` - at `\$.count`"),
        (b'{"name": "a", "count": true}', "got `bool`"),
        (b'{"name": "a", "count": 2.5}', "got `float`"),
        (b'{"name": "a", "count": -2}', "count=-2 is negative"),
        (b'{"name": "a", "count": ' + b"1" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"name": "a", "count": 1, "share": NaN}', "NaN is not finite"),
        (b'{"name": "a", "count": 1, "share": 1e999}', "1e999 is not finite"),
        (b'{"name": "a", "count": 1, "x": ' + b"[" * 60 + b"]" * 60 + b"}", "nested too deep"),
        (b"[" * 1_000_000, "nested too deep"),
        (b"[]", "Expected `object`, got `array`"),
    ],
)
def test_json_of_another_kind_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "row.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_json(path, Row, advice="do this")
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("; do this")
    with pytest.raises(OutputError):
        read_json(path, Row, error=OutputError)


def test_json_becomes_a_dataclass(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    # The mark that editors add, a file name that is not Unicode, and a key of a later version.
    path.write_text('\ufeff{"name": "\\udcff", "count": 3, "share": 2, "later": []}', encoding="utf-8")
    assert read_json(path, Row) == Row("\udcff", 3, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000, "nested too deep"),
        ("a = " + "[" * 60 + "]" * 60, "nested too deep"),
        ("a" + ".a" * 5000 + " = 1", "nested too deep"),
        ("a = " + "1" * 5000, "cannot be read as TOML"),
        ("a = ", "cannot be read as TOML"),
    ],
)
def test_toml_is_parsed_with_limits(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_toml(text, "a.toml")


def test_no_reader_waits_for_a_pipe(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def read_all() -> None:
        for read in (read_text, lambda p: read_json(p, dict), read_toml, read_csv, NpzReader, read_npy, _open):
            with pytest.raises(FormatError, match="is a pipe or device; expected a regular file"):
                read(pipe)
        done.set()

    done = threading.Event()
    threading.Thread(target=read_all, daemon=True).start()
    assert done.wait(20)
    with pytest.raises(FormatError, match="is a folder"):
        read_text(tmp_path)


def _open(path: Path) -> None:
    with open_tensors(path, advice=""):
        pass


def test_what_the_system_refuses_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FormatError, match=r"a\.json: cannot be read \(Permission denied\); check the file's permiss"):
        read_json(path, dict)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(FormatError, match="cannot be read"):
        read_json(path, dict)


def test_csv_is_read_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffname,text\r\na\u2028,"two\r\nlines"\r\n\r\nb\r\n'.encode())
    assert read_csv(path) == (["name", "text"], [["a\u2028", "two\r\nlines"], ["b"]])
    path.write_bytes(b"")
    assert read_csv(path) == ([], [])
    path.write_text("a" * 200_000)
    with pytest.raises(FormatError, match="not CSV"):
        read_csv(path)
    path.write_bytes(b"name\n\xff\n")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_csv(path)
    path.write_bytes(b"photo,faces\na\0b.jpg,1\n")
    with pytest.raises(FormatError, match="null character"):
        read_csv(path)


def test_numbers_are_finite_and_in_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 2.5\n\n-3 4e2\n")
    np.testing.assert_array_equal(read_numbers(path, advice="x"), [[1, 2.5], [-3, 400]])
    for text, message in (("1 nan", "not finite"), ("1 2\n3", "damaged"), ("a b", "damaged")):
        path.write_text(text)
        with pytest.raises(FormatError, match=message):
            read_numbers(path, advice="x")


def test_encrypted_and_oddly_packed_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    for name, offset, value, message in (("encrypted", 8, 1, "damaged"), ("packed", 10, 99, "packed by method 99")):
        changed = bytearray(content)
        struct.pack_into("<H", changed, start + offset, value)
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(FormatError, match=message):
            NpzReader(tmp_path / name).array("x")


def test_an_archive_is_unpacked_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array(file, np.zeros(1 << 20, np.uint8))
    assert NpzReader(path, max_bytes=2 << 20).shape("x") == ((1 << 20,), np.uint8)
    assert len(NpzReader(path, max_bytes=2 << 20).array("x")) == 1 << 20
    with pytest.raises(FormatError, match="are allowed"):
        NpzReader(path, max_bytes=1 << 19).array("x")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(FormatError, match="y"), open_tensors(path, advice="do this") as file:
        file.get_tensor("y")
