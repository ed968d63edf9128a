"""Several photos of one person against one: real pairs with scans, and four synthetic views with known shape.

    python benchmarks/joint.py --data ../shared/data [--part pairs|views|oracle] [--mode auto] [--limit 8] [-o OUT]

*pairs*: the people of scans_dev with two photos, measured as by `mien evaluate scans` at a third of its points.
*oracle*: the same pairs with parts of the truth, see benchmarks/joint_oracle.py.
*views*: ICT heads (benchmarks/ict_heads.py) with a neutral expression, turned by 0, 30, -30 and 60 degrees, each view
under another light; errors as in benchmarks/shape.py. Every photo is reconstructed alone and together with the others
of the person; the tables compare the mean errors per person, with 95 % intervals of the paired difference. OUT keeps
the errors of every person, so that an interrupted run goes on; after a change of the code, it has to be a new folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mien

# isort: split
import numpy as np
import torch
from ict_heads import LIGHTS, Head, HeadPainter, IctModel, contact_sheet, sample_heads, save_photograph, simulate_camera
from joint_oracle import measure_oracle
from rich.console import Console
from rich.progress import track
from scan_cases import SCORED_ICP, SCORED_POINTS
from scan_ladder import ErrorStore, code_digest, mark_code
from shape import GtHead, MeasuredRegion, reconstruction_candidate

from mien.errors import PhotoLeftOut
from mien.evaluation.paired import paired_difference
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.evaluation.scan_packs import OwnScans
from mien.evaluation.scan_predictions import reconstructed_face
from mien.evaluation.scans import score_face
from mien.io.files import write_text
from mien.io.reading import read_json
from mien.result import Reconstruction

VIEWS_DEG = ((0, 0, 0), (30, -3, 0), (-30, 3, 0), (60, 0, 0))
"""Yaw, pitch, roll of the synthetic views."""
VIEW_HEADS = 12
"""Number of synthetic heads."""


@dataclass(frozen=True)
class PersonErrors:
    """Mean errors of one person, millimetres."""

    person: str
    """Name of the person."""
    alone: tuple[float, ...]
    """Error of each photo that is reconstructed alone."""
    joint: tuple[float | None, ...]
    """Error of each photo in the joint reconstruction; None for a photo that was left out."""
    weights: tuple[float, ...]
    """Influence of each photo in the joint reconstruction."""


@dataclass(frozen=True)
class Bench:
    """What measures people, and the folder that keeps their errors."""

    reconstructor: mien.Reconstructor
    """Reconstructs all photos."""
    folder: Path
    """One file per person."""

    def kept(self, person: str) -> PersonErrors | None:
        """Errors that an earlier run has measured."""
        path = self._path(person)
        return read_json(path, PersonErrors) if path.is_file() else None

    def measured(
        self,
        person: str,
        photos: Sequence[Path],
        error_of: Callable[[int, Reconstruction], float],
        *,
        focal_px: float | None = None,
    ) -> PersonErrors:
        """Reconstruct photos alone and together, and measure both."""
        alone = [error_of(k, self.reconstructor(photo, focal_px=focal_px)[0]) for k, photo in enumerate(photos)]
        found = self.reconstructor.joint(photos, focal_px=focal_px)
        joint = [None if face is None else error_of(k, face) for k, face in enumerate(found.faces)]
        errors = PersonErrors(person, tuple(alone), tuple(joint), found.photo_weights)
        write_text(self._path(person), json.dumps(asdict(errors), indent=1, allow_nan=False) + "\n")
        return errors

    def _path(self, person: str) -> Path:
        return self.folder / f"{person}.json"


def pairs_of(pack: OwnScans, *, limit: int | None) -> dict[str, tuple[str, ...]]:
    """The people of scans_dev with two photos."""
    return dict([(person, names) for person, names in pack.people().items() if len(names) == 2][:limit])


def measure_pairs(bench: Bench, pack: OwnScans, *, limit: int | None) -> list[PersonErrors]:
    """The people of scans_dev with two photos."""
    found = []
    for person, names in track(pairs_of(pack, limit=limit).items(), "pairs", console=Console(stderr=True)):
        scans = [pack.scan(name) for name in names]

        def error_of(k: int, face: Reconstruction, scans=scans) -> float:
            scan = scans[k]
            regions = None if scan.region_of_point is None else scan.region_of_point[:SCORED_POINTS]
            scan = replace(scan, points=scan.points[:SCORED_POINTS], region_of_point=regions, icp=SCORED_ICP)
            # The alignment starts from pixels alone, as in `mien evaluate scans`.
            return score_face(scan, replace(reconstructed_face(face), landmarks7=None)).overall.mean

        photos = [scan.photo for scan in scans if scan.photo is not None]
        found.append(bench.kept(person) or bench.measured(person, photos, error_of))
    return found


def neutral(head: Head, view: int) -> Head:
    """A head for one of the views: without expression, in colour, under a light of the view."""
    return replace(
        head,
        expression=torch.zeros_like(head.expression),
        grey=False,
        exposure=1.0,
        light_index=(head.index + view) % len(LIGHTS),
        seed=head.seed + 10 * view,
    )


def measure_views(bench: Bench, data: Path, *, limit: int | None) -> list[PersonErrors]:
    """ICT heads from four sides."""
    ict, model = IctModel.load(data / "ict_facekit.npz"), bench.reconstructor.model
    painter, region = HeadPainter(ict, model), MeasuredRegion.of(ict)
    heads = sample_heads(ict, albedo_count=model.counts[2], count=limit or VIEW_HEADS, seed=25)
    found, pictures = [], []
    for head in track(heads, "views", console=Console(stderr=True)):
        person, focal_px = f"head{head.index:02d}", 0.0
        photos = [bench.folder / f"{person}_yaw{pose[0]:+d}.jpg" for pose in VIEWS_DEG]
        pictures += photos
        if errors := bench.kept(person):
            found.append(errors)
            continue
        # The colours of a head follow from its seed, which differs between the views for the noise alone.
        colours = painter.colours(head)
        for k, (pose, path) in enumerate(zip(VIEWS_DEG, photos, strict=True)):
            photo = simulate_camera(ict, _Painted(colours), neutral(head, k), pose_deg=pose)
            save_photograph(photo, path)
            focal_px = photo.focal_px
        gt = GtHead.of(ict, region, neutral(head, 0))

        def error_of(_: int, face: Reconstruction, gt=gt) -> float:
            distances = reconstruction_candidate("", model, face).align(gt).distances
            return float((distances * gt.weights).sum() / gt.weights.sum())

        found.append(bench.measured(person, photos, error_of, focal_px=focal_px))
    contact_sheet(pictures, bench.folder / "contact_sheet.png", columns=len(VIEWS_DEG))
    return found


PARTS = ("pairs", "views", "oracle")


class _Painted(HeadPainter):
    """Colours that are known already."""

    def __init__(self, colours: torch.Tensor) -> None:
        self._colours = colours

    def colours(self, head: Head) -> torch.Tensor:
        return self._colours


def summary(people: Sequence[PersonErrors], *, title: str) -> str:
    """Joint against alone: the mean over the photos, and the first photo alone."""
    joint = {p.person: float(np.mean([error for error in p.joint if error is not None])) for p in people}
    rows = []
    for name, values in (
        ("mean of the photos alone", {p.person: float(np.mean(p.alone)) for p in people}),
        ("first photo alone", {p.person: p.alone[0] for p in people}),
    ):
        difference = paired_difference(joint, values)
        assert difference is not None, "both have the same people"
        own, together = np.mean(list(values.values())), np.mean(list(joint.values()))
        rows.append(
            [
                name,
                len(people),
                f"{own:.2f}",
                f"{together:.2f}",
                f"{100 * (together / own - 1):+.0f} %",
                f"{difference.difference:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]",
            ]
        )
    table = markdown_table([title, "people", "alone, mm", "joint, mm", "change", "difference, mm"], rows)
    columns = np.array([p.alone for p in people]).mean(0)
    each = ", ".join(f"{value:.2f}" for value in columns)
    weights = np.array([p.weights for p in people])
    left_out = int((weights == 0).sum())
    return (
        f"{table}\n\nEach photo alone: {each} mm. Photos left out of the joint fit: {left_out}; smallest weight of the "
        f"others: {weights[weights > 0].min():.2f}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with scans_dev and ict_facekit.npz")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--mode", default="auto", help="of the reconstructions: fit, net or auto")
    parser.add_argument("--limit", type=int, help="maximum number of people per part")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/joint"), help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PhotoLeftOut)  # the tables count them
    reconstructor, environment = mien.Reconstructor(mode=options.mode, detail=False), Environment.current()
    print(f"{environment}\n")
    code = code_digest([Path(mien.__file__).parent, Path(__file__).parent])
    for part in options.part or PARTS:
        folder = options.out / f"{part}-{options.mode}"
        bench = Bench(reconstructor, folder)
        if part == "oracle":
            pack = OwnScans.open(options.data / "scans_dev")
            people = list(pairs_of(pack, limit=options.limit).values())
            report = measure_oracle(reconstructor, pack, people, ErrorStore(folder, code))
            print(f"oracle, mode {options.mode}, {len(people)} pairs\n\n{report.table()}\n", flush=True)
            write_json(options.out / f"oracle-{options.mode}.json", environment=environment, results=report)
            continue
        mark_code(folder, code)
        if part == "pairs":
            people = measure_pairs(bench, OwnScans.open(options.data / "scans_dev"), limit=options.limit)
        else:
            people = measure_views(bench, options.data, limit=options.limit)
        print(summary(people, title=f"{part}, mode {options.mode}") + "\n", flush=True)
        write_json(options.out / f"{part}-{options.mode}.json", environment=environment, results=people)
    return 0


if __name__ == "__main__":
    sys.exit(main())
