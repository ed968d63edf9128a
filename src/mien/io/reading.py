"""Reads text, JSON, TOML and CSV files that may be damaged or hostile. `npz` and `tensors` read files of arrays.

A file must be regular, since a pipe may never end, and its size is checked before it is read. JSON and TOML are parsed
with limits on depth and digits, and JSON is converted to the dataclass that describes it. Every failure is a
FormatError, or the class of error that the caller gives; the message has the file, the reason and what to do.
"""

from __future__ import annotations

import csv
import io
import json
import math
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from mien.errors import ConfigError, FormatError, MienError
from mien.io.placeholders import refuse_placeholder

if TYPE_CHECKING:
    import numpy as np

    from mien.typing import Float

T = TypeVar("T")
MAX_FILE_BYTES = 4 << 30
MAX_TEXT_BYTES = 64 << 20
MAX_SETTINGS_BYTES = 1 << 20
"""Limit of files that people write: settings, weights of blendshapes, lists of landmarks."""
MAX_EXPANSION = 16
"""Limit of compression. Floating-point face models shrink by less than a factor of 4 (ICT-FaceKit, whose deltas lie on
a grid, by 3.3); sparse blendshapes shrink more."""
_SLACK_BYTES = 1 << 20
_MAX_DIGITS = 18
"""Every whole number of so many digits fits in 64 bits."""
_MAX_DEPTH = 50
_WRITE_AGAIN = "write it again"


def file_size(
    path: Path,
    *,
    smallest: int = 1,
    limit: int | None = None,
    advice: str = "",
    error: type[MienError] = FormatError,
) -> int:
    """Check that a file can be read, and measure it.

    Args:
        path: The file.
        smallest: Smallest allowed size, bytes.
        limit: Largest allowed size, bytes; by default `MAX_FILE_BYTES`.
        advice: What the user can do, the end of the message.
        error: Class of the error.

    Returns:
        Size in bytes.

    Raises:
        MienError: Of the class `error`: the file is missing, not a regular file, unreadable, too small, too large, or
            a placeholder of another file.
    """
    end, limit = _end(advice), MAX_FILE_BYTES if limit is None else limit
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path}: no such file{end}") from None
    except (OSError, ValueError) as reason:
        raise error(unreadable(path, reason)) from reason
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise error(f"{path}: is {kind}; expected a regular file{end}")
    refuse_placeholder(path, error)
    if not smallest <= status.st_size <= limit:
        raise error(f"{path}: {status.st_size} bytes; expected {smallest} to {limit}{end}")
    return status.st_size


def unreadable(path: Path | str, reason: Exception) -> str:
    """The message for a file that the system does not let us read; its content may be whole."""
    return f"{path}: cannot be read ({getattr(reason, 'strerror', None) or reason}); check the file's permissions"


def read_text(
    path: Path,
    *,
    limit: int = MAX_TEXT_BYTES,
    errors: str = "strict",
    advice: str = _WRITE_AGAIN,
    error: type[MienError] = FormatError,
) -> str:
    """Read a UTF-8 text; a byte-order mark, which some editors add, is removed.

    Args:
        path: The file.
        limit: Largest allowed size, bytes.
        errors: What to do with bytes that are not UTF-8, as in `bytes.decode`.
        advice: What the user can do, the end of the message.
        error: Class of the error.

    Raises:
        MienError: Of the class `error`: see `file_size`, or the file is not UTF-8.
    """
    file_size(path, smallest=0, limit=limit, advice=advice, error=error)
    try:
        return path.read_bytes().decode("utf-8-sig", errors)
    except UnicodeDecodeError as reason:
        raise error(f"{path}: damaged, not UTF-8 text ({reason.reason} at byte {reason.start}){_end(advice)}") from None
    except OSError as reason:
        raise error(unreadable(path, reason)) from reason


