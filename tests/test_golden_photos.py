"""What the commit named in golden/photos.json found in six photos: coefficients, pose and errors, without detail.

A change that is meant to change faces records them anew (`write_golden`), after the scans say that it is better.

`golden/photos.json` holds numbers only. The five portraits lie in `$MIEN_DATA/demo`, by default `../shared/data/demo`
beside the repository; their authors are named in the JSON. The sixth photo is the astronaut of scikit-image, in the
public domain.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mien

GOLDEN = Path(__file__).parent / "golden" / "photos.json"
DATA = Path(os.environ.get("MIEN_DATA", Path(__file__).parents[2] / "shared" / "data")) / "demo"
PORTRAITS = ("portrait_a", "portrait_b", "portrait_c", "portrait_d", "portrait_f")
ASTRONAUT = "astronaut"
COMMIT = "3cc0247"
"""Where the numbers were recorded."""
GROUPS = (
    "identity", "expression", "albedo", "lighting", "rotation", "translation", "scale", "focal_px", "landmark_error",
)  # fmt: skip
"""`photometric_error` is noted too, but it measures the texture, which has been completed differently since."""
SHORT_STEPS = 2
"""Gauss-Newton steps, which contain every term of the energy but recognition. Later steps depend on whether a trial
lowered the energy, which rounding can decide otherwise."""
MODES: dict[str, dict[str, Any]] = {
    "net": {"mode": "net"},
    "short": {"mode": "fit", "settings": mien.FitSettings(photometric_steps=SHORT_STEPS)},
    "fit": {"mode": "fit"},
    "auto": {"mode": "auto"},
}
MEASURED = {
    "net": (5.1e-6, 2.9e-6, 3.5e-6, 7.4e-7, 3.8e-7, 4.2e-7, 0.0, 4.9e-4, 1.7e-7),
    "short": (1.3e-3, 1.9e-4, 7.6e-4, 2.7e-5, 1.7e-5, 7.6e-6, 0.0, 2.9e-4, 5.9e-6),
    "fit": (0.055, 0.010, 0.061, 9.1e-3, 3.5e-3, 1.2e-3, 0.0, 4.9e-4, 2.7e-4),
    "auto": (0.031, 0.011, 0.069, 5.8e-3, 1.0e-3, 6.5e-4, 0.0, 4.9e-4, 2.2e-4),
}
"""Largest root-mean-square difference per group, in its unit, between a run with AVX-512 and runs with SSE4 and AVX2 in
PyTorch (ATEN_CPU_CAPABILITY), over the six photos; one thread, torch 2.13, AMD EPYC (Zen 4). The same run twice gives
the same bits."""
MARGIN = {"net": 10.0, "short": 10.0, "fit": 5.0, "auto": 5.0}
"""Other processors round in other places."""


def photo(name: str) -> np.ndarray | Path:
    if name == ASTRONAUT:
        return np.asarray(pytest.importorskip("skimage.data").astronaut())
    path = DATA / f"{name}.jpg"
    if not path.is_file():
        pytest.skip(f"{path} is not here; set MIEN_DATA to the folder that holds demo/{name}.jpg")
    return path


@cache
def reconstructor(mode: str) -> mien.Reconstructor:
    return mien.Reconstructor(detail=False, **MODES[mode])


def numbers_of(name: str, mode: str) -> dict[str, np.ndarray]:
    (face,) = reconstructor(mode)(photo(name))
    return {group: np.asarray(getattr(face, group), np.float32) for group in GROUPS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [ASTRONAUT, *(pytest.param(p, marks=pytest.mark.external) for p in PORTRAITS)])
def test_photos_give_the_recorded_coefficients(name: str, mode: str) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))["photos"][name][mode]
    found = numbers_of(name, mode)
    for group, measured in zip(GROUPS, MEASURED[mode], strict=True):
        wanted = np.asarray(expected[group], np.float32)
        assert found[group].shape == wanted.shape, group
        difference = float(np.sqrt(np.mean(np.square(found[group].astype(float) - wanted))))
        assert difference <= MARGIN[mode] * measured, f"{group} is off by {difference:.2g} RMS"


def write_golden() -> None:
    """Record what the mien that is imported finds, with one thread; the commit is named by hand."""
    photos = {
        name: {mode: {k: shortest(v) for k, v in numbers_of(name, mode).items()} for mode in MODES}
        for name in (ASTRONAUT, *PORTRAITS)
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in photos.items())
    head = json.dumps({"commit": COMMIT, "attribution": ATTRIBUTION})
    GOLDEN.write_text(f'{head[:-1]}, "photos": {{\n{lines}\n}}}}\n', encoding="utf-8")


def shortest(array: np.ndarray) -> float | list[Any]:
    """With the fewest digits that give the same float32 back."""
    return [shortest(row) for row in array] if array.ndim else float(str(array))


ATTRIBUTION = {
    "portrait_a to portrait_d": "DeBruine, L., & Jones, B. (2017). Face Research Lab London Set (Version 5). figshare. "
    "https://doi.org/10.6084/m9.figshare.5047666.v5, CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/), cropped "
    "and resized; subjects 099, 119, 136 and 037. Only numbers measured in the photos are kept here.",
    "portrait_f": "CC0, self-portrait in webmorphR.stim",
    "astronaut": "public domain, NASA portrait of Eileen Collins, scikit-image",
}
