"""Does it help an encoder to share the identity of a person's photos in the loss (`loss.person_shape`)?

    python benchmarks/shared_identity.py --data ../shared/data [--weights 0,16] [--seeds 0,1] [-o out/shared_identity]

The last stage of the packaged encoder (configs/packaged_encoder.toml, "photos") is trained again from the packaged file
on the photos of photos_ccby, always two photos of a person together, with different weights of `loss.person_shape`.
Measured on the pairs of scans_dev, which no training sees: the error against the scans in mode net, as in
benchmarks/joint.py, and how far the two identities of a person lie apart, also as a share of the distance between
people, because shrinking all identities brings photos together too. A stopped run goes on: finished trainings and
half ones in OUT are kept.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mien  # (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from joint import pairs_of
from rich.console import Console
from rich.progress import track
from scan_cases import SCORED_ICP, SCORED_POINTS

from mien.evaluation.paired import paired_difference
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.evaluation.scan_packs import OwnScans
from mien.evaluation.scan_predictions import reconstructed_face
from mien.evaluation.scans import FaceScan, score_face
from mien.morphable import MorphableModel
from mien.networks import DEFAULT_ENCODER
from mien.result import Reconstruction
from mien.training.config import (
    CoarseConfig,
    CoarseLossSettings,
    DataSettings,
    EncoderSettings,
    LoopSettings,
    OptimizerSettings,
)
from mien.training.data.fits import fit_store
from mien.training.data.prepare import PreparationSettings, list_photos, prepare
from mien.training.run import ENCODER_FILE, train_coarse
from mien.training.shape_distance import aligned_distance_mm

PACKAGED = Path(mien.__file__).parent / "assets" / DEFAULT_ENCODER


@dataclass(frozen=True)
class EncoderResult:
    """An encoder on the pairs of scans_dev."""

    weight: float | None
    """`loss.person_shape` of its training; None for the packaged encoder."""
    seed: int
    """Seed of its training."""
    errors: dict[str, float]
    """Mean error of each photo against its scan, millimetres."""
    within_mm: dict[str, float]
    """Mean distance between the neutral faces of a person's two photos."""
    between_mm: float
    """The same between photos of different people."""


def config_of(weight: float, *, seed: int, steps: int) -> CoarseConfig:
    """The stage "photos" of the packaged encoder with two photos of a person together."""
    return CoarseConfig(
        encoder=EncoderSettings(
            image_size=96,
            points=True,
            refiner=True,
            learn="refiner",
            dropout=0.2,
            refine_from="landmarks",
            start=str(PACKAGED),
        ),
        data=DataSettings(synthetic_share=0.0, fits=True, jitter=0.2, photos_per_person=2),
        loss=CoarseLossSettings(
            photometric=0.0,
            identity=0.0,
            landmark=4.0,
            points=8.0,
            vertices=4.0,
            pose=1.0,
            coefficients=0.3,
            person_shape=weight,
        ),
        optimizer=OptimizerSettings(
            method="muon", learning_rate=2e-3, warmup=20, weight_decay=0.1, clip_norm=10.0, ema_decay=0.95
        ),
        loop=LoopSettings(
            steps=steps,
            batch_size=32,
            workers=0,
            threads=1,
            seed=seed,
            checkpoint_every=20,
            validate_every=steps,
            sheet_every=steps,
        ),
    )


def make_store(data: Path, out: Path) -> Path:
    """The photos of photos_ccby with their fits; a stopped one is continued."""
    folder, store = data / "photos_ccby", out / "store"
    photos = list_photos(folder, table=folder / "manifest.csv")
    prepare(photos, store, settings=PreparationSettings(), processes=1)
    fit_store(store, model="mien-face", processes=1)
    return store


def trained(store: Path, out: Path, weight: float, *, seed: int, steps: int) -> Path:
    """The encoder file of one training."""
    run = out / f"person_shape_{weight:g}-seed_{seed}-steps_{steps}"
    file = run / ENCODER_FILE
    if not file.exists():
        begun = (run / "checkpoints").exists()
        train_coarse(config_of(weight, seed=seed, steps=steps), store=str(store), run=run, resume=begun)
    return file


