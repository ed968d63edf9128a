"""A hook of MkDocs: links from docs/ to other files of the project lead to the repository, if the files exist.

A page is read in two places, on GitHub and on the site. `[text](../src/mien/camera.py)` works in the first; here it
becomes an address of the second. MkDocs checks all other links.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

OUTSIDE = re.compile(r"\]\((?P<path>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of one page that leave the folder docs/."""
    docs = Path(config.docs_dir).resolve()
    root = Path(config.config_file_path).resolve().parent

    def to_repository(match: re.Match[str]) -> str:
        target = (docs / page.file.src_uri).parent.joinpath(match["path"]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.is_relative_to(root) or not target.exists():
            raise PluginError(f"{page.file.src_uri}: the link {match['path']} leads to no file of the project")
        kind = "tree" if target.is_dir() else "blob"
        place = target.relative_to(root).as_posix()
        return f"]({config.repo_url}/{kind}/main/{place}{match['anchor'] or ''})"

    return OUTSIDE.sub(to_repository, markdown)
