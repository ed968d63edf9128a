"""Fast deflate streams, as PNG and zip files contain them."""

from __future__ import annotations

try:
    from isal import isal_zlib as _zlib  # a sixth of zlib's time, for smaller streams than those of zlib's level 1
except ImportError:  # there is no wheel for Windows on ARM
    import zlib as _zlib

_LEVEL = 1  # level 0 is as fast and makes 15 % larger files; the higher levels take twice the time for 1 %


def deflate(content: bytes, *, raw: bool = False) -> bytes:
    """Compress bytes.

    Args:
        content: The bytes.
        raw: Whether to leave out zlib's header and checksum, as zip files do.

    Returns:
        A stream that every inflate reads. Its bytes can differ between processors.
    """
    stream = _zlib.compressobj(_LEVEL, _zlib.DEFLATED, -15 if raw else 15)
    return stream.compress(content) + stream.flush()


def crc32(content: bytes) -> int:
    """The checksum of PNG and zip files."""
    return _zlib.crc32(content)
