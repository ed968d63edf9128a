"""The photos that a command line names: files, folders, quoted patterns, URLs and standard input.

Only the command reads URLs. The Python API takes paths, bytes and open files, so that a program that passes on a text
from others does not fetch what they name.
"""

from __future__ import annotations

import glob
import hashlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mien.errors import ConfigError, ImageError
from mien.io.addresses import URL, check_protocol
from mien.io.photo_files import MAX_PIXELS, find_photos
from mien.io.source import real_path

if TYPE_CHECKING:
    from mien.io.photo import Photo

STDIN = "-"
MAX_BYTES = 1 << 28
"""Largest size of a photo from a URL or standard input: 256 MiB; 64 megapixels of 8-bit RGB without compression are
192 MB."""
CONNECT_S, SILENCE_S, TOTAL_S = 15, 30, 300
"""Time limits of HTTP, seconds: to connect, without a byte, and in total."""
_CHUNK = 1 << 20
_VERSION_FACTS = frozenset(
    {"etag", "md5hash", "content_md5", "lastmodified", "last_modified", "updated", "mtime", "created", "size"}
)
"""Keys of `info` in s3fs, gcsfs, adlfs and fsspec's own file systems, in lower case."""
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
"""Characters that a file name cannot have on one of the systems."""


@dataclass(frozen=True)
class RemotePhoto:
    """A photo at a URL or on standard input, which is read when it is needed."""

    address: str
    """The URL, or "-"."""
    content: bytes | ImageError | None = field(default=None, repr=False)
    """The file or the error of an attempt to read it, see `read_here`."""

    def __str__(self) -> str:
        """The address for messages and tables, without user name and password."""
        if self.address == STDIN:
            return "standard input"
        parts = urlsplit(self.address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def path(self) -> Path:
        """A file name for the photo, which names the folder of its results: the last part of the URL's path."""
        if self.address == STDIN:
            return Path("stdin")
        parts = urlsplit(self.address)
        name = PurePosixPath(unquote(parts.path)).name or parts.hostname or "photo"
        return Path(_UNSAFE.sub("_", name))

    @property
    def name(self) -> str:
        """The file name."""
        return self.path.name

    @property
    def stem(self) -> str:
        """The file name without its ending."""
        return self.path.stem

    def read_here(self) -> RemotePhoto:
        """Read standard input now, because another process has another one; photos at URLs stay as they are."""
        if self.address != STDIN:
            return self
        try:
            return replace(self, content=self.fetch())
        except ImageError as error:
            return replace(self, content=error)

    def version(self) -> str:
        """A hash of what an object store says about the photo's content: its ETag, time and size.

        Returns:
            64 hexadecimal digits; empty for HTTP and standard input, where it is not reliable, and if the photo cannot
            be found.
        """
        if self.address == STDIN or _is_http(self.address):
            return ""
        import fsspec  # noqa: PLC0415 (only URLs need it)

        try:
            files, path = fsspec.url_to_fs(self.address)
            facts = {name: str(value) for name, value in files.info(path).items() if name.lower() in _VERSION_FACTS}
        except Exception:  # each protocol has errors of its own; reading the photo reports them
            return ""
        return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest() if facts.keys() - {"size"} else ""

    def fetch(self) -> bytes:
        """Read the photo.

        Raises:
            ImageError: It cannot be read, or is larger than `MAX_BYTES`.
        """
        if isinstance(self.content, ImageError):
            raise self.content
        if self.content is not None:
            return self.content
        content = _read_stdin() if self.address == STDIN else _download(self.address, str(self))
        if len(content) > MAX_BYTES:
            raise ImageError(f"{self}: more than the limit of {MAX_BYTES >> 20} MiB; save it as a file and resize it")
        return content


def photo_at(address: str) -> Path | RemotePhoto:
    """The photo of a path or an address."""
    return RemotePhoto(address) if URL.match(address) else Path(address)


def find_arguments(arguments: Iterable[str], *, skip: Path | None = None) -> list[Path | RemotePhoto]:
    """List the photos that the arguments of a command name, each once.

    An argument with *, ? or [ that is not the path of a file is a pattern, as in a shell; ** stands for folders of any
    depth. Windows' shells and quotes leave patterns to the command.

    Args:
        arguments: Files, folders, patterns, URLs, and "-" for standard input.
        skip: A folder to leave out, where the results go.

    Raises:
        ConfigError: A pattern matches nothing, or a URL has an unknown protocol.
        BackendUnavailable: A package for the protocol of a URL is not installed.
        ImageError: A folder contains no photos.
    """
    found: dict[str, Path | RemotePhoto] = {}
    for argument in arguments:
        if argument == STDIN or URL.match(argument):
            if argument != STDIN:
                check_protocol(argument)
            found.setdefault(argument, RemotePhoto(argument))
        else:
            for path in find_photos(_matches(argument, skip), skip=skip):
                found.setdefault(str(real_path(path)), path)
    return list(found.values())


def read_argument(photo: Path | RemotePhoto, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photo of `find_arguments`.

    Raises:
        ImageError: As `read_photo` and `RemotePhoto.fetch`; the message begins with the path or address.
    """
    from mien.io.photo import read_photo  # noqa: PLC0415 (needs torch, which the lists of photos do not)

    if isinstance(photo, Path):
        return read_photo(photo, max_pixels=max_pixels)
    content = photo.fetch()
    try:
        return read_photo(content, name=photo.path, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{photo}: {str(error).removeprefix(f'{photo.path}: ')}") from error


def _matches(argument: str, skip: Path | None) -> list[Path]:
    path = Path(argument)
    if not glob.has_magic(argument) or path.exists():
        return [path]
    matches = sorted(_expanded(argument), key=str)
    if skip is not None:
        matches = [match for match in matches if not real_path(match).is_relative_to(real_path(skip))]
    if not matches:
        raise ConfigError(f"the pattern {argument} matches no file; quote a name that contains *, ? or [ as [*]")
    return matches


def _expanded(pattern: str) -> list[Path]:
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(match) for match in glob.glob(pattern)]  # noqa: PTH207 (absolute too)
    # glob.glob follows links to folders, and never ends where two of them lead to their own folder.
    anchor = Path(pattern).anchor
    below = [part if part == "**" else re.sub(r"\*+", "*", part) for part in parts if part != anchor]
    found = Path(anchor).glob(str(Path(*below)))
    return [path for path in found if not any(part.startswith(".") and part not in parts for part in path.parts)]


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ImageError("standard input: is a terminal; pipe a photo into the command, or give its path")
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def _download(url: str, shown: str) -> bytes:
    import fsspec  # noqa: PLC0415 (only URLs need it)

    chunks, size = [], 0
    try:
        files, path = fsspec.url_to_fs(url, **_http_options(url))
        streamed = {"block_size": 0} if _is_http(url) else {}
        with files.open(path, "rb", **streamed) as file:
            while size <= MAX_BYTES and (chunk := file.read(_CHUNK)):
                chunks.append(chunk)
                size += len(chunk)
    except Exception as error:  # each protocol has errors of its own
        raise ImageError(f"{shown}: {_reason(error).replace(url, shown)}") from error
    return b"".join(chunks)


def _reason(error: BaseException) -> str:
    import asyncio  # noqa: PLC0415 (only URLs need it)

    # fsspec reports every failure of HTTP as a missing file.
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if isinstance(status, int):
        return f"the server refuses it (HTTP {status})"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):  # two classes under Python 3.10
        return "the server is too slow or does not respond; download the photo first"
    return f"cannot be read ({type(error).__name__}: {error})"


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _http_options(url: str) -> dict[str, Any]:
    if not _is_http(url):
        return {}
    import aiohttp  # noqa: PLC0415 (fsspec's HTTP needs it)

    limits = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    return {"client_kwargs": {"timeout": limits, "trust_env": True}, "skip_instance_cache": True}
