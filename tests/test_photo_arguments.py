from __future__ import annotations

import http.server
import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mien.errors import BackendUnavailable, ConfigError, ImageError
from mien.io import photo_arguments
from mien.io.photo_arguments import RemotePhoto, find_arguments, read_argument


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 50), (10, 20, 30)).save(content, "PNG")
    return content.getvalue()


class _Pages(http.server.BaseHTTPRequestHandler):
    """Serves a picture, a redirection to it, a web page, an endless file and a server that stalls; no HEAD requests."""

    def do_GET(self) -> None:
        page = self.path.partition("?")[0].strip("/")
        if page == "moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        self.send_response({"missing.png": 404, "secret.png": 403}.get(page, 200))
        self.end_headers()
        if page in {"a.png", "my photo.png".replace(" ", "%20")}:
            self.wfile.write(picture())
        elif page == "page.html":
            self.wfile.write(b"<html>not a photo</html>")
        elif page == "endless.png":
            for _ in range(2000):
                self.wfile.write(bytes(1 << 10))
        elif page == "stalls.png":
            self.wfile.write(picture()[:20])
            self.wfile.flush()
            time.sleep(2)

    def log_message(self, format: str, *args: object) -> None:
        """Keep stderr empty."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("name", ["a.png", "a.png?size=3", "my%20photo.png", "moved.png"])
def test_a_photo_at_a_url_is_read(server: str, name: str) -> None:
    (photo,) = find_arguments([f"{server}/{name}"])
    assert read_argument(photo).pixels[3, 4].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "no such file"),
        ("secret.png", "the server refuses it .HTTP 403"),
        ("page.html", "holds text, not a picture"),
        ("endless.png", "more than the limit of 1 MiB"),
        ("stalls.png", "too slow"),
    ],
)
def test_errors_name_the_url(server: str, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_arguments, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(photo_arguments, "_CHUNK", 1 << 16)
    monkeypatch.setattr(photo_arguments, "SILENCE_S", 0.3)
    (photo,) = find_arguments([f"{server}/{name}"])
    with pytest.raises(ImageError, match=message) as raised:
        read_argument(photo)
    assert str(raised.value).startswith(f"{server}/{name}: ")


def test_a_server_that_does_not_exist() -> None:
    with pytest.raises(ImageError, match=r"^http://127\.0\.0\.1:1/a\.png: cannot be read"):
        read_argument(RemotePhoto("http://user:secret@127.0.0.1:1/a.png"))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://host.org/b/photo.jpg?size=3#top", "photo.jpg"),
        ("https://host.org/", "host.org"),
        ("https://host.org/a%2Fb%3Ac.jpg", "b_c.jpg"),
        ("https://host.org/..%2f..", ".."),  # output_stems turns it into a name
        ("s3://bucket/d/e.png", "e.png"),
        ("-", "stdin"),
    ],
)
def test_results_are_named_after_the_path_of_the_url(address: str, name: str) -> None:
    assert str(RemotePhoto(address).path) == name


def test_passwords_are_not_shown() -> None:
    assert str(RemotePhoto("https://user:secret@host.org:8080/a.jpg?x=1")) == "https://host.org:8080/a.jpg?x=1"


@pytest.mark.parametrize("address", ["nix://a.jpg", "zip://a.jpg::https://host.org/a.zip"])
def test_unknown_protocols_and_chains_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read; use https://"):
        find_arguments([address])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(protocol: str) -> None:
        raise ImportError(f"Install x to access {protocol}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(BackendUnavailable, match=r"pip install 'mien\[url\]'"):
        find_arguments(["https://host.org/a.jpg"])
    with pytest.raises(BackendUnavailable, match="Install x to access s3"):
        find_arguments(["s3://bucket/a.jpg"])


class _Stdin(io.TextIOWrapper):
    def __init__(self, content: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    (photo,) = find_arguments(["-", "-"])
    monkeypatch.setattr(sys, "stdin", _Stdin(picture()))
    assert read_argument(photo).pixels.shape == (50, 40, 3)
    monkeypatch.setattr(sys, "stdin", _Stdin(b""))
    with pytest.raises(ImageError, match=r"^standard input: empty"):
        read_argument(photo)
    monkeypatch.setattr(sys, "stdin", _Stdin(b"", terminal=True))
    with pytest.raises(ImageError, match=r"^standard input: is a terminal"):
        read_argument(photo)
    monkeypatch.setattr(sys, "stdin", _Stdin(bytes(100)))
    monkeypatch.setattr(photo_arguments, "MAX_BYTES", 99)
    with pytest.raises(ImageError, match=r"^standard input: more than the limit"):
        read_argument(photo)


def test_patterns_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "d/c.png", "d/e/f.png", ".hidden.png", "out/b/face0/sheet.png", "[x].png"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())

    def found(*arguments: str) -> list[str]:
        return [str(path) for path in find_arguments(arguments, skip=Path("out"))]

    assert found("?.png", "a.png") == ["a.png", "b.png"]
    assert found("**/*.png") == ["[x].png", "a.png", "b.png", str(Path("d/c.png")), str(Path("d/e/f.png"))]
    assert found("d*") == [str(Path("d/c.png")), str(Path("d/e/f.png"))]
    assert found("[x].png") == ["[x].png"]  # a file of this name comes before the pattern
    assert found("b.png", str(tmp_path / "?.png")) == ["b.png", str(tmp_path / "a.png")]
    assert found("no.png") == ["no.png"]
    with pytest.raises(ConfigError, match=r"the pattern \*\.tif matches no file"):
        found("*.tif")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_links_that_lead_to_themselves_do_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/a.png").write_bytes(picture())
    for name, target in (("loop.png", "loop.png"), ("one", "."), ("two", "."), ("three", "four"), ("four", "three")):
        Path("d", name).symlink_to(target)
    expected = [Path("d/a.png"), Path("d/loop.png")]
    for argument in ("d", "d/*.png", "**/*.png", "d/loop*"):
        assert find_arguments([argument], skip=Path("d/four")) == expected[argument == "d/loop*" :], argument
    with pytest.raises(ImageError, match=r"^d/loop\.png: "):
        read_argument(Path("d/loop.png"))
