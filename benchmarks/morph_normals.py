"""Errors of morph normals in the default view of a GLB, as single targets sum up and as the file has them, in degrees.

    python benchmarks/morph_normals.py FOLDER [FOLDER ...]

FOLDER is a result of `mien reconstruct` with the format npz. Vertices of drawn triangles only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mien import Reconstruction, load_model
from mien.evaluation.report import markdown_table
from mien.export.morph_targets import NORMAL_EPSILON, MorphTargets, moved_normals
from mien.export.rig import Rig, make_rig

LIMIT_DEG = 2.0


def errors(rig: Rig, targets: MorphTargets, weights: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Angles between the sum of base and weighted offsets and the surface's own normals."""
    shown = rig.base_normals.astype(float)
    for index in np.flatnonzero(weights).tolist():
        rows, offsets = targets.target(index)
        shown[rows] += weights[index] * offsets
    cosines = (shown * exact).sum(1) / np.linalg.norm(shown, axis=1)
    return np.degrees(np.arccos(cosines.clip(-1, 1)))[np.unique(rig.layout.triangles)]


def changed(rig: Rig, alone: MorphTargets) -> np.ndarray:
    """How far the correction turns each stored normal of a single target at full weight."""
    normals = rig.base_normals[alone.rows].astype(float)
    before, after = normals + alone.offsets, normals + rig.turned.offsets
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    return np.degrees(np.arccos(cosines.clip(-1, 1)))


def main(folders: Sequence[Path]) -> None:
    model, rows = load_model(), []
    for folder in folders:
        face = Reconstruction.load(folder)
        for part in ("face", "head"):
            rig = make_rig(face, model, part)
            alone = moved_normals(
                rig.moved, vertices=rig.base, normals=rig.base_normals, triangles=rig.layout.triangles,
                epsilon=NORMAL_EPSILON,
            )  # fmt: skip
            plain, mended = (errors(rig, targets, rig.weights, rig.shown_normals) for targets in (alone, rig.turned))
            single = changed(rig, alone)
            rows.append([
                folder.parent.name, part, f"{100 * (plain > LIMIT_DEG).mean():.1f} %", f"{plain.max():.1f}",
                f"{mended.max():.2f}", f"{100 * (single > LIMIT_DEG).mean():.1f} %", f"{np.percentile(single, 99):.1f}",
            ])  # fmt: skip
    header = ["face", "part", "sum: above 2°", "worst", "file: worst", "single targets changed above 2°", "99 %"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
