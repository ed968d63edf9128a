"""Endless animations as files: animated WebP by Pillow, H.264 video by `mien.io.video`."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mien.errors import ConfigError
from mien.io.video import VideoWriter
from mien.typing import UInt8

ANIMATION_ENDINGS = (".webp", ".mp4")
"""Endings of the files that `write_animation` writes."""
_WEBP_QUALITY, _WEBP_EFFORT = 85, 4
_CRF = 18
"""Constant rate factor of x264; at 18 skin shows no blocks."""


def check_animation(path: Path) -> None:
    """Check that a file can be written, before its pictures are made.

    Args:
        path: The file; its ending chooses the format.

    Raises:
        ConfigError: The ending is unknown, or PyAV, which writes MP4, is not installed.
    """
    ending = path.suffix.lower()
    if ending not in ANIMATION_ENDINGS:
        raise ConfigError(f"path={path} ends in {path.suffix!r}; use one of {', '.join(ANIMATION_ENDINGS)}.")
    if ending == ".mp4" and importlib.util.find_spec("av") is None:
        raise ConfigError("MP4 needs PyAV, which is not installed; pip install 'mien[video]', or write WebP.")


def write_animation(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: Path, *, frames_per_second: int) -> None:
    """Write pictures of one size as an animation.

    Args:
        frames: The pictures; their sides are even numbers.
        path: The file to write; its ending chooses the format.
        frames_per_second: Speed.

    Raises:
        ConfigError: As `check_animation`.
        OSError: The file cannot be written.
    """
    check_animation(path)
    write = _write_webp if path.suffix.lower() == ".webp" else _write_mp4
    write(frames, path, frames_per_second)


def _write_webp(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: Path, frames_per_second: int) -> None:
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(
        path,
        format="WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / frames_per_second),
        loop=0,
        quality=_WEBP_QUALITY,
        method=_WEBP_EFFORT,
    )


def _write_mp4(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: Path, frames_per_second: int) -> None:
    pictures = iter(frames)
    first = next(pictures)
    height, width = first.shape[:2]
    with VideoWriter(path, size=(width, height), rate=float(frames_per_second), crf=_CRF) as writer:
        for number, pixels in enumerate(itertools.chain([first], pictures)):
            writer.add(pixels, number / frames_per_second)
