"""What two photos of one person could bring: pairs with scans, measured with parts of the truth.

The truth of a photo is the model fitted to its scan. *Rows* give a prediction some of it, and are scored like any
other prediction. *Shares* compare the errors of the two photos of a pair, see `joint_shares`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from joint_shares import Moments, PairMoments, Shape, Shares
from scan_cases import Case, Tools
from scan_ladder import ErrorStore, ladder_table
from scan_points import closest_regions

from mien.evaluation.report import markdown_table
from mien.evaluation.scan_alignment import IcpSettings
from mien.evaluation.scan_packs import PACK_REGIONS, OwnScans
from mien.evaluation.scans import PredictedFace
from mien.geometry import Surface, remove_similarity, vertex_normals
from mien.io.files import write_text
from mien.io.reading import read_json
from mien.morphable import MorphableModel
from mien.pipeline import Reconstructor
from mien.typing import Bool, Float, Int, Tensor

ALONE, OTHER_IDENTITY = "each photo alone", "identity of the other photo"
ROWS = (
    ALONE,
    "both together",
    "mean of the two identities",
    OTHER_IDENTITY,
    "true identity",
    "true expression",
    "true identity in the other scan, true expression",
    "mean of both faces, true change",
)
WHOLE = "whole face"
POINTS, ICP = 1000, IcpSettings(points=400)
"""Half as many points of a scan as in the other ladders: eight rows are scored per photo."""
COVERED_MM = 6.0
"""Vertices within this distance of a point of the scan are compared: points of a scan are about 3 mm apart."""


@dataclass(frozen=True)
class OracleReport:
    """Rows and shares of all pairs."""

    rows: str
    """Table of the rows."""
    shares: tuple[Shares, ...]
    """Of the whole face and of its parts."""
    better_identity: float
    """Mean error with the identity of that photo of the pair which is better on each scan, millimetres: the limit of
    choosing among photos."""

    def table(self) -> str:
        """Both tables."""
        header = ["part", "correlation of the errors", "mean of both, true change", "change seen, alone", "together",
                  "noise"]  # fmt: skip
        cells = [
            [s.part, f"{s.correlation:.2f}", f"{100 * (s.bound - 1):+.0f} %", f"{s.change_seen:.2f}",
             f"{s.joint_change_seen:.2f}", f"{100 * s.noise:.1f} %"]
            for s in self.shares
        ]  # fmt: skip
        return f"{self.rows}\n\nBetter identity of each pair: {self.better_identity:.2f} mm.\n\n" + markdown_table(
            header, cells
        )


class Normals:
    """Displacements of the vertices along the normals of the mean face, without pose and size."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model
        weights = (1 - model.masks.neck) * (1 - model.masks.eyes)
        self._roots = weights.sqrt()[:, None]
        normals = vertex_normals(model.mean[None], model.triangles)[0]
        self._normals = normals / normals.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def __call__(self, shape: Shape) -> Float[Tensor, "V"]:
        """Displacements from the mean face, mm, times the root of the weight of each vertex."""
        offsets = (shape.vertices(self.model) - self.model.mean) * self._roots
        moved = remove_similarity(offsets[None], self.model.mean, weights=self._roots)[0]
        return 1000 * (moved * self._normals).sum(-1).double()


@dataclass(frozen=True)
class PairFaces:
    """The reconstructions of a pair."""

    alone: tuple[Shape, Shape]
    """Each photo alone."""
    together: tuple[Shape, Shape]
    """Both together; the shape alone for a photo that was left out."""
    pixels: tuple[Float[Tensor, "V 2"], Float[Tensor, "V 2"]]
    """Where each vertex is in each photo, with the centre of the first pixel at (0, 0)."""

    @classmethod
    def of(cls, reconstructor: Reconstructor, cases: Sequence[Case]) -> PairFaces:
        """Reconstruct the photos."""
        photos = [case.photo for case in cases]
        a, b = (reconstructor(photo)[0] for photo in photos)
        alone = Shape.of(a), Shape.of(b)
        first, second = reconstructor.joint(photos).faces
        together = (
            alone[0] if first is None else Shape.of(first),
            alone[1] if second is None else Shape.of(second),
        )
        pixels = (torch.from_numpy(face.xy.astype(np.float64)) - 0.5 for face in (a, b))
        return cls(alone, together, (next(pixels), next(pixels)))


def measure_pair(cases: Sequence[Case], faces: PairFaces, store: ErrorStore) -> PairMoments:
    """Score the rows of a pair, and find its sums."""
    model, own, true = cases[0].tools.model, faces.alone, [_true(case) for case in cases]
    for k, case in enumerate(cases):
        o, mean = 1 - k, own[k].towards(own[1 - k], 0.5)
        shapes = (
            own[k],
            faces.together[k],
            Shape(mean.identity, own[k].expression),
            Shape(own[o].identity, own[k].expression),
            Shape(true[k].identity, own[k].expression),
            Shape(own[k].identity, true[k].expression),
            Shape(true[o].identity, true[k].expression),
            mean.moved(true[o], true[k], 0.5),
        )
        for row, shape in zip(ROWS, shapes, strict=True):
            surface = Surface(1000 * shape.vertices(model).double(), model.triangles.long())
            # All rows start their alignment from the pixels of the same face.
            face = PredictedFace(surface, metric=True, pixels=faces.pixels[k])
            store.add(case.scan.name, row, case.score(face, points=POINTS, icp=ICP))
    normals = Normals(model)
    fields = [[normals(shape) for shape in shapes] for shapes in (own, faces.together, true)]
    return PairMoments(
        {
            part: Moments.of(*([values[inside] for values in pair] for pair in fields))
            for part, inside in _parts(cases[0]).items()
        }
    )


def _true(case: Case) -> Shape:
    return Shape(case.scan_face.identity, case.scan_face.expression)


def _parts(case: Case) -> dict[str, Bool[Tensor, "V"]]:
    """Vertices of the whole face, as far as the scan covers it, and of its regions."""
    at_mm, points = case.scan_face.vertices_mm(case.tools.model), case.scan.points
    region: Int[Tensor, "V"] = closest_regions(case.scan, at_mm)
    covered = torch.cdist(at_mm, points).amin(1) < COVERED_MM
    return {WHOLE: covered, **{name: covered & (region == k) for k, name in enumerate(PACK_REGIONS)}}


def measure_oracle(
    reconstructor: Reconstructor, pack: OwnScans, people: Sequence[Sequence[str]], store: ErrorStore
) -> OracleReport:
    """Measure the pairs that the store does not have yet, and sum up all of them."""
    tools, found = Tools(), []
    for names in people:
        path = store.folder / "pairs" / f"{names[0]}-{names[1]}.json"
        if not path.is_file():
            cases = [Case(tools, pack.scan(name)) for name in names]
            moments = measure_pair(cases, PairFaces.of(reconstructor, cases), store)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(moments), indent=1, allow_nan=False) + "\n")
        found.append(read_json(path, PairMoments))
    photos = [name for names in people for name in names]
    results = [store.result(row, base=ALONE, photos=photos) for row in ROWS]
    choices = [[store.rows_of(name)[row]["mean"] for row in (ALONE, OTHER_IDENTITY)] for name in photos]
    parts = (WHOLE, *PACK_REGIONS)
    return OracleReport(
        ladder_table([result for result in results if result is not None], PACK_REGIONS),
        tuple(Shares.of(part, [pair.parts[part] for pair in found]) for part in parts),
        float(np.mean([min(errors) for errors in choices])),
    )
