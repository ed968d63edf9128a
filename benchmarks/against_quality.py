"""Quality of the fit of two checkouts of mien on the neutral CC-BY portraits, judged by one of them.

    python benchmarks/against_quality.py ../old . --data ../shared/data --out out/quality [--limit 71]

Each checkout reconstructs the portraits with its own interpreter (mode fit, no detail) into a folder of `--out`;
portraits that are there already are kept. The checkout that runs this file measures both: identity network, colour
error inside the skin mask, and the distance of the model's 51 inner landmarks from the detected ones. The energies of
the two checkouts cannot be compared, since the terms of the objective differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from likeness import MASK_SIZE_PX, in_photo, read_portraits, spread
from likeness_metrics import FaceRenderer, Likeness, colour_error, image_tensor
from rich.console import Console
from rich.progress import track

from mien.evaluation.landmarks import landmark_nme, matching_face
from mien.evaluation.paired import paired_difference
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.io.photo import read_photo
from mien.perception import face_crop, face_mask
from mien.pipeline import Reconstructor
from mien.result import Reconstruction

WORKER = Path(__file__).with_name("against_worker.py")


@dataclass(frozen=True)
class FaceQuality:
    """What is measured of one reconstruction."""

    portrait: str
    distance: float
    """Of the identity network's vectors of photo and rendering."""
    verified: float
    """1 if the network takes both for one person."""
    colour_error: float
    nme51: float


def model_file(checkout: Path) -> Path:
    """The packaged face model of a checkout."""
    return checkout / "src" / "mien" / "assets" / "mien-face.safetensors"


def reconstruct(checkout: Path, portraits: Sequence[Path], out: Path) -> None:
    """Reconstruct portraits with a checkout's own interpreter, those that are missing."""
    out.mkdir(parents=True, exist_ok=True)
    missing = [path for path in portraits if not (out / path.stem).is_dir()]
    if missing:
        command = [checkout / ".venv" / "bin" / "python", WORKER, "save", out, *missing]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=checkout, check=True)


def measure(checkout: Path, portraits: Sequence[Path], out: Path, console: Console) -> list[FaceQuality]:
    """Measure the reconstructions of a checkout; photos without one are left out."""
    judge = Reconstructor(model_file(checkout), mode="fit", detail=False)
    renderer, found = FaceRenderer(judge.model), list[FaceQuality]()
    for path in track(portraits, checkout.name, console=console):
        if not (out / path.stem).is_dir():
            continue
        face, pixels = Reconstruction.load(out / path.stem), read_photo(path).pixels
        detections = judge.detector.detect(pixels)
        best = matching_face([d.landmarks68_px for d in detections], face.landmarks68.astype(np.float64))
        detection = detections[best or 0]
        crop = face_crop(torch.from_numpy(detection.landmarks468_px[:, :2]), size=MASK_SIZE_PX)
        mask = in_photo(face_mask(pixels, detection, crop), crop.crop_from_photo, size=pixels.shape[:2])
        photo, rendering = image_tensor(pixels), renderer.render(face, detail=False)
        places = [torch.from_numpy(np.float32(points))[None] for points in (detection.landmarks68_px, face.landmarks68)]
        pictures = (photo, rendering.over(photo))
        network = judge.identity_network
        with torch.no_grad():
            vectors = network(torch.cat([network.crop(p, at) for p, at in zip(pictures, places, strict=True)]))
        likeness = Likeness.between(vectors[0], vectors[1])
        error = colour_error(rendering, photo, mask=mask)
        nme = landmark_nme(face.landmarks68, detection.landmarks68_px, inner=True)
        found.append(FaceQuality(path.stem, likeness.distance, float(likeness.verified), error, nme))
    return found


def table(old: Sequence[FaceQuality], new: Sequence[FaceQuality]) -> str:
    """One line per figure: both means, and the paired difference with its interval."""
    lines = []
    for field, title, unit in (
        ("distance", "identity distance", 1),
        ("verified", "verified, %", 100),
        ("colour_error", "colour error", 1),
        ("nme51", "NME51, %", 100),
    ):
        values = [{row.portrait: unit * getattr(row, field) for row in rows} for rows in (old, new)]
        means = [float(np.mean(list(of.values()))) for of in values]
        paired = paired_difference(values[1], values[0])
        assert paired is not None
        lines.append(
            [
                title,
                *(f"{mean:.4f}" for mean in means),
                f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]",
            ]
        )
    return markdown_table([f"{len(new)} portraits", "old", "new", "difference, 95 % interval"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, help="checkout to measure")
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reconstructions")
    parser.add_argument("--limit", type=int, help="number of portraits")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    neutral = [p.path.resolve() for p in read_portraits(options.data / "photos_ccby") if not p.smiling]
    portraits, out = spread(neutral, options.limit), options.out.resolve()
    trees = [options.old.resolve(), options.new.resolve()]
    for name, tree in zip(("old", "new"), trees, strict=True):
        reconstruct(tree, portraits, out / name)
    console = Console(stderr=True)
    old, new = (measure(tree, portraits, out / name, console) for name, tree in zip(("old", "new"), trees, strict=True))
    print(f"{Environment.current()}\n\n{table(old, new)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results={"old": old, "new": new})
    return 0


if __name__ == "__main__":
    sys.exit(main())
