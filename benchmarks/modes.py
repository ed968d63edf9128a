"""The three ways to coefficients side by side: the network alone, the fit, and the fit from the network's guess.

    python benchmarks/modes.py --data ../shared/data --limit 30

Landmark errors against hand-placed points (Helen test), the colour error inside the mask, and how long each takes.
`fit, N steps` is the fit without a guess in as few steps as `auto` takes: what the network is worth. The ways take
turns at every photo, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch

from mien.evaluation.landmarks import AnnotatedPhoto, landmark_nme, matching_face, read_annotated, spread_over_groups
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.fitting import FitSettings
from mien.io.photo import read_photo
from mien.networks import DEFAULT_ENCODER
from mien.pipeline import Reconstructor


@dataclass(frozen=True)
class ModeResults:
    """One way over all photos; errors are means, times medians."""

    name: str
    faces: int
    nme51: float
    photometric_error: float
    coefficient_seconds: float
    """From targets to coefficients: network and fit, without perception and maps."""
    whole_seconds: float


@dataclass(frozen=True)
class FaceResult:
    """One way on one photo."""

    nme51: float
    photometric_error: float
    coefficient_seconds: float
    whole_seconds: float


def measure(reconstructor: Reconstructor, annotated: AnnotatedPhoto) -> FaceResult | None:
    """None where the annotated face was not found."""
    pixels = read_photo(annotated.path).pixels
    start = time.perf_counter()
    faces = reconstructor(pixels)
    whole = (time.perf_counter() - start) / len(faces)
    best = matching_face([face.landmarks68 for face in faces], annotated.landmarks_px)
    if best is None:
        return None
    face = faces[best]
    return FaceResult(
        nme51=landmark_nme(face.landmarks68, annotated.landmarks_px, inner=True),
        photometric_error=face.photometric_error,
        coefficient_seconds=sum(s for stage, s in face.stage_seconds if stage not in ("perception", "maps")),
        whole_seconds=whole,
    )


def summarise(name: str, results: Sequence[FaceResult]) -> ModeResults:
    return ModeResults(
        name,
        len(results),
        float(np.mean([r.nme51 for r in results])),
        float(np.mean([r.photometric_error for r in results])),
        float(np.median([r.coefficient_seconds for r in results])),
        float(np.median([r.whole_seconds for r in results])),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_68")
    parser.add_argument("--set", default="helen_test")
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    photos = spread_over_groups(read_annotated(options.data / "photos_68" / options.set), limit=options.limit)
    steps = FitSettings().warm_photometric_steps
    ways = {
        "net": Reconstructor(detail=False, mode="net", encoder=options.encoder),
        "fit": Reconstructor(detail=False, mode="fit"),
        f"fit, {steps} steps": Reconstructor(detail=False, mode="fit", settings=FitSettings(photometric_steps=steps)),
        "auto": Reconstructor(detail=False, mode="auto", encoder=options.encoder),
    }
    found: dict[str, list[FaceResult]] = {name: [] for name in ways}
    for photo in photos:
        for name, reconstructor in ways.items():
            result = measure(reconstructor, photo)
            if result is not None:
                found[name].append(result)
    results = [summarise(name, of_way) for name, of_way in found.items()]
    print(f"{Environment.current()}\n")
    header = ["way", "faces", "NME51 %", "colour error", "coefficients, s", "whole, s"]
    rows = [
        [
            r.name,
            r.faces,
            f"{100 * r.nme51:.2f}",
            f"{r.photometric_error:.4f}",
            f"{r.coefficient_seconds:.3f}",
            f"{r.whole_seconds:.2f}",
        ]
        for r in results
    ]
    print(markdown_table(header, rows))
    if options.json:
        write_json(options.json, environment=Environment.current(), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