def scan_error(scan: FaceScan, face: Reconstruction) -> float:
    """Mean error of a face against its scan at a third of the points, millimetres."""
    scan = replace(scan, points=scan.points[:SCORED_POINTS], region_of_point=None, icp=SCORED_ICP)
    # The alignment starts from pixels alone, as in `mien evaluate scans`.
    return score_face(scan, replace(reconstructed_face(face), landmarks7=None)).overall.mean


def measure(
    encoder: str | Path, pack: OwnScans, *, weight: float | None, seed: int, limit: int | None
) -> EncoderResult:
    """Reconstruct the pairs in mode net."""
    reconstructor = mien.Reconstructor(mode="net", detail=False, encoder=str(encoder))
    errors, identities = {}, dict[str, list[torch.Tensor]]()
    for person, names in track(pairs_of(pack, limit=limit).items(), "pairs", console=Console(stderr=True)):
        for name in names:
            scan = pack.scan(name)
            assert scan.photo is not None, "the pack has its photos"
            face = reconstructor(scan.photo)[0]
            errors[name] = scan_error(scan, face)
            identities.setdefault(person, []).append(torch.from_numpy(face.identity))
    model = reconstructor.model
    faces = {person: [_neutral(model, identity) for identity in pair] for person, pair in identities.items()}
    between = [
        aligned_distance_mm(one[None], other[None], model=model)
        for a, b in itertools.combinations(faces.values(), 2)
        for one, other in zip(a, b, strict=True)
    ]
    within = {p: aligned_distance_mm(one[None], other[None], model=model) for p, (one, other) in faces.items()}
    return EncoderResult(weight, seed, errors, within, float(np.mean(between)))


def _neutral(model: MorphableModel, identity: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.vertices(identity[None], torch.zeros(1, model.counts[1]))[0]


def mean_of(results: Sequence[EncoderResult]) -> EncoderResult:
    """The mean over the seeds."""
    first = results[0]
    return replace(
        first,
        errors={name: float(np.mean([r.errors[name] for r in results])) for name in first.errors},
        within_mm={name: float(np.mean([r.within_mm[name] for r in results])) for name in first.within_mm},
        between_mm=float(np.mean([r.between_mm for r in results])),
    )


def table_of(results: Sequence[EncoderResult]) -> str:
    """One row per weight; the differences are to weight 0, or else to the first weight."""
    weights = sorted({r.weight for r in results if r.weight is not None})
    groups = {weight: [r for r in results if r.weight == weight] for weight in (None, *weights)}
    means = {weight: mean_of(group) for weight, group in groups.items() if group}
    base, rows = means[weights[0]], []
    for weight, mean in means.items():
        difference = paired_difference(mean.errors, base.errors)
        assert difference is not None, "all have the same photos"
        within = float(np.mean(list(mean.within_mm.values())))
        rows.append(
            [
                "packaged" if weight is None else f"{weight:g}",
                len(groups[weight]),
                f"{np.mean(list(mean.errors.values())):.3f}",
                "" if mean is base else f"{difference.difference:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
                f"{within:.2f}",
                f"{mean.between_mm:.2f}",
                f"{100 * within / mean.between_mm:.0f} %",
            ]
        )
    header = [
        "person_shape",
        "seeds",
        "scan error, mm",
        f"against {weights[0]:g}",
        "same person, mm",
        "others, mm",
        "share",
    ]
    return markdown_table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby and scans_dev")
    parser.add_argument("--weights", default="0,16", help="values of loss.person_shape")
    parser.add_argument("--seeds", default="0,1", help="seeds of the trainings")
    parser.add_argument("--steps", type=int, default=100, help="steps per training, 32 faces each")
    parser.add_argument("--limit", type=int, help="maximum number of pairs, at least 2")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/shared_identity"), help="folder of the trainings")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    environment, pack = Environment.current(), OwnScans.open(options.data / "scans_dev")
    store = make_store(options.data, options.out)
    results = [measure(DEFAULT_ENCODER, pack, weight=None, seed=0, limit=options.limit)]
    for seed in map(int, options.seeds.split(",")):
        for weight in map(float, options.weights.split(",")):
            file = trained(store, options.out, weight, seed=seed, steps=options.steps)
            results.append(measure(file, pack, weight=weight, seed=seed, limit=options.limit))
    print(f"{environment}\n\n{table_of(results)}")
    write_json(options.out / "results.json", environment=environment, results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
