"""Caliper dimensions of the face and their published means and standard deviations.

Targets: Zhuang and Bradtmiller, Head-and-face anthropometric survey of U.S. respirator users, J. Occup. Environ.
Hyg. 2(11):567-576, 2005 (NIOSH survey of 2003, 2,543 men and 1,454 women, U.S. Government work). Men and women count
equally here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from surface import vertex_normals


@dataclass(frozen=True)
class Target:
    """Mean and standard deviation in millimetres, men then women."""

    name: str
    men: tuple[float, float]
    women: tuple[float, float]

    @property
    def mean(self) -> float:
        return (self.men[0] + self.women[0]) / 2

    @property
    def sd(self) -> float:
        """Of the half-and-half mixture."""
        within = (self.men[1] ** 2 + self.women[1] ** 2) / 2
        return float(np.sqrt(within + ((self.men[0] - self.women[0]) / 2) ** 2))


NIOSH = (
    Target("menton-sellion length", (122.7, 7.0), (113.4, 6.1)),
    Target("subnasale-sellion length", (52.0, 4.1), (48.2, 3.8)),
    Target("nose protrusion", (21.1, 2.7), (19.8, 2.7)),
    Target("nose breadth", (36.6, 4.1), (33.2, 3.9)),
    Target("lip length", (51.1, 4.2), (48.0, 4.0)),
    Target("interpupillary distance", (64.5, 3.6), (61.9, 3.5)),
    Target("bizygomatic breadth", (143.5, 6.9), (135.1, 6.5)),
    Target("bigonial breadth", (120.4, 10.4), (110.1, 8.9)),
    Target("minimum frontal breadth", (105.5, 5.7), (102.9, 5.4)),
)


@dataclass(frozen=True)
class Measures:
    """Each dimension as the distance between two vertices of the mesh, in the order of NIOSH."""

    ends: np.ndarray
    """(9, 2)"""

    def of(self, shape: np.ndarray) -> np.ndarray:
        """Dimensions (..., 9) of shapes (..., V, 3)."""
        return np.linalg.norm(shape[..., self.ends[:, 0], :] - shape[..., self.ends[:, 1], :], axis=-1)

    def gradient(self, shape: np.ndarray) -> np.ndarray:
        """Derivative (9, V, 3) of the dimensions by the vertices."""
        between = shape[self.ends[:, 0]] - shape[self.ends[:, 1]]
        unit = between / np.linalg.norm(between, axis=1, keepdims=True)
        gradient = np.zeros((len(self.ends), *shape.shape))
        row = np.arange(len(self.ends))
        gradient[row, self.ends[:, 0]] += unit
        gradient[row, self.ends[:, 1]] -= unit
        return gradient


def pupils(triangles: np.ndarray, eye: np.ndarray, shape: np.ndarray) -> tuple[int, int]:
    """Poles of the left and the right eye cap, where its meridians meet."""
    count = np.bincount(triangles.ravel(), minlength=len(shape)) * eye
    left, right = (int((count * (side * shape[:, 0] > 0)).argmax()) for side in (1, -1))
    return left, right


def place_measures(
    shape: np.ndarray, *, triangles: np.ndarray, mirror: np.ndarray, eye: np.ndarray, hidden: np.ndarray,
    table: np.ndarray,
) -> Measures:  # fmt: skip
    """Find the anthropometric landmarks on a symmetric mean shape with its 68 vertices `table`.

    `eye` (V,) masks the eye caps, `hidden` (V,) the inside of the mouth.
    """
    normals = vertex_normals(shape, triangles)
    vertices = np.arange(len(shape))
    skin = ~(eye | hidden)
    middle = skin & (mirror == vertices)
    left = skin & (shape[:, 0] > 1e-6)
    x, y, z = shape.T
    nose_tip, under_nose, chin = shape[table[30]], shape[table[33]], shape[table[8]]
    corner, mouth_corner = shape[table[45]], shape[table[54]]

    def pick(mask: np.ndarray, score: np.ndarray) -> int:
        candidates = np.flatnonzero(mask)
        if not len(candidates):
            raise ValueError("an anthropometric landmark was not found on the mean face")
        return int(candidates[score[candidates].argmax()])

    # Sellion: the nasal root is straight for a centimetre above iBUG's point 27, and its deepest point, which the
    # survey's calipers touched, nowhere sharp; two millimetres above 27 both lengths from it agree with ICT's mean.
    sellion = pick(middle & (z > corner[2]), -np.abs(y - shape[table[27], 1] - 2))
    pronasale = pick(middle & (np.abs(y - nose_tip[1]) < 8), z)
    subnasale = int(table[33])
    # Menton: lowest point of the chin, where its surface faces down and a little forward.
    faces_down = -np.abs(normals[:, 1] + 0.85) - 0.001 * np.abs(y - chin[1])
    menton = pick(middle & (y < chin[1] + 8) & (z > chin[2] - 25), faces_down)
    alare = pick(
        left & (np.abs(y - under_nose[1] - 5) < 9) & (z > under_nose[2] - 9) & (x < 28) & (normals[:, 0] > 0.8), x
    )

    def place(height: float, depth: float) -> int:
        """Vertex of the left side at a height and a depth measured from the outer corner of the eye."""
        return pick(left & (x > 30), -np.hypot(y - corner[1] - height, z - corner[2] - depth))

    # The bony landmarks leave no mark on the skin; they are placed by their usual relation to the eye's corner: the
    # arch of the cheekbone, the angle of the jaw, and frontotemporale on the temporal crest above the brow's end. On
    # ICT-FaceKit's mean the same rules give 141, 119 and 104 mm.
    zygion = place(-18.0, -40.0)
    gonion = place(mouth_corner[1] - corner[1] - 10.0, -44.0)
    crest = place(22.0, -1.0)
    pupil = pupils(triangles, eye, shape)[0]

    def both(vertex: int) -> tuple[int, int]:
        return vertex, int(mirror[vertex])

    ends = (
        (sellion, menton), (sellion, subnasale), (pronasale, subnasale), both(alare),
        both(int(table[54])), both(pupil), both(zygion), both(gonion), both(crest),
    )  # fmt: skip
    return Measures(np.array(ends))
