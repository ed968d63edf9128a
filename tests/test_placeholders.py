"""A Git LFS pointer or a web page in the place of a file is named for what it is, by every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mien import assets
from mien.errors import AssetError, FormatError, MienError
from mien.io.placeholders import placeholder
from mien.morphable import MorphableModel, load_model
from mien.morphable.formats import read_model
from mien.networks import load_detail, load_encoder
from mien.networks.backbones import EfficientNetLite0, load_imagenet
from mien.registration.landmark_file import read_landmarks
from mien.training.synthetic.population import SkinBank
from tests.formats.targets import TARGETS

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (POINTER, r"is a Git LFS pointer, .* run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s123--4d7a\n", r"is a git-annex pointer, .* run `git annex get`"),
        (PAGE, r"is a web page \(HTML\), .* download it again"),
        (b"\xef\xbb\xbf<html lang=en>", r"is a web page"),
        (
            b'<?xml version="1.0"?>\n<!-- login -->\n<!doctype HTML PUBLIC "-//W3C//DTD XHTML 1.0//EN">',
            r"is a web page",
        ),
        (
            b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
            r"is an error message of a server \(XML\)",
        ),
    ],
)
def test_placeholders_are_recognised(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "model.mat"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=named):
        read_model(path)


@pytest.mark.parametrize(
    "content", [b"", b"MATLAB 5.0 MAT-file", b"0 12\n1 15\n", b"<htmlish", b"# <html>", b"<?xml version='1.0'?><svg/>"]
)
def test_other_files_are_no_placeholders(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert placeholder(path) is None
    assert placeholder(tmp_path / "missing") is None


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize("content", [POINTER, PAGE], ids=["pointer", "page"])
def test_every_reader_of_foreign_files_names_them(tmp_path: Path, name: str, content: bytes) -> None:
    target = TARGETS[name]
    target.honest(tmp_path)
    path = tmp_path / target.file
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"is a Git LFS pointer|is a web page"):
        target.read(path)


READERS: dict[str, Callable[[Path, MorphableModel], object]] = {
    "model": lambda path, tiny: load_model(path),
    "encoder": lambda path, tiny: load_encoder(tiny, path),
    "detail network": lambda path, tiny: load_detail(tiny, path),
    "skins": SkinBank.load,
    "initial weights": lambda path, tiny: load_imagenet(EfficientNetLite0(), str(path)),
    "landmarks": lambda path, tiny: read_landmarks(path, vertices=9),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_networks_and_models_names_them(tmp_path: Path, tiny: MorphableModel, name: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(POINTER)
    with pytest.raises(MienError, match=r"file\.safetensors: is a Git LFS pointer"):
        READERS[name](path, tiny)


def test_a_pointer_among_the_packaged_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    (tmp_path / "facemesh.safetensors").write_bytes(POINTER)
    with pytest.raises(AssetError, match="is a Git LFS pointer"):
        assets.asset_path("facemesh.safetensors")
