"""Ears, skull and neck from the face alone, against heads of ICT-FaceKit that the completion was not made from.

    python benchmarks/ict_head.py DATA [--heads 24]

`DATA` holds ict_facekit.npz. The identity of mien-face is fitted to the face of each random head (`fit` of
models/measure_face_model.py: closest points, ridge on the coefficients, no look at ears, scalp and neck); mien-head
completes it. The error is the distance from each vertex of ICT's head to the completed skin, per region, without any
further alignment, against the same of the mean head, placed by the same fit without coefficients. The mean head has the
shape of ICT's mean outside the face, so that the gain is that of the completion alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from mien.morphable import load_head, load_model
from mien.morphable.landmark_tables import IBUG_LEFT_EYE, IBUG_RIGHT_EYE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
from ict_head import INNER, SKIN_QUADS, SKIN_VERTICES
from measure_face_model import ASSET, EYE_DISTANCE, ICT_FACE_VERTICES, Head, fit, read_model
from surface import closest_points, similarity

SEED = 100
MM_PER_M, MM_PER_UNIT = 1000, 10
EAR_MM = np.array([[68.0, -48.0, -100.0], [95.0, 18.0, -48.0]])
"""Corners of a box around the left ear of ICT's mean head, in the place of ours; the right one is its mirror image."""
SKULL_MM, NECK_MM = -20.0, (-140.0, -50.0)
"""Heights above which the skull is, and between which the neck is."""
REGIONS = ("ears", "skull", "neck")


class Ict:
    """Heads of ICT-FaceKit in millimetres, skin only."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as pack:
            self.mean = pack["vertices"][:SKIN_VERTICES].astype(float) * MM_PER_UNIT
            self._deltas = pack["identity_deltas"][:, :SKIN_VERTICES].astype(float) * MM_PER_UNIT
            triangles = pack["triangles"][pack["triangle_to_quad"] < SKIN_QUADS]
            self.landmarks = pack["landmarks68"]
        self._face = triangles[(triangles < ICT_FACE_VERTICES).all(1)]

    def head(self, seed: int) -> tuple[np.ndarray, Head]:
        """A random head with eyes `EYE_DISTANCE` apart, and the part of it that a fit sees."""
        coefficients = np.random.default_rng(seed).normal(size=len(self._deltas))
        skin = self.mean + np.tensordot(coefficients, self._deltas, axes=1)
        points = skin[self.landmarks]
        scale = EYE_DISTANCE / np.linalg.norm(points[IBUG_RIGHT_EYE].mean(0) - points[IBUG_LEFT_EYE].mean(0))
        return skin * scale, Head(skin[:ICT_FACE_VERTICES] * scale, self._face, points * scale)


class Skin:
    """The skin of mien-head."""

    def __init__(self) -> None:
        self._model = load_model()
        self._head = load_head(self._model)
        part = self._head.part("skin")
        self.triangles = part.vertices[part.triangles].numpy()
        self.face_count = len(self._model.mean)
        self.landmarks = self._model.landmarks68.numpy()

    def of(self, coefficients: np.ndarray) -> np.ndarray:
        """All vertices of a person in millimetres, the face's first."""
        count, expression = self._model.counts[0], torch.zeros(1, self._model.counts[1])
        identity = torch.zeros(1, count)
        identity[0, : len(coefficients)] = torch.from_numpy(coefficients)
        parts = [self._model.vertices(identity, expression), self._head.own_vertices(identity, expression)]
        return torch.cat(parts, dim=1)[0].double().numpy() * MM_PER_M


def regions_of(ict: Ict, skin: Skin) -> dict[str, np.ndarray]:
    """Masks of ICT's vertices whose place is on our outer skin."""
    mean = skin.of(np.zeros(0))
    scale, rotation, shift = similarity(ict.mean[ict.landmarks][INNER], mean[skin.landmarks][INNER])
    placed = scale * ict.mean @ rotation.T + shift
    hits = closest_points(placed, mean, skin.triangles)
    outer = (skin.triangles[hits.triangles] >= skin.face_count).all(1)
    x, y, z = np.abs(placed[:, 0]), placed[:, 1], placed[:, 2]
    box = np.stack([x, y, z], 1)
    ears = outer & (box > EAR_MM[0]).all(1) & (box < EAR_MM[1]).all(1)
    rest = outer & ~ears
    return {"ears": ears, "skull": rest & (y > SKULL_MM), "neck": rest & (y > NECK_MM[0]) & (y < NECK_MM[1])}


def placed_on(target: np.ndarray, whole: np.ndarray, face_count: int) -> np.ndarray:
    """All vertices (W, 3) moved so that those of the face lie on `target` (V, 3), which are the same, moved."""
    scale, rotation, shift = similarity(whole[:face_count], target)
    return scale * whole @ rotation.T + shift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with ict_facekit.npz")
    parser.add_argument("--heads", type=int, default=24)
    arguments = parser.parse_args()
    ict, skin, face_model = Ict(arguments.data / "ict_facekit.npz"), Skin(), read_model(ASSET)
    regions = regions_of(ict, skin)
    errors = np.zeros((2, arguments.heads, len(REGIONS)))
    for k in range(arguments.heads):
        target, seen = ict.head(SEED + k)
        for row, components in enumerate((0, face_model.identity.shape[2])):
            fitted, coefficients = fit(face_model, seen, components)
            shape = placed_on(fitted, skin.of(coefficients), skin.face_count)
            for column, name in enumerate(REGIONS):
                errors[row, k, column] = closest_points(target[regions[name]], shape, skin.triangles).distances.mean()
    mean, completed = errors.mean(1)
    better = (errors[1] < errors[0]).sum(0)
    print(f"{arguments.heads} heads of ICT-FaceKit, eyes {EYE_DISTANCE:g} mm apart, mean distance in mm\n")
    print("| region | mean head | completed from the face | difference | better on |\n|---|---|---|---|---|")
    for k, name in enumerate(REGIONS):
        change = 100 * (completed[k] / mean[k] - 1)
        print(f"| {name} | {mean[k]:.2f} | {completed[k]:.2f} | {change:+.0f} % | {better[k]} of {arguments.heads} |")


if __name__ == "__main__":
    main()
