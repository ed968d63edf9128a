"""How the page looked before: boxes of its named elements and small pictures.

Two machines draw no two equal pictures: fonts, their smoothing and the browser's own controls differ. So the page has
one font in all states (browser.mjs brings it), boxes may differ by some pixels, and pictures are compared when they are
six times smaller, by the share of their pixels that differ clearly. WebGL is left out: the other checks are about it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

BASELINES = Path(__file__).parent / "baselines"
LAYOUTS = "layouts.json"
BOX_TOLERANCE_PX = 8
"""Chromium's own sliders and selects differ by up to 4 pixels from one release or system to another."""
PIXEL_TOLERANCE = 32
"""Of 255: above smoothed text, and below a button that has lost its colour."""
LARGEST_SHARE = 0.005
"""Two buttons of a wide page, or one of a narrow one."""
_SHRINK = 6
_CANVASES = ("stage", "other-stage")

Layouts: TypeAlias = dict[str, dict[str, list[int]]]
"""Left, top, width and height of each element, by state and name."""


def renew(pictures: Path, baselines: Path = BASELINES) -> None:
    """Keep the present look.

    Args:
        pictures: Folder with layouts.json and a screenshot of each state.
        baselines: Where to keep it.
    """
    layouts = _layouts(pictures)
    for old in baselines.glob("*.png"):
        old.unlink()
    for state, boxes in layouts.items():
        small = Image.fromarray(_small(pictures / f"{state}.png", boxes))
        small.save(baselines / f"{state}.png", optimize=True)
    lines = [
        f"  {json.dumps(state)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(box)}" for name, box in boxes.items())
        + "\n  }"
        for state, boxes in layouts.items()
    ]
    (baselines / LAYOUTS).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def differences(pictures: Path, baselines: Path = BASELINES) -> list[str]:
    """What looks otherwise than before, in words; empty if nothing does.

    Args:
        pictures: As in `renew`.
        baselines: As in `renew`.
    """
    before, after = _layouts(baselines), _layouts(pictures)
    found = [f"{state}: this state is only in one of both" for state in sorted(before.keys() ^ after.keys())]
    for state in sorted(before.keys() & after.keys()):
        found += [f"{state}: {moved}" for moved in _moved(before[state], after[state])]
        was = np.asarray(Image.open(baselines / f"{state}.png").convert("RGB"))
        is_ = _small(pictures / f"{state}.png", after[state])
        if was.shape != is_.shape:
            found.append(f"{state}: the picture has another size")
            continue
        share = float((np.abs(was.astype(int) - is_).max(-1) > PIXEL_TOLERANCE).mean())
        if share > LARGEST_SHARE:
            found.append(f"{state}: {share:.1%} of the picture differs")
    return found


def _moved(before: dict[str, list[int]], after: dict[str, list[int]]) -> Iterator[str]:
    for name in sorted(before.keys() ^ after.keys()):
        yield f"{name!r} is {'gone' if name in before else 'new'}"
    for name in sorted(before.keys() & after.keys()):
        if max(abs(a - b) for a, b in zip(before[name], after[name], strict=True)) > BOX_TOLERANCE_PX:
            yield f"{name!r} was at {before[name]} and is at {after[name]}"


def _layouts(folder: Path) -> Layouts:
    return json.loads((folder / LAYOUTS).read_text())


def _small(picture: Path, boxes: dict[str, list[int]]) -> np.ndarray:
    """The picture six times smaller, without what WebGL has drawn."""
    image = Image.open(picture).convert("RGB")
    for name in _CANVASES:
        if name in boxes:
            x, y, width, height = boxes[name]
            ImageDraw.Draw(image).rectangle((x, y, x + width, y + height), fill="grey")
    return np.asarray(image.resize((image.width // _SHRINK, image.height // _SHRINK), Image.Resampling.BOX))