def read_json(
    path: Path,
    kind: Callable[..., T],
    *,
    limit: int = MAX_TEXT_BYTES,
    advice: str = _WRITE_AGAIN,
    error: type[MienError] = FormatError,
) -> T:
    """Read a JSON file as a value of a type.

    Args:
        path: The file.
        kind: A dataclass or a type like dict[str, float], see msgspec. Keys that the dataclass lacks are ignored.
        limit: Largest allowed size, bytes.
        advice: What the user can do, the end of the message.
        error: Class of the error.

    Raises:
        MienError: Of the class `error`: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit=limit, advice=advice, error=error), kind, path, advice=advice, error=error)


def parse_json(
    text: str | bytes,
    kind: Callable[..., T],
    where: Path | str,
    *,
    advice: str = _WRITE_AGAIN,
    error: type[MienError] = FormatError,
) -> T:
    """Convert JSON to a value of a type.

    Args:
        text: The JSON.
        kind: As in `read_json`.
        where: Where the text is from, the begin of the message.
        advice: What the user can do, the end of the message.
        error: Class of the error.

    Raises:
        MienError: Of the class `error`: the text is not JSON, is nested too deep, has a number of too many digits or
            one that is not finite, or is not of the type.
    """
    try:
        # msgspec's own parser refuses file names that are not Unicode, which JSON of Python holds as lone surrogates.
        content = json.loads(text, parse_int=_whole_number, parse_float=_finite_number, parse_constant=_finite_number)
        _check_depth(content)
    except RecursionError:
        raise error(f"{where}: damaged (nested too deep){_end(advice)}") from None
    except ValueError as reason:
        raise error(f"{where}: damaged, not JSON ({reason}){_end(advice)}") from reason
    return converted(content, kind, where, advice=advice, error=error)


def converted(
    content: object,
    kind: Callable[..., T],
    where: Path | str,
    *,
    advice: str = _WRITE_AGAIN,
    error: type[MienError] = FormatError,
) -> T:
    """Convert JSON's lists, dictionaries and numbers to a value of a type; see `parse_json` for the arguments.

    Raises:
        MienError: Of the class `error`: the content is not of the type, or a dataclass refuses a value.
    """
    try:
        return msgspec.convert(content, cast("type[T]", kind))
    except (ConfigError, msgspec.ValidationError) as reason:
        raise error(f"{where}: damaged ({reason}){_end(advice)}") from reason


def read_toml(path: Path, *, error: type[MienError] = FormatError) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        error: Class of the error.

    Raises:
        MienError: Of the class `error`: see `read_text` and `parse_toml`.
    """
    return parse_toml(read_text(path, limit=MAX_SETTINGS_BYTES, advice="", error=error), path, error=error)


def parse_toml(text: str, where: Path | str, *, error: type[MienError] = FormatError) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: The TOML.
        where: Where the text is from, the begin of the message.
        error: Class of the error.

    Raises:
        MienError: Of the class `error`: the text is not TOML, is nested too deep, or has a number of thousands of
            digits.
    """
    try:
        content = _toml_parser().loads(text)
        _check_depth(content)
    except RecursionError:
        raise error(f"{where} cannot be read as TOML: nested too deep") from None
    except ValueError as reason:
        raise error(f"{where} cannot be read as TOML: {reason}") from reason
    return content


def read_csv(
    path: Path, *, advice: str = _WRITE_AGAIN, error: type[MienError] = FormatError
) -> tuple[list[str], list[list[str]]]:
    """Read a CSV file.

    Args:
        path: The file; a byte-order mark, which spreadsheets add, is removed.
        advice: What the user can do, the end of the message.
        error: Class of the error.

    Returns:
        The names of the columns, and the rows that are not empty. A row may have more or fewer cells than there are
        columns.

    Raises:
        MienError: Of the class `error`: see `read_text`, or the file is not CSV.
    """
    text = read_text(path, advice=advice, error=error)
    if "\0" in text:  # Python's csv reads null characters, and no path may have one
        raise error(f"{path}: damaged, it holds a null character{_end(advice)}")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as reason:
        raise error(f"{path}: damaged, not CSV ({reason}){_end(advice)}") from reason
    return (rows[0], rows[1:]) if rows else ([], [])


def read_numbers(path: Path, *, advice: str) -> Float[np.ndarray, "*N"]:
    """Read a text of finite numbers between spaces, in rows of equal length.

    Args:
        path: The file.
        advice: What the user can do, the end of the message.

    Raises:
        FormatError: See `read_text`, or the text has something else.
    """
    import numpy as np  # noqa: PLC0415 (the command line reads text and must start without it)

    text = read_text(path, advice=advice)
    try:
        rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
        array = np.array(rows, np.float64)
    except ValueError as reason:
        raise FormatError(f"{path}: damaged ({reason}); {advice}") from reason
    if not np.isfinite(array).all():
        raise FormatError(f"{path}: holds values that are not finite; {advice}")
    return array


class Budget:
    """Bytes that the content of one file may need in memory.

    Args:
        path: The file.
        limit: The number of bytes; by default it follows from the size of the file, as fits a face model.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        expanded = min(MAX_EXPANSION * file_size(path) + _SLACK_BYTES, MAX_FILE_BYTES)
        self.path, self.left = path, expanded if limit is None else limit

    def take(self, count: int, what: str) -> None:
        """Count bytes that are about to be allocated; FormatError if too many."""
        if count < 0 or count > self.left:
            raise FormatError(
                f"{self.path}: {what} claims {count} bytes, and {self.left} are allowed; the file is damaged, or "
                "not what it should be"
            )
        self.left -= count


def _end(advice: str) -> str:
    return f"; {advice}" if advice else ""


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:_MAX_DIGITS]} is not finite")
    return number


def _check_depth(content: object) -> None:
    """RecursionError if lists and objects are nested deeper than any file of ours; a message may print them later."""
    level: list[Any] = [content] if isinstance(content, dict | list) else []
    for _ in range(_MAX_DEPTH):
        values = (value.values() if isinstance(value, dict) else value for value in level)
        level = [child for children in values for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise RecursionError


def _toml_parser() -> Any:
    """The standard library's; mien[train] has its copy for Python 3.10, and only training reads TOML."""
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415
    else:
        import tomli as tomllib  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    return tomllib
