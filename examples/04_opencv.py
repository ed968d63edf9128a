"""Draw a reconstructed mesh over its photo with OpenCV.

Usage: python examples/04_opencv.py out/photo/face0 photo.jpg OUT.png

The folder has face.obj and coefficients.json (`mien reconstruct --formats obj,json`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np


def project(folder: Path) -> np.ndarray:
    """Pixels of all vertices, (V, 2), as OpenCV counts them: the centre of the first pixel is (0, 0)."""
    rows = (line.split() for line in (folder / "face.obj").read_text().splitlines())
    vertices = np.array([row[1:4] for row in rows if row[:1] == ["v"]], float)
    matrices = json.loads((folder / "coefficients.json").read_text())["matrices"]
    camera, view = np.array(matrices["camera"]), np.array(matrices["view"])
    camera[:2, 2] -= 0.5  # mien's (0, 0) is the corner of the first pixel
    scale = np.cbrt(np.linalg.det(view[:3, :3]))
    rotation, _ = cv2.Rodrigues(view[:3, :3] / scale)
    pixels, _ = cv2.projectPoints(vertices * scale, rotation, view[:3, 3], camera, None)
    return pixels[:, 0]


def main(folder: Path, photo: str, out: str) -> None:
    picture = cv2.imread(photo)
    for x, y in project(folder):
        cv2.circle(picture, (round(x), round(y)), 0, (80, 220, 80), -1)
    cv2.imwrite(out, picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
