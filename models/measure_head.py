"""Dimensions of the packaged head against published ones: the table of docs/head.md.

    python models/measure_head.py

Published: ANSUR II, the 2012 anthropometric survey of U.S. Army personnel (Gordon et al. 2014), from its public data of
4,082 men and 1,986 women; here half and half. Beside it the mean head, and mean and standard deviation of 100 random
people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from draw_head import shape_of
from scipy.spatial import ConvexHull

from mien.morphable import HeadModel, MorphableModel, load_head, load_model

PEOPLE = 100
EAR_MM = np.array([[75.0, -48.0, -102.0], [95.0, 25.0, -45.0]])
"""Corners of a box around the left ear of the mean head, outside the skull beside it."""
BACK_MM = -60.0
"""Skin behind this and above `NECK_MM` is the back of the head."""
NECK_MM = -30.0
TAPE_MM = 3.0
"""Half the width of the tape that measures the circumference."""


@dataclass(frozen=True)
class Skin:
    """The skin of one head in millimetres."""

    skull: np.ndarray
    """(N, 3) without the ears."""
    ear: np.ndarray
    """(M, 3) the left one."""
    glabella: np.ndarray

    @property
    def back(self) -> np.ndarray:
        """The point of the back of the head that is farthest from the glabella."""
        behind = self.skull[(self.skull[:, 2] < BACK_MM) & (self.skull[:, 1] > NECK_MM)]
        return behind[np.linalg.norm(behind - self.glabella, axis=1).argmax()]


def head_length(skin: Skin) -> float:
    return float(np.linalg.norm(skin.back - skin.glabella))


def head_breadth(skin: Skin) -> float:
    return float(np.ptp(skin.skull[skin.skull[:, 1] > skin.glabella[1], 0]))


def head_circumference(skin: Skin) -> float:
    """Around glabella and back, over all hollows as a tape."""
    slope = (skin.back[1] - skin.glabella[1]) / (skin.back[2] - skin.glabella[2])
    height = skin.skull[:, 1] - skin.glabella[1] - slope * (skin.skull[:, 2] - skin.glabella[2])
    ring = skin.skull[np.abs(height) < TAPE_MM][:, [0, 2]] * [1, np.hypot(1, slope)]
    return float(ConvexHull(ring).area)  # in the plane: the perimeter


def tragion_to_top(skin: Skin) -> float:
    """The tragion is at half the height of the ear."""
    return float(skin.skull[:, 1].max() - (skin.ear[:, 1].max() + skin.ear[:, 1].min()) / 2)


def ear_length(skin: Skin) -> float:
    top, bottom = (skin.ear[row] for row in (skin.ear[:, 1].argmax(), skin.ear[:, 1].argmin()))
    return float(np.linalg.norm(top - bottom))


@dataclass(frozen=True)
class Dimension:
    """A published dimension, mean and standard deviation of men and women in millimetres, and how it is measured."""

    name: str
    men: tuple[float, float]
    women: tuple[float, float]
    measure: Callable[[Skin], float]

    @property
    def mean(self) -> float:
        return (self.men[0] + self.women[0]) / 2

    @property
    def sd(self) -> float:
        """Of the half-and-half mixture."""
        within = (self.men[1] ** 2 + self.women[1] ** 2) / 2
        return float(np.sqrt(within + ((self.men[0] - self.women[0]) / 2) ** 2))


DIMENSIONS = (
    Dimension("head length", (199.5, 7.0), (189.8, 7.4), head_length),
    Dimension("head breadth", (154.3, 5.5), (147.8, 5.2), head_breadth),
    Dimension("head circumference", (574.4, 16.0), (561.1, 19.4), head_circumference),
    Dimension("tragion to top of head", (131.1, 6.2), (126.5, 6.5), tragion_to_top),
    Dimension("ear length", (64.2, 4.5), (59.4, 3.9), ear_length),
)


class HeadMeasures:
    """Measures heads of one model."""

    def __init__(self, model: MorphableModel, head: HeadModel) -> None:
        self._model, self._head = model, head
        rows = head.part("skin").vertices.unique().numpy()
        mean = shape_of(model, head, torch.zeros(1, model.counts[0]))[rows]
        beside = (mean[:, 1] > EAR_MM[0, 1]) & (mean[:, 1] < EAR_MM[1, 1])
        beside &= (mean[:, 2] > EAR_MM[0, 2]) & (mean[:, 2] < EAR_MM[1, 2]) & (np.abs(mean[:, 0]) > EAR_MM[0, 0])
        self._skull, self._ear = rows[~beside], rows[beside & (mean[:, 0] > 0)]
        brows = model.landmarks68[[21, 22]].numpy()
        middle = (np.abs(mean[:, 0]) < 0.1) & (mean[:, 2] > 0)
        height = model.mean[brows, 1].mean().item() * 1000
        self._glabella = rows[np.where(middle, np.abs(mean[:, 1] - height), np.inf).argmin()]

    def of(self, identity: torch.Tensor) -> list[float]:
        """All dimensions of a person with identity coefficients (1, K)."""
        shape = shape_of(self._model, self._head, identity)
        skin = Skin(shape[self._skull], shape[self._ear], shape[self._glabella])
        return [dimension.measure(skin) for dimension in DIMENSIONS]


def main() -> None:
    model = load_model()
    measures = HeadMeasures(model, load_head(model))
    count = model.counts[0]
    mean = measures.of(torch.zeros(1, count))
    people = np.array(
        [measures.of(torch.randn(1, count, generator=torch.Generator().manual_seed(seed))) for seed in range(PEOPLE)]
    )
    print("| mm | published | mean head | 100 random people |\n|---|---|---|---|")
    for k, dimension in enumerate(DIMENSIONS):
        spread = f"{people[:, k].mean():.1f} ± {people[:, k].std():.1f}"
        print(f"| {dimension.name} | {dimension.mean:.1f} ± {dimension.sd:.1f} | {mean[k]:.1f} | {spread} |")


if __name__ == "__main__":
    main()
