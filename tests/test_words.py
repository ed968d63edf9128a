"""The field's terms are used everywhere: the old words of the project's private language do not come back.

Checked are the package, the documentation, the configurations, and the changelog's sections since the words changed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".toml", ".cpp", ".h", ".hpp"}

EVERYWHERE = {
    "synthetic faces": r"\bdrawn[ _-]faces?\b|\bDrawnFaces\b",
    "samples": r"\bsitters?\b",
    "rngs": r"\bchances\b",
    "simulate_camera": r"\bphotograph\(",
    "refiner, refine_steps": r"\bsecond[ _-]looks?\b|\bSecondLook\b",
    "prediction, inputs": r"\bsaid\b|\btold\b|\banswers?\b|\banswered\b",
    "UV map, UV atlas": r"\bcharts?\b",
    "ground truth": r"(?<![Gg]round[ _-])\btruth\b",
    "detected_px, gt_px": r"\bfound_px\b|\bmesh_px\b",
    "CropSpaceParameters": r"\bRegression\b",
    "inputs, detection": r"\bobserv(?:e|es|ed|ing|ation|ations)\b|\bObserved\w*",
    "TextureBuilder, texturing": r"\bFinisher\b|\bfinishing\b",
    "skin blemishes": r"\bMarkPainter\b",
    "wrinkle atlas": r"\banatomy\b",
    "Wrinkle, LandmarkOffset, Metric": r"\bclass (?:Fold|Place|Figure)\b|\b(?:Fold|Place|Figure)(?=[\[(|,:.)])",
    "TrainState": r"\bTrained\b(?! [a-z])",
    "all_ranks_ok, extend_encoder": r"\b_everywhere\b|\bgrown\b",
    "photometric_loss, identity_loss": r"\bpixel_loss\b|\brecognition_loss\b",
    "blendshapes": r"\bmodel\.actions\b",
    "modules, packages": r"\brooms\b|\bthe house\b",
    "plain words": r"\b(?:lest|whoever|hardly|has no say|nobody knows|so many faces)\b",
}
"""What to write instead, and the pattern of the old words."""
IN_NETWORKS_AND_TRAINING = {
    "refine_steps": r"\blooks?\b(?! (?:at|for|like|up)\b)|\bpractice\b",
    # Elsewhere it is the page of `mien studio`.
    "scene cache": r"\b[Ss]tudio(?=\.\w|[(=\])])|\bclass Studio\b|\bstudios\b",
}

ALLOWED: tuple[tuple[str, str], ...] = (
    ("src/mien/networks/weights_file.py", "look"),  # names of tensors in files of mien 0.1
    ("src/mien/networks/weights_file.py", "told"),
    ("src/mien/training/config_file.py", ""),  # names of settings in mien 0.1
    ("src/mien/training/synthetic/disk_names.py", ""),  # names in stores of every version
    ("CHANGELOG.md", "mesh_px"),
)
"""Path and a part of the line, at most ten: names in files of other versions. An empty part allows the whole file."""


def lines_of(path: Path) -> list[tuple[int, str]]:
    lines = list(enumerate(path.read_text(encoding="utf-8").split("\n"), 1))
    if path.name != "CHANGELOG.md":
        return lines
    # Only the sections of the versions since the words changed; older ones describe what was released.
    headings = [number for number, line in lines if line.startswith("## ")]
    older = [number for number, line in lines if line.startswith(("## [0.1", "## 0.1"))]
    return [pair for pair in lines if headings[0] <= pair[0] < (older[0] if older else len(lines) + 1)]


def checked_files() -> list[Path]:
    folders = [ROOT / name for name in ("src", "docs", "configs")]
    below = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    return [*below, ROOT / "README.md", ROOT / "CHANGELOG.md"]


def old_words(path: Path) -> list[str]:
    relative = path.relative_to(ROOT).as_posix()
    patterns = dict(EVERYWHERE)
    if relative.startswith(("src/mien/networks", "src/mien/training", "configs")):
        patterns |= IN_NETWORKS_AND_TRAINING
    hits = []
    for number, line in lines_of(path):
        if any(relative == allowed and part in line for allowed, part in ALLOWED):
            continue
        hits += [
            f"{relative}:{number}: {match[0]!r} → {better}"
            for better, pattern in patterns.items()
            for match in re.finditer(pattern, line)
        ]
    return hits


def test_no_old_word_is_used() -> None:
    hits = [hit for path in checked_files() for hit in old_words(path)]
    assert not hits, "\n" + "\n".join(hits)


def test_the_allow_list_is_short_and_needed() -> None:
    assert len(ALLOWED) <= 10
    for path, part in ALLOWED:
        assert part in (ROOT / path).read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("the truth of a drawn face", 2),
        ("ground truth of a synthetic face", 0),
        ("`second_look` reads the mesh_px of a chart", 3),
        ("Figure 2 of the paper was taken in a room with a studio", 0),
        ("class Place(Figure): self.draw()", 2),
        ("observations are observed", 2),
    ],
)
def test_the_patterns_find_the_old_words(tmp_path: Path, text: str, count: int) -> None:
    assert sum(len(re.findall(pattern, text)) for pattern in EVERYWHERE.values()) == count
