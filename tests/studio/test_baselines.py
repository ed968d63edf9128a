"""The comparison of the page's look finds what people would see, and no noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.studio.baselines import BASELINES, LAYOUTS, differences, renew

BOXES = {"start": {"title": [12, 12, 120, 30], "button": [60, 120, 120, 36], "stage": [300, 0, 180, 300]}}


def drawn(folder: Path, boxes: dict[str, dict[str, list[int]]], *, noise: int = 0, head: int = 0) -> Path:
    """A folder as browser.mjs leaves it: each element is a dark rectangle, the canvas has a colour of its own."""
    folder.mkdir()
    (folder / LAYOUTS).write_text(json.dumps(boxes))
    pixels = np.full((600, 960, 3), 240 - noise, np.uint8)
    for name, (x, y, width, height) in boxes["start"].items():
        pixels[y : y + height, x : x + width] = head if name == "stage" else 60 + noise
    Image.fromarray(pixels).save(folder / "start.png")
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    renew(drawn(tmp_path / "before", BOXES), baselines)
    return baselines


def test_another_head_other_smoothing_and_a_few_pixels_are_no_difference(tmp_path: Path, kept: Path) -> None:
    boxes = {"start": {**BOXES["start"], "button": [63, 122, 118, 38]}}
    assert differences(drawn(tmp_path / "after", boxes, noise=12, head=200), kept) == []


def test_moved_missing_and_new_elements_are_told(tmp_path: Path, kept: Path) -> None:
    boxes = {"start": {"title": [12, 24, 120, 30], "other": [60, 120, 120, 36], "stage": BOXES["start"]["stage"]}}
    moved, *_ = found = differences(drawn(tmp_path / "after", boxes), kept)
    assert moved == "start: 'button' is gone"
    assert "start: 'other' is new" in found
    assert "start: 'title' was at [12, 12, 120, 30] and is at [12, 24, 120, 30]" in found


def test_a_button_without_its_colour_is_told(tmp_path: Path, kept: Path) -> None:
    after = drawn(tmp_path / "after", BOXES)
    image = Image.open(after / "start.png")
    image.paste((240, 240, 240), (60, 120, 180, 156))
    image.save(after / "start.png")
    (found,) = differences(after, kept)
    assert found.endswith("of the picture differs")


def test_a_state_without_baseline_is_told(tmp_path: Path, kept: Path) -> None:
    after = drawn(tmp_path / "after", {**BOXES, "done": BOXES["start"]})
    assert differences(after, kept) == ["done: this state is only in one of both"]


def test_the_baselines_are_small() -> None:
    assert set(json.loads((BASELINES / LAYOUTS).read_text())) == {path.stem for path in BASELINES.glob("*.png")}
    assert sum(path.stat().st_size for path in BASELINES.iterdir()) < 200_000
