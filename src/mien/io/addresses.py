"""Addresses of files that fsspec reads and writes, such as s3://bucket/photo.jpg."""

from __future__ import annotations

import re
from pathlib import Path

from mien.errors import BackendUnavailable, ConfigError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive


def local_path(address: str) -> Path | None:
    """The path that a file:// address names; None for other addresses."""
    if not address.lower().startswith("file://"):
        return None
    import fsspec  # noqa: PLC0415 (only addresses need it)

    return Path(fsspec.url_to_fs(address)[1])


def check_protocol(address: str) -> None:
    """Check that fsspec can read an address.

    Args:
        address: A URL.

    Raises:
        ConfigError: The protocol is unknown.
        BackendUnavailable: The package for the protocol is missing.
    """
    import fsspec  # noqa: PLC0415 (only URLs need it)

    protocol = address.partition("://")[0].lower()
    if "::" in address or protocol not in fsspec.available_protocols():
        raise ConfigError(f"{address}: cannot be read; use https://, http:// or another protocol that fsspec has")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        advice = "run pip install 'mien[url]'" if protocol in {"http", "https"} else str(error)
        raise BackendUnavailable(
            f"{address}: reading {protocol}:// needs a package that is missing; {advice}"
        ) from None
