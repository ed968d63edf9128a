"""The built pages: up to date, small, from this server alone; and a head as a single file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from mien.cli import main
from mien.errors import ConfigError, FormatError
from mien.export.html import VIEW_FILE, head_page, write_view

ROOT = Path(__file__).parents[2]
STATIC, VIEWER = (Path(str(files("mien").joinpath(name))) for name in ("studio/static", "export/viewer"))
LARGEST_GZIPPED = 1_500_000


class Addresses(HTMLParser):
    """All addresses that a page loads or leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href"} and value]


@pytest.mark.parametrize("folder", [STATIC, VIEWER])
def test_the_build_is_of_these_sources(folder: Path) -> None:
    """If not: `make studio`."""
    studio = ROOT / "studio"
    names = [
        "index.html",
        "package.json",
        "view/index.html",
        *(f"src/{path.name}" for path in (studio / "src").iterdir()),
    ]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n".encode() + (studio / name).read_bytes())
    assert (folder / "sources.sha256").read_text().strip() == digest.hexdigest()


def test_the_page_loads_only_its_own_files() -> None:
    addresses = Addresses((STATIC / "index.html").read_text()).found
    assert len(addresses) >= 2
    for address in addresses:
        assert address == "data:," or (STATIC / address.removeprefix("/studio/")).is_file()


def test_the_page_is_small() -> None:
    sizes = [len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.is_file()]
    assert sum(sizes) < LARGEST_GZIPPED


def test_a_head_is_one_file_with_everything_inside() -> None:
    glb = bytes(range(256)) * 100
    page = head_page(glb, title='<b>"Anna"</b>')
    assert page == head_page(glb, title='<b>"Anna"</b>')
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert Addresses(page).found == []
    (data,) = re.findall(r'<script id="head-data"[^>]*>([^<]*)</script>', page)
    planes = np.frombuffer(gzip.decompress(base64.b64decode(data)), np.uint8).reshape(4, -1)
    assert planes.T.tobytes() == glb
    assert page.count("</script") == 2  # none inside a script, which would end it
    assert "@HEAD@" not in page and "@SCRIPT@" not in page and "@STYLE@" not in page


def test_the_head_of_a_result_is_preferred_to_its_face(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no head\.glb"):
        write_view(tmp_path)
    (tmp_path / "face.glb").write_bytes(b"glTFface")
    assert write_view(tmp_path) == tmp_path / VIEW_FILE
    face = (tmp_path / VIEW_FILE).read_text()
    (tmp_path / "head.glb").write_bytes(b"glTFhead")
    assert write_view(tmp_path, tmp_path / "other.html").read_text() != face
    assert write_view(tmp_path / "face.glb").read_text() == face


def test_a_photo_is_no_head(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(20))
    with pytest.raises(FormatError, match=r"a\.jpg is not a GLB file"):
        write_view(tmp_path / "a.jpg")


@pytest.mark.parametrize("folder", ["anna/face12", "anna"])
def test_the_title_is_the_name_of_the_photo(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "head.glb").write_bytes(b"glTF")
    assert "<title>anna</title>" in write_view(tmp_path / folder).read_text()


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    (tmp_path / "face.glb").write_bytes(b"glTFface")
    with pytest.raises(SystemExit) as ended:
        main(["view", str(tmp_path), "--html", str(tmp_path / "a.html"), "--no-open"])
    assert ended.value.code == 0
    assert (tmp_path / "a.html").is_file()
