"""One head as a page in a single file, which any browser shows without a server and without mien.

The page's script and style are built from `studio/`; the head is inside as a compressed GLB.
"""

from __future__ import annotations

import base64
import gzip
import html
import re
from importlib.resources import files
from pathlib import Path

from mien.errors import ConfigError, FormatError
from mien.export.glb_file import GLB_MAGIC
from mien.io.files import write_text, writing
from mien.io.result_files import FACE, HEAD, mesh_file

VIEW_FILE = "view.html"

_PARTS = {"@STYLE@": "view.css", "@SCRIPT@": "view.js"}


def head_page(glb: bytes, *, title: str) -> str:
    """The page that shows a GLB: to turn, with expressions, light and looks.

    Args:
        glb: Content of a GLB file.
        title: Title of the page.

    Returns:
        The text of the HTML file.
    """
    # The same file for the same head: no time inside, and compressed by one thread.
    head = base64.b64encode(gzip.compress(_in_planes(glb), compresslevel=6, mtime=0)).decode()
    page = _read("view.html").replace("@TITLE@", html.escape(title))
    for place, name in _PARTS.items():
        page = page.replace(place, _read(name).replace("</", "<\\/") if name.endswith(".js") else _read(name))
    return page.replace("@HEAD@", head)


def _in_planes(glb: bytes) -> bytes:
    """The first bytes of all 32-bit words, then the second ones and so on: bytes that are alike come together, and the
    file is 15 % smaller. The length of a GLB is a multiple of four."""
    return b"".join(glb[k::4] for k in range(4))


def write_view(result: Path, path: Path | None = None) -> Path:
    """Write the page of a saved result.

    Args:
        result: The folder of a face, or a GLB file.
        path: The file to write; by default view.html beside the GLB.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The folder has no GLB file.
        FormatError: The file is not a GLB.
        OutputError: The page cannot be written.
    """
    glb = result if result.is_file() else _glb_of(result)
    content = glb.read_bytes()
    if not content.startswith(GLB_MAGIC):
        raise FormatError(f"{glb} is not a GLB file; give the folder of a face, or a file that ends in .glb.")
    page = head_page(content, title=_title_of(glb.resolve().parent))
    path = path or glb.with_name(VIEW_FILE)
    with writing(path):
        write_text(path, page)
    return path


def _title_of(folder: Path) -> str:
    """The photo's name: a face lies in PHOTO/face0."""
    return folder.parent.name if re.fullmatch(r"face\d+", folder.name) else folder.name


def _glb_of(folder: Path) -> Path:
    head, face = mesh_file("glb", HEAD), mesh_file("glb", FACE)
    for name in (head, face):
        if (folder / name).is_file():
            return folder / name
    found = sorted({path.parent for name in (head, face) for path in folder.glob(f"**/face*/{name}")})
    if len(found) == 1:
        return _glb_of(found[0])
    if found:
        raise ConfigError(f"{folder} has {len(found)} faces; choose one, such as {found[0]}.")
    raise ConfigError(f"{folder} has no {head} and no {face}; reconstruct it with --parts head.")


def _read(name: str) -> str:
    return (files("mien.export") / "viewer" / name).read_text(encoding="utf-8")
