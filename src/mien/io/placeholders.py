"""What git and browsers leave in the place of a file: a Git LFS pointer, or a web page instead of the download."""

from __future__ import annotations

import re
from pathlib import Path

from mien.errors import MienError

_HEAD_BYTES = 1024
_WEB_PAGE = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
_XML = re.compile(rb"\s*<\?xml\b.*<Error>", re.S)  # what an object store (S3) sends for a wrong address
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def placeholder(path: Path) -> str | None:
    """Recognise a file that stands in the place of another one.

    Args:
        path: The file.

    Returns:
        What the file is and what to do, as the end of an error message; None for any other file, and for one that
        cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).removeprefix(_BYTE_ORDER_MARK)
    except OSError:
        return None
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
    if head.startswith((b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")):
        return "is a git-annex pointer, not the file itself; run `git annex get` in its repository"
    if _WEB_PAGE.match(head):
        return "is a web page (HTML), not the file itself; download it again, logged in if its page asks for it"
    if _XML.match(head):
        return "is an error message of a server (XML), not the file itself; download it again from the right address"
    return None


def refuse_placeholder(path: Path, error: type[MienError]) -> None:
    """Raise an error that names what a file really is, if it is a placeholder.

    Args:
        path: The file.
        error: Class of the error.

    Raises:
        MienError: Of the class `error`; the file is a placeholder.
    """
    found = placeholder(path)
    if found is not None:
        raise error(f"{path}: {found}.")
